"""Resizes and pools token maps by products with static matrices.

A product costs less than MindSpore's operators where there is a backward pass, needs no map with channels first, and is
the same on every device.
"""

import math

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.ops.functional import is_sequence_value_unknown

from focal_twins.models.gathers import RowGather


def bilinear_matrix(source: int, target: int, align_corners: bool = False) -> np.ndarray:
    """Return the matrix [target, source] float32 that resizes a column of values by linear interpolation.

    Args:
        align_corners: the first and the last values of both stand at the same places; otherwise the outer edges of the
            first and the last do, as in torch.nn.functional.interpolate and OpenCV.
    """
    if align_corners:
        place = np.arange(target) * ((source - 1) / (target - 1) if target > 1 else 0.0)
    else:
        place = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    low = np.minimum(np.floor(place).astype(int), source - 1)
    high = np.minimum(low + 1, source - 1)
    share = place - low
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target), low), 1 - share)
    np.add.at(matrix, (np.arange(target), high), share)
    return matrix.astype(np.float32)


def averaging_matrix(source: int, bins: int) -> np.ndarray:
    """Return the matrix [bins, source] float32 of adaptive average pooling of a column of values.

    Bin i averages from floor(i * source / bins) to ceil((i + 1) * source / bins), as torch.nn.AdaptiveAvgPool2d does:
    bins may overlap, and there may be more of them than values.
    """
    matrix = np.zeros((bins, source), np.float32)
    for i in range(bins):
        first, end = i * source // bins, math.ceil((i + 1) * source / bins)
        matrix[i, first:end] = 1 / (end - first)
    return matrix


def padded_rows(matrix: np.ndarray, rows: int) -> np.ndarray:
    """Append rows of zeros to a matrix, so that it has `rows`."""
    return np.pad(matrix, ((0, rows - len(matrix)), (0, 0)))


class LeftProduct(nn.Cell):
    """Multiplies a static matrix [T, S] by each of N matrices: [N, S, D] to [N, T, D]."""

    def __init__(self, matrix: np.ndarray):
        super().__init__()
        self.matrix = Tensor(np.ascontiguousarray(matrix, np.float32))
        self.target, self.source = matrix.shape
        self.matmul = ops.MatMul()
        self.batched = ops.BatchMatMul()

    def set_matrix(self, matrix: np.ndarray) -> None:
        """Replace the matrix by another of its shape. Once called before a graph is compiled, the graph sees changes.

        It is a parameter from then on, so this is for networks whose parameters nobody trains or saves.
        """
        value = Tensor(np.ascontiguousarray(matrix, np.float32))
        if isinstance(self.matrix, Parameter):
            self.matrix.set_data(value)
        else:
            del self.matrix
            self.matrix = Parameter(value, name="matrix", requires_grad=False)

    def construct(self, x):
        matrix = self.matrix.astype(x.dtype)
        if is_sequence_value_unknown(x.shape):
            return ops.matmul(matrix, x)
        count, _, width = x.shape
        if count == 1:
            return self.matmul(matrix, x.reshape((self.source, width))).reshape((1, self.target, width))
        # The operator does not repeat its first side on CPU.
        return self.batched(ops.tile(matrix.reshape((1, self.target, self.source)), (count, 1, 1)), x)


