"""Resizes, crops and distorts an image together with its label image, and pads both to one size.

The functions do what mmsegmentation 0.11 does to train UPerNet and Semantic FPN, with OpenCV's operations as there, so
that the same numbers drawn give the same pixels. Two things differ. Images are RGB here and BGR there, which none of
these operations notices. And a crop without any labelled pixel, which would teach nothing, moves to a labelled one.

What is random is drawn by functions called draw_..., from a generator keyed by the sample; the others apply it. Images
are [H, W, C] uint8 arrays, C being 3 (RGB) or 1 (grey); labels are [H, W] arrays of integers.
"""

from dataclasses import dataclass

import cv2
import numpy as np

# Samples are prepared in worker processes, one for each core. OpenCV's own threads would compete with them, and they
# do not survive the fork that makes a worker.
cv2.setNumThreads(0)

INTERPOLATION = "bilinear, without antialiasing"
# Said beside exported files, for programs that know nothing of this one.
BILINEAR_RULE = (
    "as OpenCV's INTER_LINEAR on 8-bit values. Pixel i of a new side is at place = (i + 0.5) * old / new - 0.5 of the "
    "old one (float32), between the pixels floor(place) and floor(place) + 1, which are moved into the image; their "
    "weights are rounded to 2048ths, halves to the even number. First rows: (left * weight + right * weight) >> 4, "
    "then along columns: ((upper * weight >> 16) + (lower * weight >> 16) + 2) >> 2"
)
CROP_ATTEMPTS = 10
LEVELS = np.arange(256, dtype=np.float32)  # the values that a pixel can have
HUES = 180  # OpenCV's uint8 hues count steps of two degrees


def rescaled_size(size: tuple[int, ...], bounds: list[int] | tuple[int, int]) -> tuple[int, int]:
    """Return the largest size (height, width) of an aspect whose sides stay within bounds, whichever comes first.

    Args:
        size: (height, width) that gives the aspect.
        bounds: the two bounds of the long and of the short side, in any order.

    Source: mmcv's rescale_size.
    """
    height, width = size
    factor = min(max(bounds) / max(size), min(bounds) / min(size))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def scaled_bounds(bounds: list[int] | None, size: tuple[int, ...], factor: float) -> tuple[int, int]:
    """Return bounds of the sides times a factor; without bounds, the sides of the image, `size`, are the bounds."""
    first, second = bounds if bounds is not None else size
    return int(first * factor), int(second * factor)


def resize_pixels(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize pixels [H, W, C] to (height, width), bilinearly."""
    if pixels.shape[:2] == size:
        return pixels
    resized = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR)
    return resized[:, :, None] if resized.ndim == 2 else resized


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a label [H, W] to (height, width); every pixel is the nearest one's."""
    return label if label.shape == size else cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST)


def mirror(array: np.ndarray) -> np.ndarray:
    """Return an array [H, W, ...] mirrored from left to right, in memory of its own."""
    return cv2.flip(array, 1).reshape(array.shape)


def largest_share(label: np.ndarray, ignore_index: int) -> float:
    """Return the share of a label's most frequent class among its labelled pixels; 1 where there are none."""
    counts = np.bincount(label.ravel(), minlength=ignore_index + 1)
    counts[ignore_index] = 0
    return counts.max() / max(counts.sum(), 1) if counts.any() else 1.0


