"""Layers shared by the model families. Feature maps travel as tokens, [B, L, C] with L = H * W in row-major order."""

import math
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, Uniform, initializer
from mindspore.ops.functional import is_sequence_value_unknown

from src.models.registry import ArgumentError

# The originals draw with timm's trunc_normal_(std=0.02), which cuts at the absolute values -2 and 2: a hundred standard
# deviations away, so it is a plain normal distribution.
WEIGHT_INIT = Normal(0.02)


class ImageClassifier(nn.Cell):
    """What the models have in common.

    A model sets img_size (height, width), in_chans, depths and drop_path_rates (two branches a block); gives by
    `stage_blocks(stage)` the CellList of a stage's blocks and by `stage_map(stage)` its (H, W); and says by
    `block_index(name)` where in the network a parameter or layer is: 0 for the patch embedding, i for what belongs with
    the i-th block, counted over all stages from 1, and one more than there are blocks for the final norm and the head.
    """

    drop_path_rates: list[float]

    def freeze(self, stages: int) -> None:
        """Keep the patch embedding and the first stages, with the downsampling after them, as they are; 0: none.

        They get no gradients, and neither stochastic depth nor dropout, which are there to regularise what is learned.
        Call before an optimizer is built or a graph compiled.
        """
        if stages == 0:
            return
        last = sum(self.depths[:stages])
        for parameter in self.get_parameters():
            if self.block_index(parameter.name) <= last:
                parameter.requires_grad = False
        for name, cell in self.cells_and_names():
            if isinstance(cell, DropPath | Dropout) and self.block_index(name) <= last:
                cell.rate = 0.0
        self.drop_path_rates = [0.0 if branch < 2 * last else rate for branch, rate in enumerate(self.drop_path_rates)]

    def draw_drop_path(self, generator: np.random.Generator, batch_size: int) -> Tensor | None:
        """Stochastic-depth scales for one training step, or None for a model without stochastic depth."""
        if not any(self.drop_path_rates):
            return None
        return Tensor(draw_drop_path(self.drop_path_rates, generator, batch_size))

    def check_images(self, images):
        """Raises ValueError, when the graph is compiled, for images of another size than the model's."""
        if images.shape[1:] != (self.in_chans, *self.img_size):
            raise ValueError(
                f"images of shape {images.shape[1:]} for a model of {self.in_chans} channels, height "
                f"{self.img_size[0]} and width {self.img_size[1]}; build it with another img_size"
            )


def check_common_arguments(
    arguments: dict, rates: tuple[str, ...], positive: tuple[str, ...], per_stage: tuple[str, ...]
) -> None:
    """Refuse what no model can do.

    Args:
        rates: names of probabilities. positive: names of numbers, or lists of them, that must be at least 1.
        per_stage: names of lists with an entry for each stage, or None.

    Raises:
        ArgumentError: names the argument.
    """
    a = arguments
    if not a["depths"] or min(a["depths"]) < 1:
        raise ArgumentError("depths", f"must be the number of blocks of each stage, at least 1, got {a['depths']}")
    if not isinstance(a["img_size"], int) and len(a["img_size"]) != 2:
        raise ArgumentError("img_size", f"must be one side or [height, width], got {a['img_size']}")
    for key in ("img_size", "patch_size", "in_chans", "num_classes", *positive):
        if min(a[key] if isinstance(a[key], list | tuple) else [a[key]]) < 1:
            raise ArgumentError(key, f"must be at least 1, got {a[key]}")
    for key in per_stage:
        if a[key] is not None and len(a[key]) != len(a["depths"]):
            stages = len(a["depths"])
            raise ArgumentError(key, f"has {len(a[key])} entries for the {stages} stages of depths {a['depths']}")
    for key in rates:
        if not 0 <= a[key] < 1:
            raise ArgumentError(key, f"must be in [0, 1), got {a[key]}")
    if a["conv_implementation"] not in ("unfold", "conv2d"):
        raise ArgumentError("conv_implementation", f"must be unfold or conv2d, got {a['conv_implementation']!r}")


