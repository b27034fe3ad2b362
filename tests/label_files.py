"""Small folders of images and label images."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZES = ((24, 40), (30, 30), (41, 26))


def save_png(path: Path, array: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def make_pair(root: Path, split: str, name: str, size: tuple[int, int], classes: int, seed: int) -> np.ndarray:
    """Write an image of noise and its label: rectangles of classes, whose first row is ignored. Returns the label."""
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, classes, (3, 3), dtype=np.uint8)
    label = blocks[np.arange(size[0])[:, None] * 3 // size[0], np.arange(size[1]) * 3 // size[1]]
    label[0] = 255
    save_png(root / "images" / split / f"{name}.png", generator.integers(0, 256, (*size, 3), dtype=np.uint8))
    save_png(root / "annotations" / split / f"{name}.png", label)
    return label


def make_label_folders(root: Path, split: str = "training", count: int = 6, classes: int = 4, sizes=SIZES) -> Path:
    """Write pairs called scene0, scene1, ... of sizes in turn; returns the root."""
    for number in range(count):
        make_pair(root, split, f"scene{number}", sizes[number % len(sizes)], classes, number)
    return root
