"""Decides when a run saves itself, and lets it go on when a save fails."""

import sys
import threading
import time
from collections.abc import Callable

from focal_twins.training.checkpoint import CheckpointError, CheckpointFolder, Snapshot


def warn(text: str) -> None:
    """Print a warning of one line on stderr."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


class Saver:
    """Saves the run on the main rank: it knows when, writes in the background, and reports errors.

    A save that fails (a full disk) is one line on stderr; training goes on, and the next save tries again.

    Args:
        interval: updates between saves within an epoch, or None.
        minutes: the longest time without a save, or None.
        background: write in a thread while training goes on, one save at a time.
        last_good: the save that a resumed run started from, in words.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        interval: int | None,
        minutes: float | None,
        background: bool,
        last_good: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.folder = folder
        self.interval, self.minutes, self.background = interval, minutes, background
        self.clock = clock
        self.last_good = last_good
        self.last_time = clock()
        self.postponed = False
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None  # error of the newest save
        self.unreported = False

    def is_due(self, update: int) -> bool:
        """Return whether to save after this update; once true, it stays true until there is a save.

        It also reports errors of the save before, because it is called after every update.
        """
        if self.thread is None or not self.thread.is_alive():
            self.wait()
        due = self.interval is not None and update % self.interval == 0
        late = self.minutes is not None and self.clock() - self.last_time >= 60 * self.minutes
        self.postponed = self.postponed or due or late
        return self.postponed

    def save_within_epoch(self, snapshot: Snapshot) -> None:
        """Write last.ckpt alone."""
        self._save(lambda: self.folder.save_within_epoch(snapshot), snapshot)

    def save_epoch(self, snapshot: Snapshot, is_best: bool) -> None:
        """Write the epoch's file, and make last.ckpt and, if it is the best, best.ckpt the same file."""
        self._save(lambda: self.folder.save(snapshot, is_best), snapshot)

    def wait(self) -> None:
        """Wait until the save in progress is written or has failed; report a failure."""
        self._join()
        if self.unreported:
            self.unreported = False
            warn(f"{self.error}; training goes on, the next save tries again")

    def finish(self) -> None:
        """Wait for the last save.

        Raises:
            CheckpointError: the last save failed.
        """
        self._join()
        self.unreported = False
        if self.error is not None:
            raise CheckpointError(f"the last save failed: {self.error}; last good save: {self.last_good or 'none'}")

    def _save(self, write: Callable[[], object], snapshot: Snapshot) -> None:
        self.wait()
        self.postponed, self.last_time = False, self.clock()

        def job():
            try:
                write()
                self.error = None
                self.last_good = f"{self.folder.last} ({snapshot.progress.description})"
            except Exception as error:  # kept for the main thread
                self.error = error

        # The thread is no daemon: Python finishes the save before the process ends.
        self.thread = threading.Thread(target=job, name="save")
        self.thread.start()
        if not self.background:
            self._join()

    def _join(self) -> None:
        """Wait for the thread; raise an error that is no CheckpointError, because it is a defect."""
        if self.thread is None:
            return
        self.thread.join()
        self.thread = None
        self.unreported = self.error is not None
        if self.error is not None and not isinstance(self.error, CheckpointError):
            raise self.error
