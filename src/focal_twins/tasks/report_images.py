"""Finds the evaluation images that a report shows, and reads and embeds them."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from focal_twins.data.decoding import Reading, UnreadableImage, decode
from focal_twins.errors import UserError
from focal_twins.pages.page import encode

Finder = Callable[[str], bytes | None]


def image_finder(path: str, below: Path, moved_to: Path | None, roots: list[Path]) -> Finder:
    """Return a function that finds the file content of an evaluation image by its name, or None.

    Args:
        path: the data set's folder, which may be gone.
        below: folder of the images in it.
        moved_to: folder that holds the images now, or the data set's; None where they are still below `path`.
        roots: folders that a relative path may begin from.

    Raises:
        UserError: there is no folder `moved_to`.
    """
    if moved_to is not None:
        if not moved_to.is_dir():
            raise UserError(f"--data {moved_to}: no such folder; name the one that holds {below}, or the images' own")
        folders = [moved_to / below, moved_to]
    else:
        folders = [root / path / below for root in roots]

    def find(name: str) -> bytes | None:
        for folder in folders:
            try:
                return (folder / name).read_bytes()
            except (OSError, ValueError):
                continue
        return None

    return find


def shown_pixels(content: bytes | None, reading: Reading, size: tuple[int, int]) -> tuple[np.ndarray | None, str]:
    """Return the pixels [*size, 3] of an image file at a smaller (height, width), or None and the reason."""
    if content is None:
        return None, "image not found"
    try:
        pixels = decode(np.frombuffer(content, np.uint8), 3, reading)
    except UnreadableImage as problem:
        return None, str(problem)
    return cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA), ""


def jpeg(pixels: np.ndarray) -> bytes:
    """Encode pixels [H, W, 3] as a JPEG file, for a page."""
    return encode(Image.fromarray(pixels), "jpeg", quality=90)
