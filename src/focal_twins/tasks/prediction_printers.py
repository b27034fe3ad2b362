"""Prints predictions in several forms: what these have in common, whatever was predicted."""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path


def json_line(content: dict) -> str:
    """Return a line of JSON, in which bytes of names that are not UTF-8 are \\udcHH: Python's surrogates."""
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


class JsonList:
    """Writes a JSON list to a stream as its records come, a line for each."""

    def __init__(self, stream):
        self.stream, self.separator = stream, "[\n"

    def write(self, record: dict) -> None:
        """Write a record."""
        self.stream.write(self.separator + json_line(record))
        self.separator = ",\n"

    def end(self) -> None:
        """Write what comes after all records."""
        self.stream.write("[]\n" if self.separator[0] == "[" else "\n]\n")


def json_list(records: list[dict]) -> str:
    """Return a JSON list with a line for each record."""
    stream = io.StringIO()
    listed = JsonList(stream)
    for record in records:
        listed.write(record)
    listed.end()
    return stream.getvalue()


class Printer:
    """Prints predictions to a stream, after it has written their files; a context manager.

    Args:
        files: writes the files, see `add` and `finish` of each task's; None for none.
    """

    def __init__(self, stream, files=None):
        self.stream, self.files = stream, files

    def __enter__(self):
        self.begin()
        return self

    def __exit__(self, *_):
        try:
            self.end()
            self.stream.flush()
        finally:  # also where nobody reads the stream any more
            if self.files is not None:
                self.files.finish()

    def write(self, prediction) -> None:
        """Write a prediction's files and print it."""
        paths = {} if self.files is None else self.files.add(prediction)
        self.print(prediction, paths)

    def begin(self) -> None:
        """Print what comes before all predictions."""

    def end(self) -> None:
        """Print what comes after all predictions."""

    def print(self, prediction, paths: dict[str, Path]) -> None:
        """Print a prediction.

        Args:
            paths: of its files, by kind.
        """


class CsvPrinter(Printer):
    """Prints the rows that `rows_of` gives, below a head."""

    head: tuple[str, ...]

    def begin(self):
        self.rows = csv.writer(self.stream, lineterminator="\n")
        self.rows.writerow(self.head)

    def print(self, prediction, paths):
        self.rows.writerows(self.rows_of(prediction))

    def rows_of(self, prediction) -> Iterable[list]:
        """Return the rows of a prediction."""
        raise NotImplementedError


class JsonPrinter(Printer):
    """Prints a list of the objects that `records_of` gives, each on a line of its own."""

    def begin(self):
        self.list = JsonList(self.stream)

    def print(self, prediction, paths):
        for record in self.records_of(prediction, paths):
            self.list.write(record)

    def records_of(self, prediction, paths: dict[str, Path]) -> Iterable[dict]:
        """Return the objects of a prediction."""
        raise NotImplementedError

    def end(self):
        self.list.end()
