"""Resizes pixels as Pillow does, to the bit: whole images, and parts of what would be too large as a whole.

Images are [H, W, C] uint8 arrays, C being 3 (RGB) or 1 (grey).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from mindspore.dataset import vision
from PIL import Image

from focal_twins.data.decoding import as_image, pixels

RESAMPLING = {
    "bicubic": (Image.Resampling.BICUBIC,),
    "bilinear": (Image.Resampling.BILINEAR,),
    "random": (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC),
}
FILTER_RULE = (
    "Pillow's filter of this name on 8-bit values, antialiased (its reach grows with the reduction): first to the new "
    "width at the old height, rounded to 8 bits, then to the new height"
)
FRACTION_BITS = 22  # of the weights, which Pillow rounds to integers
MOST_ENLARGED = 1000  # MindSpore refuses to enlarge a side more than this
# A resized image of so many times the pixels of the part that is kept is not made as a whole. (Up to about here, making
# it takes less time than computing the part in NumPy.)
WHOLE_TIMES = 16


def resize(array: np.ndarray, size: tuple[int, int], resample: Image.Resampling) -> np.ndarray:
    """Resize pixels [H, W, C] to (height, width) by Pillow's two passes, see FILTER_RULE.

    The horizontal one comes first for every shape, as when the original recipes were trained. (Pillow 13 by itself
    begins with the vertical one for some.) Bicubic on colours is MindSpore's PILCUBIC, which does the same a fifth
    faster.
    """
    if resample != Image.Resampling.BICUBIC or array.shape[2] != 3:
        wide = as_image(array).resize((size[1], array.shape[0]), resample)
        return pixels(wide.resize(size[::-1], resample))
    if max(new / old for new, old in zip(size, array.shape, strict=False)) > MOST_ENLARGED:
        return _resize_part(array, size, (0, 0), size, resample)
    return vision.Resize(size, vision.Inter.PILCUBIC)(np.ascontiguousarray(array))


def resize_and_crop(
    array: np.ndarray,
    resized: tuple[int, int],
    corner: tuple[int, int],
    size: tuple[int, int],
    resample: Image.Resampling,
) -> np.ndarray:
    """Return the part of (height, width) `size` at (top, left) `corner` of pixels [H, W, C] resized to `resized`.

    The result is that of resizing and then cropping. Of a long, narrow image, which would become a huge one, nothing
    but the part is computed.
    """
    if resized[0] * resized[1] > WHOLE_TIMES * size[0] * size[1]:
        return _resize_part(array, resized, corner, size, resample)
    if resized != array.shape[:2]:
        array = resize(array, resized, resample)
    top, left = corner
    return np.ascontiguousarray(array[top : top + size[0], left : left + size[1]])


def _resize_part(
    array: np.ndarray,
    resized: tuple[int, int],
    corner: tuple[int, int],
    size: tuple[int, int],
    resample: Image.Resampling,
) -> np.ndarray:
    """Compute what resize_and_crop returns from the rows and columns that it depends on."""
    passes = [
        (axis, Weights.of(array.shape[axis], resized[axis], corner[axis], size[axis], resample)) for axis in (1, 0)
    ]
    for axis, weights in passes:
        array = array.take(range(*weights.used), axis)
    for axis, weights in passes:
        array = weights.apply(array, axis)
    return array


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Return the cubic convolution kernel at distances x >= 0 below 2 (Keys 1981, with a = -0.5)."""
    a = -0.5
    return np.where(x < 1, ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a)


# The reach of each filter, and its value at distances below that.
FILTERS: dict[Image.Resampling, tuple[float, Callable[[np.ndarray], np.ndarray]]] = {
    Image.Resampling.BICUBIC: (2.0, _bicubic),
    Image.Resampling.BILINEAR: (1.0, lambda x: 1 - x),
}


@dataclass(frozen=True)
class Weights:
    """Says of which pixels along an axis the pixels of a part of the resized axis are made.

    Attributes:
        used: the first of the pixels that are needed, and the one after the last.
        first: [n] the first pixel of each result, counted from used[0].
        factors: [n, taps] weights of the pixels from there on, int32, with FRACTION_BITS bits behind the point.
    """

    used: tuple[int, int]
    first: np.ndarray
    factors: np.ndarray

    @classmethod
    def of(cls, old: int, new: int, start: int, count: int, resample: Image.Resampling) -> "Weights":
        """Compute the weights of the pixels [start, start + count) of an axis resized from `old` to `new` pixels.

        Each step rounds as Pillow's does, so that the integers are the same.
        """
        reach, kernel = FILTERS[resample]
        scale = old / new
        stretch = max(scale, 1.0)
        centre = (np.arange(start, start + count) + 0.5) * scale
        first = np.maximum((centre - reach * stretch + 0.5).astype(np.int64), 0)
        end = np.minimum((centre + reach * stretch + 0.5).astype(np.int64), old)
        positions = first[:, None] + np.arange((end - first).max())
        distances = np.abs((positions - centre[:, None] + 0.5) * (1.0 / stretch))
        values = np.where((positions < end[:, None]) & (distances < reach), kernel(distances), 0.0)
        values /= np.add.accumulate(values, axis=1)[:, -1:]  # summed in order, unlike by np.sum
        factors = (values * (1 << FRACTION_BITS) + np.where(values < 0, -0.5, 0.5)).astype(np.int32)
        return cls((int(first[0]), int(end[-1])), first - first[0], factors)

    def apply(self, array: np.ndarray, axis: int) -> np.ndarray:
        """Resize the needed part of an axis of pixels [H, W, C]."""
        shape = [1] * array.ndim
        shape[axis] = -1
        total: np.ndarray | int = 1 << (FRACTION_BITS - 1)
        for tap, factors in enumerate(self.factors.T):
            pixel = np.minimum(self.first + tap, array.shape[axis] - 1)  # weights beyond the end are 0
            total = total + array.take(pixel, axis) * factors.reshape(shape)
        return np.clip(np.asarray(total) >> FRACTION_BITS, 0, 255).astype(np.uint8)
