"""Files that are always whole: written beside their name, synced to disk, then renamed over it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from src.errors import UserError

# Endings of the hidden names of what is not finished.
WRITING, LINKING = ".writing", ".link"
# Can only be read by being set, for all threads: once, and not while one saves and others make files.
UMASK = os.umask(0)
os.umask(UMASK)


def replace_synced(temporary: Path, path: Path) -> None:
    """Rename a finished file over another, after its bytes are on the disk, with the access that new files get."""
    os.chmod(temporary, 0o666 & ~UMASK)  # safetensors and MindSpore may write for the owner alone
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write a file under, which becomes `path` at the end, or is deleted if that is not reached.

    Raises:
        OSError: from making the folders above, or the renaming.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{WRITING}")
    try:
        yield temporary
        replace_synced(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what processes that were killed left of files they were writing into a folder.

    Raises:
        OSError: no permission.
    """
    for path in folder.glob(".*"):
        if path.name.endswith((WRITING, LINKING)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file, with the folders above it.

    Raises:
        UserError: no room or no permission; what was there before is untouched.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """The same for any file."""
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
