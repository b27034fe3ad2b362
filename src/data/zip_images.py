"""Reads labelled images from a zip file, the original's layout for clusters that dislike a million files.

Beside NAME.zip lies the map NAME_map.txt with a line for each image: its name in the zip file, a tab, its label.
"""

import os
import zipfile
import zlib
from functools import cached_property
from pathlib import Path, PurePosixPath

import mindspore.dataset as ds
import numpy as np

from src.data.dataset import DataError
from src.data.image_set import ImageSet, check_class_count


class ZipImages(ImageSet):
    """Serves the images of a zip file with a map of their labels. Samples are in the order of (label, name)."""

    def __init__(self, path: Path, files: list[tuple[int, str]], classes: tuple[str, ...]):
        self.path = path
        self.files = sorted(files)
        self.classes = classes
        self.size = len(files)
        self.labels = np.array([label for label, _ in self.files], dtype=np.int32)
        self.archive: zipfile.ZipFile | None = None
        self.owner: int | None = None  # the process that opened it

    @classmethod
    def open(cls, path: Path, classes: tuple[str, ...] | None = None) -> "ZipImages":
        """Read the map and check it against the zip file.

        Args:
            classes: names of the classes for images that are in no class folders; without them, names are the labels.

        Raises:
            DataError: no map, a damaged zip file, a line of the map that is malformed, or an image that is not there.
        """
        path = Path(path)
        map_path = path.with_name(f"{path.stem}_map.txt")
        if not map_path.is_file():
            raise DataError(
                f"data file {path}: its map {map_path.name} (lines of name, tab, label) is missing beside it"
            )
        try:
            with zipfile.ZipFile(path) as archive:
                stored = set(archive.namelist())
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"data file {path}: not a readable zip file ({error})") from error
        files = []
        for number, line in enumerate(map_path.read_text(encoding="utf-8").splitlines(), 1):
            name, _, label = line.rpartition("\t")
            if not label.strip().isdecimal():
                raise DataError(f"{map_path}, line {number}: {line!r} is not a name, a tab and a label")
            entry = next((n for n in (name, f"{path.stem}/{name}") if n in stored), None)
            if entry is None:
                raise DataError(f"{map_path}, line {number}: {name!r} is not in {path.name}")
            files.append((int(label), entry))
        if not files:
            raise DataError(f"{map_path}: empty")
        labels = {label for label, _ in files}
        if labels != set(range(len(labels))):
            missing = min(set(range(max(labels) + 1)) - labels)
            raise DataError(
                f"{map_path}: no image has label {missing}, though {max(labels)} occurs; labels count from 0"
            )
        names = _class_names(files) or classes or tuple(map(str, range(len(labels))))
        if len(names) != len(labels):
            raise DataError(f"{map_path}: has {len(labels)} labels for {len(names)} classes")
        check_class_count(path, names)
        return cls(path, files, names)

    def reader(self, sampler):
        return ds.GeneratorDataset(
            _Rows(self), ["image", "label"], sampler=sampler, num_parallel_workers=1, python_multiprocessing=False
        )

    @cached_property
    def names(self):
        return [name for _, name in self.files]

    def content(self, index):
        # Processes that share an open file would move its position under each other.
        if self.archive is None or self.owner != os.getpid():
            self.archive, self.owner = zipfile.ZipFile(self.path), os.getpid()
        try:
            return np.frombuffer(self.archive.read(self.files[index][1]), np.uint8)
        except (zipfile.BadZipFile, zlib.error) as error:
            raise OSError(str(error)) from error


def _class_names(files: list[tuple[int, str]]) -> tuple[str, ...] | None:
    """Return the names of the folders by label if each label has a folder of its own, else None."""
    folders: dict[int, set[str]] = {}
    for label, name in files:
        folders.setdefault(label, set()).add(PurePosixPath(name).parent.name)
    names = [next(iter(folders[label])) for label in sorted(folders) if len(folders[label]) == 1]
    distinct = len(set(names)) == len(folders) and all(names)
    return tuple(names) if distinct else None


class _Rows:
    """Gives MindSpore's reading thread random access to (content, label)."""

    def __init__(self, images: ZipImages):
        self.images = images

    def __getitem__(self, index):
        label = np.int32(self.images.files[index][0])
        try:
            return self.images.content(index), label
        except OSError:  # a damaged entry: decoding the byte below reports it as an unreadable image
            return np.zeros(1, np.uint8), label

    def __len__(self):
        return self.images.size
