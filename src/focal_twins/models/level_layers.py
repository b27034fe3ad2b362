"""Defines layers that all levels of a pyramid share: they take the tokens of all its maps, one after the other."""

import itertools
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Constant, initializer

from focal_twins.models.convolutions import MapConvolution, convolution_parameters
from focal_twins.models.gathers import RowGather
from focal_twins.models.layers import AddBias

MapSizes = Sequence[tuple[int, int]]  # (h, w) of each level


def level_spans(map_sizes: MapSizes) -> tuple[tuple[int, int], ...]:
    """Return (first, end) of each level's tokens among those of all."""
    ends = np.cumsum([height * width for height, width in map_sizes]).tolist()
    return tuple(itertools.pairwise([0, *ends]))


class SharedConv(nn.Cell):
    """Convolves the maps of all levels by one weight, with stride 1 and zero padding that keeps each map's size.

    Args:
        kernel_size: odd.
        map_sizes: (h, w) of each level.
        weights: how they start, a key of convolutions.WEIGHTS.
        bias_start: the value that the bias starts at.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        map_sizes: MapSizes,
        weights: str = "small",
        has_bias: bool = True,
        bias_start: float = 0.0,
    ):
        super().__init__()
        self.in_channels, self.out_channels, self.has_bias = in_channels, out_channels, has_bias
        self.weight, _ = convolution_parameters(out_channels, in_channels, kernel_size, weights, has_bias=False)
        if has_bias:
            self.bias = Parameter(initializer(Constant(bias_start), (out_channels,), ms.float32), name="bias")
            self.add_bias = AddBias()
        self.is_pointwise = kernel_size == 1
        if self.is_pointwise:
            self.matmul = ops.MatMul(transpose_b=True)
        else:
            self.convolution = MapConvolution(in_channels, out_channels, kernel_size, map_sizes)

    def construct(self, x):
        """Map tokens [B, L, in_channels] to [B, L, out_channels]."""
        length = x.shape[1]
        if self.is_pointwise:
            weight = self.weight.reshape((self.out_channels, self.in_channels)).astype(x.dtype)
            rows = self.matmul(x.reshape((-1, self.in_channels)), weight)
        else:
            rows = self.convolution(x, self.weight).reshape((-1, self.out_channels))
        if self.has_bias:
            rows = self.add_bias(rows, self.bias.astype(rows.dtype))
        return rows.reshape((-1, length, self.out_channels))


class NormalisedLevels(nn.Cell):
    """Normalises groups of channels of each image's levels, with a gradient of its own.

    The gradient keeps the tokens alone. Sums over a level's tokens are taken for each channel and added up to those of
    the groups: values of a group are never brought side by side. The mean comes first and the squares are of centred
    values, for a difference of large sums would lose digits.
    """

    def __init__(self, groups: int, channels: int, map_sizes: MapSizes, eps: float):
        super().__init__()
        self.groups, self.channels, self.width, self.eps = groups, channels, channels // groups, eps
        self.spans = level_spans(map_sizes)
        self.levels = len(self.spans)
        lengths = np.array([end - first for first, end in self.spans])
        self.counts = Tensor((lengths.reshape(-1, 1) * self.width).astype(np.float32))  # [levels, 1], values of a group
        self.of_level = RowGather(np.repeat(np.arange(self.levels), lengths))
        self.sum, self.sqrt, self.stack, self.tile = ops.ReduceSum(), ops.Sqrt(), ops.Stack(1), ops.Tile()

    def level_sums(self, x):
        """Sum over the tokens of each level: [B, L, C] to [B, levels, C]."""
        sums = ()
        for first, end in self.spans:
            sums = sums + (self.sum(x[:, first:end], 1),)
        return self.stack(sums)

    def group_means(self, sums):
        """Map channels' sums [B, levels, C] to the means of their groups, at each channel: [B, levels, C]."""
        means = self.sum(sums.reshape((-1, self.levels, self.groups, self.width)), 3) / self.counts
        means = self.tile(means.reshape((-1, self.levels, self.groups, 1)), (1, 1, 1, self.width))
        return means.reshape((-1, self.levels, self.channels))

    def construct(self, x, weight, bias):
        """Return the normalised tokens [B, L, C], and means and deviations [B, levels, C] for the gradient."""
        mean = self.group_means(self.level_sums(x))
        centred = x - self.of_level(mean)
        deviation = self.sqrt(self.group_means(self.level_sums(centred * centred)) + self.eps)  # Rsqrt is not for ONNX
        return centred * self.of_level(weight / deviation) + bias, mean, deviation

    def bprop(self, x, weight, bias, out, gradient):
        mean, deviation, gradient = out[1], out[2], gradient[0]
        centred = x - self.of_level(mean)
        sums, along = self.level_sums(gradient), self.level_sums(gradient * centred) / deviation
        # The parts of the gradient that are parallel to the values or to their mean have no effect.
        of_mean = self.group_means(sums * weight) / deviation
        of_values = self.group_means(along * weight) / (deviation * deviation)
        to_x = gradient * self.of_level(weight / deviation) - centred * self.of_level(of_values)
        return to_x - self.of_level(of_mean), self.sum(along, (0, 1)), self.sum(sums, (0, 1))


class LevelGroupNorm(nn.Cell):
    """Normalises groups of channels over each image's map of each level by itself (arXiv 1803.08494).

    It computes in float32; the result has the type of the tokens. Parameters are named as PyTorch's: weight, bias.

    Args:
        groups: the channels of each follow each other.
        map_sizes: (h, w) of each level.
    """

    def __init__(self, groups: int, channels: int, map_sizes: MapSizes, eps: float = 1e-5):
        super().__init__()
        self.weight = Parameter(initializer("ones", (channels,), ms.float32), name="weight")
        self.bias = Parameter(initializer("zeros", (channels,), ms.float32), name="bias")
        self.normalised = NormalisedLevels(groups, channels, map_sizes, eps)

    def construct(self, x):
        """Normalise tokens [B, L, C]; the shape stays."""
        weight, bias = self.weight.astype(ms.float32), self.bias.astype(ms.float32)
        out, _, _ = self.normalised(x.astype(ms.float32), weight, bias)
        return out.astype(x.dtype)


class SharedConvNorm(nn.Cell):
    """Convolves the maps of all levels by one weight, without a bias, and normalises by groups.

    Args: see SharedConv and LevelGroupNorm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        map_sizes: MapSizes,
        weights: str = "small",
        groups: int = 32,
    ):
        super().__init__()
        self.conv = SharedConv(in_channels, out_channels, kernel_size, map_sizes, weights, has_bias=False)
        self.gn = LevelGroupNorm(groups, out_channels, map_sizes)

    def construct(self, x):
        """Map tokens [B, L, in_channels] to [B, L, out_channels]."""
        return self.gn(self.conv(x))


class SharedConvReLU(nn.Cell):
    """Convolves the maps of all levels by one weight (3x3), normalises by groups if there are any, and applies ReLU.

    With groups the convolution has no bias (ConvModule of the originals).
    """

    def __init__(self, in_channels: int, out_channels: int, map_sizes: MapSizes, groups: int = 0):
        super().__init__()
        self.conv = SharedConv(in_channels, out_channels, 3, map_sizes, has_bias=not groups)
        self.gn = LevelGroupNorm(groups, out_channels, map_sizes) if groups else None
        self.relu = ops.ReLU()

    def construct(self, x):
        x = self.conv(x)
        if self.gn is not None:
            x = self.gn(x)
        return self.relu(x)
