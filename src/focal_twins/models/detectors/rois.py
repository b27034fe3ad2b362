"""Cuts a small map of fixed size out of a pyramid for each box: RoIAlign (arXiv 1703.06870, section 3).

A box is divided into bins; a bin's value is the mean of samples at evenly spread places in it, each interpolated
bilinearly between the centres of cells ("aligned": half a cell is subtracted from coordinates). A box reads one level
of the pyramid, by its size. Boxes pass no gradient.

Sources: mmdetection 2.11, roi_heads/roi_extractors/single_level_roi_extractor.py; torchvision's roi_align.
"""

import math
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

FINEST_SIDE = 56  # boxes of less than twice this side, in pixels, read the first level


def roi_levels(boxes, levels: int):
    """Return the level [...] int32 that each of boxes [..., 4] reads: one more for each doubling of its side."""
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    side = ops.sqrt(ops.maximum(area, ops.zeros_like(area))) / FINEST_SIDE + 1e-6
    level = ops.zeros_like(side)
    for k in range(1, levels):
        level = level + (side >= 2.0**k).astype(ms.float32)
    return level.astype(ms.int32)


class RoIAlign(nn.Cell):
    """Cuts maps of equal size out of a pyramid, by one gather of rows and one product for all boxes and levels.

    A bin reads a fixed number of rows of the pyramid. Its samples are spread in one of two ways:

    - `sampling_ratio` 1 or more: as many along each side. Each sample reads the four cells around it.
    - `sampling_ratio` 0: ceil(cells of the bin) along each side, as the originals take. They lie on consecutive cells,
      one more than samples along a side, and each cell is read once, with the sum of its weights. A bin that would need
      more than `bin_rows` cells, in a long and narrow box, has fewer samples along its longer side, and each reads the
      four cells around it: the mean is coarser than the original's, and still one of samples spread over the whole bin.

    On Ascend and CPU alike this replaces ops.ROIAlign, whose gradient is wrong in one mode, and whose sampling by the
    size of the bin gives NaN.

    Args:
        map_sizes: (h, w) of each level. strides: pixels between two of its tokens.
        output_size: bins along each side, P.
        sampling_ratio, bin_rows: see above.
    """

    def __init__(
        self,
        map_sizes: Sequence[tuple[int, int]],
        strides: Sequence[int],
        output_size: int,
        sampling_ratio: int,
        bin_rows: int = 32,
    ):
        super().__init__()
        self.levels = len(map_sizes)
        self.output_size = output_size
        self.is_adaptive = sampling_ratio == 0
        self.fixed_samples = math.isqrt(bin_rows) // 2 if self.is_adaptive else sampling_ratio
        self.bin_rows = bin_rows if self.is_adaptive else 4 * sampling_ratio**2
        self.most_samples = bin_rows // 2 - 1  # along a side, where the other side has one
        lengths = [height * width for height, width in map_sizes]
        self.first_row = Tensor(np.cumsum([0, *lengths[:-1]]).astype(np.int32))
        self.sides = Tensor(np.array([[width, height] for height, width in map_sizes], np.float32))  # (x, y)
        self.scales = Tensor((1 / np.array(strides, np.float32)).reshape(-1, 1))
        self.bins = Tensor(np.arange(output_size, dtype=np.float32).reshape(1, -1, 1))
        self.rows = Tensor(np.arange(self.bin_rows, dtype=np.float32).reshape(1, -1))
        self.samples = Tensor(np.arange(self.most_samples, dtype=np.float32).reshape(1, 1, 1, -1))
        self.product = ops.BatchMatMul()

    def construct(self, pyramid, boxes):
        """Map tokens [B, L, C] of all levels side by side and boxes [B, R, 4], in pixels, to tokens [B * R, P * P, C].

        Boxes are float32 whatever the type of the tokens.
        """
        batch, length, channels = pyramid.shape
        index, weight = self.bin_tables(ops.stop_gradient(boxes), batch, length)
        rows = ops.gather(pyramid.reshape((-1, channels)), index.reshape(-1), 0).reshape((-1, self.bin_rows, channels))
        weight = weight.reshape((-1, 1, self.bin_rows)).astype(pyramid.dtype)
        return self.product(weight, rows).reshape((-1, self.output_size * self.output_size, channels))

    def bin_tables(self, boxes, batch, length):
        """Return the rows that each bin reads, and their weights: [B * R, P, P, bin_rows] int32 and float32."""
        count = boxes.shape[1]
        boxes = boxes.reshape((-1, 4))
        level = roi_levels(boxes, self.levels)
        sides = ops.gather(self.sides, level, 0)  # [N, 2], x before y as in all pairs here
        corners = boxes * ops.gather(self.scales, level, 0) - 0.5
        start = corners[:, :2]
        bin_sides = (corners[:, 2:] - start) / self.output_size
        samples = ops.zeros_like(bin_sides) + self.fixed_samples
        cells = 2 * samples
        if self.is_adaptive:
            wanted = -ops.floor(-bin_sides)  # rounded up: files of ONNX that MindSpore writes have no Ceil
            consecutive = ops.maximum(wanted, ops.ones_like(wanted)) + 1
            fits = (consecutive[:, :1] * consecutive[:, 1:]) <= self.bin_rows  # [N, 1]
            spread = self.spread_samples(wanted)
            samples = ops.select(ops.tile(fits, (1, 2)), wanted, spread)
            cells = ops.select(ops.tile(fits, (1, 2)), consecutive, 2 * spread)
        else:
            fits = None
        # Row r of a bin is cell (r // columns, r % columns) of those that it reads.
        columns = cells[:, :1]
        row = ops.floor((self.rows + 0.5) / columns)  # [N, bin_rows]
        column = self.rows - row * columns
        is_cell = (row < cells[:, 1:]).astype(ms.float32)
        x, x_weight = self.side_tables(column, start[:, :1], bin_sides[:, :1], samples[:, :1], sides[:, :1], fits)
        y, y_weight = self.side_tables(row, start[:, 1:], bin_sides[:, 1:], samples[:, 1:], sides[:, 1:], fits)
        y_weight = y_weight * is_cell.reshape((-1, 1, self.bin_rows))

        image = Tensor(np.repeat(np.arange(batch, dtype=np.int32) * length, count))
        first = (ops.gather(self.first_row, level, 0) + image).reshape((-1, 1, 1))
        widths = sides[:, :1].astype(ms.int32).reshape((-1, 1, 1))
        y = first + y.astype(ms.int32) * widths
        index = y.expand_dims(2) + x.astype(ms.int32).expand_dims(1)  # [N, P, P, bin_rows]
        return index, y_weight.expand_dims(2) * x_weight.expand_dims(1)

    def spread_samples(self, wanted):
        """Return the samples along both sides [N, 2] of bins whose four cells each are at most bin_rows.

        Args:
            wanted: [N, 2], as the originals take.
        """
        shorter = ops.minimum(wanted[:, :1], wanted[:, 1:])
        fewer = ops.minimum(ops.maximum(shorter, 1.0), self.fixed_samples)
        more = ops.floor(self.bin_rows / (4 * fewer))
        is_shorter = (wanted <= shorter).astype(ms.float32)
        return is_shorter * fewer + (1 - is_shorter) * more

    def side_tables(self, cell, start, bin_side, samples, side, fits):
        """Return, along one side of the boxes, the places of the cells that bins read, and their weights.

        Args:
            cell: [N, bin_rows], which of the bin's cells along this side a row stands for.
            start, bin_side: [N, 1], where the box begins and how long its bins are, in cells of the map.
            samples: [N, 1], along this side of a bin. side: [N, 1], of the map.
            fits: [N, 1], whether a bin reads consecutive cells; None: none does.

        Returns:
            Both [N, P, bin_rows] float32.
        """
        start, bin_side = start.expand_dims(2), bin_side.expand_dims(2)  # [N, 1, 1], as the next
        samples, side = samples.expand_dims(2), side.expand_dims(2)
        cell = cell.expand_dims(1)  # [N, 1, bin_rows]
        last = side - 1
        sample = ops.floor(cell * 0.5)
        is_high = cell - 2 * sample
        divisor = ops.maximum(samples, ops.ones_like(samples))
        place, is_inside = places_of(start, bin_side, self.bins, sample, divisor, side)
        low = ops.floor(place)
        share = place - low
        cells = ops.minimum(low + is_high, last)
        weights = (is_high * share + (1 - is_high) * (1 - share)) * is_inside
        if fits is not None:
            bins = self.bins.expand_dims(3)
            start, bin_side, side = start.expand_dims(3), bin_side.expand_dims(3), side.expand_dims(3)
            # [N, P, 1, most_samples]
            place, is_inside = places_of(start, bin_side, bins, self.samples, divisor.expand_dims(3), side)
            is_inside = is_inside * (self.samples < samples.expand_dims(3)).astype(ms.float32)
            consecutive = ops.floor(place[:, :, :, 0]) + cell
            distance = ops.abs(consecutive.expand_dims(3) - place)
            hat = ops.relu(1 - distance) * is_inside
            chosen = ops.tile(fits.expand_dims(2), (1, *weights.shape[1:]))
            cells = ops.select(chosen, ops.minimum(consecutive, last), cells)
            weights = ops.select(chosen, hat.sum(-1), weights)
        return cells, weights / ops.maximum(samples, ops.ones_like(samples))


def places_of(start, bin_side, bins, sample, samples, side):
    """Return the places of samples on a side of `side` cells, moved onto the map, and whether they count (1 or 0).

    A sample within a cell of the map's edge takes the edge's value; further out it counts as zero.
    """
    place = start + (bins + (sample + 0.5) / samples) * bin_side
    is_inside = ops.logical_and(place >= -1, place <= side).astype(ms.float32)
    zero = ops.zeros_like(place)
    return ops.maximum(ops.minimum(place, side - 1), zero), is_inside
