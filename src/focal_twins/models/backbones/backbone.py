"""Defines what a backbone is to the rest of the project: it gives token maps of its stages, at any image size.

A family (focal_transformer.py, twins.py) is a class on Backbone. The same class classifies, with a head behind its last
stage, or gives the maps of the stages that `out_indices` names to a network built on it (models/registry.py).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn
from mindspore.nn.utils import no_init_parameters

from focal_twins.models.device_options import device_options, set_device_options
from focal_twins.models.layers import Dense, Dropout, DropPath, draw_drop_path, random_scales, random_seed
from focal_twins.models.registry import ArgumentError
from focal_twins.phrases import counted

# Arguments of the families that are rates of dropout.
DROPOUT_RATES = ("drop_rate", "attn_drop_rate", "pos_drop_rate", "proj_drop_rate")


@dataclass(frozen=True)
class FeatureMap:
    """Describes the map that a stage's tokens [B, H * W, channels] form.

    Attributes:
        stride: pixels of the image, padded to whole patches, from one token to the next.
        size: (H, W) in tokens.
    """

    channels: int
    stride: int
    size: tuple[int, int]


class Backbone(nn.Cell):
    """Runs images through stages, each of which has a map of half the side of the one before.

    A family's constructor sets arguments (all of its own, by name), img_size and pretrain_size (height, width),
    in_chans, depths, stage_maps (a FeatureMap for each stage), out_indices (None: it classifies), drop_path_rates
    (two branches a block), has_dropout and, of a classifier, head (None without classes). It defines `check`, which
    refuses arguments that cannot work, and the methods that raise NotImplementedError here. What concerns files
    (files/weights.py) has answers for a family without peculiarities.
    """

    check: Callable[[dict], None]
    arguments: dict
    img_size: tuple[int, int]
    pretrain_size: tuple[int, int]
    in_chans: int
    num_classes: int | None  # 0: a classifier without a head, which gives pooled features; None: it gives maps
    head: nn.Cell | None
    depths: tuple[int, ...]
    stage_maps: tuple[FeatureMap, ...]
    out_indices: tuple[int, ...] | None
    drop_path_rates: list[float]
    has_dropout: bool
    frozen_stages: int | None = 0  # None: all but the head
    preprocessing: Any = None  # turns images into the input, where the caller of `create_model` is a Python program
    input_weight: str  # name of the first convolution's weight, official and from the backbone on, as the next ones
    classifiers: tuple[str, ...] = ("head",)  # layers whose parameters have a row for each class
    no_weight_decay: tuple[str, ...] = ()  # beside 1-D parameters and biases, those whose name holds one of these

    # --- what a family defines ---------------------------------------------------------------------------------------

    def stage_outputs(self, images, drop_path=None, dropout_seed=None):
        """Map images [B, in_chans, *img_size] to each stage's tokens [B, H * W, C]; the next stage starts from them."""
        raise NotImplementedError

    def output_norm(self, stage, tokens):
        """Normalise a stage's tokens [B, L, C] by the norm of its output; a family without one returns them as is."""
        return tokens

    def logits(self, images, drop_path=None, dropout_seed=None):
        """Map images to logits [B, num_classes], or to pooled features [B, num_features] without a head."""
        raise NotImplementedError

    def block_index(self, name: str) -> int:
        """Return where in the network a parameter or layer is, by its name in the backbone.

        The patch embedding has 0, the i-th block and all that belongs with it i (counted over all stages from 1), and
        the layers after the stages (norms of the outputs, head) one more than the number of blocks.
        """
        raise NotImplementedError

    def stage_blocks(self, stage: int) -> nn.CellList:
        """Return the blocks of a stage."""
        raise NotImplementedError

    # --- feature maps ------------------------------------------------------------------------------------------------

    def features(self, images, drop_path=None, dropout_seed=None):
        """Map images [B, in_chans, *img_size] to token maps [B, H * W, C]: a tuple, one for each of `feature_maps`."""
        outputs = self.stage_outputs(images, drop_path, dropout_seed)
        maps = ()
        for stage in self.out_indices:  # type: ignore[union-attr]  # None has no features
            maps = maps + (self.output_norm(stage, outputs[stage]),)
        return maps

    def construct(self, images, drop_path=None, dropout_seed=None):
        """Map images to logits (pooled features where num_classes is 0), or to the tuple of token maps.

        Args:
            images: [B, in_chans, *img_size] float32.
            drop_path: the scales of draw_drop_path, for stochastic depth in training. dropout_seed: an int32 scalar
                that keys dropout. This project's training passes both, so that a step can be repeated; without them
                the model draws its own.
        """
        if self.training:
            drop_path, dropout_seed = self.noise(images.shape[0], drop_path, dropout_seed)
        if self.out_indices is None:
            return self.logits(images, drop_path, dropout_seed)
        return self.features(images, drop_path, dropout_seed)

    def noise(self, batch_size, drop_path, dropout_seed):
        """Return the noise of a training step: what is given, and new draws for what is missing and has a use."""
        if drop_path is None and max(self.drop_path_rates) > 0:
            keep = Tensor([[1.0 - rate] for rate in self.drop_path_rates], ms.float32)  # [branches, 1]
            drop_path = random_scales(keep, (len(self.drop_path_rates), batch_size))
        if dropout_seed is None and self.has_dropout:
            dropout_seed = random_seed()
        return drop_path, dropout_seed

    @property
    def num_features(self) -> int:
        """Return the number of channels of the last stage, which the head classifies."""
        return self.stage_maps[-1].channels

    @property
    def feature_maps(self) -> tuple[FeatureMap, ...]:
        """Return the description of each map that `features` gives."""
        return tuple(self.stage_maps[stage] for stage in self.out_indices or ())

    def stage_map(self, stage: int) -> tuple[int, int]:
        """Return (H, W) of a stage's map."""
        return self.stage_maps[stage].size

    def check_images(self, images):
        """Raise ValueError, when the graph is compiled, for images of another size than the model's."""
        if images.shape[1:] != (self.in_chans, *self.img_size):
            raise ValueError(
                f"images of shape {images.shape[1:]} for a model of {self.in_chans} channels, height "
                f"{self.img_size[0]} and width {self.img_size[1]}; build it with another img_size, or use at(size)"
            )

    def at(self, size: int | Sequence[int]) -> "Backbone":
        """Return this model for images of another size: the same parameters, with the index tables of that size.

        The parameters are the same objects: training or loading one model changes both. Windows, and the shapes of
        tables, stay those of the size of pre-training. Every size compiles a graph of its own: keep the model that this
        returns. Call it before apply_precision, which changes layers.

        Args:
            size: side of the square input, or (height, width), in pixels.

        Raises:
            ArgumentError: a size that the family cannot have; the message names the nearest.
        """
        size = image_size(size)
        if size == self.img_size:
            return self
        arguments = self.arguments | {"img_size": list(size), "pretrain_size": list(self.pretrain_size)}
        self.check(arguments)
        with no_init_parameters():  # random values would be replaced below
            other = type(self)(**arguments)
        share_parameters(other, self)
        set_device_options(other, **device_options(self))
        other.freeze(self.frozen_stages)
        if self.preprocessing is not None:
            other.preprocessing = self.preprocessing.at(size)
        return other.set_train(self.training)

    # --- training ----------------------------------------------------------------------------------------------------

    def freeze(self, stages: int | None = None) -> None:
        """Exclude the patch embedding and the first stages, with the downsampling after them, from training.

        They get no gradients, and neither stochastic depth nor dropout, for both only regularise learning. Norms of
        their outputs stay free. Call it before an optimizer is built or a graph compiled.

        Args:
            stages: how many; 0: none. None: everything before the head, for linear probing; of a backbone, everything.
        """
        if stages == 0:
            return
        self.frozen_stages = stages
        last = sum(self.depths[:stages])
        for name, parameter in self.parameters_and_names():
            if self._is_before(name, last):
                parameter.requires_grad = False
        for name, cell in self.cells_and_names():
            if isinstance(cell, DropPath | Dropout) and self._is_before(name, last):
                cell.rate = 0.0
        self.drop_path_rates = [0.0 if branch < 2 * last else rate for branch, rate in enumerate(self.drop_path_rates)]

    def _is_before(self, name: str, last: int) -> bool:
        """Tell whether a parameter or layer is frozen, where the blocks up to `last` are."""
        return self.block_index(name) <= last or (self.frozen_stages is None and not name.startswith(self.classifiers))

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a new, initialised one for another number of classes.

        Args:
            num_classes: 0: no head; the model gives pooled features [B, num_features].

        Raises:
            ArgumentError: a negative number, or a backbone, which has no head.
        """
        if self.out_indices is not None:
            raise ArgumentError("num_classes", "a backbone of features has no head")
        if num_classes < 0:
            raise ArgumentError("num_classes", f"must be at least 0, got {num_classes}")
        self.head = Dense(self.num_features, num_classes) if num_classes else None
        self.num_classes = num_classes
        self.arguments = self.arguments | {"num_classes": num_classes}
        self.compile_cache.clear()  # a graph holds the former head

    def draw_drop_path(self, generator: np.random.Generator, batch_size: int) -> Tensor | None:
        """Draw stochastic-depth scales for one training step; None for a model without stochastic depth."""
        if not any(self.drop_path_rates):
            return None
        return Tensor(draw_drop_path(self.drop_path_rates, generator, batch_size))

    # --- files: names are official ones, from the backbone on --------------------------------------------------------

    def is_behind_stages(self, name: str) -> bool:
        """Tell whether a parameter belongs to the layers after the stages, which differ from network to network."""
        return self.block_index(name) > sum(self.depths)

    def has_no_use_for(self, name: str) -> bool:
        """Tell whether a model ignores a file's parameter: a classifier's norm and head, or its head alone."""
        layer = name.split(".")[0]
        if self.out_indices is not None:
            return layer in ("norm", "head")
        return layer == "head" and not self.num_classes

    def is_derived_buffer(self, name: str) -> bool:
        """Tell whether the original's files have a buffer of this name that follows from sizes alone."""
        return False

    def original_buffers(self) -> dict[str, np.ndarray]:
        """Return the buffers that follow from sizes and that the original keeps in its files, by its names."""
        return {}

    def resized(self, name: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
        """Resize a parameter of a model of another image or window size to its shape here; None if it cannot be."""
        return None

    def recoloured(self, name: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
        """Adapt the first convolution to grey images (one channel), or from grey ones; None if it cannot be.

        Grey images give the same answers as before where a channel of colour holds the same values as the grey one.
        """
        is_of_input = name == self.input_weight and value.ndim == len(shape) == 4
        if not is_of_input or (value.shape[0], *value.shape[2:]) != (shape[0], *shape[2:]):
            return None
        if shape[1] == 1:
            return value.sum(axis=1, keepdims=True)
        return np.repeat(value / shape[1], shape[1], axis=1) if value.shape[1] == 1 else None

    def is_optional(self, name: str, names: Iterable[str]) -> bool:
        """Tell whether a model of another image size, with these names, may do without the parameter."""
        return False

    def is_key_table(self, name: str) -> bool:
        """Tell whether a parameter is a table of keys, which belongs to an image size."""
        return False

    def fits_key_table(self, name: str, table: np.ndarray) -> bool:
        """Tell whether a table of keys is of this model's image size."""
        return False

    def adopt_key_tables(self) -> None:
        """Rebuild all that derives from the tables of keys, after a file brought its own."""


def share_parameters(cell: nn.Cell, source: nn.Cell) -> None:
    """Make a cell use the parameters of another of the same structure: the objects themselves, no copies.

    Tables of keys (Backbone.is_key_table) stay its own: they belong to its image size. The source may have been given
    a precision (apply_precision), which puts some layers into wrappers.
    """
    sources = {path.replace("._backbone", ""): part for path, part in source.cells_and_names()}
    tables = [
        id(parameter)
        for part in sources.values()
        if isinstance(part, Backbone)
        for name, parameter in part.parameters_and_names()
        if part.is_key_table(name)
    ]
    for path, part in cell.cells_and_names():
        theirs = sources.get(path)  # the sub-cells of index tables, which have no parameters, depend on the size
        if theirs is None:
            continue
        for name, parameter in theirs.parameters_and_names(expand=False):
            if id(parameter) not in tables:
                part.insert_param_to_cell(name, parameter, check_name_contain_dot=False)
        for name, value in vars(theirs).items():
            if isinstance(value, ParameterTuple):  # of parameters that were just inserted
                object.__setattr__(part, name, value)


def has_dropout(arguments: dict) -> bool:
    """Tell whether a model with these arguments drops elements in training."""
    return any(arguments.get(rate) for rate in DROPOUT_RATES)


def image_size(img_size: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width) of an img_size argument."""
    return (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])


def size_of_pretraining(arguments: dict) -> tuple[int, int]:
    """Return (height, width) of the images of pre-training: img_size where no pretrain_size is given."""
    given = arguments["pretrain_size"]
    return image_size(arguments["img_size"] if given is None else given)


def check_common_arguments(
    arguments: dict, rates: tuple[str, ...], positive: tuple[str, ...], per_stage: tuple[str, ...]
) -> None:
    """Refuse arguments that no model of any family can have.

    Args:
        rates: names of probabilities. positive: names of numbers, or lists of them, that must be at least 1.
        per_stage: names of lists with an entry for each stage, or None.

    Raises:
        ArgumentError: names the argument.
    """
    a = arguments
    if not a["depths"] or min(a["depths"]) < 1:
        raise ArgumentError("depths", f"must be the number of blocks of each stage, at least 1, got {a['depths']}")
    for key in ("img_size", "pretrain_size"):
        if a[key] is not None and not isinstance(a[key], int) and len(a[key]) != 2:
            raise ArgumentError(key, f"must be one side or [height, width], got {a[key]}")
    if a["num_classes"] < 0:
        raise ArgumentError("num_classes", f"must be at least 0 (no head), got {a['num_classes']}")
    for key in ("img_size", "pretrain_size", "patch_size", "in_chans", *positive):
        if a[key] is not None and min(a[key] if isinstance(a[key], list | tuple) else [a[key]]) < 1:
            raise ArgumentError(key, f"must be at least 1, got {a[key]}")
    stages = len(a["depths"])
    for key in per_stage:
        if a[key] is not None and len(a[key]) != stages:
            raise ArgumentError(
                key, f"has {counted(len(a[key]), 'entry')} for the {counted(stages, 'stage')} of depths {a['depths']}"
            )
    for key in rates:
        if not 0 <= a[key] < 1:
            raise ArgumentError(key, f"must be in [0, 1), got {a[key]}")
    chosen = a["out_indices"]
    if chosen is not None and not (chosen and list(chosen) == sorted(set(chosen)) and set(chosen) <= {*range(stages)}):
        raise ArgumentError("out_indices", f"must number stages, from 0 to {stages - 1}, upwards, got {chosen}")
