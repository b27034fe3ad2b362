"""Writes the names of files in lines of text, and finds files by the names that people write.

A name of a file is bytes. Python holds those that are not UTF-8 as surrogates (os.fsdecode), which no text file takes;
a tab or a new line in a name would make two fields or two lines of it.
"""

import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

SHOWN = 3  # names of many in a message
SHORT = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
LONG = {value: key for key, value in SHORT.items()}
# Control characters, separators that count as ends of lines, marks that turn the direction of writing, surrogates.
SPECIAL = re.compile(r"[\\\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
ESCAPE = re.compile(r"\\(?:[\\tnr]|x[0-9a-f]{2}|u[0-9a-f]{4})")
FIRST_BYTE, LAST_BYTE = 0xDC80, 0xDCFF  # the surrogates that stand for the bytes 0x80 to 0xFF


def escape_name(name: str | os.PathLike) -> str:
    r"""Write a name as text of one line without tabs, from which `unescape_name` gets the same name.

    Backslashes become \\, tabs, new lines and carriage returns \t, \n and \r, bytes that are not UTF-8 and other
    control characters \xHH, and characters that only look like an end of a line \uHHHH. Other names stay as they are.
    """
    return SPECIAL.sub(lambda found: _escape(found[0]), str(name))


def _escape(character: str) -> str:
    code = ord(character)
    if character in SHORT:
        return SHORT[character]
    if FIRST_BYTE <= code <= LAST_BYTE:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"


def unescape_name(text: str) -> str:
    """Return the name that `escape_name` wrote."""
    return ESCAPE.sub(lambda found: _unescape(found[0]), text)


def _unescape(escape: str) -> str:
    if escape in LONG:
        return LONG[escape]
    code = int(escape[2:], 16)
    return chr(code + 0xDC00 if escape[1] == "x" and code >= 0x80 else code)


def some_names(names: Sequence[str], shown: int = SHOWN) -> str:
    """List the first few names in one line, and "..." for more."""
    return ", ".join([escape_name(name) for name in names[:shown]] + ["..."] * (len(names) > shown))


def only_in(first: Sequence[str], second: Sequence[str], first_label: str, second_label: str) -> str:
    """Say which names only the first of two lists has, and which only the second: "only in A: x; only in B: y, z".

    Of lists of the same names, say where they begin to differ.
    """
    parts = [
        f"only in {label}: {some_names([name for name in names if name not in others])}"
        for label, names, others in ((first_label, first, set(second)), (second_label, second, set(first)))
        if set(names) - others
    ]
    if parts:
        return "; ".join(parts)
    place = next(place for place, pair in enumerate(zip(first, second, strict=True)) if pair[0] != pair[1])
    return f"in another order: the class {place} is {first[place]} in {first_label}, {second[place]} in {second_label}"


def spellings(name: str) -> list[str]:
    """List the ways in which programs write one path inside a data set: escaped, by backslashes, from "." or "/".

    All are in Unicode's composed form: a Mac writes "é" as two characters where other systems write one.
    """
    plain = [name, unescape_name(name), name.replace("\\", "/")]
    clean = [posixpath.normpath(spelling).lstrip("/") for spelling in plain]
    return list(dict.fromkeys(unicodedata.normalize("NFC", spelling) for spelling in [*plain, *clean]))


class NameIndex:
    """Finds names by the texts that people write for them.

    Args:
        spellings_of: lists the texts that may stand for a name besides itself; they are made when the first text is no
            name as it stands, since a million names have millions of them.
    """

    def __init__(self, names: Iterable[str], spellings_of: Callable[[str], Iterable[str]] = spellings):
        self.names = set(names)
        self.spellings_of = spellings_of
        self.by_spelling: dict[str, set[str]] | None = None

    def find(self, text: str) -> str | None:
        """Return the name that a text stands for; None if there is none, or more than one."""
        if text in self.names:
            return text
        if self.by_spelling is None:
            self.by_spelling = {}
            for name in self.names:
                for spelling in self.spellings_of(name):
                    self.by_spelling.setdefault(spelling, set()).add(name)
        for spelling in spellings(text):
            found = self.by_spelling.get(spelling, set())
            if len(found) == 1:
                return next(iter(found))
        return None
