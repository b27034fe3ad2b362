"""Defines layers that all levels of a pyramid share: they take the tokens of all its maps, one after the other."""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Constant, initializer

from src.models.convolutions import MapConvolution, convolution_parameters
from src.models.gathers import RowGather
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

    It computes in float32; the result has the type of the tokens. Parameters are named as PyTorch's: weight, bias.

    Args:
        groups: the channels of each follow each other.
        map_sizes: (h, w) of each level.
    """

    def __init__(self, groups: int, channels: int, map_sizes: Sequence[tuple[int, int]], eps: float = 1e-5):
        super().__init__()
        self.weight = Parameter(initializer("ones", (channels,), ms.float32), name="weight")
        self.bias = Parameter(initializer("zeros", (channels,), ms.float32), name="bias")
        self.normalise = NormOfLevels(groups, channels, map_sizes, eps)

    def construct(self, x):
        """Normalise tokens [B, L, C]; the shape stays."""
        return self.normalise(x.astype(ms.float32), self.weight, self.bias)[0].astype(x.dtype)


class NormOfLevels(nn.Cell):
    """Normalises float32 tokens as LevelGroupNorm does, with a gradient of its own: it compiles in a third of the time.

    With x' the normalised tokens, g' the gradient times the weight, and means over a level's group of channels,
    dx = (g' - mean(g') - x' mean(g' x')) / deviation.
    """

    def __init__(self, groups: int, channels: int, map_sizes: Sequence[tuple[int, int]], eps: float):
        super().__init__()
        self.groups, self.channels, self.eps = groups, channels, eps
        counts = [height * width for height, width in map_sizes]
        ends = np.cumsum(counts).tolist()
        self.levels = tuple(zip([0, *ends[:-1]], ends, strict=True))
        elements = np.asarray(counts, np.float32) * (channels // groups)
        self.shares = Tensor((1 / elements).reshape(1, -1, 1).astype(np.float32))
        self.spread = RowGather(np.repeat(np.arange(len(counts)), counts))
        self.sum, self.keeping_sum = ops.ReduceSum(), ops.ReduceSum(keep_dims=True)
        self.concat, self.tile, self.sqrt = ops.Concat(1), ops.Tile(), ops.Sqrt()  # Rsqrt cannot be written to ONNX

    def means(self, x):
        """Return the mean of each level's group of tokens [B, L, C], at each of its channels: [B, levels, C]."""
        sums = ()
        for i in range(len(self.levels)):
            first, end = self.levels[i]
            sums = sums + (self.keeping_sum(x[:, first:end], 1),)
        width = self.channels // self.groups
        of_groups = self.keeping_sum(self.concat(sums).reshape((-1, self.groups, width)), 2)
        spread = self.tile(of_groups, (1, 1, width)).reshape((-1, len(self.levels), self.channels))
        return spread * self.shares

    def construct(self, x, weight, bias):
        """Return normalised tokens [B, L, C], with means and deviations [B, levels, C], which the gradient needs."""
        mean = self.means(x)
        centred = x - self.spread(mean)  # first the mean: a difference of large sums would lose digits
        deviation = self.sqrt(self.means(centred * centred) + self.eps)
        return centred * self.spread(weight / deviation) + bias, mean, deviation

    def bprop(self, x, weight, bias, out, gradient):
        gradient, mean, deviation = gradient[0], out[1], out[2]
        normed = (x - self.spread(mean)) / self.spread(deviation)
        weighted = gradient * weight
        product = gradient * normed
        along = self.spread(self.means(weighted)) + normed * self.spread(self.means(product * weight))
        to_x = (weighted - along) / self.spread(deviation)
        rows = (-1, self.channels)
        return to_x, self.sum(product.reshape(rows), 0), self.sum(gradient.reshape(rows), 0)


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
