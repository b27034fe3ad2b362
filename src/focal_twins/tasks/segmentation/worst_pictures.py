"""Shows the images that a segmentor segments worst: the image, its label, the prediction, and where they differ."""

import html
import io

import numpy as np
from PIL import Image

from focal_twins.data.decoding import Reading
from focal_twins.pages.legend import legend
from focal_twins.pages.page import encode, picture
from focal_twins.pages.palette import IGNORED
from focal_twins.tasks.evaluation_file import PICTURES
from focal_twins.tasks.report_images import Finder, jpeg, shown_pixels
from focal_twins.tasks.segmentation.label_pictures import LARGEST_INDEX, colour_image, ignored_index
from focal_twins.tasks.segmentation.worst_images import picture_names

SMALL = 96  # a picture with fewer pixels a side is enlarged without smoothing
WRONG = (213, 48, 24)  # pixels whose class is predicted wrong
BRIGHTEST = 0.85  # of the grey image below the differences, white is lighter than this in no place


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
    pixels, problem = shown_pixels(content, reading, label.shape)
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
        image = picture(jpeg(pixels), "jpeg", name, is_small)
    figures = [
        ("image", image),
        ("label", kinds[0]),
        ("prediction", kinds[1]),
        ("differences", picture(jpeg(difference), "jpeg", f"{name}, differences", is_small)),
    ]
    shown = "".join(f"<figure>{content}<figcaption>{title}</figcaption></figure>" for title, content in figures)
    told = f"mIoU {entry['miou']:.2f}%, {entry['aacc']:.2f}% of {entry['pixels']:,} pixels right"
    return f"<div><b>{html.escape(name)}</b>: {told}<div>{shown}</div></div>"


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
