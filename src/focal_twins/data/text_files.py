"""Reads the text files that people write about data: maps of labels, names of classes."""

import codecs
from pathlib import Path

from focal_twins.data.dataset import DataError

ENCODINGS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


def read_text(path: str | Path, label: str) -> str:
    """Return the text of a UTF-8 file, without the byte-order mark that Windows writes, and with new lines as ends.

    Args:
        label: name of the file in messages.

    Raises:
        DataError: the file cannot be read, or is not UTF-8; the message names the line and the remedy.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{label}: cannot be read ({error.strerror})") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        written = ENCODINGS.get(content[:2])
        number = content.count(b"\n", 0, error.start) + 1
        place = f"is {written}" if written else f"line {number} is not UTF-8"
        raise DataError(
            f"{label}: {place}; convert it: iconv -f {written or 'ENCODING'} -t UTF-8 {Path(path).name} > NEW"
            + ("" if written else " (ENCODING is often WINDOWS-1252 or GB18030)")
        ) from error
    if "\0" in text:
        raise DataError(f"{label}: not a text file")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: str | Path, label: str) -> list[str]:
    """Return the lines of a text file, without their ends; raise what `read_text` raises.

    Unlike str.splitlines, it leaves characters such as U+2028 in names alone.
    """
    text = read_text(path, label)
    return text.removesuffix("\n").split("\n") if text else []
