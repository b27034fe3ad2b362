"""Reports when training stands still, and which rank the others wait for.

While training moves, this costs an assignment per step. A thread of each rank notices by itself when its rank has been
in one stage for too long, and then writes that to a file in the run's folder, which all ranks see. The main rank's
thread gathers the files into one line. A rank without a file is suspect, because it cannot even write one.
"""

import json
import os
import shutil
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from focal_twins.distributed.ranks import Dist

STAGES = ("reading images for", "in", "evaluating after", "saving after")  # stages of an update, in this order


@dataclass(frozen=True)
class Position:
    """Says which stage of which update, counted from 1, a rank is in."""

    update: int
    stage: int
    seconds: float = 0.0  # time since the stage began
    process: str = ""  # host and number of the process

    def __str__(self):
        return f"{STAGES[self.stage]} update {self.update}"


class Watchdog:
    """Watches this rank while its context is open; the training loop calls `at` when it begins a stage.

    Args:
        folder: folder for the files of ranks that stand still; the files are removed when they move.
        seconds: time in one stage before it is reported, or None for never.
        announce: called with the line, on the main rank.
    """

    def __init__(self, folder: Path, dist: Dist, seconds: float | None, announce=None):
        self.folder, self.dist, self.seconds = folder, dist, seconds
        self.announce = announce or (lambda line: print(line, file=sys.stderr, flush=True))
        self.position: tuple[int, int, float] | None = None  # update, stage, when it began; replaced as a whole
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, args=(seconds,), name="watchdog", daemon=True)

    def at(self, stage: str, update: int) -> None:
        """Note that this rank begins a stage (of STAGES) of an update."""
        self.position = (update, STAGES.index(stage), time.monotonic())

    def __enter__(self) -> "Watchdog":
        if self.seconds is not None:
            self._file(self.dist.rank).unlink(missing_ok=True)  # left by a run that was killed while it stood still
            self.thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self.ended.set()
        if self.seconds is not None:
            self.thread.join()
            self._file(self.dist.rank).unlink(missing_ok=True)
            if self.dist.is_main:
                shutil.rmtree(self.folder, ignore_errors=True)

    def _watch(self, seconds: float) -> None:
        interval = min(seconds / 8, 5.0)
        reported = None
        while not self.ended.wait(interval):
            position = self.position
            if reported is not None and position != reported:
                self._file(self.dist.rank).unlink(missing_ok=True)
                if self.dist.is_main:
                    self.announce(f"training moves again after {time.monotonic() - reported[2]:.0f} s")
                reported = None
            if position is None or reported is not None or time.monotonic() - position[2] < seconds:
                continue
            reported = position
            self._write(position)
            if self.dist.is_main and not self.ended.wait(2 * interval) and self.position == position:
                self.announce(stall_line([self._read(rank) for rank in range(self.dist.size)], position, seconds))

    def _file(self, rank: int) -> Path:
        return self.folder / f"rank_{rank}.json"

    def _write(self, position: tuple[int, int, float]) -> None:
        update, stage, began = position
        content = {
            "update": update,
            "stage": stage,
            "seconds": time.monotonic() - began,
            "process": f"host {socket.gethostname()}, process {os.getpid()}",
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file(self.dist.rank).write_text(json.dumps(content), encoding="utf-8")
        except OSError:  # a full disk may be why training stands still
            return

    def _read(self, rank: int) -> Position | None:
        try:
            return Position(**json.loads(self._file(rank).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def stall_line(positions: list[Position | None], own: tuple[int, int, float], seconds: float) -> str:
    """Return the line that reports a training that stands still.

    Args:
        positions: position of each rank; None for a rank without a file.
        own: update and stage of this rank, and when the stage began.
        seconds: for how long this rank has been there.
    """
    own_position = Position(*own[:2])
    silent = [rank for rank, position in enumerate(positions) if position is None]
    known = {rank: position for rank, position in enumerate(positions) if position is not None}
    least = min(
        ((position.update, position.stage) for position in known.values()),
        default=(own_position.update, own_position.stage),
    )
    behind = {rank: position for rank, position in known.items() if (position.update, position.stage) == least}
    line = f"nothing has moved for {seconds:.0f} s: "
    if silent:
        return line + (
            f"{_name_ranks(silent)} give{'s' if len(silent) == 1 else ''} no sign (stopped, or on a machine that is "
            f"gone or does not see this folder), {_name_ranks(known)} {_is_or_are(known)} {own_position}"
        )
    if len(behind) == len(positions):
        return line + f"{'every rank is' if len(positions) > 1 else 'this process is'} {own_position}"
    waited_for = "; ".join(
        f"rank {rank}, {position} for {position.seconds:.0f} s ({position.process})"
        for rank, position in behind.items()
    )
    ahead = [rank for rank in known if rank not in behind]
    return line + f"{_name_ranks(ahead)} {'wait' if len(ahead) > 1 else 'waits'} for {waited_for}"


def _name_ranks(ranks) -> str:
    ranks = list(ranks)
    return ("ranks " if len(ranks) > 1 else "rank ") + ", ".join(map(str, ranks))


def _is_or_are(ranks) -> str:
    return "are" if len(ranks) > 1 else "is"
