"""Draws boxes and masks of objects over images, with their names."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from focal_twins.data.coco import rasterise
from focal_twins.data.dense_transforms import resize_label

SHOWN_SCORE = 0.3  # detections with lower scores are neither drawn nor printed, where nobody says otherwise
LEAST_SIDE = 400  # pixels; what is smaller is enlarged, for names need room
LINES = 300  # a line is so many times thinner than the long side of a picture
TEXTS = 42  # a letter is so many times smaller
LEAST_TEXT = 11  # pixels
OPACITY = 0.45  # of masks
LAST_LETTER = 0x24F  # Pillow's font has the Latin letters


@dataclass(frozen=True, eq=False)
class Outline:
    """Says what to draw of an object.

    Attributes:
        box: (x1, y1, x2, y2) in pixels of the image.
        text: what stands at its top.
        colour: red, green and blue.
        is_strong: it is drawn with a line twice as thick.
        segmentation: the object's mask at the image's size, in a form of COCO's; None without masks.
    """

    box: tuple[float, float, float, float]
    text: str
    colour: tuple[int, int, int]
    is_strong: bool = False
    segmentation: list | dict | None = None


def enlargement(size: tuple[int, ...]) -> int:
    """Return the whole number of times that an image of (height, width) is enlarged to be drawn on."""
    return max(-(-LEAST_SIDE // max(size)), 1)


def draw_outlines(
    pixels: np.ndarray, outlines: list[Outline], factor: float = 1, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Draw outlines, the last ones on top, over an image.

    Args:
        pixels: [h, w, C] uint8 of the image, at `factor` times its own size.
        size: the image's own (height, width), which masks need.

    Returns:
        [h, w, 3] uint8.
    """
    height, width = pixels.shape[:2]
    painted = np.broadcast_to(pixels, (height, width, 3)).copy()
    for outline in outlines:
        if outline.segmentation is not None and size is not None:
            mask = resize_label(rasterise(outline.segmentation, size), (height, width)) > 0
            colour = np.asarray(outline.colour, np.float32)
            painted[mask] = (painted[mask] * (1 - OPACITY) + colour * OPACITY + 0.5).astype(np.uint8)
    image = Image.fromarray(painted)
    draw = ImageDraw.Draw(image)
    line = max(round(max(height, width) / LINES), 1)
    font = ImageFont.load_default(max(max(height, width) / TEXTS, LEAST_TEXT))
    for outline in outlines:
        x1, y1, x2, y2 = (value * factor for value in outline.box)
        corners = (x1, y1, max(x2 - 1, x1), max(y2 - 1, y1))  # Pillow draws the last pixel, too
        draw.rectangle(corners, outline=outline.colour, width=2 * line if outline.is_strong else line)
    for outline in outlines:
        _write_name(draw, outline, font, factor, (height, width))
    return np.asarray(image)


def _write_name(draw: ImageDraw.ImageDraw, outline: Outline, font, factor: float, size: tuple[int, int]) -> None:
    """Write an outline's text on a field of its colour: above its box or, without room there, within."""
    height, width = size
    _, _, right, bottom = draw.textbbox((0, 0), outline.text, font=font)
    text_width, text_height = right + 4, bottom + 4
    x = min(max(outline.box[0] * factor, 0), max(width - text_width, 0))
    y = outline.box[1] * factor - text_height
    if y < 0:
        y = min(max(outline.box[1] * factor, 0), max(height - text_height, 0))
    draw.rectangle((x, y, x + text_width - 1, y + text_height - 1), fill=outline.colour)
    draw.text((x + 2, y + 1), outline.text, fill=text_colour(outline.colour), font=font)


def text_colour(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return black or white, whichever is easier to read on a background."""
    red, green, blue = background
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


def drawn_name(name: str, label: int) -> str:
    """Return the name of a class or, where it has letters that the font lacks, its number."""
    return name if all(ord(letter) <= LAST_LETTER for letter in name) else f"class {label}"
