"""Shows what one attention layer looks at in an image, and where the evidence for a class is.

Everything is the model's own: keys come from the tables that it gathers with, weights from the function that its layers
use (GatheredAttention.attention_weights). It runs op by op (runtime.mode=pynative), so that hooks see the tensors.
"""

from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from focal_twins.errors import UserError
from focal_twins.models.attention import GatheredAttention
from focal_twins.models.backbones.backbone import Backbone
from focal_twins.models.backbones.focal_windows import padded_size
from focal_twins.models.backbones.twins import GlobalSubsampledAttention, LocallyGroupedAttention

MASKED = -50  # position biases below this are masks


@dataclass(frozen=True)
class BlockAddress:
    """Identifies a block by its stage and its number within the stage, both from 0."""

    stage: int
    block: int

    @classmethod
    def parse(cls, text: str) -> "BlockAddress":
        """Read an address from text: "1.0" is the first block of the second stage.

        Raises:
            ValueError: not two numbers.
        """
        stage, block = map(int, text.split("."))
        return cls(stage, block)

    def __str__(self) -> str:
        return f"{self.stage}.{self.block}"

    def of(self, model: Backbone) -> nn.Cell:
        """Return the block of a model that has this address.

        Raises:
            UserError: the model has no such block.
        """
        depths = model.depths
        if not (0 <= self.stage < len(depths) and 0 <= self.block < depths[self.stage]):
            last = ", ".join(f"{stage}.{depth - 1}" for stage, depth in enumerate(depths))
            raise UserError(f"layer {self}: no such block; the last of each stage are {last}")
        return model.stage_blocks(self.stage)[self.block]


@dataclass(frozen=True)
class KeyGroup:
    """Holds the keys of one granularity that a query window has.

    Attributes:
        name: what the keys are.
        covers: for each key the tokens of the map that it stands for, none for padding and for masked keys.
        weights: [heads, queries, keys] of the attention.
    """

    name: str
    covers: list[np.ndarray]
    weights: np.ndarray

    @property
    def size(self) -> int:
        """Return the largest number of tokens that a key stands for."""
        return max((len(cover) for cover in self.covers), default=0)

    def share(self) -> float:
        """Return the part of the attention that goes to these keys, as a mean over heads and queries."""
        return float(self.weights.sum(-1).mean())

    def density(self, map_size: tuple[int, int]) -> np.ndarray:
        """Return the attention on each token of the map, [H, W], as a mean over heads and queries.

        A key's is spread over the tokens it covers. The sum is `share`, less the part of padding and masked keys.
        """
        result = np.zeros(map_size[0] * map_size[1])
        for cover, weight in zip(self.covers, self.weights.mean((0, 1)), strict=True):
            np.add.at(result, cover, weight / max(len(cover), 1))
        return result.reshape(map_size)

    def labels(self, map_size: tuple[int, int]) -> np.ndarray:
        """Return which key stands for each token, [H, W] int: the last of several keys, -1 for none."""
        result = np.full(map_size[0] * map_size[1], -1)
        for key, cover in enumerate(self.covers):
            result[cover] = key
        return result.reshape(map_size)


@dataclass(frozen=True)
class AttentionView:
    """Holds one window's attention in one layer.

    Attributes:
        map_size: (H, W) of the layer's map, in tokens.
        window: the tokens of the query window, all of the map for global attention.
        queries: the tokens of the window whose attention is shown.
        groups: the window's keys, from fine to coarse.
        kind: name of the attention.
    """

    address: BlockAddress
    map_size: tuple[int, int]
    window: np.ndarray
    queries: np.ndarray
    groups: list[KeyGroup]
    kind: str

    def density(self) -> np.ndarray:
        """Return the attention on each token, [H, W], summed over all granularities."""
        return np.sum([group.density(self.map_size) for group in self.groups], axis=0)


@dataclass(frozen=True)
class Observation:
    """Records the tensors that passed through a model while it classified one image.

    Attributes:
        logits: [classes].
        inputs: of the attention observed, without its dropout seed.
        output: of that attention.
        features: [L, C] of the block whose output was observed.
        gradient: [L, C] of the chosen class's logit by `features`.
        label: the chosen class.
    """

    logits: np.ndarray
    inputs: tuple[Tensor, ...]
    output: Tensor
    features: np.ndarray
    gradient: np.ndarray
    label: int


