"""Layers of necks and heads that work on pyramids of token maps."""

import itertools
from collections.abc import Sequence

import numpy as np
from mindspore import nn, ops

from src.models.backbones.backbone import FeatureMap
from src.models.batch_norm import BatchNorm
from src.models.convolutions import Conv2d, EnlargedConvolution, MapConvolution, convolution_parameters
from src.models.resize import AdaptiveAveragePool, NearestResize


def same_conv(in_channels, out_channels, kernel_size, map_size, weights="fan_out", has_bias=False) -> Conv2d:
    """Create a convolution of tokens whose zero padding keeps the size of the map; `kernel_size` is odd."""
    padding = kernel_size // 2
    return Conv2d(in_channels, out_channels, kernel_size, 1, padding, map_size, weights=weights, has_bias=has_bias)


class PyramidConv(nn.Cell):
    """Convolves the concatenation of maps that are first enlarged bilinearly to one size, without a bias.

    It is the sum of convolutions of the maps, each by its slice of the weight, so that neither the concatenation nor
    the patches of all its channels are ever held. The weight is that of the one convolution, [out, sum of C, k, k].

    Args:
        maps: channels and (h, w) of each map, in the order of the concatenation.
        kernel_size: odd.
        target: (H, W); zero padding keeps it.
    """

    def __init__(
        self,
        maps: Sequence[tuple[int, tuple[int, int]]],
        out_channels: int,
        kernel_size: int,
        target: tuple[int, int],
    ):
        super().__init__()
        channels = [count for count, _ in maps]
        self.out_channels = out_channels
        self.weight, _ = convolution_parameters(out_channels, sum(channels), kernel_size, "fan_out", has_bias=False)
        ends = np.cumsum(channels).tolist()
        self.slices = tuple(zip([0, *ends[:-1]], ends, strict=True))
        self.parts = nn.CellList(
            [
                MapConvolution(count, out_channels, kernel_size, target)
                if tuple(size) == tuple(target)
                else EnlargedConvolution(count, out_channels, kernel_size, size, target)
                for count, size in maps
            ]
        )

    def construct(self, maps):
        """Map a tuple of tokens [B, h * w, C] to tokens [B, H * W, out_channels]."""
        out = None
        for i in range(len(self.slices)):
            first, end = self.slices[i]
            part = self.parts[i](maps[i], self.weight[:, first:end])
            out = part if out is None else out + part
        return out


class EnlargingConv(nn.Cell):
    """Convolves one map that is first enlarged bilinearly, without a bias; see EnlargedConvolution."""

    def __init__(self, in_channels, out_channels, kernel_size, source, target):
        super().__init__()
        self.out_channels = out_channels
        self.weight, _ = convolution_parameters(out_channels, in_channels, kernel_size, "fan_out", has_bias=False)
        self.enlarged = EnlargedConvolution(in_channels, out_channels, kernel_size, source, target)

    def construct(self, x):
        """Map tokens [B, h * w, in_channels] to tokens [B, H * W, out_channels]."""
        return self.enlarged(x, self.weight)


class ConvNorm(nn.Cell):
    """Convolves tokens without a bias, normalises over the batch, and applies ReLU (ConvModule of the originals).

    Args:
        conv: a cell with `out_channels`, that maps tokens, or a tuple of them, to tokens [B, L, out_channels].
    """

    def __init__(self, conv: nn.Cell):
        super().__init__()
        self.conv = conv
        self.bn = BatchNorm(conv.out_channels)
        self.relu = ops.ReLU()

    def construct(self, x):
        return self.relu(self.bn(self.conv(x)))


class PlainConv(nn.Cell):
    """Convolves tokens with a bias and nothing behind it (ConvModule of the originals without norm and activation)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, map_size: tuple[int, int]):
        super().__init__()
        self.conv = same_conv(in_channels, out_channels, kernel_size, map_size, "xavier", has_bias=True)

    def construct(self, x):
        """Map tokens [B, L, in_channels] to [B, L, out_channels]."""
        return self.conv(x)


class FPN(nn.Cell):
    """Gives maps of equal channels that carry what deeper maps know (arXiv 1612.03144), one for each map it takes.

    A convolution of one token brings each map to `channels`; from the deepest on, each is enlarged (nearest) and added
    to the one above; a 3x3 convolution gives the output. Nothing normalises and nothing is rectified.

    Args:
        maps: descriptions of the maps, from the largest on.
    """

    def __init__(self, maps: Sequence[FeatureMap], channels: int):
        super().__init__()
        self.lateral_convs = nn.CellList([PlainConv(m.channels, channels, 1, m.size) for m in maps])
        self.fpn_convs = nn.CellList([PlainConv(channels, channels, 3, m.size) for m in maps])
        self.enlarge = nn.CellList([NearestResize(below.size, above.size) for above, below in itertools.pairwise(maps)])

    def construct(self, maps):
        """Map a tuple of tokens [B, H * W, C] to a tuple of tokens [B, H * W, channels] of the same maps."""
        last = len(maps) - 1
        x = self.lateral_convs[last](maps[last])
        outputs = (self.fpn_convs[last](x),)
        for level in range(last - 1, -1, -1):
            x = self.lateral_convs[level](maps[level]) + self.enlarge[level](x)
            outputs = (self.fpn_convs[level](x), *outputs)
        return outputs


def pooling_branches(in_channels: int, map_size: tuple[int, int], scales: Sequence[int], channels: int) -> nn.CellList:
    """Create the branches of pyramid pooling (arXiv 1612.01105): the map averaged over a grid of bins, and convolved.

    Args:
        scales: bins along each side, for each branch.
        channels: of each branch, which maps tokens [B, L, in_channels] to [B, bins^2, channels].
    """
    return nn.CellList(
        [
            nn.SequentialCell(
                [
                    AdaptiveAveragePool(map_size, bins),
                    ConvNorm(same_conv(in_channels, channels, 1, (bins, bins))),
                ]
            )
            for bins in scales
        ]
    )
