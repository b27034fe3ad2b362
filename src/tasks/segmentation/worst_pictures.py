"""Shows the images that a segmentor segments worst: the image, its label, the prediction, and where they differ."""

import html
import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from src.data.decoding import Reading, UnreadableImage, decode
from src.errors import UserError
from src.pages.page import encode, picture
from src.tasks.evaluation_file import PICTURES
from src.tasks.segmentation.legend import legend
from src.tasks.segmentation.palette import IGNORED, LARGEST_INDEX, colour_image, ignored_index
from src.tasks.segmentation.worst_images import picture_names

SMALL = 96  # a picture with fewer pixels a side is enlarged without smoothing
WRONG = (213, 48, 24)  # pixels whose class is predicted wrong
BRIGHTEST = 0.85  # of the grey image below the differences, white is lighter than this in no place
Finder = Callable[[str], bytes | None]


def image_finder(data: dict, moved_to: Path | None, roots: list[Path]) -> Finder:
    """Return a function that finds the file content of an evaluation image by its name, or None.

    Args:
        data: the data section of the run's configuration.
        moved_to: folder that holds the images now, or the data set's folder; None where they are still below data.path,
            which may be gone too.
        roots: folders that a relative data.path may begin from.

    Raises:
        UserError: there is no folder `moved_to`.
    """
    below = Path(str(data.get("images", "images"))) / str(data.get("val", "validation"))
    if moved_to is not None:
        if not moved_to.is_dir():
            raise UserError(f"--data {moved_to}: no such folder; name the one that holds {below}, or the images' own")
        folders = [moved_to / below, moved_to]
    else:
        folders = [root / str(data.get("path", "")) / below for root in roots]

    def find(name: str) -> bytes | None:
        for folder in folders:
            try:
                return (folder / name).read_bytes()
            except (OSError, ValueError):
                continue
        return None

    return find


def worst_pictures(evaluation: dict, find: Finder, reading: Reading) -> str:
    """Show as HTML the images with the lowest mean IoU, the lowest first, with a legend of the classes they have.

    Args:
        reading: says how files become pixels.
    """
    pictures: dict[str, bytes] = evaluation[PICTURES]
    names = [entry["name"] for entry in evaluation["classes"]]
    seen: set[int] = set()
    rows = []
    for entry in evaluation["worst_images"]:
        pngs = [pictures[name] for name in picture_names(entry["index"]) if name in pictures]
        maps = [_index_map(png) for png in pngs]
        if len(maps) == 2 and maps[0].size and maps[0].shape == maps[1].shape:
            seen |= {int(value) for values in maps for value in np.unique(values) if value < len(names)}
            rows.append(_row(entry, find(entry["image"]), reading, pngs, maps, len(names)))
    if not rows:
        return "<p>The pictures of this evaluation are not beside evaluation.json.</p>"
    wrong = "#" + bytes(WRONG).hex()
    note = (
        f'<p class="quiet">Each image counts by the mean IoU of the classes in its label or prediction. Differences '
        f'are painted red <i class="swatch" style="background:{wrong}"></i> over the grey image; pixels of no class '
        "are left out of all figures.</p>"
    )
    return (
        f'{note}{legend([(index, names[index]) for index in sorted(seen)])}<div class="labelled">{"".join(rows)}</div>'
    )


def _index_map(content: bytes) -> np.ndarray:
    """Return the values [h, w] of an index image; none where it is damaged."""
    try:
        return np.asarray(Image.open(io.BytesIO(content))).astype(np.int64)
    except Exception:  # Pillow's plugins raise nearly every type on damaged files
        return np.empty((0, 0), np.int64)


def _row(entry: dict, content: bytes | None, reading: Reading, pngs: list[bytes], maps: list, classes: int) -> str:
    """Make the four pictures of an image, with its name and figures."""
    label, predicted = maps
    name, is_small = entry["image"], max(label.shape) < SMALL
    pixels, problem = _pixels(content, reading, label.shape)
    if ignored_index(classes) > LARGEST_INDEX:  # index images of so many classes are grey, and nearly black
        pngs = [encode(Image.fromarray(colour_image(values, classes))) for values in maps]
    kinds = [
        picture(png, "png", f"{name}, {kind}", is_small)
        for png, kind in zip(pngs, ("label", "prediction"), strict=True)
    ]
    difference = _differences(label, predicted, pixels, ignored_index(classes))
    if pixels is None:
        image = f'<div class="missing">{html.escape(problem)}</div>'
    else:
        image = picture(_jpeg(pixels), "jpeg", name, is_small)
    figures = [
        ("image", image),
        ("label", kinds[0]),
        ("prediction", kinds[1]),
        ("differences", picture(_jpeg(difference), "jpeg", f"{name}, differences", is_small)),
    ]
    shown = "".join(f"<figure>{content}<figcaption>{title}</figcaption></figure>" for title, content in figures)
    told = f"mIoU {entry['miou']:.2f}%, {entry['aacc']:.2f}% of {entry['pixels']:,} pixels right"
    return f"<div><b>{html.escape(name)}</b>: {told}<div>{shown}</div></div>"


def _pixels(content: bytes | None, reading: Reading, size: tuple[int, int]) -> tuple[np.ndarray | None, str]:
    """Return the pixels [h, w, 3] of an image file at a smaller size, or None and the reason."""
    if content is None:
        return None, "image not found"
    try:
        pixels = decode(np.frombuffer(content, np.uint8), 3, reading)
    except UnreadableImage as problem:
        return None, str(problem)
    return cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA), ""


def _differences(label: np.ndarray, predicted: np.ndarray, pixels: np.ndarray | None, ignored: int) -> np.ndarray:
    """Paint where label and prediction [h, w] differ over the grey image, or over white where there is none."""
    if pixels is None:
        grey = np.full((*label.shape, 3), 255, np.uint8)
    else:
        light = pixels.astype(np.float32).mean(axis=2, keepdims=True)
        grey = np.broadcast_to(255 * (1 - BRIGHTEST) + light * BRIGHTEST, (*label.shape, 3)).astype(np.uint8)
    painted = grey.copy()
    painted[label != predicted] = WRONG
    painted[label == ignored] = IGNORED
    return painted


def _jpeg(pixels: np.ndarray) -> bytes:
    return encode(Image.fromarray(pixels), "jpeg", quality=90)
