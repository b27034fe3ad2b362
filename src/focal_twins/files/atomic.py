"""Writes files that are always whole: each is written beside its name, synced to disk, then renamed over it."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from focal_twins.errors import UserError

# Endings of the hidden names of unfinished files and links.
WRITING, LINKING = ".writing", ".link"
# The umask can only be read by setting it, for all threads: so once at import, not while other threads make files.
UMASK = os.umask(0)
os.umask(UMASK)


def replace_synced(temporary: Path, path: Path) -> None:
    """Rename a finished file over another, after its bytes are on the disk, with the access that new files get."""
    os.chmod(temporary, 0o666 & ~UMASK)  # safetensors and MindSpore may give access to the owner alone
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write a file to; rename it to `path` at the end, or delete it after an error.

    Raises:
        OSError: the folders above cannot be made, or the file cannot be renamed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{WRITING}")
    try:
        yield temporary
        replace_synced(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove the unfinished files that killed processes left in a folder.

    Raises:
        OSError: no permission.
    """
    for path in folder.glob(".*"):
        if path.name.endswith((WRITING, LINKING)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_text(path: Path, text: str) -> None:
    r"""Write a text file atomically, with the folders above it.

    What Python makes of bytes in file names that are not UTF-8 becomes \udcHH, which JSON reads as the same name.

    Raises:
        UserError: no room or no permission; an earlier file is untouched.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file of bytes atomically, with the folders above it; raise what `write_text` raises."""
    with _told(path), replacing(path) as temporary:
        temporary.write_bytes(content)


class TextFile:
    """Writes a text file part by part, with the folders above it; it takes its name when it is closed.

    Raises:
        UserError: no room or no permission, also from its methods; an earlier file is untouched. What is written after
            such an error raises it again.
    """

    def __init__(self, path: Path):
        self.path, self.stack = path, ExitStack()
        self.fault: UserError | None = None
        with _told(path):
            temporary = self.stack.enter_context(replacing(path))
            self.stream = self.stack.enter_context(temporary.open("w", encoding="utf-8"))

    def write(self, text: str) -> None:
        """Write the next part."""
        if self.fault is not None:
            raise self.fault
        try:
            with _told(self.path):
                self.stream.write(text)
        except UserError as error:
            self.fault = error
            with suppress(OSError):
                self.stack.__exit__(*sys.exc_info())
            raise

    def close(self) -> None:
        """Give the file its name."""
        with _told(self.path):
            self.stack.close()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Tell users which file cannot be written, and why."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
