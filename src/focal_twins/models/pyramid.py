"""Defines layers of necks and heads, which work on pyramids of token maps."""

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from mindspore import nn, ops

from focal_twins.models.backbones.backbone import FeatureMap
from focal_twins.models.batch_norm import BatchNorm
from focal_twins.models.convolutions import Conv2d, EnlargedConvolution, MapConvolution, convolution_parameters
from focal_twins.models.gathers import RowGather
from focal_twins.models.resize import AdaptiveAveragePool, NearestResize


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
                MapConvolution(count, out_channels, kernel_size, [target])
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

    def construct(self, x, counted=None):
        """Map tokens, or a tuple of them, to tokens [B, L, out_channels]; `counted`: see BatchNorm."""
        return self.relu(self.bn(self.conv(x), counted))


class PlainConv(nn.Cell):
    """Convolves tokens with a bias and nothing behind it (ConvModule of the originals without norm and activation)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, map_size: tuple[int, int], stride: int = 1
    ):
        super().__init__()
        padding = kernel_size // 2
        self.conv = Conv2d(in_channels, out_channels, kernel_size, stride, padding, map_size, weights="xavier")

    def construct(self, x):
        """Map tokens [B, H * W, in_channels] to [B, ceil(H / stride) * ceil(W / stride), out_channels]."""
        return self.conv(x)


class FPN(nn.Cell):
    """Gives maps of equal channels that carry what deeper maps know (arXiv 1612.03144).

    A convolution of one token brings each map to `channels`; from the deepest on, each is enlarged (nearest) and added
    to the one above; a 3x3 convolution gives the output. Nothing normalises and nothing is rectified. Further outputs
    follow the last, each of half the side of the one before.

    Args:
        maps: descriptions of the maps that it is given, from the largest on.
        start_level: the first of them that it takes.
        num_outs: outputs; None: as many as the maps that it takes.
        further: what makes the outputs after these: "pool" takes every other row and column of the output before (Mask
            R-CNN); "on_input" (RetinaNet) and "on_output" (ATSS) convolve, 3x3 with stride 2, the last map that it is
            given, or the output of it, and then each the output before.

    Attributes:
        feature_maps: descriptions of the outputs.
    """

    def __init__(
        self,
        maps: Sequence[FeatureMap],
        channels: int,
        start_level: int = 0,
        num_outs: int | None = None,
        further: Literal["pool", "on_input", "on_output"] = "pool",
    ):
        super().__init__()
        given, last = tuple(maps[start_level:]), maps[-1]
        outputs = [FeatureMap(channels, m.stride, m.size) for m in given]
        self.lateral_convs = nn.CellList([PlainConv(m.channels, channels, 1, m.size) for m in given])
        convs = [PlainConv(channels, channels, 3, m.size) for m in given]
        pools = []
        for i in range((num_outs or len(given)) - len(given)):
            before = outputs[-1]
            height, width = (-(-side // 2) for side in before.size)
            outputs.append(FeatureMap(channels, 2 * before.stride, (height, width)))
            if further == "pool":
                pools.append(EveryOther(before.size))
            else:
                taken = last.channels if i == 0 and further == "on_input" else channels
                convs.append(PlainConv(taken, channels, 3, before.size, stride=2))
        self.fpn_convs = nn.CellList(convs)
        self.pools = nn.CellList(pools)
        self.enlarge = nn.CellList(
            [NearestResize(below.size, above.size) for above, below in itertools.pairwise(given)]
        )
        self.start_level, self.further = start_level, further
        self.feature_maps = tuple(outputs)

    def construct(self, maps):
        """Map a tuple of tokens [B, H * W, C] to a tuple of tokens [B, h * w, channels] of the outputs."""
        taken = len(self.lateral_convs)
        x = self.lateral_convs[taken - 1](maps[len(maps) - 1])
        outputs = (self.fpn_convs[taken - 1](x),)
        for level in range(taken - 2, -1, -1):
            x = self.lateral_convs[level](maps[self.start_level + level]) + self.enlarge[level](x)
            outputs = (self.fpn_convs[level](x), *outputs)
        x = maps[len(maps) - 1] if self.further == "on_input" else outputs[taken - 1]
        for level in range(taken, len(self.feature_maps)):
            x = self.pools[level - taken](x) if self.further == "pool" else self.fpn_convs[level](x)
            outputs = (*outputs, x)
        return outputs


class EveryOther(nn.Cell):
    """Takes every other row and column of a map: tokens [B, H * W, C] to [B, ceil(H / 2) * ceil(W / 2), C].

    It is pooling of one place with stride 2, whose operator has a gradient that is a hundred times as slow.
    """

    def __init__(self, map_size: tuple[int, int]):
        super().__init__()
        height, width = map_size
        self.pick = RowGather(np.arange(height * width).reshape(height, width)[::2, ::2])

    def construct(self, x):
        return self.pick(x)


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
