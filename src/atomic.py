"""Files that are always whole: written beside their name, synced to disk, then renamed over it."""

import os
from pathlib import Path

from src.errors import UserError


def replace_synced(temporary: Path, path: Path) -> None:
    """Rename a finished file over another, after its bytes are on the disk."""
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file, with the folders above it.

    Raises:
        UserError: no room or no permission; what was there before is untouched.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        replace_synced(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
