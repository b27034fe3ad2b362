"""Says how a resized image goes through a network: as a whole, on a canvas, or by windows, and once more mirrored."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from focal_twins.config.load import Config
from focal_twins.models.registry import ArgumentError
from focal_twins.tasks.segmentation.full_size import View, sliding_view, whole_view, window_starts, windows


class Maps(Protocol):
    """Computes maps of logits [n, h, w, classes] float32 of images [n, C, H, W].

    Args:
        part: (height, width) of what is not padding, where images stand on a canvas.
    """

    def __call__(self, images: np.ndarray, part: tuple[int, int] | None = None) -> np.ndarray: ...


@dataclass(frozen=True)
class InferenceRule:
    """Turns images into views, of which full_size_labels makes labels.

    Attributes:
        mode: "whole", "canvas" or "slide", see SegmentationEval.
        window: (height, width) of the windows that slide.
        stride: vertical and horizontal step of the windows.
        canvas_step: sides of canvases are its multiples; None where the mode is another.
        flip: each image is seen once more, mirrored.
    """

    mode: str
    window: tuple[int, int]
    stride: tuple[int, int]
    canvas_step: int | None = None
    flip: bool = False

    @classmethod
    def of(cls, config: Config, window: tuple[int, int], mode: str) -> "InferenceRule":
        """Return the rule of a configuration's section eval; windows overlap by a third unless it says otherwise.

        Args:
            mode: eval.mode, with "auto" resolved.
        """
        height, width = config.eval.stride or [max(2 * side // 3, 1) for side in window]
        return cls(mode, window, (height, width), config.eval.canvas_step, config.eval.flip)

    def views(self, maps: Maps, scaled: list[np.ndarray], size: tuple[int, int]) -> Iterator[list[View]]:
        """Yield the views of each image of a batch: one for each scale and, where asked for, of its mirror image.

        Args:
            scaled: images [B, C, h, w] at each scale.
            size: (height, width) of the images at their own size.
        """
        view_of = {"whole": self._whole, "canvas": self._canvas, "slide": self._slide}[self.mode]
        views = []
        for images in scaled:
            views.append(view_of(maps, images, size, False))
            if self.flip:
                views.append(view_of(maps, np.ascontiguousarray(images[..., ::-1]), size, True))
        return map(list, zip(*views, strict=True))

    def _whole(self, maps, images, size, mirrored) -> list[View]:
        """Return a view of each image, which goes through a network of its size."""
        return [whole_view(logits, images.shape[2:], size, mirrored=mirrored) for logits in maps(images)]

    def _canvas(self, maps, images, size, mirrored) -> list[View]:
        """Return a view of each image, which is padded to a multiple of canvas_step."""
        step, valid = self.canvas_step, images.shape[2:]
        canvas = (-(-valid[0] // step) * step, -(-valid[1] // step) * step)
        return [whole_view(logits, canvas, size, valid, mirrored) for logits in maps(padded(images, canvas), valid)]

    def _slide(self, maps, images, size, mirrored) -> list[View]:
        """Return a view of each image, over which windows slide."""
        valid = images.shape[2:]
        return [
            sliding_view(maps(self.crops(image)), valid, size, self.window, self.stride, mirrored) for image in images
        ]

    def crops(self, image: np.ndarray) -> np.ndarray:
        """Return the windows [n, C, height, width] of an image [C, h, w], row by row. Short sides are padded."""
        (height, width), valid = self.window, (image.shape[1], image.shape[2])
        (image,) = padded(image[None], [max(pair) for pair in zip(valid, self.window, strict=True)])
        corners = windows(valid, self.window, self.stride)
        return np.stack([image[:, y : y + height, x : x + width] for y, x in corners])


def padded(images: np.ndarray, size) -> np.ndarray:
    """Pad images [B, C, H, W] with zeros on the right and below to a size."""
    (height, width), (full_height, full_width) = images.shape[2:], size
    return np.pad(images, ((0, 0), (0, 0), (0, full_height - height), (0, full_width - width)))


def unfit_size(mode: str, images: np.ndarray, error: ArgumentError) -> str:
    """Say that a network cannot have the size of images [B, C, H, W], and the remedy."""
    height, width = images.shape[2:]
    return (
        f"{mode}: the network cannot take an image of {width} x {height} pixels ({error.reason}); use slide, or canvas "
        "with an eval.canvas_step that it can take"
    )


def joined_labels(
    labels: np.ndarray, size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]
) -> np.ndarray:
    """Join the labels [n, height, width] of sliding windows to those of an image [H, W]: each takes half of an overlap.

    Args:
        size: (H, W) of the image. window, stride: see InferenceRule.
    """
    joined = np.empty(size, labels.dtype)
    spans = [_own_spans(*sides) for sides in zip(size, window, stride, strict=True)]
    parts = iter(labels)
    for top, rows in spans[0]:
        for left, columns in spans[1]:
            part = next(parts)
            joined[rows, columns] = part[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return joined


def _own_spans(side: int, window: int, stride: int) -> list[tuple[int, slice]]:
    """Return of each window along a side where it begins, and which pixels of the image are its own."""
    starts = window_starts(side, window, stride)
    borders = [(first + window + second) // 2 for first, second in pairwise(starts)]
    return [
        (start, slice(begin, end)) for start, begin, end in zip(starts, [0, *borders], [*borders, side], strict=True)
    ]
