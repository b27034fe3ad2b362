"""Logs the figures of a run to metrics.jsonl and as TensorBoard events.

Each line of metrics.jsonl is a JSON object of an update or of an evaluation. metrics.jsonl is the original: each
process that goes on with a run writes the events anew from its lines, to a file of a new name. Lines that are cut off
because a resumed run does their updates again are therefore never twice among the events.
"""

import json
import math
import os
import time
from pathlib import Path

from focal_twins.errors import UserError
from focal_twins.files.atomic import write_text
from focal_twins.training import tensorboard_events
from focal_twins.training.saving import warn


class GrowingFile:
    """Appends to a file, and keeps lines that cannot be written for the next attempt.

    A full disk therefore loses nothing while the run lasts.
    """

    def __init__(self, path: Path):
        self.path = path
        self.unwritten = b""
        self.failed = False

    def add(self, content: bytes) -> None:
        self.unwritten += content
        self.flush()

    def flush(self) -> bool:
        """Write what could not be written before; return whether the file is complete."""
        if not self.unwritten:
            return True
        try:
            _append(self.path, self.unwritten)
        except OSError as error:
            if not self.failed:
                warn(f"{self.path}: cannot be written ({error.strerror}); its lines are kept and tried again")
            self.failed = True
            return False
        self.unwritten, self.failed = b"", False
        return True


class MetricsLog:
    """Adds lines to metrics.jsonl and the events. On ranks other than the main one it does nothing."""

    def __init__(self, path: Path, enabled: bool):
        self.path = path
        self.enabled = enabled
        self.lines = GrowingFile(path)
        self.events: GrowingFile | None = None
        self.clock_start, self.start_time = time.perf_counter(), time.time()

    def keep_until(self, epoch: int, update: int) -> None:
        """Drop the lines of work that a resumed run will do again: all after so many whole epochs and updates.

        Raises:
            UserError: the file cannot be written.
        """
        if not self.enabled or not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if _is_within(line, epoch, update)]
        if kept != lines:
            write_text(self.path, "".join(kept))

    def begin(self, seconds: float) -> None:
        """Start the clock at the seconds that training has taken so far, and write the events of the lines so far.

        Raises:
            UserError: the events of an earlier process cannot be removed.
        """
        if not self.enabled:
            return
        self.clock_start, self.start_time = time.perf_counter() - seconds, time.time() - seconds
        folder = self.path.parent
        try:
            for earlier in folder.glob(tensorboard_events.PREFIX + "*"):
                earlier.unlink()
            text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        except OSError as error:
            raise UserError(f"output folder {folder}: cannot be written ({error.strerror})") from error
        self.events = GrowingFile(tensorboard_events.new_path(folder))
        lines = [json.loads(line) for line in text.splitlines()]
        records = [tensorboard_events.record(line, self.start_time) for line in lines if "seconds" in line]
        self.events.add(tensorboard_events.start_record() + b"".join(records))

    def add(self, **values: int | float | str | None) -> None:
        """Append a line, with the seconds of training. JSON has no NaN: numbers that are not finite become null."""
        if not self.enabled:
            return
        values["seconds"] = round(time.perf_counter() - self.clock_start, 3)
        line = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        self.lines.add(json.dumps(line).encode() + b"\n")
        if self.events is not None:
            self.events.add(tensorboard_events.record(line, self.start_time))

    def flush(self) -> bool:
        """Write what could not be written before; return whether the files are complete."""
        complete = self.lines.flush()
        return (self.events is None or self.events.flush()) and complete


def _append(path: Path, content: bytes) -> None:
    """Append all of the content, or nothing."""
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        try:
            if file.write(content) != len(content):
                raise OSError(28, "No space left on device")
        except OSError:
            os.truncate(path, size)
            raise


def _is_within(line: str, epoch: int, update: int) -> bool:
    """Return whether a line is about work of the first `epoch` whole epochs or the first `update` updates.

    A line without an end does not count: it was being written when the run was killed.
    """
    try:
        values = json.loads(line)
        first_epochs = values["epoch"] <= epoch
        return line.endswith("\n") and (
            first_epochs or (values["epoch"] == epoch + 1 and "update" in values and values["update"] <= update)
        )
    except (ValueError, KeyError, TypeError):
        return False
