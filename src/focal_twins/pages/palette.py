"""Gives every class a colour, the same in every file and on every page.

The first seven are those of Okabe and Ito (2008, Color Universal Design), which people with any colour vision tell
apart. Each further one is the colour whose nearest neighbour among all before it is farthest away, to whoever of three
people sees the two most alike: one with normal vision, one without red cones, one without green cones. So a class keeps
its colour whatever the number of classes.
"""

from functools import cache

import numpy as np

OKABE_ITO = (
    (0, 114, 178),  # blue
    (230, 159, 0),  # orange
    (0, 158, 115),  # bluish green
    (213, 94, 0),  # vermillion
    (86, 180, 233),  # sky blue
    (204, 121, 167),  # reddish purple
    (240, 228, 66),  # yellow
)
IGNORED = (128, 128, 128)  # what belongs to no class
COLOURS = 255  # so many classes have a colour of their own; then the colours come again
LEVELS = range(0, 256, 17)  # of red, green and blue, in the colours to choose from
OTHER_EYES = 2.0  # factor of what is seen without a kind of cones, where all colours lie closer to each other
# How colours of linear RGB look without red and without green cones.
# Source: Machado, Oliveira and Fernandes (2009), the matrices of severity 1.0.
WITHOUT_RED = ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998))
WITHOUT_GREEN = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))
# The colour space OKLab, in which distances are those that people see, blues included.
# Source: Ottosson (2020), A perceptual color space for image processing.
TO_CONES = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
TO_OKLAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)
NEAR_BLACK, NEAR_WHITE = 0.35, 0.94  # lightness beyond which colours are hard to tell apart


def palette(count: int) -> np.ndarray:
    """Return the colours [count, 3] uint8 of classes 0 .. count - 1."""
    return _colours()[np.arange(count) % COLOURS]


def hexadecimal(index: int) -> str:
    """Return the colour of a class as web pages write it: #0072b2."""
    return "#" + bytes(_colours()[index % COLOURS].tolist()).hex()


@cache
def _colours() -> np.ndarray:
    """Return all colours [COLOURS, 3] uint8, in order."""
    grid = np.stack(np.meshgrid(LEVELS, LEVELS, LEVELS, indexing="ij"), axis=-1).reshape(-1, 3)
    lightness = _oklab(_linear(grid))[:, 0]
    chosen = [*OKABE_ITO]
    candidates = grid[(lightness >= NEAR_BLACK) & (lightness <= NEAR_WHITE)]
    places = _appearance(candidates)
    nearest = np.full(len(candidates), np.inf)
    taken = [*_appearance(np.array([*OKABE_ITO, IGNORED]))]
    while True:
        for place in taken:
            nearest = np.minimum(nearest, ((places - place) ** 2).sum(axis=2).min(axis=1))
        if len(chosen) == COLOURS:
            return np.array(chosen, np.uint8)
        farthest = int(nearest.argmax())
        chosen.append(tuple(candidates[farthest]))
        taken = [places[farthest]]


def _appearance(colours: np.ndarray) -> np.ndarray:
    """Return points [n, 3, 3] for colours [n, 3]: how they look to each of the three people, in OKLab."""
    linear = _linear(colours)
    others = (np.clip(linear @ np.array(matrix).T, 0, 1) for matrix in (WITHOUT_RED, WITHOUT_GREEN))
    return np.stack([_oklab(linear), *(OTHER_EYES * _oklab(values) for values in others)], axis=1)


def _linear(colours: np.ndarray) -> np.ndarray:
    """Undo the gamma of sRGB: colours of 0 to 255 become intensities of 0 to 1."""
    shares = np.asarray(colours, np.float64) / 255
    return np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)


def _oklab(linear: np.ndarray) -> np.ndarray:
    """Turn intensities [n, 3] of linear sRGB into OKLab [n, 3]: lightness, green to red, blue to yellow."""
    return np.cbrt(linear @ np.array(TO_CONES).T) @ np.array(TO_OKLAB).T