class OutputProbe(nn.Cell):
    """Wraps a block, keeps its output and adds `offset` to it; the gradient by `offset` is that by the output."""

    def __init__(self, block: nn.Cell, shape: tuple[int, ...]):
        super().__init__(auto_prefix=False)
        self.block = block
        self.offset = Parameter(Tensor(np.zeros(shape, np.float32)), name="offset")
        self.output: Any = None  # a tensor after the first call

    def construct(self, x, drop_path=None, dropout_seed=None):
        self.output = self.block(x, drop_path, dropout_seed)
        return self.output + self.offset


def observe(
    model: Backbone, image: np.ndarray, layer: BlockAddress, cam: BlockAddress, label: int | None = None
) -> Observation:
    """Classify an image [1, C, H, W] and record what passes through two blocks; the model is left as it was.

    Args:
        layer: block whose attention to observe. cam: block whose output, and the gradient by it, to observe.
        label: the class of the gradient; None for the predicted one.

    Raises:
        UserError: the model has no such blocks.
    """
    attention, probed = layer.of(model).attn, cam.of(model)
    seen = {}

    def note(cell, inputs, output):
        seen["inputs"], seen["output"] = tuple(i for i in inputs if i is not None), output

    blocks = model.stage_blocks(cam.stage)
    channels = probed.norm1.gamma.shape[0]
    probe = OutputProbe(probed, (1, int(np.prod(model.stage_map(cam.stage))), channels))
    handle = attention.register_forward_hook(note)
    blocks[cam.block] = probe
    try:
        logits = model(Tensor(image)).asnumpy()[0]
        features = probe.output.asnumpy()[0]
        label = int(logits.argmax()) if label is None else label

        def logit(images):
            return model(images)[0, label]

        (gradient,) = ms.grad(logit, None, [probe.offset])(Tensor(image))
    finally:
        blocks[cam.block] = probed
        handle.remove()
    return Observation(logits, seen["inputs"], seen["output"], features, gradient.asnumpy()[0], label)


def grad_cam(observation: Observation, map_size: tuple[int, int]) -> np.ndarray:
    """Return the evidence for the class at each token, [H, W], at least 0 (arXiv 1610.02391, equations 1 and 2)."""
    channel_weights = observation.gradient.mean(0)
    return np.maximum(observation.features @ channel_weights, 0).reshape(map_size)


def attention_weights(attention: nn.Cell, inputs: tuple[Tensor, ...]) -> np.ndarray:
    """Compute a layer's weights [windows, heads, queries, keys] from the inputs that it was observed with."""
    if isinstance(attention, GlobalSubsampledAttention):
        return attention.attention_weights(inputs[0], attention.subsampled(inputs[0])).asnumpy()
    if isinstance(attention, LocallyGroupedAttention):
        tokens = attention.tokens(inputs[0])
        inputs = (tokens, tokens)
    return attention.attention_weights(*inputs).asnumpy()


def token_covers(block: nn.Cell, length: int) -> list[np.ndarray]:
    """List the tokens of the map that each row of a block's token matrix stands for: itself, none, or many pooled.

    Args:
        length: tokens of the map; the row behind them is padding, where there is any.
    """
    covers = [np.array([token]) for token in range(length)]
    if block.padded:
        covers.append(np.array([], int))
    for pool in block.pool_layers:
        covers += [np.unique(part[part < length]) for part in pool.part_index]
    return covers


