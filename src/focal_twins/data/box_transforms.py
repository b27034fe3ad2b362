"""Resizes, crops and mirrors an image together with the boxes and masks of its objects.

The functions do what mmdetection 2.11 does for Swin Transformer's detectors, with OpenCV's operations as there, so that
the same numbers drawn give the same pixels, boxes and masks. What is random is drawn by draw_augmentation, from the
size of the image alone: so the size that comes out is known without opening the image.

Images are [H, W, C] uint8 arrays, boxes [n, 4] float32 of (x1, y1, x2, y2) in pixels, masks [n, H, W] uint8 of 0 and 1.
Sizes are (height, width).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from focal_twins.data.dense_transforms import mirror, rescaled_size, resize_label, resize_pixels
from focal_twins.models.detectors.boxes import clip


@dataclass(frozen=True)
class Crop:
    """Holds the top left corner and the size of a part of an image."""

    top: int
    left: int
    height: int
    width: int

    def of(self, array: np.ndarray) -> np.ndarray:
        """Return the part of an array [..., H, W]."""
        return array[..., self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class Augmentation:
    """Holds what was drawn for an image, and does it: mirror, resize, crop, resize.

    Attributes:
        source: size of the image before.
        mirrored: whether it is mirrored from left to right.
        enlarged, crop: the size before the crop, and the crop; None where there is none.
        size: of the image after.
    """

    source: tuple[int, int]
    mirrored: bool
    enlarged: tuple[int, int] | None
    crop: Crop | None
    size: tuple[int, int]

    def pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Return the pixels of the image after."""
        if self.mirrored:
            pixels = mirror(pixels)
        if self.crop is not None and self.enlarged is not None:
            crop, pixels = self.crop, resize_pixels(pixels, self.enlarged)
            pixels = pixels[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        return resize_pixels(pixels, self.size)

    def boxes(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the boxes that the image after has, and which [n] bool of the boxes before they are.

        Those go that a crop has no part of, and those of which float32 leaves nothing, slivers at an edge.
        """
        if self.mirrored:
            boxes = mirror_boxes(boxes, self.source[1])
        size = self.source
        if self.crop is not None and self.enlarged is not None:
            boxes = crop_boxes(resize_boxes(boxes, size, self.enlarged), self.crop)
            size = self.crop.height, self.crop.width
        boxes = resize_boxes(boxes, size, self.size)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        return boxes[kept], kept

    def masks(self, masks: np.ndarray) -> np.ndarray:
        """Return the masks [n, *size] of the image after, of as many objects."""
        if self.mirrored:
            masks = masks[:, :, ::-1]
        if self.crop is not None and self.enlarged is not None:
            masks = self.crop.of(resize_masks(masks, self.enlarged))
        return resize_masks(masks, self.size)


def draw_augmentation(generator: np.random.Generator, size: tuple[int, int], augment) -> Augmentation:
    """Draw how an image of a size is augmented.

    Args:
        augment: a section of a configuration, see config/detection.py.

    Source: DETR's augmentation as Swin Transformer's detectors use it. Mirroring comes first. Then, one time in two
    where `augment.crop` says so, the image is resized by one of crop_short_sides and cropped to sides that are drawn
    from crop_range, or from what the image has of that range; a crop may hold no object. At last the image is resized
    so that its short side is one of short_sides, or less where its long side would exceed long_side.
    """
    mirrored = bool(generator.random() < augment.hflip)
    enlarged = crop = None
    part = size
    if augment.crop and generator.random() < 0.5:
        enlarged = rescaled_size(size, (_one_of(generator, augment.crop_short_sides), augment.long_side))
        least, greatest = augment.crop_range
        height, width = (int(generator.integers(min(side, least), min(side, greatest) + 1)) for side in enlarged)
        top = int(generator.integers(enlarged[0] - height + 1))
        left = int(generator.integers(enlarged[1] - width + 1))
        crop, part = Crop(top, left, height, width), (height, width)
    last = rescaled_size(part, (_one_of(generator, augment.short_sides), augment.long_side))
    return Augmentation(size, mirrored, enlarged, crop, last)


def _one_of(generator: np.random.Generator, values: Sequence[int]) -> int:
    """Draw one of some values; Generator.choice would take ten times as long, and an epoch draws 100,000 at once."""
    return values[generator.integers(len(values))]


def mirror_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    """Return boxes mirrored from left to right in an image of a width."""
    mirrored = boxes.copy()
    mirrored[:, 0], mirrored[:, 2] = width - boxes[:, 2], width - boxes[:, 0]
    return mirrored


def resize_boxes(boxes: np.ndarray, size: tuple[int, int], new_size: tuple[int, int]) -> np.ndarray:
    """Return boxes of an image that is resized, each axis by its own factor, clipped to the image."""
    factors = [np.float32(after / before) for before, after in zip(size, new_size, strict=True)]
    return clip(boxes * np.array(factors[::-1] * 2, np.float32), new_size)


def crop_boxes(boxes: np.ndarray, crop: Crop) -> np.ndarray:
    """Return boxes within a crop, clipped to it; those that have no part in it become empty."""
    corner = np.array([crop.left, crop.top] * 2, np.float32)
    return clip(boxes - corner, (crop.height, crop.width))


def resize_masks(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return masks resized to a size; every pixel is the nearest one's."""
    if not len(masks):
        return np.zeros((0, *size), masks.dtype)
    return np.stack([resize_label(mask, size) for mask in masks])


def placed(
    size: tuple[int, int], bounds: Sequence[int], canvases: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the canvas for an image of a size, and the extent (height, width) to which it is resized there.

    It is resized as large as both bounds of its sides allow, the aspect kept. Where no canvas holds it then, it becomes
    smaller: as large as any canvas holds.
    """
    extent = rescaled_size(size, (bounds[0], bounds[1]))
    canvas = canvas_of(extent, canvases)
    if canvas is not None:
        return canvas, extent
    factors = [min(room / side for room, side in zip(canvas, size, strict=True)) for canvas in canvases]
    factor = max(factors)
    height, width = (max(int(side * factor + 1e-6), 1) for side in size)
    return canvases[factors.index(factor)], (height, width)


def canvas_of(size: tuple[int, int], canvases: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """Return the first canvas (height, width) that holds an image of a size; None where none does."""
    return next((canvas for canvas in canvases if size[0] <= canvas[0] and size[1] <= canvas[1]), None)