def image_size(img_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of an img_size argument."""
    return (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])


def dense(in_channels: int, out_channels: int, has_bias: bool = True) -> nn.Dense:
    """Linear layer initialised as the originals do: weights N(0, 0.02), bias zero."""
    return nn.Dense(in_channels, out_channels, weight_init=WEIGHT_INIT, bias_init="zeros", has_bias=has_bias)


def layer_norm(channels: int, epsilon: float = 1e-5) -> nn.LayerNorm:
    """LayerNorm over the last axis with PyTorch's default epsilon (MindSpore's own default differs)."""
    return nn.LayerNorm((channels,), epsilon=epsilon)


class SlicedDense(nn.Cell):
    """Several linear layers of equal size in one weight, [parts * dim, dim], applied one at a time.

    The originals multiply by the whole weight and cut q, k and v out of the product. Here the weight is cut instead:
    slicing the product took 24% of inference time in a prototype, and tokens that are keys alone need no queries.
    """

    def __init__(self, dim, parts, has_bias=True):
        super().__init__()
        self.dim = dim
        self.weight = Parameter(initializer(WEIGHT_INIT, (parts * dim, dim), ms.float32), name="weight")
        self.has_bias = has_bias
        if has_bias:
            self.bias = Parameter(initializer("zeros", (parts * dim,), ms.float32), name="bias")
        self.matmul = ops.MatMul(transpose_b=True)
        self.add_bias = ops.BiasAdd()

    def construct(self, rows, part):
        """rows [R, C] by the part-th layer: [R, C]."""
        start = part * self.dim
        # Mixed precision casts parameters, not slices of them: the slices follow the activations.
        projected = self.matmul(rows, self.weight[start : start + self.dim].astype(rows.dtype))
        if self.has_bias:
            projected = self.add_bias(projected, self.bias[start : start + self.dim].astype(rows.dtype))
        return projected


class Conv2d(nn.Cell):
    """2-D convolution of a [B, C, H, W] map that returns tokens [B, L, out_channels].

    On CPU MindSpore's convolution is a naive kernel (700 ms for the stem at batch 8 where im2col and a matrix product
    take 5), so the default gathers patches with `ops.unfold`. `implementation="conv2d"` uses the real operator: the
    better choice on Ascend's cube unit, and the only one ONNX can express. Weights and results are the same.

    Initialisation is PyTorch's default for convolutions, which the Focal originals leave as it is: U(-b, b) with
    b = 1 / sqrt(fan_in), for weight and bias alike. `fan_out_init=True` is Twins': weights N(0, sqrt(2 / fan_out)) with
    fan_out = out_channels * kernel_size^2 / groups, bias zero.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride,
        padding=0,
        implementation="unfold",
        depthwise=False,
        fan_out_init=False,
    ):
        super().__init__()
        kernel_area = kernel_size * kernel_size
        groups = in_channels if depthwise else 1
        fan_in = in_channels // groups * kernel_area
        bound = Uniform(1 / math.sqrt(fan_in))
        weight_init = Normal(math.sqrt(2 * groups / (out_channels * kernel_area))) if fan_out_init else bound
        shape = (out_channels, in_channels // groups, kernel_size, kernel_size)
        self.weight = Parameter(initializer(weight_init, shape, ms.float32), name="weight")
        self.bias = Parameter(initializer("zeros" if fan_out_init else bound, (out_channels,), ms.float32), name="bias")
        self.kernel_size = kernel_size
        self.kernel_area = kernel_area
        self.stride = stride
        self.padding = padding
        self.out_channels = out_channels
        self.fan_in = fan_in
        self.depthwise = depthwise
        self.unfold = implementation == "unfold"
        self.add_bias = ops.BiasAdd()
        kernel = (kernel_size, kernel_size)  # a pair: MindSpore's ONNX exporter cannot read a single number
        self.conv2d = ops.Conv2D(out_channels, kernel, pad_mode="pad", pad=padding, stride=stride, group=groups)

    def construct(self, x):
        if self.unfold:
            patches = ops.unfold(x, self.kernel_size, padding=self.padding, stride=self.stride)  # [B, C * k * k, L]
            if self.depthwise:
                patches = patches.reshape((-1, self.out_channels, self.kernel_area, patches.shape[2]))
                weight = self.weight.reshape((self.out_channels, self.kernel_area, 1)).astype(x.dtype)
                tokens = (patches * weight).sum(2).transpose((0, 2, 1))  # [B, L, out]
            else:
                weight = self.weight.reshape((self.out_channels, self.fan_in)).astype(x.dtype)
                tokens = ops.matmul(patches.transpose((0, 2, 1)), weight.transpose((1, 0)))  # [B, L, out]
        else:
            maps = self.conv2d(x, self.weight)  # [B, out, H', W']
            length = maps.shape[2] * maps.shape[3]
            tokens = maps.reshape((-1, self.out_channels, length)).transpose((0, 2, 1))  # [B, L, out]
        rows = self.add_bias(tokens.reshape((-1, self.out_channels)), self.bias.astype(tokens.dtype))
        return rows.reshape((-1, *tokens.shape[1:]))


class PatchEmbed(nn.Cell):
    """Stem and downsampling between stages: [B, C, H, W] to tokens [B, L, embed_dim]; convolution, then LayerNorm.

    PatchEmbed in the originals of both families. `pre_norm` normalises the input map (Focal's use_pre_norm).
    """

    def __init__(
        self,
        in_chans,
        embed_dim,
        kernel_size,
        stride,
        padding=0,
        norm=True,
        pre_norm=False,
        fan_out_init=False,
        conv_implementation="unfold",
    ):
        super().__init__()
        self.pre_norm = nn.GroupNorm(1, in_chans, eps=1e-5) if pre_norm else None
        self.proj = Conv2d(
            in_chans, embed_dim, kernel_size, stride, padding, conv_implementation, fan_out_init=fan_out_init
        )
        self.norm = layer_norm(embed_dim) if norm else None

    def construct(self, x):
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        x = self.proj(x)
        if self.norm is not None:
            x = self.norm(x)
        return x


class RowGather(nn.Cell):
    """Rows of every sample's matrix by a static table: [B, R, D] to [B, n, D].

    The batch becomes part of the row number: the gradient of a gather along the first axis is a plain scatter-add,
    along another it is wrapped in two transposes (2.3 times as slow, forward and backward together). A batch of unknown
    size, as exported models have, is left alone.
    """

    def __init__(self, index: np.ndarray):
        """`index`: row numbers below R, of any shape; they are used in row-major order."""
        super().__init__()
        self.index = Tensor(index.reshape(-1).astype(np.int32))

    def construct(self, rows):
        if is_sequence_value_unknown(rows.shape):
            return ops.gather(rows, self.index, 1)
        batch, count, width = rows.shape
        first = Tensor(np.arange(batch, dtype=np.int32) * count).reshape((-1, 1))
        index = (first + self.index.reshape((1, -1))).reshape(-1)  # [B * n]
        return ops.gather(rows.reshape((-1, width)), index, 0).reshape((batch, -1, width))


class GatheredAttention(nn.Cell):
    """Attention within windows that a table describes: queries and keys are rows of token matrices.

    A window has N queries and K keys, which may be any tokens and may repeat. Rows are gathered head by head, so that
    they arrive in the order of the batched products and nothing needs transposing; the results are gathered back into
    the order of the map.

    A subclass calls `set_tables`. If `has_bias`, it defines `position_bias()`, [kinds, heads, N, K], which is added to
    the scores of every window according to its kind.

    Args:
        index: tells the dropouts of a model apart, see Dropout.
    """

    has_bias = False

    def __init__(self, dim, num_heads, qkv_bias=True, qk_scale=None, attn_drop=0.0, proj_drop=0.0, index=0):
        super().__init__()
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = float(qk_scale or self.head_dim**-0.5)  # Focal's configs carry qk_scale: False
        self.qkv = SlicedDense(dim, 3, qkv_bias)
        self.proj = dense(dim, dim)
        self.attn_drop = Dropout(attn_drop, index)
        self.proj_drop = Dropout(proj_drop, index + 1)
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()
        self.folded_bias = None

    def set_tables(self, query_index: np.ndarray, key_index: np.ndarray, length: int, kind: np.ndarray | None = None):
        """Which tokens each window has.

        Args:
            query_index: [nW, N] row numbers of the queries; every token below `length` is one once. Numbers from
                `length` on are padding: their results are dropped.
            key_index: [nW, K] row numbers.
            kind: [nW] which of the position biases each window has; None: the first, second, ...
        """
        self.one_kind_each = kind is None
        self.kind = Tensor((np.arange(len(query_index)) if kind is None else kind).astype(np.int32))
        self.query_index, self.key_index = query_index, key_index  # to show: the graph has the tables below
        self.num_windows, self.window_area = query_index.shape
        self.num_keys = key_index.shape[1]
        self.length = length
        heads = np.arange(self.num_heads)
        self.pick_queries = RowGather(query_index[:, None] * self.num_heads + heads[:, None])  # [nW, heads, N]
        self.pick_keys = RowGather(key_index[:, None] * self.num_heads + heads[:, None])  # [nW, heads, K]
        place = np.argsort(query_index.reshape(-1), kind="stable")[:length]  # of every token among the queries
        window, query = np.divmod(place, self.window_area)
        # The result of (window, head, query) is row (window * heads + head) * N + query.
        self.restore = RowGather((window[:, None] * self.num_heads + heads) * self.window_area + query[:, None])

    def heads_of(self, rows, pick, count):
        """Tokens [B, T, C] to [B * nW, heads, count, head_dim]."""
        rows = rows.reshape((-1, rows.shape[1] * self.num_heads, self.head_dim))  # [B, T * heads, head_dim]
        return pick(rows).reshape((-1, self.num_heads, count, self.head_dim))

    def fold_position_bias(self):
        """Make the position bias of the present weights a constant, for an exported model: what computes it goes."""
        if self.has_bias:
            self.folded_bias = Tensor(self.position_bias().asnumpy())

    def add_position_bias(self, scores):
        """To scores [B * nW, heads, N, K] of every window. A gather and a plain sum: on CPU a sum that repeats one of
        its sides takes twice as long, and holds four times its result for as long as the graph lives.
        """
        bias = self.position_bias() if self.folded_bias is None else self.folded_bias  # [kinds, heads, N, K]
        if is_sequence_value_unknown(scores.shape):
            windows = (-1, self.num_windows, self.num_heads, self.window_area, self.num_keys)
            of_windows = bias if self.one_kind_each else ops.gather(bias, self.kind, 0)  # [nW, heads, N, K]
            return (scores.reshape(windows) + of_windows).reshape((-1, self.num_heads, self.window_area, self.num_keys))
        kind = ops.tile(self.kind, (scores.shape[0] // self.num_windows,))  # [B * nW]
        return scores + ops.gather(bias, kind, 0)

    def key_groups(self) -> list[tuple[str, int]]:
        """What the keys of a window are, in order: a name and a number of keys for each kind."""
        return [("tokens of the window", self.num_keys)]

    def attention_weights(self, queries, tokens):
        """queries [B, L or more, C] and tokens [B, T, C], by the numbers of the tables, to [B * nW, heads, N, K].

        Weights of every query of every window on its keys; they sum to 1.
        """
        q = (self.qkv(queries.reshape((-1, self.dim)), 0) * self.scale).reshape((-1, *queries.shape[1:]))
        k = self.qkv(tokens.reshape((-1, self.dim)), 1).reshape((-1, *tokens.shape[1:]))
        q = self.heads_of(q, self.pick_queries, self.window_area)
        scores = self.scores(q, self.heads_of(k, self.pick_keys, self.num_keys))  # [B * nW, heads, N, K]
        if self.has_bias:
            scores = self.add_position_bias(scores)
        return ops.softmax(scores, -1)

    def attend(self, queries, tokens, dropout_seed):
        """queries [B, L or more, C] and tokens [B, T, C], by the numbers of the tables, to [B, L, C]."""
        weights = self.attn_drop(self.attention_weights(queries, tokens), dropout_seed)
        v = self.qkv(tokens.reshape((-1, self.dim)), 2).reshape((-1, *tokens.shape[1:]))
        weights = weights.reshape((-1, self.num_heads, self.window_area, self.num_keys)).astype(v.dtype)
        out = self.mix(weights, self.heads_of(v, self.pick_keys, self.num_keys))  # [B * nW, heads, N, head_dim]
        out = out.reshape((-1, self.num_windows * self.num_heads * self.window_area, self.head_dim))
        out = self.restore(out).reshape((-1, self.length, self.dim))  # [B, L, C]
        return self.proj_drop(self.proj(out), dropout_seed)


def with_padding_token(tokens):
    """[B, L, C] to [B, L + 1, C]: a last token of zeros, which stands for all padding of a map."""
    return ops.concat((tokens, tokens[:, :1] * 0), 1)  # a product, which ONNX can say; it has no ZerosLike


class DropPath(nn.Cell):
    """Stochastic depth (arXiv 1603.09382): in training, scales each sample's residual branch by 0 or 1 / keep.

    The scales are drawn outside the graph by `draw_drop_path` and passed in, so that they belong to (seed, update,
    rank) rather than to the state of an operator, and a resumed run draws what an uninterrupted one would have.
    """

    def __init__(self, rate: float, index: int):
        """`index` is this branch's row in the scales of `draw_drop_path`."""
        super().__init__()
        self.rate = rate
        self.index = index

    def construct(self, x, scales):
        if not self.training or self.rate == 0.0:
            return x
        if scales is None:
            raise ValueError("training with drop_path_rate > 0 needs drop_path=model.draw_drop_path(generator, batch)")
        # Spread over the sample first: on CPU a product that repeats one of its sides is slower and holds memory.
        spread = ops.tile(scales[self.index].reshape((-1, 1)), (1, x.shape[1] * x.shape[2])).reshape(x.shape)
        return x * spread.astype(x.dtype)


def draw_drop_path(rates: list[float], generator: np.random.Generator, batch_size: int) -> np.ndarray:
    """Scales for every DropPath of a model: [branches, batch_size] float32, each 0 or 1 / (1 - rate)."""
    keep = 1.0 - np.asarray(rates, dtype=np.float64)[:, None]
    kept = generator.random((len(rates), batch_size)) < keep
    return (kept / keep).astype(np.float32)


class Dropout(nn.Cell):
    """Dropout whose mask is a hash of (seed, layer, element): the same seed gives the same mask on any device.

    MindSpore's own operator keeps a hidden generator that a checkpoint cannot carry. The published recipes do not use
    dropout, so this favours being exact over being fast: two rounds of a 32-bit integer hash per element.
    """

    def __init__(self, rate: float, index: int):
        """`index` tells the dropouts of a model apart."""
        super().__init__()
        self.rate = rate
        self.salt = (index * 0x9E3779B1 + 0x7F4A7C15) % 2**31
        self.threshold = round(rate * 2**24)
        self.keep_scale = 1.0 / (1.0 - rate) if rate < 1.0 else 0.0

    def construct(self, x, seed):
        if not self.training or self.rate == 0.0:
            return x
        if seed is None:
            raise ValueError("training with dropout needs dropout_seed=<int32 scalar tensor>")
        element = Tensor(np.arange(x.size, dtype=np.int32)).reshape(x.shape)
        word = mix_bits(element ^ mix_bits(seed + self.salt))
        # 24 bits compare exactly; the sign bit is masked away.
        kept = (word & 0xFFFFFF) >= self.threshold
        return x * kept.astype(x.dtype) * self.keep_scale


def mix_bits(word):
    """Hash of int32 values: xor-shift and multiply, twice (the "lowbias32" constants), in int32 arithmetic."""
    word = (word ^ logical_shift(word, 16)) * 0x7FEB352D
    word = (word ^ logical_shift(word, 15)) * -2073254261  # 0x846CA68B as int32
    return word ^ logical_shift(word, 16)


def logical_shift(word, bits):
    """Shift int32 right, filling with zeros."""
    return (word // (2**bits)) & (2 ** (32 - bits) - 1)


class Gelu(nn.Cell):
    """Exact GELU (arXiv 1606.08415), x times the normal distribution function of x.

    With its own gradient, which keeps nothing but x: nn.GELU's holds four times the activation for as long as the graph
    lives on CPU, in inference too, and forward and backward together take 1.25 times as long.
    """

    def __init__(self):
        super().__init__()
        self.erf = ops.Erf()
        self.exp = ops.Exp()

    def distribution(self, x):
        return self.erf(x * 0.7071067811865476) * 0.5 + 0.5

    def construct(self, x):
        return x * self.distribution(x)

    def bprop(self, x, out, gradient):
        density = self.exp(x * x * -0.5) * 0.3989422804014327
        return (gradient * (self.distribution(x) + x * density),)


class ErfFreeGelu(nn.Cell):
    """GELU without the error function, for formats that lack it: x * sigmoid(x * P(x^2)).

    Within 7.4e-8 of the exact one before rounding. The polynomial was fitted on |x| <= 6.5; beyond, where the exact
    function is x or 0 to within 3e-10, sigmoid's argument is that of the end.
    """

    COEFFICIENTS = (
        1.59577012,
        7.26651268e-2,
        -6.40434163e-5,
        -1.11094282e-4,
        8.01844462e-6,
        -2.71711680e-7,
        3.71728930e-9,
    )
    LIMIT = 6.5

    def __init__(self):
        super().__init__()
        self.sigmoid = ops.Sigmoid()

    def construct(self, x):
        clipped = ops.minimum(ops.maximum(x, -self.LIMIT), self.LIMIT)
        squared = clipped * clipped
        polynomial = self.COEFFICIENTS[-1]
        for coefficient in self.COEFFICIENTS[-2::-1]:
            polynomial = polynomial * squared + coefficient
        return x * self.sigmoid(clipped * polynomial)


class Mlp(nn.Cell):
    """Two-layer perceptron with exact GELU (paper section 3.2; Mlp in the original files)."""

    def __init__(self, dim, hidden_dim, drop=0.0, dropout_index=0):
        super().__init__()
        self.fc1 = dense(dim, hidden_dim)
        self.act = Gelu()
        self.fc2 = dense(hidden_dim, dim)
        self.drop1 = Dropout(drop, dropout_index)
        self.drop2 = Dropout(drop, dropout_index + 1)

    def construct(self, x, dropout_seed=None):
        x = self.drop1(self.act(self.fc1(x)), dropout_seed)
        return self.drop2(self.fc2(x), dropout_seed)
