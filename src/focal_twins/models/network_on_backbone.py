"""Defines what networks on a backbone have in common, whatever they predict: segmentors and detectors."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

import numpy as np
from mindspore import Tensor, nn
from mindspore.nn.utils import no_init_parameters

from focal_twins.models.backbones.backbone import Backbone, share_parameters
from focal_twins.models.batch_norm import batch_norms, synchronise_batch_norms
from focal_twins.models.class_layout import ClassLayout
from focal_twins.models.device_options import device_options, set_device_options
from focal_twins.models.registry import ArgumentError

Network = TypeVar("Network", bound="NetworkOnBackbone")


class NetworkOnBackbone(nn.Cell):
    """Holds a backbone, whose maps the necks and heads of a subclass take, and answers what concerns it.

    Attributes:
        arguments: the constructor's arguments by name, without the backbone.
        num_classes: classes that it predicts.
        img_size: (H, W) of the images. in_chans: their channels.
        classifiers: the layers, by name, whose parameters have rows for classes, see files/weights.py.
        class_layouts: of those of them, by name, that have more than a row for each class.
    """

    check: Callable[[dict], None]
    classifiers: tuple[str, ...]
    class_layouts: Mapping[str, ClassLayout] = MappingProxyType({})

    def __init__(self, backbone: Backbone, arguments: dict):
        super().__init__()
        if backbone.out_indices is None:
            raise ArgumentError("backbone", "is a classifier; build it with features_only=True")
        self.backbone = backbone
        self.arguments = arguments
        self.num_classes = arguments["num_classes"]
        self.img_size = backbone.img_size
        self.in_chans = backbone.in_chans
        self.depths = backbone.depths
        self.no_weight_decay = backbone.no_weight_decay

    # --- training ----------------------------------------------------------------------------------------------------

    def draw_drop_path(self, generator: np.random.Generator, batch_size: int) -> Tensor | None:
        """Draw the backbone's stochastic-depth scales for one training step, see Backbone."""
        return self.backbone.draw_drop_path(generator, batch_size)

    def batch_caveat(self, batch_size: int, ranks: int) -> str | None:
        """Return a line on what a batch of this size on each rank is too small for; None where there is nothing."""
        return None

    def freeze(self, stages: int | None = None) -> None:
        """Exclude the backbone's first stages from training, see Backbone; None: all of it."""
        self.backbone.freeze(stages)

    def block_index(self, name: str) -> int:
        """Return where in the network a parameter is, see Backbone; necks and heads come after the last block."""
        if name.startswith("backbone."):
            return self.backbone.block_index(name.removeprefix("backbone."))
        return sum(self.depths) + 1

    # --- other sizes -------------------------------------------------------------------------------------------------

    def at(self: Network, size: int | Sequence[int]) -> Network:
        """Return this model for images of another size: the same parameter objects, see Backbone.at.

        Raises:
            ArgumentError: a size that the backbone cannot have; the message names the nearest.
        """
        backbone = self.backbone.at(size)
        return self if backbone is self.backbone else self.on(backbone)

    def on(self: Network, backbone: Backbone) -> Network:
        """Return a model on another backbone, which has the same parameters as this model's."""
        with no_init_parameters():  # random values would be replaced below
            other = type(self)(backbone, **self.arguments)
        share_parameters(other, self)
        set_device_options(other, **device_options(self))
        norms = batch_norms(self)
        if norms:
            synchronise_batch_norms(other, norms[0].ranks)
        return other.set_train(self.training)


def check_positive(arguments: dict, keys: tuple[str, ...]) -> None:
    """Refuse arguments that no network can have.

    Args:
        keys: names of numbers that must be at least 1, beside num_classes.

    Raises:
        ArgumentError: names the argument.
    """
    for key in ("num_classes", *keys):
        if arguments[key] < 1:
            raise ArgumentError(key, f"must be at least 1, got {arguments[key]}")


def check_several_maps(backbone: Backbone) -> None:
    """Refuse a backbone that gives fewer maps than a pyramid needs.

    Raises:
        ArgumentError: it gives one map.
    """
    if len(backbone.feature_maps) < 2:
        raise ArgumentError("backbone", "gives one map; a pyramid needs at least two (out_indices)")
