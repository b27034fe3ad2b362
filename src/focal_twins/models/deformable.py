"""Composes deformable convolution (arXiv 1703.06211) of all levels of a pyramid from gathers and a product.

MindSpore's own operator is deprecated, slower by an order on CPU and absent on the Ascend 910; this one is exact,
with gradients by the places as well.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from focal_twins.models.convolutions import convolution_parameters, rows_of_taps
from focal_twins.models.level_layers import MapSizes, level_spans

CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # (row, column) of the cells around a place, from the one above and left


class MixedRows(nn.Cell):
    """Adds up four rows, each times a factor: what bilinear interpolation does with the cells around a place.

    The factors are multiplied in products of matrices: on CPU a product that repeats a side takes seven times as long.
    Its gradient gathers the rows again, so that the four, which are 36 times a map in a deformable convolution of 3x3,
    are not kept for it.
    """

    def __init__(self):
        super().__init__()
        self.gather, self.segment_sum = ops.Gather(), ops.UnsortedSegmentSum()
        self.product, self.zeros_like = ops.BatchMatMul(), ops.ZerosLike()

    def four_rows(self, rows, numbers):
        """Return the rows [M, 4, C] of each place."""
        return self.gather(rows, numbers.reshape(-1), 0).reshape((-1, 4, rows.shape[1]))

    def construct(self, rows, numbers, factors):
        """Return [M, C] of rows [N, C], four row numbers [M, 4] int32 each, and their factors [M, 4]."""
        return self.product(factors.reshape((-1, 1, 4)), self.four_rows(rows, numbers)).reshape((-1, rows.shape[1]))

    def bprop(self, rows, numbers, factors, out, gradient):
        gradient = gradient.astype(rows.dtype)  # in mixed precision they may differ
        of_rows = self.product(factors.reshape((-1, 4, 1)), gradient.reshape((-1, 1, rows.shape[1])))
        to_rows = self.segment_sum(of_rows.reshape((-1, rows.shape[1])), numbers.reshape(-1), rows.shape[0])
        to_factors = self.product(self.four_rows(rows, numbers), gradient.reshape((-1, rows.shape[1], 1)))
        return to_rows, self.zeros_like(numbers), to_factors.reshape(factors.shape)


class PlacesOnLevels(nn.Cell):
    """Finds the cells around places on the levels' maps, and their shares in bilinear interpolation.

    Cells outside the map have a share of zero.

    Args:
        sizes: (h, w) of each level.
        places: how many places each token has; they are on the map of the token's own level.
    """

    def __init__(self, sizes: MapSizes, places: int):
        super().__init__()
        spans = level_spans(sizes)
        lengths = [end - first for first, end in spans]

        def of_tokens(values, dtype):
            return Tensor(np.repeat(np.asarray(values, dtype), lengths).reshape(1, -1, 1))

        self.length, self.places = spans[-1][1], places
        self.first = of_tokens([first for first, _ in spans], np.int32)
        self.width = of_tokens([width for _, width in sizes], np.int32)
        self.last_row = of_tokens([height - 1 for height, _ in sizes], np.float32)
        self.last_column = of_tokens([width - 1 for _, width in sizes], np.float32)
        self.minimum, self.maximum, self.floor = ops.Minimum(), ops.Maximum(), ops.Floor()

    def construct(self, rows, columns):
        """Map places (row, column), each [B, L, places] in cells, to their four cells.

        Returns:
            Numbers of the cells' tokens among the B * L of the batch, and their shares, each [B * L * places, 4], in
            the order of CORNERS. Gradients flow through the shares alone.
        """
        batch = rows.shape[0]
        first = Tensor(np.arange(batch, dtype=np.int32).reshape(-1, 1, 1) * self.length) + self.first
        top, left = ops.stop_gradient(self.floor(rows)), ops.stop_gradient(self.floor(columns))
        below, right = rows - top, columns - left
        numbers, shares = (), ()
        for down, across in CORNERS:
            row, column = top + down, left + across
            inside_row = self.minimum(self.maximum(row, 0.0), self.last_row)
            inside_column = self.minimum(self.maximum(column, 0.0), self.last_column)
            is_inside = ops.logical_and(row == inside_row, column == inside_column).astype(rows.dtype)
            number = first + inside_row.astype(ms.int32) * self.width + inside_column.astype(ms.int32)
            numbers = numbers + (number.reshape(-1),)
            share = (below if down else 1 - below) * (right if across else 1 - right) * is_inside
            shares = shares + (share.reshape(-1),)
        return ops.stack(numbers, 1), ops.stack(shares, 1)


class SharedDeformableConv(nn.Cell):
    """Convolves every level at given places by the same weight, without a bias.

    Tokens have a place for each tap of the kernel; the taps see what bilinear interpolation gives there, and zeros
    outside the map.

    Args:
        kernel_size: the places of a token are its square.
        weights: how they start, see convolution_parameters.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, weights: str = "small"):
        super().__init__()
        self.in_channels, self.out_channels, self.taps = in_channels, out_channels, kernel_size * kernel_size
        self.weight, _ = convolution_parameters(out_channels, in_channels, kernel_size, weights, has_bias=False)
        self.mix = MixedRows()
        self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, x, numbers, shares):
        """Map tokens [B, L, in_channels] and the cells of their places to [B, L, out_channels].

        Args:
            numbers, shares: see PlacesOnLevels, of as many places as the kernel has taps.
        """
        patches = self.mix(x.reshape((-1, self.in_channels)), numbers, shares.astype(x.dtype))  # [B * L * taps, C]
        patches = patches.reshape((-1, self.taps * self.in_channels))
        rows = self.matmul(patches, rows_of_taps(self.weight).astype(x.dtype))
        return rows.reshape((-1, x.shape[1], self.out_channels))
