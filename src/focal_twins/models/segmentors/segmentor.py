"""Defines what a network of semantic segmentation is to the rest of the project: logits of classes for every place.

A family (upernet.py, semantic_fpn.py) is a class on Segmentor. Its heads give token maps of logits, smaller than the
image; whoever asks resizes them.
"""

from collections.abc import Sequence

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from focal_twins.models.backbones.backbone import Backbone
from focal_twins.models.convolutions import convolution_parameters
from focal_twins.models.layers import AddBias, random_scales
from focal_twins.models.network_on_backbone import NetworkOnBackbone, check_positive
from focal_twins.models.registry import ArgumentError
from focal_twins.models.resize import LeftProduct


class Segmentor(NetworkOnBackbone):
    """Runs images through a backbone and heads; the first head is what predicts, the others only help it to learn.

    A family's constructor sets the heads and describes them by `set_heads`; its methods `decode_features` and
    `auxiliary_logits` run them. The first head is the attribute decode_head, with its classifier conv_seg. Parameter
    names are those of the published checkpoints: `backbone.*`, `neck.*`, `decode_head.*`, `auxiliary_head.*`.

    Attributes:
        head_names, head_weights: the name of each head, and the factor of its loss.
        head_map_sizes: (h, w) of each head's logits; `map_size` is the first.
        dropout_channels: channels of all heads together that training drops, see draw_channel_scales; 0 for none.
    """

    head_names: tuple[str, ...]
    head_weights: tuple[float, ...]
    head_map_sizes: tuple[tuple[int, int], ...]

    def __init__(self, backbone: Backbone, arguments: dict):
        super().__init__(backbone, arguments)
        self.dropout = arguments["dropout"]

    def set_heads(self, heads: Sequence[tuple[str, float, "PixelClassifier", tuple[int, int]]]) -> None:
        """Describe the heads: name, factor of the loss, classifier, (h, w) of the logits; the predicting one first."""
        self.head_names, self.head_weights, classifiers, self.head_map_sizes = zip(*heads, strict=True)
        self.classifiers = tuple(f"{name}_head.conv_seg" for name in self.head_names)
        channels = [classifier.channels for classifier in classifiers]
        self.dropout_channels = sum(channels) if self.dropout else 0
        ends = np.cumsum(channels).tolist()
        self.scale_slices = tuple(zip([0, *ends[:-1]], ends, strict=True))

    @property
    def map_size(self) -> tuple[int, int]:
        """Return (h, w) of the logits that `construct` gives."""
        return self.head_map_sizes[0]

    # --- what a family defines ---------------------------------------------------------------------------------------

    def decode_features(self, maps):
        """Map the backbone's tuple of tokens to the tokens [B, h * w, channels] that the first head classifies."""
        raise NotImplementedError

    def auxiliary_logits(self, maps, channel_scales):
        """Map the backbone's tuple of tokens to a tuple of the other heads' logits."""
        return ()

    # --- logits ------------------------------------------------------------------------------------------------------

    def construct(self, images, drop_path=None, channel_scales=None):
        """Map images [B, in_chans, *img_size] to logits tokens [B, h * w, num_classes].

        In evaluation they are those of the first head, of the map `map_size`; in training a tuple, see head_logits,
        because mixed precision changes or wraps `construct` alone.
        """
        if self.training:
            return self.head_logits(images, drop_path, channel_scales)
        return self.decode_head.conv_seg(self.decode_features(self.backbone(images)))

    def head_logits(self, images, drop_path=None, channel_scales=None):
        """Map images to the logits tokens [B, h * w, num_classes] of every head, for training.

        Args:
            drop_path: see draw_drop_path. channel_scales: see draw_channel_scales. What is missing is drawn.
        """
        if self.training and self.dropout_channels and channel_scales is None:
            channel_scales = random_scales(1.0 - self.dropout, (images.shape[0], self.dropout_channels))
        maps = self.backbone(images, drop_path)
        logits = self.decode_head.conv_seg(self.decode_features(maps), self.scales_of_head(0, channel_scales))
        return (logits, *self.auxiliary_logits(maps, channel_scales))

    def scales_of_head(self, head, channel_scales):
        """Return the scales [B, channels] of one head's channels; None where nothing is dropped."""
        if not self.training or channel_scales is None:
            return None
        first, end = self.scale_slices[head]
        return channel_scales[:, first:end]

    # --- training ----------------------------------------------------------------------------------------------------

    def draw_channel_scales(self, generator: np.random.Generator, batch_size: int) -> Tensor | None:
        """Draw the dropout of whole channels before each head's classifier, for one training step.

        Returns:
            [batch_size, dropout_channels] float32 of 0 and 1 / (1 - dropout); None for a model without dropout.
        """
        if not self.dropout_channels:
            return None
        keep = 1 - self.dropout
        kept = generator.random((batch_size, self.dropout_channels)) < keep
        return Tensor((kept / keep).astype(np.float32))

    # --- other sizes -------------------------------------------------------------------------------------------------

    def on_canvas(self, size: int | Sequence[int]) -> "Segmentor":
        """Return a model for images of all sizes up to a canvas, which has this model's parameters.

        Images stand in the canvas's top left corner, with zeros on the right and below; `set_part` tells their size
        before each call. All have one graph.

        Raises:
            ArgumentError: a size that the backbone cannot have; the message names the nearest.
        """
        other = self.on(self.backbone.at(size))
        other.set_part(other.img_size)
        return other

    def set_part(self, size: tuple[int, int]) -> None:
        """Let pooling average over the top left (height, width) pixels of the images of a canvas; see on_canvas.

        Other layers see the padding: convolutions at the edge, and attention whose windows reach beyond it.
        """
        for product, matrix in self.products_of(size):
            product.set_matrix(matrix)

    def products_of(self, part: tuple[int, int]) -> list[tuple[LeftProduct, np.ndarray]]:
        """Return the products that pool whole maps, and the matrices by which they see a part of the images alone."""
        return []


