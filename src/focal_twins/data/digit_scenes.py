"""Draws scenes of handwritten digits, for segmentation and detection, of what scikit-learn brings.

A scene has scanned digits (8x8), enlarged, rotated, overlapping, in several grey levels, upon a piece of one of two
photographs in grey, dimmed. Ink is lighter than the photograph, as it is in the scans, so that a classifier of the
scans knows it. Validation scenes show only the scans that data/digits.py holds out, on the lower part of the
photographs; training scenes show the others, on the upper part.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from focal_twins.data.digits import split_scans

SPLITS = ("training", "validation")
CROWD_SIZE = (5, 9)
CROWD_HEIGHT = (0.11, 0.17)  # of the scene's side
MARGIN = 16  # rows of a photograph between the part of the training scenes and that of the validation scenes
CONTRAST = 130  # grey levels by which a digit is lighter than the mean of the photograph under it, at least
INK = 0.4  # of a pixel that belongs to a digit; strokes of the scans are grey at their edges


@dataclass(frozen=True)
class Recipe:
    """Says what the scenes look like; it is written into the JSON files, by which a folder is recognised.

    Args:
        training, validation: number of scenes.
        size: side of a scene in pixels.
        seed: of all that is drawn.
        digits: how many a scene has, from and to.
        height: of a scan by the scene's side, from and to.
        rotation: largest angle in degrees, to either side.
        overlapping: share of digits that may lie on others; the boxes of the rest keep clear of those before.
        visible: what must stay to be seen of a digit's ink where others lie on it.
        empty, crowds: one scene in so many has no digit, or a crowd.
        photograph: share of the photographs' height that belongs to the training scenes.
        light: of the photographs, from and to; 1 leaves them as they are.
    """

    training: int = 1300
    validation: int = 200
    size: int = 96
    seed: int = 0
    digits: tuple[int, int] = (2, 6)
    height: tuple[float, float] = (0.34, 0.48)
    rotation: float = 10.0
    overlapping: float = 0.06
    visible: float = 0.8
    empty: int = 20
    crowds: int = 24
    photograph: float = 0.6
    light: tuple[float, float] = (0.05, 0.3)


@dataclass
class Instance:
    """Is one digit, or one crowd: the scans it is made of, their grey levels, and where its ink can be seen.

    Args:
        mask: [size, size] bool.
        whole: pixels of the mask when nothing lay on it.
    """

    digit: int
    scans: list[int]
    levels: list[float]
    mask: np.ndarray
    whole: int
    crowd: bool


@dataclass(frozen=True)
class Material:
    """Holds what the scenes of one split are made of: scans [8, 8] from 0 to 1 with digits, and grey photographs."""

    scans: dict[int, np.ndarray]
    digits: dict[int, int]
    photographs: list[np.ndarray]


def load_material(share: float) -> dict[str, Material]:
    """Load each split's scans and parts of the photographs, of which `share` belongs to the training scenes."""
    data = load_digits()
    greys = [np.asarray(Image.fromarray(photograph).convert("L")) for photograph in load_sample_images().images]
    rows = [int(len(grey) * share) for grey in greys]
    parts = (
        [grey[:row] for grey, row in zip(greys, rows, strict=True)],
        [grey[row + MARGIN :] for grey, row in zip(greys, rows, strict=True)],
    )
    return {
        split: Material(
            {number: data.images[number] / 16 for number in numbers},  # grey levels are 0 (empty) to 16 (ink)
            {number: int(data.target[number]) for number in numbers},
            photographs,
        )
        for split, numbers, photographs in zip(SPLITS, split_scans(data.target), parts, strict=True)
    }


