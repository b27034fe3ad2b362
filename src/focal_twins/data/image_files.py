"""Lists the image files of folders, and reads files that people may have named like images.

The same rules hold for training, evaluation, packing and prediction: an image is what has the ending of one, in
whatever case, in the folder or below it; hidden files and those of operating systems are none. What is left out is
counted by its reason.
"""

import io
import os
import stat
from bisect import insort
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from focal_twins.files.names import SHOWN, some_names

# Still pictures that Pillow decodes, and what cameras, scanners, browsers and researchers' programs call them.
EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".avif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".tga",
)  # fmt: skip
# What systems put among people's files: resource forks (Mac), thumbnails (Synology), recovered files (ext4), waste.
SYSTEM_NAMES = frozenset(
    ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "desktop.ini")
)
LARGEST = 1 << 30  # bytes; what Pillow agrees to decode is smaller, and such a file would fill the memory
BLOCK = 1 << 20  # bytes

HIDDEN = "hidden or of the system"
ENDING = "without the ending of an image"
BESIDE = "beside the class folders"
LOOP = "linking to a folder above"
NOWHERE = "linking nowhere"
EMPTY = "named like an image, but a folder without any"


def is_image_name(name: str) -> bool:
    """Return whether a file's name has the ending of an image, in any case."""
    return name.lower().endswith(EXTENSIONS)


def is_hidden(name: str) -> bool:
    """Return whether a name is that of a hidden file or folder, or of one that systems make by themselves."""
    return name[0] == "." or name in SYSTEM_NAMES


def read_file(path: str | Path) -> np.ndarray:
    """Return the content [n] uint8 of a regular file. It never waits, as opening a pipe for reading would.

    Raises:
        OSError: the file cannot be opened or read, or is no regular file, or of a gigabyte or more.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size >= LARGEST:
            raise OSError(f"{size} bytes are too many for an image")
        return np.frombuffer(file.read(), np.uint8)


def read_through(path: str | Path) -> None:
    """Read a regular file of any size to its end, and keep nothing.

    Raises:
        OSError: the file cannot be opened or read, or is no regular file.
    """
    with open_regular(path) as file:
        while file.read(BLOCK):
            pass


@contextmanager
def open_regular(path: str | Path) -> Iterator[io.FileIO]:
    """Open a regular file to read, without a buffer. It never waits, as opening a pipe for reading would.

    Raises:
        OSError: the file cannot be opened, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError("a folder, not a file" if stat.S_ISDIR(mode) else "not a regular file")
        with io.FileIO(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def reason_of(error: Exception) -> str:
    """Say in a few words why an image cannot be read, without the path that Python adds to errors of the system."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


class LeftOut:
    """Counts by their reasons the files and folders that a listing leaves out, and keeps a few examples."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}

    def add(self, reason: str, name: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        insort(examples, name, key=os.fsencode)
        del examples[SHOWN:]

    def merge(self, other: "LeftOut") -> None:
        """Add what another listing left out."""
        for reason, count in other.counts.items():
            for name in other.examples[reason]:
                self.add(reason, name)
            self.counts[reason] += count - len(other.examples[reason])

    def __str__(self) -> str:
        """What was left out, in one line without its end; empty if nothing was."""
        parts = []
        for reason, count in sorted(self.counts.items()):
            more = ", ..." if count > SHOWN else ""
            parts.append(f"{count} {reason} ({some_names(self.examples[reason])}{more})")
        return "; ".join(parts)


def list_images(folder: str | Path, left_out: LeftOut, shown: str = "", above: frozenset = frozenset()) -> list[str]:
    """List the images in a folder and below it, as paths from it by "/", sorted by the bytes of these paths.

    In a folder without folders that is the order of MindSpore's ImageFolderDataset.

    Args:
        left_out: gets what is no image.
        shown: what stands before the paths in `left_out`.
        above: the `identity` of folders that hold this one, which links in it must not lead back to.

    Raises:
        OSError: the folder cannot be listed.
    """
    found: list[str] = []
    named_like_images: list[str] = []
    pending = [("", above)]
    while pending:
        path, outer = pending.pop()
        below = os.path.join(folder, path)
        try:
            inside = outer | {identity(below)}
            folders, images = list_folder(below, left_out, shown + path, inside)
        except OSError as error:
            if not path:
                raise
            left_out.add(f"not to be listed ({error.strerror})", shown + path)
            continue
        found += [path + image for image in images]
        pending += [(f"{path}{name}/", inside) for name in folders]
        named_like_images += [f"{path}{name}/" for name in folders if is_image_name(name)]
    for path in named_like_images:
        if not any(image.startswith(path) for image in found):
            left_out.add(EMPTY, shown + path)
    return sorted(found, key=os.fsencode)


def list_folder(folder: str | Path, left_out: LeftOut, shown: str, inside: frozenset) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the images in a folder, both in no order.

    Args:
        left_out, shown: see `list_images`.
        inside: the `identity` of the folder and of those that hold it; links to them are left out.

    Raises:
        OSError: the folder cannot be listed.
    """
    folders, images = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if is_hidden(name):
                left_out.add(HIDDEN, shown + name)
            elif _is_folder(entry):
                if entry.is_symlink() and identity(entry.path) in inside:
                    left_out.add(LOOP, shown + name)
                else:
                    folders.append(name)
            elif is_image_name(name):
                images.append(name)
            else:
                is_lost = entry.is_symlink() and not os.path.exists(entry.path)
                left_out.add(NOWHERE if is_lost else ENDING, shown + name)
    return folders, images


def _is_folder(entry: os.DirEntry) -> bool:
    """Return whether an entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder without permission
        return False


def identity(path: str | Path) -> tuple[int, int]:
    """Return what tells a folder from others, by whatever path it is reached.

    Raises:
        OSError: there is no such folder, or no permission.
    """
    status = os.stat(path)
    return status.st_dev, status.st_ino