class PixelClassifier(nn.Cell):
    """Maps tokens to logits of classes, by a convolution of one token whose weights start at N(0, 0.01).

    Args:
        background_share: the share of all pixels that class 0 is expected to have. The bias starts where it predicts
            class 0 with this probability, and the others alike; 0: it starts at zero, as in the originals. Where most
            pixels are background, the first updates would otherwise teach this to every weight, by features that are
            above 0 at the background and exactly 0 elsewhere: there ReLU passes no gradient, and no class is learned.
    """

    def __init__(self, channels: int, num_classes: int, background_share: float = 0.0):
        super().__init__()
        self.channels, self.num_classes = channels, num_classes
        self.weight, self.bias = convolution_parameters(num_classes, channels, 1, "small")
        if background_share:
            shares = np.full(num_classes, (1 - background_share) / max(num_classes - 1, 1))
            shares[0] = background_share
            self.bias = Parameter(Tensor(np.log(shares).astype(np.float32)), name="bias")
        self.matmul = ops.MatMul(transpose_b=True)
        self.of_samples = ops.BatchMatMul(transpose_b=True)
        self.add_bias = AddBias()

    def construct(self, x, scales=None):
        """Map tokens [B, L, channels] to logits [B, L, num_classes].

        Args:
            scales: [B, channels], by which each sample's channels are multiplied first. They are multiplied into the
                weight, which is smaller than the map.
        """
        weight = self.weight.reshape((self.num_classes, self.channels)).astype(x.dtype)
        if scales is None:
            rows = self.matmul(x.reshape((-1, self.channels)), weight)
        else:
            weights = scales.astype(x.dtype).reshape((-1, 1, self.channels)) * weight
            rows = self.of_samples(x, weights).reshape((-1, self.num_classes))
        return self.add_bias(rows, self.bias.astype(rows.dtype)).reshape((-1, x.shape[1], self.num_classes))


def check_segmentor(arguments: dict, positive: tuple[str, ...]) -> None:
    """Refuse arguments that no network of any family can have.

    Args:
        positive: names of numbers that must be at least 1, beside num_classes.

    Raises:
        ArgumentError: names the argument.
    """
    check_positive(arguments, positive)
    if not 0 <= arguments["dropout"] < 1:
        raise ArgumentError("dropout", f"must be in [0, 1), got {arguments['dropout']}")
    if not 0 <= arguments["background_share"] < 1:
        raise ArgumentError("background_share", f"must be in [0, 1), got {arguments['background_share']}")
