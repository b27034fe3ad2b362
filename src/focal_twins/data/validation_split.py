"""Keeps a share of a data set for validation, chosen by the names of its samples.

What is chosen depends on a sample's name and a seed alone: a larger share holds a smaller one's samples, and samples
that come later leave nearly all others where they are.
"""

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from functools import cached_property

import mindspore.dataset as ds
import numpy as np

from focal_twins.data.dataset import DataError
from focal_twins.data.image_set import ImageSet
from focal_twins.phrases import counted


def share_of(numbers: Iterable[int], names: Sequence[str], share: float, purpose: str) -> list[int]:
    """Choose a share of samples, one at least, by checksums of their names; return their numbers.

    Args:
        names: the name of each sample, by its number.
        purpose: what the share is for, with the seed: another purpose chooses others.
    """

    def rank(number: int) -> bytes:
        return hashlib.sha256(f"{purpose}\0{names[number]}".encode("utf-8", "surrogateescape")).digest()

    ranked = sorted(numbers, key=rank)
    return ranked[: max(1, round(share * len(ranked)))]


def _held_back(images: ImageSet, fraction: float, seed: int) -> np.ndarray:
    """Return which images ([size] bool) a share of each class is, one image at least and not all of them.

    Images of one name, as a map of a zip file may list, stay together.

    Raises:
        DataError: a class has a single image.
    """
    names = images.names
    chosen: set[str] = set()
    bounds = np.searchsorted(images.labels, np.arange(len(images.classes) + 1)).tolist()  # labels ascend
    for name, (begin, end) in zip(images.classes, itertools.pairwise(bounds), strict=True):
        first = {names[number]: number for number in reversed(range(begin, end))}
        if len(first) < 2:
            raise DataError(
                f"data folder {images.path}: class {name!r} has a single image; data.val_fraction needs two of each"
            )
        share = share_of(first.values(), names, fraction, f"validation {seed}")
        chosen.update(names[number] for number in share[: len(first) - 1])
    return np.array([name in chosen for name in names])


def split_images(images: ImageSet, fraction: float, seed: int) -> "dict[str, SelectedImages]":
    """Return the images that are held back for validation (data.val_fraction), "val", and those that are left, "train".

    Raises:
        DataError: a class has a single image.
    """
    chosen = _held_back(images, fraction, seed)
    count = f"data folder {images.path}: {int(chosen.sum())} of {counted(images.size, 'image')} are"
    left = (*images.notices, f"{count} held back (data.val_fraction)")
    return {
        "train": SelectedImages(images, np.flatnonzero(~chosen), False, left),
        "val": SelectedImages(images, np.flatnonzero(chosen), True, (f"{count} the validation (data.val_fraction)",)),
    }


class SelectedImages(ImageSet):
    """Serves some of the images of another set, in its order.

    Args:
        indices: [size] their indices there, ascending.
        held_back: see Dataset.
    """

    def __init__(self, images: ImageSet, indices: np.ndarray, held_back: bool, notices: tuple[str, ...] = ()):
        self.images, self.indices, self.is_held_back, self.notices = images, indices, held_back, notices
        self.path, self.classes, self.names_classes = images.path, images.classes, images.names_classes
        self.columns, self.fixed_order = images.columns, images.fixed_order
        self.size, self.labels = len(indices), images.labels[indices]

    def reader(self, sampler):
        if isinstance(sampler, ds.SubsetSampler):  # which MindDataset needs
            return self.images.reader(ds.SubsetSampler(self.indices[sampler.indices].tolist()))
        return self.images.reader(SelectingSampler(sampler, self.indices))

    @cached_property
    def names(self):
        names = self.images.names
        return [names[index] for index in self.indices]

    def name(self, index):
        return self.images.name(int(self.indices[index]))

    def content(self, index):
        return self.images.content(int(self.indices[index]))

    def file_content(self, image):
        return self.images.file_content(image)


class SelectingSampler(ds.Sampler):
    """Yields the indices that another sampler's have in a larger set."""

    def __init__(self, sampler: ds.Sampler, indices: np.ndarray):
        super().__init__()
        self.sampler, self.indices = sampler, indices

    def __iter__(self):
        return iter(self.indices[np.fromiter(self.sampler, np.int64)].tolist())
