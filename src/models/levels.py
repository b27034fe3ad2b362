"""Layers of heads that treat all levels of a pyramid alike, with the same weights.

They work on the levels' tokens side by side, [B, sum of H * W, C], from the largest map on, so that a layer is one
gather and one product, and one part of the graph, for all levels together.
"""

import itertools
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import initializer

from src.models.convolutions import (
    ConvolutionByPatches,
    convolution_parameters,
    convolved_tokens,
    patch_tokens,
)
from src.models.gathers import RowGather
from src.models.layers import AddBias

Sizes = Sequence[tuple[int, int]]  # (h, w) of each level


def level_spans(sizes: Sizes) -> tuple[tuple[int, int], ...]:
    """Return (first, end) of each level's tokens among those of all."""
    ends = np.cumsum([height * width for height, width in sizes]).tolist()
    return tuple(itertools.pairwise([0, *ends]))


def level_patch_tokens(sizes: Sizes, kernel_size: int) -> np.ndarray:
    """List the tokens that a convolution of stride 1, which keeps the sizes, sees at each place of each level.

    Returns:
        [L, kernel_size^2], L the tokens of all levels; the number L is padding. See patch_tokens.
    """
    spans = level_spans(sizes)
    tables = []
    for size, (first, end) in zip(sizes, spans, strict=True):
        table = patch_tokens(size, kernel_size, 1, kernel_size // 2)
        tables.append(np.where(table == end - first, spans[-1][1], table + first))
    return np.concatenate(tables)


class SharedConv(nn.Cell):
    """Convolves every level by the same weight, with stride 1 and zero padding that keeps the sizes.

    Args:
        sizes: (h, w) of each level.
        kernel_size: odd.
        weights: how they start, see convolution_parameters.

    Attributes:
        implementation: see Conv2d.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        sizes: Sizes,
        weights: str = "small",
        has_bias: bool = True,
    ):
        super().__init__()
        self.implementation = "unfold"
        self.in_channels, self.out_channels = in_channels, out_channels
        self.sizes, self.spans = tuple(sizes), level_spans(sizes)
        self.weight, bias = convolution_parameters(out_channels, in_channels, kernel_size, weights, has_bias=has_bias)
        self.has_bias = has_bias
        if has_bias:
            self.bias = bias
            self.add_bias = AddBias()
        self.is_pointwise = kernel_size == 1
        if self.is_pointwise:
            self.matmul = ops.MatMul(transpose_b=True)
        else:
            self.by_patches = ConvolutionByPatches(in_channels, out_channels, level_patch_tokens(sizes, kernel_size))
            kernel = (kernel_size, kernel_size)
            self.conv2d = ops.Conv2D(out_channels, kernel, pad_mode="pad", pad=kernel_size // 2)

    def construct(self, x):
        """Map tokens [B, L, in_channels] of all levels to [B, L, out_channels]."""
        length = x.shape[1]
        if self.is_pointwise:
            weight = self.weight.reshape((self.out_channels, self.in_channels)).astype(x.dtype)
            rows = self.matmul(x.reshape((-1, self.in_channels)), weight)
        elif self.implementation == "unfold":
            rows = self.by_patches(x, self.weight).reshape((-1, self.out_channels))
        else:
            levels = ()
            for i in range(len(self.sizes)):
                first, end = self.spans[i]
                levels = levels + (convolved_tokens(self.conv2d, x[:, first:end], self.weight, self.sizes[i]),)
            rows = ops.concat(levels, 1).reshape((-1, self.out_channels))
        if self.has_bias:
            rows = self.add_bias(rows, self.bias.astype(rows.dtype))
        return rows.reshape((-1, length, self.out_channels))


class NormalisedLevels(nn.Cell):
    """Normalises groups of channels of each image's levels, with a gradient of its own.

    Sums over a level's tokens are taken for each channel, in float32, and added up to those of the groups: values of a
    group are never brought side by side.
    """

    def __init__(self, channels: int, groups: int, sizes: Sizes, epsilon: float):
        super().__init__()
        self.channels, self.groups, self.epsilon = channels, groups, epsilon
        self.spans = level_spans(sizes)
        lengths = np.array([end - first for first, end in self.spans], np.float32)
        self.counts = ms.Tensor(lengths.reshape(-1, 1) * (channels // groups))  # [levels, 1], values of a group
        self.of_level = RowGather(np.repeat(np.arange(len(lengths)), lengths.astype(int)))
        self.sum, self.rsqrt = ops.ReduceSum(), ops.Rsqrt()
        self.stack, self.tile = ops.Stack(1), ops.Tile()

    def level_sums(self, x):
        """Sum over the tokens of each level: [B, L, C] to [B, levels, C]."""
        sums = ()
        for first, end in self.spans:
            sums = sums + (self.sum(x[:, first:end], 1),)
        return self.stack(sums)

    def group_means(self, sums):
        """Map channels' sums [B, levels, C] to means over the values of each group, [B, levels, groups]."""
        return self.sum(sums.reshape((-1, len(self.spans), self.groups, self.channels // self.groups)), 3) / self.counts

    def of_channels(self, values):
        """Repeat values of groups for their channels: [B, levels, groups] to [B, levels, C]."""
        repeated = self.tile(
            values.reshape((-1, len(self.spans), self.groups, 1)), (1, 1, 1, self.channels // self.groups)
        )
        return repeated.reshape((-1, len(self.spans), self.channels))

    def construct(self, x, weight, bias):
        """Return the normalised tokens [B, L, C], and mean and 1 / deviation [B, levels, groups] for the gradient."""
        mean = self.group_means(self.level_sums(x))
        centred = x - self.of_level(self.of_channels(mean))
        scale = self.rsqrt(self.group_means(self.level_sums(centred * centred)) + self.epsilon)
        return centred * self.of_level(self.of_channels(scale) * weight) + bias, mean, scale

    def bprop(self, x, weight, bias, out, gradient):
        mean, scale = out[1], self.of_channels(out[2])
        gradient = gradient[0]
        centred = x - self.of_level(self.of_channels(mean))
        sums = self.level_sums(gradient)
        along = self.level_sums(gradient * centred) * scale
        # The parts of the gradient that are parallel to the values or to their mean have no effect.
        of_mean = self.of_channels(self.group_means(sums * weight)) * scale
        of_values = self.of_channels(self.group_means(along * weight)) * scale * scale
        to_x = gradient * self.of_level(scale * weight) - centred * self.of_level(of_values) - self.of_level(of_mean)
        return to_x, self.sum(along, (0, 1)), self.sum(sums, (0, 1))


class LevelGroupNorm(nn.Cell):
    """Normalises groups of channels of tokens, by statistics of each image and each level (arXiv 1803.08494).

    It equals torch.nn.GroupNorm on each level's map. Parameters are named as PyTorch's, weight and bias. It computes in
    float32; the result has the type of the tokens.

    Args:
        channels: C, a multiple of `groups`.
        sizes: (h, w) of each level.
    """

    def __init__(self, channels: int, groups: int, sizes: Sizes, epsilon: float = 1e-5):
        super().__init__()
        self.weight = Parameter(initializer("ones", (channels,), ms.float32), name="weight")
        self.bias = Parameter(initializer("zeros", (channels,), ms.float32), name="bias")
        self.normalised = NormalisedLevels(channels, groups, sizes, epsilon)

    def construct(self, x):
        """Normalise tokens [B, L, C] of all levels; the shape stays."""
        out, _, _ = self.normalised(x.astype(ms.float32), self.weight.astype(ms.float32), self.bias.astype(ms.float32))
        return out.astype(x.dtype)


class SharedConvNorm(nn.Cell):
    """Convolves every level by the same weight, without a bias, and normalises (ConvModule of the originals with GN).

    Args:
        sizes: (h, w) of each level.
        groups: of the norm.
        has_relu: whether ReLU follows.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        sizes: Sizes,
        weights: str = "small",
        groups: int = 32,
        has_relu: bool = True,
    ):
        super().__init__()
        self.conv = SharedConv(in_channels, out_channels, kernel_size, sizes, weights, has_bias=False)
        self.gn = LevelGroupNorm(out_channels, groups, sizes)
        self.has_relu = has_relu
        self.relu = ops.ReLU()

    def construct(self, x):
        """Map tokens [B, L, in_channels] of all levels to [B, L, out_channels]."""
        x = self.gn(self.conv(x))
        return self.relu(x) if self.has_relu else x
