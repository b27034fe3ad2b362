"""Erases random rectangles of normalised images (arXiv 1708.04896), drawn as timm draws them."""

import math
from typing import NamedTuple

import numpy as np

AREA = (0.02, 1 / 3)  # share of the image's area, which all rectangles together take
LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))
ATTEMPTS = 10


class Rectangle(NamedTuple):
    top: int
    left: int
    height: int
    width: int


def draw_rectangles(
    generator: np.random.Generator, height: int, width: int, probability: float, count: tuple[int, int]
) -> list[Rectangle]:
    """Draw the rectangles to erase: none, or as many as drawn from the range `count` (both ends included).

    A rectangle has an area uniform in AREA divided by their number, and a uniform log aspect (height / width). One
    that is not smaller than the image is drawn anew, up to ten times, and then left out.
    """
    if generator.random() >= probability:
        return []
    least, most = count
    number = least if least == most else int(generator.integers(least, most + 1))
    rectangles = []
    for _ in range(number):
        for _ in range(ATTEMPTS):
            area = generator.uniform(*AREA) * height * width / number
            aspect = math.exp(generator.uniform(*LOG_ASPECT))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                top = int(generator.integers(0, height - h + 1))
                left = int(generator.integers(0, width - w + 1))
                rectangles.append(Rectangle(top, left, h, w))
                break
    return rectangles


def erase(image: np.ndarray, rectangles: list[Rectangle], mode: str, generator: np.random.Generator) -> None:
    """Overwrite rectangles of a normalised image [C, H, W] in place.

    Args:
        mode: "const" for 0 (the mean colour), "rand" for one normally distributed colour per rectangle, "pixel" for
            normally distributed values in each pixel.
    """
    channels = image.shape[0]
    for top, left, height, width in rectangles:
        shape = {"const": None, "rand": (channels, 1, 1), "pixel": (channels, height, width)}[mode]
        value = 0.0 if shape is None else generator.standard_normal(shape, dtype=np.float32)
        image[:, top : top + height, left : left + width] = value
