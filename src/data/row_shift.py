"""Shears and translations as Pillow computes them, at a third of its time.

Both move each row (or column) of an image by some distance along itself, so that Pillow's bicubic interpolation over
4 x 4 pixels has only 4 pixels with a weight, and those weights are the same along a row.
"""

import numpy as np
from PIL import Image


def tap_weights(fraction: np.ndarray, resample: Image.Resampling) -> list[np.ndarray]:
    """Weights of the pixels at -1, 0, 1 and 2 from a place `fraction` to the right of pixel 0.

    Bicubic with a = -1, which is that of Pillow's transformations (its resizing has -0.5); or bilinear.
    """
    t = fraction
    if resample == Image.Resampling.BILINEAR:
        zero = np.zeros_like(t)
        return [zero, 1 - t, t, zero]
    return [-t + 2 * t**2 - t**3, 1 - 2 * t**2 + t**3, t + t**2 - t**3, -(t**2) + t**3]


def shift_rows(
    pixels: np.ndarray, distances: np.ndarray, resample: Image.Resampling, fill: tuple[int, int, int]
) -> np.ndarray:
    """Each output pixel (y, x) is the input at (y, x + distances[y]); `fill` where that is outside.

    Args:
        pixels: [H, W, 3] uint8.
        distances: [H] in pixels.

    Returns:
        [H, W, 3] uint8, within one grey level of Pillow, which computes in float64.
    """
    height, width, channels = pixels.shape
    whole = np.floor(distances).astype(np.intp)
    fractions = (distances - whole).astype(np.float32)[:, None, None]
    # Row by row the pixels from one before to two after, the outermost repeated beyond the edge; 3 bytes at a time.
    columns = np.clip(np.arange(-1, width + 2) + whole[:, None], 0, width - 1) + width * np.arange(height)[:, None]
    colors = np.ascontiguousarray(pixels).reshape(-1, channels).view(f"V{channels}").ravel()
    aligned = colors.take(columns).view(np.uint8).reshape(height, width + 3, channels)
    total = np.zeros(pixels.shape, np.float32)
    part = np.empty_like(total)
    for tap, weight in enumerate(tap_weights(fractions, resample)):
        np.multiply(aligned[:, tap : tap + width], weight, out=part, dtype=np.float32)
        total += part
    total += np.float32(1e-3)  # Pillow cuts fractions off: a whole number must not come out a hair below itself
    result = np.clip(total.astype(np.int16), 0, 255).astype(np.uint8)
    centres = np.arange(width) + 0.5 + distances[:, None]
    result[(centres < 0) | (centres >= width)] = fill
    return result


def shift_columns(
    pixels: np.ndarray, distances: np.ndarray, resample: Image.Resampling, fill: tuple[int, int, int]
) -> np.ndarray:
    """shift_rows along the other axis, with distances [W]."""
    return shift_rows(pixels.transpose(1, 0, 2), distances, resample, fill).transpose(1, 0, 2)
