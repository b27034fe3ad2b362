"""Takes an image from where a caller has it: a file, a Pillow image, or an array."""

import os
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from PIL import Image

from focal_twins.data.decoding import Reading, decode, from_pillow
from focal_twins.data.image_files import read_file

ImageSource: TypeAlias = str | os.PathLike | Image.Image | np.ndarray


def read_pixels(source: ImageSource, channels: int, reading: Reading) -> np.ndarray:
    """Return the pixels [H, W, channels] uint8 of an image, by the same rules wherever it comes from.

    Args:
        source: the path of a file, a Pillow image, or an array [H, W], [H, W, 1] or [H, W, 3] uint8.
        channels: 3 (RGB) or 1 (grey), whatever the image has.

    Raises:
        UnreadableImage: see decoding.decode.
        OSError: the file cannot be read.
        TypeError: an array of another shape or type, or something else.
    """
    if isinstance(source, str | os.PathLike):
        return decode(read_file(os.fspath(source)), channels, reading)
    if isinstance(source, np.ndarray):
        shape = source.shape
        if source.dtype != np.uint8 or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))):
            raise TypeError(
                f"an image as an array is [H, W], [H, W, 1] or [H, W, 3] uint8, got {shape} {source.dtype}; "
                "several images are a list"
            )
        source = Image.fromarray(source[:, :, 0] if shape[2:] == (1,) else source)
    if isinstance(source, Image.Image):
        return from_pillow(source, channels, reading)
    raise TypeError(f"an image is a path, a Pillow image or an array, got {type(source).__name__}")


def as_list(images: ImageSource | Sequence[ImageSource]) -> tuple[list[ImageSource], bool]:
    """Return one image or several as a list, and whether it was one."""
    if isinstance(images, str | os.PathLike | Image.Image | np.ndarray):
        return [images], True
    return list(images), False


def names_of(sources: Sequence[ImageSource]) -> list[str]:
    """Return names for images: the paths of files, and "image N" for others, counted from 1."""
    return [
        os.fspath(source) if isinstance(source, str | os.PathLike) else f"image {number}"
        for number, source in enumerate(sources, 1)
    ]
