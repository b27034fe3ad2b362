"""The figures of a run in a file, metrics.jsonl: a JSON object in each line, of an update or of an evaluation."""

import json
import math
import os
from pathlib import Path

from src.atomic import write_text
from src.training.saving import warn


class MetricsLog:
    """Appends lines. On ranks other than the main one it does nothing.

    A disk that is full costs no line while the run lasts: what could not be written is tried again with the next.
    """

    def __init__(self, path: Path, enabled: bool):
        self.path = path
        self.enabled = enabled
        self.unwritten = ""
        self.failed = False

    def keep_until(self, epoch: int, update: int) -> None:
        """Drop what a run that resumes will do again: all after this many whole epochs and this many updates.

        Raises:
            UserError: the file cannot be written.
        """
        if not self.enabled or not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if _is_before(line, epoch, update)]
        if kept != lines:
            write_text(self.path, "".join(kept))

    def add(self, **values: int | float | str | None) -> None:
        """Append a line. JSON has no NaN: numbers that are not finite become null."""
        if not self.enabled:
            return
        content = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        self.unwritten += json.dumps(content) + "\n"
        self.flush()

    def flush(self) -> bool:
        """Write what could not be written before; returns whether the file is complete."""
        if not self.unwritten:
            return True
        try:
            _append(self.path, self.unwritten)
        except OSError as error:
            if not self.failed:
                warn(f"{self.path}: cannot be written ({error.strerror}); its lines are kept and tried again")
            self.failed = True
            return False
        self.unwritten, self.failed = "", False
        return True


def _append(path: Path, text: str) -> None:
    """Append all of a text, or nothing."""
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        data = text.encode()
        try:
            if file.write(data) != len(data):
                raise OSError(28, "No space left on device")
        except OSError:
            os.truncate(path, size)
            raise


def _is_before(line: str, epoch: int, update: int) -> bool:
    """Whether a line is of what was done by then. Without its end it was being written when the run was killed."""
    try:
        values = json.loads(line)
        first_epochs = values["epoch"] <= epoch
        return line.endswith("\n") and (
            first_epochs or (values["epoch"] == epoch + 1 and "update" in values and values["update"] <= update)
        )
    except (ValueError, KeyError, TypeError):
        return False