def view(
    model: Backbone,
    layer: BlockAddress,
    inputs: tuple[Tensor, ...],
    window: tuple[int, int] | None = None,
    token: int | None = None,
    head: int | None = None,
) -> AttentionView:
    """Return the attention of a window, or of one token, in a layer.

    Args:
        inputs: those that the layer's attention was observed with.
        window: (row, column) among the layer's windows; without it and without `token`, the one in the middle.
        token: number of a token of the layer's map, the only query then; the window is the one that holds it.
        head: number of the head; None for all.

    Raises:
        UserError: no such window or head; a window of attention that has none.
    """
    block, map_size = layer.of(model), model.stage_map(layer.stage)
    attention = block.attn
    if head is not None and not 0 <= head < attention.num_heads:
        raise UserError(f"--head {head}: layer {layer} has heads 0 to {attention.num_heads - 1}")
    weights = attention_weights(attention, inputs)
    length = map_size[0] * map_size[1]
    if isinstance(attention, GlobalSubsampledAttention):
        if window is not None:
            raise UserError(f"--window: layer {layer} attends globally and has no windows; use --point")
        token = middle(map_size) if token is None else token
        everything = np.arange(length)
        covers = subsampled_covers(map_size, attention.sr_ratio)
        name = "the whole map" if attention.sr_ratio == 1 else "subsampled tokens of the whole map"
        groups = [KeyGroup(name, covers, _heads(weights[0], head)[:, [token]])]
        return AttentionView(layer, map_size, everything, np.array([token]), groups, "global sub-sampled attention")

    number = _window_number(attention, layer, map_size, window, token)
    own = attention.query_index[number]
    shown = own < length if token is None else own == token
    weights = _heads(weights[number], head)[:, shown]
    rows = attention.key_index[number]
    if isinstance(attention, LocallyGroupedAttention):
        covers, kind = (
            [np.array([t]) if t < length else np.array([], int) for t in range(length + 1)],
            "locally-grouped attention",
        )
    else:
        covers, kind = token_covers(block, length), "focal attention"
    masked = _masked(attention, number)[shown].all(0)
    groups, first = [], 0
    for name, count in attention.key_groups():
        keys = range(first, first + count)
        of_keys = [np.array([], int) if masked[key] else covers[rows[key]] for key in keys]
        groups.append(KeyGroup(name, of_keys, weights[..., first : first + count]))
        first += count
    return AttentionView(layer, map_size, own[own < length], own[shown], groups, kind)


def middle(map_size: tuple[int, int]) -> int:
    """Return the token in the middle of a map."""
    return map_size[0] // 2 * map_size[1] + map_size[1] // 2


def token_at(point: tuple[float, float], img_size: tuple[int, int], map_size: tuple[int, int]) -> int:
    """Return the token of a map (H, W) at a point (x, y) of the model's input (height, width)."""
    column, row = int(point[0] * map_size[1] / img_size[1]), int(point[1] * map_size[0] / img_size[0])
    return row * map_size[1] + column


def subsampled_covers(map_size: tuple[int, int], ratio: int) -> list[np.ndarray]:
    """List the tokens behind each key of a map subsampled by a ratio; remainders below and to the right are in none."""
    tokens = np.arange(map_size[0] * map_size[1]).reshape(map_size)
    rows, columns = (side // ratio for side in map_size)
    return [
        tokens[row * ratio : (row + 1) * ratio, column * ratio : (column + 1) * ratio].ravel()
        for row in range(rows)
        for column in range(columns)
    ]


def _heads(weights: np.ndarray, head: int | None) -> np.ndarray:
    """Return the weights [heads, queries, keys] of all heads or of one."""
    return weights if head is None else weights[head : head + 1]


def _window_number(attention: GatheredAttention, layer, map_size, window, token) -> int:
    """Return the number of the window that (row, column) or a token names."""
    if window is None:
        token = middle(map_size) if token is None else token
        return int(np.argwhere(attention.query_index == token)[0, 0])
    side = int(np.sqrt(attention.window_area))
    rows, columns = (extent // side for extent in padded_size(map_size, side))
    row, column = window
    if not (0 <= row < rows and 0 <= column < columns):
        raise UserError(
            f"--window {row},{column}: layer {layer} has rows 0 to {rows - 1} and columns 0 to {columns - 1} of windows"
        )
    return row * columns + column


def _masked(attention: GatheredAttention, number: int) -> np.ndarray:
    """Tell for each query and key, [queries, keys], whether the mask of a window keeps them apart."""
    shape = (attention.window_area, attention.num_keys)
    if not getattr(attention, "masked", False):
        return np.zeros(shape, bool)
    mask = attention.mask.asnumpy()[attention.kind.asnumpy()[number], 0]
    return np.broadcast_to(mask < MASKED, shape)