class BilinearResize(nn.Cell):
    """Resizes token maps bilinearly: [B, h * w, C] to [B, H * W, C].

    Args:
        source, target: (h, w) and (H, W).
        align_corners: see bilinear_matrix.
    """

    def __init__(self, source: tuple[int, int], target: tuple[int, int], align_corners: bool = False):
        super().__init__()
        self.source, self.target = tuple(source), tuple(target)
        self.is_identity = self.source == self.target
        if not self.is_identity:
            self.rows, self.columns = (
                LeftProduct(bilinear_matrix(side, wanted, align_corners))
                for side, wanted in zip(source, target, strict=True)
            )

    def products_of(self, part: tuple[int, int]) -> list[tuple[LeftProduct, np.ndarray]]:
        """Return the products, and the matrices by which only the top left part (H, W) of the target is filled."""
        if self.is_identity:
            return []
        return [
            (product, padded_rows(bilinear_matrix(side, filled), whole))
            for product, side, filled, whole in zip(
                (self.rows, self.columns), self.source, part, self.target, strict=True
            )
        ]

    def construct(self, x):
        if self.is_identity:
            return x
        channels = x.shape[-1]
        height, width = self.source
        x = self.columns(x.reshape((-1, width, channels)))  # [B * h, W, C]
        x = self.rows(x.reshape((-1, height, self.target[1] * channels)))  # [B, H, W * C]
        return x.reshape((-1, self.target[0] * self.target[1], channels))


class NearestResize(nn.Cell):
    """Resizes token maps to the nearest token above and to the left: [B, h * w, C] to [B, H * W, C]."""

    def __init__(self, source: tuple[int, int], target: tuple[int, int]):
        super().__init__()
        self.pick = RowGather(nearest_tokens(source, target))

    def construct(self, x):
        return self.pick(x)


def nearest_tokens(source: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """List the token of a map (h, w) that stands at each place of a map (H, W): [H * W].

    It is token floor(i * h / H) for row i, as torch.nn.functional.interpolate's "nearest" takes.
    """
    rows, columns = (np.arange(wanted) * side // wanted for side, wanted in zip(source, target, strict=True))
    return (rows[:, None] * source[1] + columns).reshape(-1)


class AdaptiveAveragePool(nn.Cell):
    """Averages token maps over a grid of bins, by one product: [B, H * W, C] to [B, bins^2, C].

    Args:
        map_size: (H, W).
        bins: bins along each side, see averaging_matrix.
    """

    def __init__(self, map_size: tuple[int, int], bins: int):
        super().__init__()
        self.map_size, self.bins = tuple(map_size), bins
        rows, columns = (averaging_matrix(side, bins) for side in map_size)
        self.product = LeftProduct(np.kron(rows, columns))

    def products_of(self, part: tuple[int, int]) -> list[tuple[LeftProduct, np.ndarray]]:
        """Return the product, and the matrix that averages over the top left part (h, w) of the map alone."""
        rows, columns = (
            padded_rows(averaging_matrix(side, self.bins).T, whole).T
            for side, whole in zip(part, self.map_size, strict=True)
        )
        return [(self.product, np.kron(rows, columns))]

    def construct(self, x):
        return self.product(x)


class MaxPool(nn.Cell):
    """Takes the largest token value of windows, channel by channel: [B, H * W, C] to [B, H' * W', C].

    Windows reach over the edge by `padding`, where there is nothing to take. H' = (H + 2 * padding - kernel) // stride
    + 1, and W' alike.

    Args:
        map_size: (H, W).
    """

    def __init__(self, map_size: tuple[int, int], kernel_size: int, stride: int, padding: int):
        super().__init__()
        rows, columns = (window_places(side, kernel_size, stride, padding) for side in map_size)  # [H', k], [W', k]
        self.size = (len(rows), len(columns))
        windows = rows[:, None, :, None] * map_size[1] + columns[None, :, None, :]  # [H', W', k, k]
        self.pick, self.area = RowGather(windows), kernel_size * kernel_size
        self.largest = ops.ReduceMax()

    def construct(self, x):
        return self.largest(self.pick(x).reshape((x.shape[0], -1, self.area, x.shape[2])), 2)


def window_places(side: int, kernel_size: int, stride: int, padding: int) -> np.ndarray:
    """List the places along a side that each window of a pooling sees: [windows, kernel_size].

    Beyond the edge stands the nearest place inside, which the window sees anyway.
    """
    first = np.arange(0, side + 2 * padding - kernel_size + 1, stride) - padding
    return np.clip(first[:, None] + np.arange(kernel_size), 0, side - 1)
