"""Images in a folder of class folders, read by MindSpore's ImageFolderDataset in C++."""

import os
from functools import cached_property
from pathlib import Path

import mindspore.dataset as ds
import numpy as np

from src.data.image_set import (
    EXTENSIONS,
    SPELLINGS,
    DataError,
    ImageSet,
    check_class_count,
    is_image_name,
    reader_threads,
)


class ImageFolder(ImageSet):
    """A folder with one folder of images per class. Labels are positions in the sorted folder names."""

    def __init__(self, path: Path, classes: tuple[str, ...]):
        self.path = path
        self.classes = classes
        self.size = self.reader(ds.SequentialSampler()).get_dataset_size()

    @classmethod
    def open(cls, path: str | Path) -> "ImageFolder":
        """List the classes of a folder and count its images.

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
        for name in classes:
            if not any(is_image_name(entry.name) for entry in os.scandir(path / name)):
                raise DataError(f"data folder {path / name}: holds no images ({', '.join(EXTENSIONS)})")
        check_class_count(path, classes)
        return cls(path, classes)

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
    def _files(self) -> list[tuple[str, int]]:
        """(name, label) in the order of ImageFolderDataset: by class, then by the bytes of the name."""
        found = []
        for label, folder in enumerate(self.classes):
            files = [entry.name for entry in os.scandir(self.path / folder) if is_image_name(entry.name)]
            found += [(f"{folder}/{file}", label) for file in sorted(files, key=os.fsencode)]
        return found

    @cached_property
    def names(self):
        return [name for name, _ in self._files]

    @cached_property
    def labels(self):
        return np.array([label for _, label in self._files], dtype=np.int32)

    def content(self, index):
        return np.fromfile(self.path / self.names[index], np.uint8)
