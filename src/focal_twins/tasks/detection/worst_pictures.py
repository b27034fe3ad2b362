"""Shows the images that a detector does worst on: the objects in them, and what was detected."""

import html

import numpy as np

from focal_twins.data.decoding import Reading
from focal_twins.pages.legend import swatch
from focal_twins.pages.page import picture
from focal_twins.tasks.detection.drawing import Outline, draw_outlines, drawn_name
from focal_twins.tasks.report_images import Finder, jpeg, shown_pixels

LONG_SIDE = 560  # pixels of a picture
RIGHT, WRONG = (0, 114, 178), (213, 48, 24)  # colours of what is found, and of what is missed or invented
GROUND = 235  # grey of a picture whose image is not found


def worst_pictures(evaluation: dict, find: Finder, reading: Reading) -> str:
    """Show as HTML the images of an evaluation with the lowest F1 score, the lowest first.

    Args:
        reading: says how files become pixels.
    """
    names = [entry["name"] for entry in evaluation["classes"]]
    rows = [_row(entry, names, find(entry["image"]), reading) for entry in evaluation["worst_images"]]
    if not rows:
        return "<p>No object was missed and none invented.</p>"
    note = (
        f"Of detections with a score of at least {evaluation['shown_score']:g}, one is right if it has an object of "
        "its class to itself, at an IoU of 0.5. Images come by their F1 score, 2 found / (2 found + missed + "
        f"invented), the lowest first. {swatch(_hexadecimal(RIGHT))}found {swatch(_hexadecimal(WRONG))}missed or "
        "invented; crowds are not drawn."
    )
    return f'<p class="quiet">{note}</p><div class="labelled pairwise">{"".join(rows)}</div>'


def _hexadecimal(colour: tuple[int, int, int]) -> str:
    return "#" + bytes(colour).hex()


def _row(entry: dict, names: list[str], content: bytes | None, reading: Reading) -> str:
    """Make the two pictures of an image, with its name and counts."""
    width, height = entry["width"], entry["height"]
    factor = LONG_SIDE / max(width, height)
    size = max(round(height * factor), 1), max(round(width * factor), 1)
    pixels, problem = shown_pixels(content, reading, size)
    shown = np.full((*size, 3), GROUND, np.uint8) if pixels is None else pixels
    objects = [
        _outline(item, drawn_name(names[item["class"]], item["class"]), not item["found"]) for item in entry["objects"]
    ]
    detections = [
        _outline(item, f"{drawn_name(names[item['class']], item['class'])} {item['score']:.2f}", item["invented"])
        for item in entry["detections"]
    ]
    name = entry["image"]
    figures = [
        ("objects", _as_picture(shown, objects, factor, (height, width), f"{name}, objects")),
        ("detections", _as_picture(shown, detections, factor, (height, width), f"{name}, detections")),
    ]
    told = f"{entry['found']} found, {entry['missed']} missed, {entry['invented']} invented"
    missing = f" ({html.escape(problem)})" if pixels is None else ""
    content_of_row = "".join(f"<figure>{image}<figcaption>{title}</figcaption></figure>" for title, image in figures)
    return f"<div><b>{html.escape(name)}</b>{missing}: {told}<div>{content_of_row}</div></div>"


def _as_picture(pixels: np.ndarray, outlines: list[Outline], factor: float, size: tuple[int, int], title: str) -> str:
    """Draw outlines, mistakes and the most certain ones on top, over pixels; return the picture as HTML."""
    order = sorted(range(len(outlines)), key=lambda number: (outlines[number].is_strong, -number))
    ordered = [outlines[number] for number in order]
    return picture(jpeg(draw_outlines(pixels, ordered, factor, size)), "jpeg", title, is_small=False)


def _outline(item: dict, text: str, is_mistake: bool) -> Outline:
    x, y, width, height = item["bbox"]
    colour = WRONG if is_mistake else RIGHT
    return Outline((x, y, x + width, y + height), text, colour, is_mistake, item.get("segmentation"))