def draw_crop(
    generator: np.random.Generator,
    label: np.ndarray,
    size: tuple[int, int],
    cat_max_ratio: float,
    ignore_index: int,
) -> tuple[int, int]:
    """Draw the top and left of a crop (height, width) of a label [H, W] and its image.

    Where one class has cat_max_ratio of the labelled pixels or more, another crop is drawn, and after ten such crops
    one more is taken as it is. A crop that holds no labelled pixel at all moves to a labelled pixel, if there is one.
    A side that the crop exceeds begins at 0.
    """
    limits = [max(have - want, 0) + 1 for have, want in zip(label.shape, size, strict=True)]

    def draw() -> tuple[int, int]:
        top, left = generator.integers(0, limits)
        return int(top), int(left)

    def part(corner: tuple[int, int]) -> np.ndarray:
        return label[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]

    corner = draw()
    if cat_max_ratio < 1:
        for _ in range(CROP_ATTEMPTS):
            if largest_share(part(corner), ignore_index) < cat_max_ratio:
                return corner
            corner = draw()
    if not (part(corner) != ignore_index).any():
        labelled = np.flatnonzero(label != ignore_index)
        if len(labelled):
            point = np.unravel_index(labelled[generator.integers(len(labelled))], label.shape)
            top, left = (
                int(np.clip(place - side // 2, 0, limit - 1))
                for place, side, limit in zip(point, size, limits, strict=True)
            )
            return top, left
    return corner


@dataclass(frozen=True)
class Distortion:
    """Holds the numbers drawn for a photometric distortion; None stands for a step that does not happen.

    Attributes:
        brightness: addend to the pixels.
        contrast, saturation: factors.
        hue: turn in steps of two degrees.
        contrast_last: contrast comes after the colours and not before them.
    """

    brightness: float | None = None
    contrast: float | None = None
    saturation: float | None = None
    hue: int | None = None
    contrast_last: bool = False


def draw_distortion(
    generator: np.random.Generator, brightness: float, contrast: list[float], saturation: list[float], hue: int
) -> Distortion:
    """Draw a distortion of which every step happens with probability one half.

    Args:
        brightness: largest addend.
        contrast, saturation: least and greatest factor.
        hue: turns are drawn from -hue to hue - 1, as in the original.
    """
    chosen = generator.random(5) < 0.5
    addend = generator.uniform(-brightness, brightness)
    factors = [generator.uniform(least, greatest) for least, greatest in (contrast, saturation)]
    turn = int(generator.integers(-hue, hue)) if hue else 0
    return Distortion(
        brightness=addend if chosen[0] else None,
        contrast=factors[0] if chosen[1] else None,
        saturation=factors[1] if chosen[2] else None,
        hue=turn if chosen[3] else None,
        contrast_last=bool(chosen[4]),
    )


def distort(pixels: np.ndarray, drawn: Distortion) -> np.ndarray:
    """Distort pixels [H, W, C] uint8 photometrically. Grey ones have no saturation and no hue.

    Every step maps the 256 values of a pixel to 256 others, so it is a look-up in a table; the original computes each
    pixel in floats and cuts the fractions off, with the same result. Each of the colours' two steps goes through
    uint8 HSV and back, which is not exact, so the two do not share one way.

    Source: mmsegmentation's PhotoMetricDistortion.
    """
    brightness = [] if drawn.brightness is None else [_table(1.0, drawn.brightness)]
    contrast = [] if drawn.contrast is None else [_table(drawn.contrast)]
    pixels = _looked_up(pixels, brightness if drawn.contrast_last else brightness + contrast)
    if pixels.shape[2] == 3:
        if drawn.saturation is not None:
            pixels = _through_hsv(pixels, 1, _table(drawn.saturation))
        if drawn.hue is not None:
            pixels = _through_hsv(pixels, 0, ((np.arange(256) + drawn.hue) % HUES).astype(np.uint8))
    return _looked_up(pixels, contrast if drawn.contrast_last else [])


def _table(factor: float, addend: float = 0.0) -> np.ndarray:
    """Return the table [256] uint8 of value * factor + addend, cut off to what a pixel can have."""
    return np.clip(LEVELS * np.float32(factor) + np.float32(addend), 0, 255).astype(np.uint8)


def _looked_up(pixels: np.ndarray, tables: list[np.ndarray]) -> np.ndarray:
    """Look pixels [H, W, C] uint8 up in tables, one after the other."""
    if not tables:
        return pixels
    table = tables[0]
    for following in tables[1:]:
        table = following[table]
    return cv2.LUT(pixels, table).reshape(pixels.shape)


def _through_hsv(pixels: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
    """Look one channel of HSV up in a table."""
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
    hsv[:, :, channel] = cv2.LUT(hsv[:, :, channel], table)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def pad(array: np.ndarray, size: tuple[int, int], value: int) -> np.ndarray:
    """Pad an array [H, W, ...] with a value, on the right and below, to (height, width)."""
    height, width = array.shape[:2]
    if (height, width) == size:
        return np.ascontiguousarray(array)
    padded = np.full((*size, *array.shape[2:]), value, array.dtype)
    padded[:height, :width] = array
    return padded
