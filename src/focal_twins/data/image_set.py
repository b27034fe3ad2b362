"""Defines labelled images, whatever they are stored in; open_images.py knows the formats.

Samples are numbered in the order of (class, file name), so that a seed gives the same batches
whatever the format.
"""

import unicodedata
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import mindspore.dataset as ds
import numpy as np

from focal_twins.data.dataset import DataError, Dataset, NumberedSamples
from focal_twins.files.names import only_in
from focal_twins.phrases import counted


class ImageSet(Dataset):
    """Holds images with one label each. Its reader gives (image, label int32).

    Attributes:
        labels: [size] labels of the samples, int32, ascending.
    """

    columns = ("image", "label")
    labels: np.ndarray

    @abstractmethod
    def file_content(self, image: np.ndarray) -> np.ndarray:
        """Return the file content [n] uint8 of what the reader gives as a sample's image. Worker processes call it.

        Raises:
            OSError: the file cannot be read.
        """

    def successors(self, index: int) -> list[int]:
        """List the other samples of a sample's class, from the next one to the last and then from the first."""
        first, end = np.searchsorted(self.labels, [self.labels[index], self.labels[index] + 1])
        return [*range(index + 1, end), *range(first, index)]


class IndexedImages(ImageSet):
    """Holds images that any process can read by their numbers. The reader gives the number as the image.

    So the process that decodes an image also opens its file, and a file that cannot be opened is one image that cannot
    be read. MindSpore's own readers open files in C++ and end the pipeline at the first that fails.
    """

    def reader(self, sampler):
        return ds.GeneratorDataset(
            NumberedSamples(self.size, self.labels),
            list(self.columns),
            sampler=sampler,
            num_parallel_workers=1,
            python_multiprocessing=False,
        )

    def file_content(self, image):
        return self.content(int(image))


def check_classes(train: ImageSet, val: ImageSet, num_classes: int) -> None:
    """Check that the images of training and evaluation have the same classes, and as many as the model.

    Raises:
        DataError: the classes or their numbers differ.
    """
    if train.classes != val.classes:
        unmatched = sorted(set(train.classes) ^ set(val.classes))
        like = [name for name in unmatched[1:] if alike(name) == alike(unmatched[0])]
        raise DataError(
            f"data folders {train.path} and {val.path} have different classes: "
            + only_in(train.classes, val.classes, train.path.name, val.path.name)
            + (f"; {like[0]!a} differs from {unmatched[0]!a} only in case or Unicode form" if like else "")
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
            f"data folder {images.path}: has {counted(len(images.classes), 'class')}, the model {num_classes}; "
            f"set model.num_classes={len(images.classes)}{subset}"
        )


def check_class_count(path: Path, classes: tuple[str, ...]) -> None:
    """Check that there are two classes or more.

    Raises:
        DataError: there is only one.
    """
    if len(classes) < 2:
        raise DataError(f"data folder {path}: has the one class {classes[0]!r}; classification needs two or more")


def alike(name: str) -> str:
    """Return what is equal for names that look the same to people, or to systems that do not tell case apart."""
    return unicodedata.normalize("NFC", name).casefold()


def names_alike(names: Sequence[str]) -> list[tuple[str, str]]:
    """List the pairs of names that differ only in case or in Unicode form, such as "é" in one or two characters."""
    first: dict[str, str] = {}
    return [(first[alike(name)], name) for name in names if first.setdefault(alike(name), name) != name]
