"""Identifies a file by its SHA-256, whatever it is called."""

import hashlib
from pathlib import Path


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, read in parts.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
