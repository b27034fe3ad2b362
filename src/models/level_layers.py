"""Defines layers that all levels of a pyramid share: they take the tokens of all its maps, one after the other."""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import Constant, initializer

from src.models.convolutions import MapConvolution, convolution_parameters
from src.models.layers import AddBias


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
        map_sizes: Sequence[tuple[int, int]],
        weights: str = "small",
        has_bias: bool = True,
        bias_start: float = 0.0,
    ):
        super().__init__()
        self.out_channels, self.has_bias = out_channels, has_bias
        self.weight, _ = convolution_parameters(out_channels, in_channels, kernel_size, weights, has_bias=False)
        if has_bias:
            self.bias = Parameter(initializer(Constant(bias_start), (out_channels,), ms.float32), name="bias")
            self.add_bias = AddBias()
        self.convolution = MapConvolution(in_channels, out_channels, kernel_size, map_sizes)

    def construct(self, x):
        """Map tokens [B, L, in_channels] to [B, L, out_channels]."""
        x = self.convolution(x, self.weight)
        if not self.has_bias:
            return x
        rows = self.add_bias(x.reshape((-1, self.out_channels)), self.bias.astype(x.dtype))
        return rows.reshape((-1, x.shape[1], self.out_channels))


class LevelGroupNorm(nn.Cell):
    """Normalises groups of channels over each image's map of each level by itself (arXiv 1803.08494).

    It computes in float32; the result has the type of the tokens. The mean comes first and the squares are of centred
    values, for a difference of large sums would lose digits.

    Parameters are named as PyTorch's: weight, bias.

    Args:
        groups: the channels of each follow each other.
        map_sizes: (h, w) of each level.
    """

    def __init__(self, groups: int, channels: int, map_sizes: Sequence[tuple[int, int]], eps: float = 1e-5):
        super().__init__()
        self.groups, self.channels, self.eps = groups, channels, eps
        self.weight = Parameter(initializer("ones", (channels,), ms.float32), name="weight")
        self.bias = Parameter(initializer("zeros", (channels,), ms.float32), name="bias")
        ends = np.cumsum([height * width for height, width in map_sizes]).tolist()
        self.slices = tuple(zip([0, *ends[:-1]], ends, strict=True))
        self.sum = ops.ReduceSum()

    def group_mean(self, x):
        """Return the mean of each group of one level's tokens [B, l, C], at each of its channels: [B, 1, C]."""
        width = self.channels // self.groups
        means = self.sum(x, 1).reshape((-1, self.groups, width)).sum(2) / (x.shape[1] * width)  # [B, groups]
        return ops.tile(means.reshape((-1, self.groups, 1)), (1, 1, width)).reshape((-1, 1, self.channels))

    def construct(self, x):
        """Normalise tokens [B, L, C]; the shape stays."""
        levels = ()
        for i in range(len(self.slices)):
            first, end = self.slices[i]
            level = x[:, first:end].astype(ms.float32)
            centred = level - self.group_mean(level)
            scale = self.weight / ops.sqrt(self.group_mean(centred * centred) + self.eps)  # Rsqrt is not for ONNX
            levels = levels + (centred * scale + self.bias,)
        return ops.concat(levels, 1).astype(x.dtype)


class SharedConvReLU(nn.Cell):
    """Convolves the maps of all levels by one weight (3x3), normalises by groups if there are any, and applies ReLU.

    With groups the convolution has no bias (ConvModule of the originals).
    """

    def __init__(self, in_channels: int, out_channels: int, map_sizes: Sequence[tuple[int, int]], groups: int = 0):
        super().__init__()
        self.conv = SharedConv(in_channels, out_channels, 3, map_sizes, has_bias=not groups)
        self.gn = LevelGroupNorm(groups, out_channels, map_sizes) if groups else None
        self.relu = ops.ReLU()

    def construct(self, x):
        x = self.conv(x)
        if self.gn is not None:
            x = self.gn(x)
        return self.relu(x)
