"""Reads labelled images from a zip file, the original's layout for clusters that dislike a million files.

Beside NAME.zip lies the map NAME_map.txt with a line for each image: its name in the zip file, a tab, its label.
"""

import bz2
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from focal_twins.data.dataset import DataError
from focal_twins.data.image_files import LARGEST, LeftOut, is_hidden, is_image_name
from focal_twins.data.image_set import IndexedImages, check_class_count
from focal_twins.data.text_files import read_lines
from focal_twins.files.names import NameIndex, spellings
from focal_twins.phrases import counted

# Of the format's definition: flags of an entry, and the part of its header in the file that tells where its data are.
ENCRYPTED, NAME_IS_UTF8 = 0x1, 0x800
HEADER_START, HEADER_SIZE, NAME_LENGTH, EXTRA_LENGTH = b"PK\x03\x04", 30, slice(26, 28), slice(28, 30)
DECOMPRESS: dict[int, Callable[[bytes], bytes]] = {
    zipfile.ZIP_STORED: bytes,
    zipfile.ZIP_DEFLATED: lambda content: zlib.decompress(content, -zlib.MAX_WBITS),
    zipfile.ZIP_BZIP2: bz2.decompress,
}
PLACE = np.dtype([("offset", "i8"), ("stored", "i8"), ("size", "i8"), ("checksum", "u4"), ("method", "u2")])


class ZipImages(IndexedImages):
    """Serves the images of a zip file with a map of their labels. Samples are in the order of (label, name).

    It keeps where each image lies in the file, so that all processes read one open file; Python's ZipFile would take a
    gigabyte in each of them for a million images.

    Args:
        files: label and entry of each image.
    """

    def __init__(
        self,
        path: Path,
        files: list[tuple[int, zipfile.ZipInfo]],
        classes: tuple[str, ...],
        notices: tuple[str, ...] = (),
    ):
        files = sorted(files, key=lambda file: (file[0], file[1].filename))
        self.path, self.classes, self.notices = path, classes, notices
        self.size = len(files)
        self.labels = np.array([label for label, _ in files], dtype=np.int32)
        self.entry_names = [entry.filename for _, entry in files]
        self.places = np.array(
            [(e.header_offset, e.compress_size, e.file_size, e.CRC, e.compress_type) for _, e in files], PLACE
        )
        self.descriptor: int | None = None

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
                entries = {entry.filename: entry for entry in archive.infolist()}
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise DataError(f"data file {path}: not a readable zip file ({error})") from error
        files = list(_read_map(map_path, path, entries))
        if not files:
            raise DataError(f"{map_path}: empty")
        labels = {label for label, _ in files}
        if labels != set(range(len(labels))):
            missing = min(set(range(max(labels) + 1)) - labels)
            raise DataError(
                f"{map_path}: no image has label {missing}, though {max(labels)} occurs; labels count from 0"
            )
        known = _class_names(files) or classes
        names = known or tuple(map(str, range(len(labels))))
        if len(names) != len(labels):
            raise DataError(f"{map_path}: has {counted(len(labels), 'label')} for {counted(len(names), 'class')}")
        check_class_count(path, names)
        found = cls(path, files, names, tuple(_notices(path, map_path, entries, files)))
        found.names_classes = known is not None
        return found

    @cached_property
    def names(self):
        return self.entry_names

    def content(self, index):
        if self.descriptor is None:
            self.descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        place = self.places[index]
        if place["size"] >= LARGEST:
            raise OSError(f"{place['size']} bytes are too many for an image")
        header = os.pread(self.descriptor, HEADER_SIZE, place["offset"])
        lengths = (int.from_bytes(header[part], "little") for part in (NAME_LENGTH, EXTRA_LENGTH))
        stored = os.pread(self.descriptor, place["stored"], place["offset"] + HEADER_SIZE + sum(lengths))
        try:
            content = DECOMPRESS[int(place["method"])](stored)
        except (zlib.error, OSError, ValueError) as error:
            raise OSError(f"damaged in the zip file ({error})") from error
        if not header.startswith(HEADER_START) or zlib.crc32(content) != place["checksum"]:
            raise OSError("damaged in the zip file (its checksum differs)")
        return np.frombuffer(content, np.uint8)


def _read_map(map_path: Path, path: Path, entries: dict[str, zipfile.ZipInfo]) -> Iterator[tuple[int, zipfile.ZipInfo]]:
    """Yield the label and the entry of each line of a map.

    Raises:
        DataError: a malformed line, or an entry that is not there, has two labels, or cannot be read by Python.
    """
    index = NameIndex(entries, lambda name: _entry_spellings(entries[name]))
    label_of: dict[str, int] = {}
    for number, line in enumerate(read_lines(map_path, str(map_path)), 1):
        if not line.strip():
            continue
        place = f"{map_path}, line {number}"
        name, _, text = line.rpartition("\t")
        if not text.strip().isdecimal():
            raise DataError(f"{place}: {line!r} is not a name, a tab and a label")
        found = index.find(name) or index.find(f"{path.stem}/{name}")
        if found is None:
            raise DataError(f"{place}: {name!r} is not in {path.name}")
        entry, label = entries[found], int(text)
        if entry.flag_bits & ENCRYPTED:
            raise DataError(f"{place}: {name!r} is encrypted in {path.name}; pack the images without a password")
        if entry.compress_type not in DECOMPRESS:
            method = f"compressed by method {entry.compress_type}"
            raise DataError(f"{place}: {name!r} is {method} in {path.name}; pack the images anew, as by zip -0 -r")
        if label_of.setdefault(found, label) != label:
            raise DataError(f"{place}: {name!r} has label {label} here and {label_of[found]} further up")
        yield label, entry


def _entry_spellings(entry: zipfile.ZipInfo) -> Iterator[str]:
    """Yield the texts that may stand for an entry in the map.

    Names without the flag for UTF-8 are UTF-8 all the same if Linux or a Mac wrote them; Python reads code page 437.
    """
    yield from spellings(entry.filename)
    if not entry.flag_bits & NAME_IS_UTF8:
        with suppress(UnicodeEncodeError):  # Python 3.12 takes the name of a field for UTF-8 where there is one
            yield from spellings(os.fsdecode(entry.filename.encode("cp437")))


def _notices(
    path: Path, map_path: Path, entries: dict[str, zipfile.ZipInfo], files: list[tuple[int, zipfile.ZipInfo]]
) -> Iterator[str]:
    """Yield lines about images that the map leaves out or repeats."""
    listed = {entry.filename for _, entry in files}
    left_out = LeftOut()
    for name in entries.keys() - listed:
        if is_image_name(name) and not any(map(is_hidden, filter(None, name.split("/")))):
            left_out.add(f"not in {map_path.name}", name)
    if left_out.counts:
        yield f"data file {path}: left out {left_out}"
    if len(listed) < len(files):
        yield f"{map_path}: {len(files) - len(listed)} lines repeat an image, which comes as often in an epoch"


def _class_names(files: list[tuple[int, zipfile.ZipInfo]]) -> tuple[str, ...] | None:
    """Return the names of the folders by label if each label has a folder of its own, else None."""
    folders: dict[int, set[str]] = {}
    for label, entry in files:
        folders.setdefault(label, set()).add(PurePosixPath(entry.filename.replace("\\", "/")).parent.name)
    names = [next(iter(folders[label])) for label in sorted(folders) if len(folders[label]) == 1]
    distinct = len(set(names)) == len(folders) and all(names)
    return tuple(names) if distinct else None