def draw_background(generator: np.random.Generator, photographs: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Cut a square out of a photograph, smaller or larger than the scene, and resize it to [size, size] float32."""
    photograph = photographs[generator.integers(len(photographs))]
    side = int(min(size * generator.uniform(0.7, 1.4), *photograph.shape))
    top, left = (int(generator.integers(length - side + 1)) for length in photograph.shape)
    square = Image.fromarray(photograph[top : top + side, left : left + side])
    background = np.asarray(square.resize((size, size), Image.Resampling.BICUBIC), np.float32)
    return background[:, ::-1] if generator.random() < 0.5 else background


def draw_ink(generator: np.random.Generator, scan: np.ndarray, height: float, rotation: float) -> np.ndarray:
    """Enlarge a scan to `height` pixels and rotate it; returns how much ink each pixel has, 0 to 1, without margins."""
    padded = np.pad(scan, 1).astype(np.float32)  # strokes reach the scan's border and would end there as if cut off
    side = max(10, round(height * 10 / 8))
    enlarged = Image.fromarray(padded).resize((side, side), Image.Resampling.BICUBIC)
    turned = enlarged.rotate(generator.uniform(-rotation, rotation), Image.Resampling.BICUBIC, expand=True)
    ink = np.clip(np.asarray(turned), 0, 1)  # soft edges, as the classifier's enlarged scans have
    rows, columns = (np.flatnonzero(ink.max(axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def draw_level(generator: np.random.Generator, below: float, beside: Sequence[float]) -> float:
    """Draw the grey level of a digit.

    Args:
        below: mean level of the photograph under it.
        beside: levels of the digits that it partly covers, from which it shall differ.
    """
    candidates = generator.uniform(below + CONTRAST, 255, 4 if beside else 1).tolist()
    return max(candidates, key=lambda level: min((abs(level - other) for other in beside), default=0.0))


def put(image: np.ndarray, ink: np.ndarray, top: int, left: int, level: float) -> None:
    """Lay ink of a grey level on an image."""
    place = image[top : top + ink.shape[0], left : left + ink.shape[1]]
    place += ink * (level - place)


def mask_of(ink: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    """Give the pixels of a scene [size, size] that ink covers by half or more."""
    mask = np.zeros((size, size), bool)
    mask[top : top + ink.shape[0], left : left + ink.shape[1]] = ink >= INK
    return mask


def draw_scene(
    generator: np.random.Generator, material: Material, recipe: Recipe, number: int
) -> tuple[np.ndarray, list[Instance]]:
    """Draw a scene: its image [size, size] uint8 and its instances, whose masks do not overlap.

    Args:
        number: of the scene, which decides whether it is empty and whether it has a crowd.
    """
    size = recipe.size
    background = draw_background(generator, material.photographs, size) * np.float32(generator.uniform(*recipe.light))
    image = background.copy()
    instances: list[Instance] = []

    def place(
        scans: list[int], inks: list[np.ndarray], corners: list[tuple[int, int]], crowd: bool, apart: bool
    ) -> bool:
        """Lay an instance on the others, unless too little could be seen of one of them, or of any with `apart`."""
        masks = [mask_of(ink, *corner, size) for ink, corner in zip(inks, corners, strict=True)]
        mask = np.any(masks, axis=0)
        if apart and any(boxes_meet(instance.mask, mask) for instance in instances):
            return False
        covered = [instance for instance in instances if (instance.mask & mask).any()]
        if any((instance.mask & ~mask).sum() < recipe.visible * instance.whole for instance in covered):
            return False
        beside = [level for instance in covered for level in instance.levels]
        levels = []
        for own, ink, corner in zip(masks, inks, corners, strict=True):
            levels.append(draw_level(generator, float(background[own].mean()), beside))
            put(image, ink, *corner, levels[-1])
        for instance in covered:
            instance.mask &= ~mask
        instances.append(Instance(material.digits[scans[0]], scans, levels, mask, int(mask.sum()), crowd))
        return True

    is_empty = number % recipe.empty == recipe.empty - 1
    count = 0 if is_empty else int(generator.integers(recipe.digits[0], recipe.digits[1] + 1))
    if number % recipe.crowds == recipe.crowds - 1 and not is_empty:
        place(*draw_crowd(generator, material, recipe), crowd=True, apart=False)
    scans = list(material.scans)
    for _ in range(count):
        scan = scans[generator.integers(len(scans))]
        height = size * np.exp(generator.uniform(*np.log(recipe.height)))
        ink = draw_ink(generator, material.scans[scan], height, recipe.rotation)
        apart = generator.random() >= recipe.overlapping
        for _ in range(40):  # a scene that has no room left gets fewer digits
            if place([scan], [ink], [draw_corner(generator, ink, size)], False, apart):
                break
    noisy = image + generator.normal(0, 3, image.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8), instances


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Give the top, bottom, left and right of a mask; bottom and right are the first pixels behind it."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def boxes_meet(one: np.ndarray, other: np.ndarray) -> bool:
    """Say whether the boxes around two masks have a pixel in common."""
    (top, bottom, left, right), (t, b, le, r) = box_of(one), box_of(other)
    return top < b and t < bottom and left < r and le < right


def draw_corner(generator: np.random.Generator, ink: np.ndarray, size: int) -> tuple[int, int]:
    """Draw the top left corner, row and column, of ink that lies within a scene."""
    rows, columns = ink.shape
    return int(generator.integers(size - rows + 1)), int(generator.integers(size - columns + 1))


def draw_crowd(
    generator: np.random.Generator, material: Material, recipe: Recipe
) -> tuple[list[int], list[np.ndarray], list[tuple[int, int]]]:
    """Draw the scans of a crowd, their ink, and their top left corners around one point."""
    digit = int(generator.integers(10))
    numbers = [number for number, its_digit in material.digits.items() if its_digit == digit]
    scans = generator.choice(numbers, int(generator.integers(CROWD_SIZE[0], CROWD_SIZE[1] + 1)), replace=False).tolist()
    heights = recipe.size * generator.uniform(*CROWD_HEIGHT, len(scans))
    inks = [draw_ink(generator, material.scans[n], h, recipe.rotation) for n, h in zip(scans, heights, strict=True)]
    centre = generator.uniform(0.25, 0.75, 2) * recipe.size
    corners = []
    for ink in inks:
        corner = centre + generator.normal(0, 0.09 * recipe.size, 2) - np.array(ink.shape) / 2
        row, column = np.clip(corner, 0, recipe.size - np.array(ink.shape)).astype(int).tolist()
        corners.append((row, column))
    return scans, inks, corners
