"""Resize images as OpenCV does, and maps of numbers, with NumPy alone: bilinearly and without antialiasing."""

import numpy as np


def neighbours(old, new):
    """Return for each new pixel along a side the two old ones around it, and the share [new, 1] of the second."""
    place = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32)
    first = np.floor(place)
    return *np.clip([first, first + 1], 0, old - 1).astype(int), (place - first)[:, None]


def resized_pixels(pixels, size):
    """Resize pixels [H, W, C] of 8 bits to (height, width)."""
    (top, bottom, down), (left, right, along) = map(neighbours, pixels.shape, size)
    (a, b), (c, d) = (np.rint(np.stack([1 - share, share]) * 2048).astype(int) for share in (along, down[:, None]))
    rows = (pixels[:, left] * a + pixels[:, right] * b) >> 4
    return ((rows[top] * c >> 16) + (rows[bottom] * d >> 16) + 2) >> 2


def resized_maps(maps, size):
    """Resize maps [H, W, C] of floating-point numbers to (height, width)."""
    (top, bottom, down), (left, right, along) = map(neighbours, maps.shape, size)
    rows = maps[:, left] * (1 - along) + maps[:, right] * along
    return rows[top] * (1 - down[:, None]) + rows[bottom] * down[:, None]
