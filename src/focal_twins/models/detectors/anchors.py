"""Lists anchors: the boxes of fixed shapes, at every place of a pyramid of maps, that dense detectors start from.

The order is that of the originals and of tokens: by level, then row, column and shape. Anchors stand on the corners of
the maps' cells, that is at (column * stride, row * stride), and not in their middles (mmdetection 2.11,
core/anchor/anchor_generator.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from focal_twins.models.detectors.detector import PAD_DIVISOR


@dataclass(frozen=True)
class AnchorShapes:
    """Describes the anchors of a detector.

    Attributes:
        strides: pixels between two places, for each level.
        scales: sides of the anchors, in strides, before their ratios change them.
        ratios: height over width of anchors of one area.
    """

    strides: tuple[int, ...]
    scales: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def per_place(self) -> int:
        """Return how many anchors stand at each place."""
        return len(self.scales) * len(self.ratios)

    def around_origin(self, stride: int) -> np.ndarray:
        """Return the anchors [per_place, 4] float32 of the place (0, 0): the scales of the first ratio come first."""
        tall = np.sqrt(np.asarray(self.ratios, np.float32))
        scales = np.asarray(self.scales, np.float32)
        widths = (np.float32(stride) * (1 / tall)[:, None] * scales).reshape(-1)
        heights = (np.float32(stride) * tall[:, None] * scales).reshape(-1)
        half = np.stack([widths, heights], axis=1) * np.float32(0.5)
        return np.concatenate([-half, half], axis=1)


@dataclass(frozen=True, eq=False)
class Anchors:
    """Holds the anchors of all levels of one canvas.

    Attributes:
        boxes: [A, 4] float32.
        corners: [A, 2] int32, (y, x) in pixels of the place where each stands.
        counts: anchors of each level.
        map_sizes: (h, w) of each level.
    """

    boxes: np.ndarray
    corners: np.ndarray
    counts: tuple[int, ...]
    map_sizes: tuple[tuple[int, int], ...]

    @property
    def levels(self) -> tuple[slice, ...]:
        """Return where each level's anchors are."""
        ends = np.cumsum(self.counts).tolist()
        return tuple(slice(end - count, end) for end, count in zip(ends, self.counts, strict=True))

    def valid(self, extent: tuple[int, int]) -> np.ndarray:
        """Tell which anchors [A] stand on an image of (height, width), rounded up to whole multiples of 32.

        The originals pad images to these multiples and use no anchors beyond.
        """
        return (self.corners < padded_extent(extent)).all(axis=1)


def padded_extent(extent: Sequence[int]) -> tuple[int, int]:
    """Round the (height, width) of an image up to whole multiples of PAD_DIVISOR."""
    height, width = (-(-int(side) // PAD_DIVISOR) * PAD_DIVISOR for side in extent)
    return height, width


def map_sizes(canvas: tuple[int, int], strides: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return (h, w) of the maps of a canvas whose sides are multiples of PAD_DIVISOR, for each stride."""
    return tuple((-(-canvas[0] // stride), -(-canvas[1] // stride)) for stride in strides)


@lru_cache(maxsize=64)  # more than there are canvases
def anchors_on(canvas: tuple[int, int], shapes: AnchorShapes) -> Anchors:
    """List the anchors of a canvas of (height, width)."""
    sizes = map_sizes(canvas, shapes.strides)
    boxes, corners = [], []
    for (height, width), stride in zip(sizes, shapes.strides, strict=True):
        row, column = np.divmod(np.arange(height * width), width)
        place = np.stack([column, row, column, row], axis=1).astype(np.float32) * np.float32(stride)
        boxes.append((place[:, None] + shapes.around_origin(stride)).reshape(-1, 4))
        corners.append(np.repeat(np.stack([row, column], axis=1).astype(np.int32) * stride, shapes.per_place, axis=0))
    counts = tuple(len(level) for level in boxes)
    return Anchors(np.concatenate(boxes), np.concatenate(corners), counts, sizes)
