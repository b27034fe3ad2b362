"""Opens a folder of class folders as labelled images, which MindSpore's ImageFolderDataset reads in C++."""

import os
from functools import cached_property
from pathlib import Path

import mindspore.dataset as ds
import numpy as np

from src.data.dataset import DataError
from src.data.image_set import EXTENSIONS, SPELLINGS, ImageSet, check_class_count, is_image_name, reader_threads


class ImageFolder(ImageSet):
    """Serves the images of a folder that holds one folder per class. Labels are positions in the sorted folder names.

    It keeps only the number of images of each class; it lists a million names only where a caller asks for all of them.
    """

    def __init__(self, path: Path, classes: tuple[str, ...], counts: list[int]):
        self.path = path
        self.classes = classes
        self.size = sum(counts)
        self.labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)

    @classmethod
    def open(cls, path: str | Path) -> "ImageFolder":
        """List the classes of a folder and count their images. Hidden folders are no classes.

        Raises:
            DataError: no such folder, no images, a class without images, or fewer than two classes.
        """
        path = Path(path)
        if not path.is_dir():
            raise DataError(
                f"data folder {path}: no such folder; set data.path (--data_url) to the folder that holds it"
            )
        classes = tuple(sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and entry.name[0] != "."))
        if not classes:
            raise DataError(f"data folder {path}: empty; expected one folder of images per class")
        counts = [len(image_names(path / name)) for name in classes]
        for name, count in zip(classes, counts, strict=True):
            if not count:
                raise DataError(f"data folder {path / name}: holds no images ({', '.join(EXTENSIONS)})")
        check_class_count(path, classes)
        return cls(path, classes, counts)

    def reader(self, sampler):
        return ds.ImageFolderDataset(
            str(self.path),
            num_parallel_workers=reader_threads(),
            sampler=sampler,
            extensions=SPELLINGS,
            class_indexing={name: index for index, name in enumerate(self.classes)},
            decode=False,
        )

    @cached_property
    def names(self):
        return [f"{folder}/{name}" for folder in self.classes for name in image_names(self.path / folder)]

    def name(self, index):
        if "names" in self.__dict__:  # all of them were asked for
            return self.names[index]
        label = self.labels[index]
        first = int(np.searchsorted(self.labels, label))
        folder = self.classes[label]
        return f"{folder}/{image_names(self.path / folder)[index - first]}"

    def content(self, index):
        return np.fromfile(self.path / self.name(index), np.uint8)


def image_names(folder: Path) -> tuple[str, ...]:
    """Return the names of a class's images in the order of ImageFolderDataset: sorted by the bytes of the names."""
    return tuple(sorted((entry.name for entry in os.scandir(folder) if is_image_name(entry.name)), key=os.fsencode))
