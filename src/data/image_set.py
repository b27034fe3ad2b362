"""Defines labelled images, whatever they are stored in; open_images.py knows the formats.

Samples are numbered in the order of (class, file name), so that a seed gives the same batches
whatever the format.
"""

import os
from pathlib import Path

import numpy as np

from src.data.dataset import DataError, Dataset

EXTENSIONS = [".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"]
# ImageFolderDataset distinguishes upper and lower case; these are the spellings that cameras and people write.
SPELLINGS = [spelling for e in EXTENSIONS for spelling in (e, e.upper(), f".{e[1:].capitalize()}")]


def is_image_name(name: str) -> bool:
    """Return whether a file's name has the extension of an image."""
    return name.endswith(tuple(SPELLINGS))


class ImageSet(Dataset):
    """Holds images with one label each. Its reader gives (image: file content, label int32).

    Attributes:
        labels: [size] labels of the samples, int32, ascending.
    """

    columns = ("image", "label")
    labels: np.ndarray

    def successors(self, index: int) -> list[int]:
        """List the other samples of a sample's class, from the next one to the last and then from the first."""
        first, end = np.searchsorted(self.labels, [self.labels[index], self.labels[index] + 1])
        return [*range(index + 1, end), *range(first, index)]


def check_classes(train: ImageSet, val: ImageSet, num_classes: int) -> None:
    """Check that the images of training and evaluation have the same classes, and as many as the model.

    Raises:
        DataError: the classes or their numbers differ.
    """
    if train.classes != val.classes:
        unmatched = sorted(set(train.classes) ^ set(val.classes))
        folder = train.path if unmatched[0] in train.classes else val.path
        raise DataError(
            f"data folders {train.path} and {val.path} have different classes: {unmatched[0]!r} is only in {folder}"
        )
    check_num_classes(train, num_classes)


def check_num_classes(images: ImageSet, num_classes: int) -> None:
    """Check that a model has as many classes as the images.

    Raises:
        DataError: the numbers differ.
    """
    if len(images.classes) != num_classes:
        subset = ", or evaluate a subset by eval.class_map" if len(images.classes) < num_classes else ""
        raise DataError(
            f"data folder {images.path}: has {len(images.classes)} classes, the model {num_classes}; "
            f"set model.num_classes={len(images.classes)}{subset}"
        )


def check_class_count(path: Path, classes: tuple[str, ...]) -> None:
    """Check that there are two classes or more.

    Raises:
        DataError: there is only one.
    """
    if len(classes) < 2:
        raise DataError(f"data folder {path}: has the one class {classes[0]!r}; classification needs two or more")


def reader_threads() -> int:
    """Return the number of threads that read files."""
    return min(4, os.cpu_count() or 1)
