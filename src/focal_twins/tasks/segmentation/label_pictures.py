"""Makes pictures of labels in the colours of their classes."""

import numpy as np
from PIL import Image

from focal_twins.pages.palette import IGNORED, palette

LARGEST_INDEX = 255  # the largest index of a palette image; where classes need it, index images are grey with 16 bits


def ignored_index(classes: int) -> int:
    """Return the index that stands in index images for pixels of no class: beyond all classes."""
    return LARGEST_INDEX if classes <= LARGEST_INDEX else 2**16 - 1


def index_image(labels: np.ndarray, classes: int) -> Image.Image:
    """Make the image whose pixel values are the numbers of classes, with the palette where it has at most 256 values.

    Args:
        labels: [H, W] from 0 to classes - 1; every other value becomes ignored_index.
    """
    ignored = ignored_index(classes)
    values = np.where((labels >= 0) & (labels < classes), labels, ignored)
    if ignored != LARGEST_INDEX:
        return Image.fromarray(values.astype(np.uint16))
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette(bytes(_with_ignored(LARGEST_INDEX).ravel().tolist()))  # the mode becomes P
    return image


def colour_image(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the colours [H, W, 3] uint8 of labels [H, W]; what is no class has the colour of ignored pixels."""
    known = (labels >= 0) & (labels < classes)
    return _with_ignored(classes)[np.where(known, labels, classes)]


def overlay(pixels: np.ndarray, labels: np.ndarray, classes: int, opacity: float) -> np.ndarray:
    """Paint labels over an image [H, W, C] uint8, with full colour at the edges of regions.

    Returns:
        [H, W, 3] uint8. Pixels of no class are as they are in the image.
    """
    image = np.broadcast_to(pixels, (*labels.shape, 3)).astype(np.float32)
    colours = colour_image(labels, classes)
    shares = np.where(edges(labels), 1.0, opacity).astype(np.float32) * ((labels >= 0) & (labels < classes))
    return (image + (colours - image) * shares[..., None] + 0.5).astype(np.uint8)


def edges(labels: np.ndarray) -> np.ndarray:
    """Tell of each pixel [H, W] whether the one on its right or below has another label."""
    found = np.zeros(labels.shape, bool)
    found[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    found[:-1] |= labels[:-1] != labels[1:]
    return found


def _with_ignored(classes: int) -> np.ndarray:
    """Return the colours [classes + 1, 3] of classes and, last, of ignored pixels."""
    return np.concatenate([palette(classes), np.array([IGNORED], np.uint8)])
