"""Opens a folder of class folders as labelled images, in the layout and order of MindSpore's ImageFolderDataset.

That reader itself is not used: it ends a run at the first file that it cannot open, waits forever for a pipe, and lists
the folder once more, when it may hold other files. Here the folder is listed once, and worker processes open the files.
"""

import hashlib
import os
from functools import cached_property
from pathlib import Path

import numpy as np

from focal_twins.data.dataset import DataError
from focal_twins.data.image_files import BESIDE, EXTENSIONS, LeftOut, identity, list_folder, list_images, read_file
from focal_twins.data.image_set import IndexedImages, check_class_count, names_alike
from focal_twins.phrases import counted


class ImageFolder(IndexedImages):
    """Serves the images of a folder that holds one folder per class. Labels are positions in the sorted folder names.

    It keeps the names of a class's files as one piece of bytes: a million strings would take four times the memory.

    Args:
        files: for each class, the paths of its images from the class's folder, each with a "\\0" behind it.
    """

    def __init__(self, path: Path, classes: tuple[str, ...], files: list[bytes], notices: tuple[str, ...] = ()):
        self.path, self.classes, self.files, self.notices = path, classes, files, notices
        self.ends = [np.flatnonzero(np.frombuffer(names, np.uint8) == 0) for names in files]  # of each class's names
        counts = [len(ends) for ends in self.ends]
        self.labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
        self.firsts = np.cumsum([0, *counts])
        self.size = len(self.labels)

    @classmethod
    def open(cls, path: str | Path) -> "ImageFolder":
        """List the classes of a folder and their images, which may be in folders below. Hidden folders are no classes.

        Raises:
            DataError: no such folder, no images, a class without images, or fewer than two classes.
        """
        path = Path(path)
        if not path.is_dir():
            raise DataError(
                f"data folder {path}: no such folder; set data.path (--data_url) to the folder that holds it"
            )
        left_out = LeftOut()
        try:
            inside = frozenset([identity(path)])
            classes, beside = list_folder(path, left_out, "", inside)
        except OSError as error:
            raise DataError(f"data folder {path}: cannot be listed ({error.strerror})") from error
        if not classes:
            found = f"holds {counted(len(beside), 'image')}, but no class folders" if beside else "empty"
            raise DataError(f"data folder {path}: {found}; expected one folder of images per class")
        for name in beside:
            left_out.add(BESIDE, name)
        classes.sort()
        files = [_list_class(path, name, left_out, inside) for name in classes]
        check_class_count(path, tuple(classes))
        notices = [f"data folder {path}: left out {left_out}"] if left_out.counts else []
        notices += [
            f"data folder {path}: the classes {first!a} and {second!a} differ only in case or Unicode form"
            for first, second in names_alike(classes)
        ]
        return cls(path, tuple(classes), files, tuple(notices))

    @cached_property
    def names(self):
        return [
            f"{folder}/{name}"
            for folder, packed in zip(self.classes, self.files, strict=True)
            for name in os.fsdecode(packed).split("\0")[:-1]
        ]

    @cached_property
    def listing(self):
        checksum = hashlib.sha256()
        for folder, packed in zip(self.classes, self.files, strict=True):
            checksum.update(os.fsencode(folder) + b"/" + packed)
        return f"{type(self).__name__}:{checksum.hexdigest()[:16]}"

    def name(self, index):
        label = self.labels[index]
        place = index - self.firsts[label]
        ends = self.ends[label]
        begin = ends[place - 1] + 1 if place else 0
        return f"{self.classes[label]}/{os.fsdecode(self.files[label][begin : ends[place]])}"

    def content(self, index):
        return read_file(os.path.join(self.path, self.name(index)))


def _list_class(path: Path, name: str, left_out: LeftOut, inside: frozenset) -> bytes:
    """Return the names of a class's images as ImageFolder keeps them.

    Raises:
        DataError: there are none, or the folder cannot be listed.
    """
    own = LeftOut()
    try:
        images = list_images(path / name, own, f"{name}/", inside)
    except OSError as error:
        raise DataError(f"data folder {path / name}: cannot be listed ({error.strerror})") from error
    if not images:
        others = f"; it holds {own}" if own.counts else ""
        raise DataError(f"data folder {path / name}: holds no images ({', '.join(EXTENSIONS)}){others}")
    left_out.merge(own)
    return b"".join(os.fsencode(image) + b"\0" for image in images)
