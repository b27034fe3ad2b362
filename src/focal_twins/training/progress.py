"""Shows the progress of training: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from focal_twins.distributed.launch import output_is_forwarded


class ProgressLog:
    """Reports the updates of one run on stdout. On ranks other than the main one it is silent."""

    def __init__(self, epochs: int, updates_per_epoch: int, first_update: int, log_interval: int, enabled: bool):
        self.epochs = epochs
        self.updates_per_epoch = updates_per_epoch
        self.total = epochs * updates_per_epoch
        self.first_update = first_update
        self.log_interval = log_interval
        self.enabled = enabled
        self.terminal = enabled and sys.stdout.isatty() and not output_is_forwarded()
        self.bar: tqdm | None = None
        self.shown: str | None = None  # what stays on the terminal of the newest update that the bar shows
        self.last_started = first_update
        self.timed_updates, self.timed_seconds = 0, 0.0  # leave out compilation, evaluation and checkpoints
        self.window_updates, self.window_start = 0, 0.0

    def start_epoch(self, epoch: int) -> None:
        """Start an epoch, counted from 1: show its bar on a terminal."""
        if self.terminal:
            self.bar = tqdm(
                total=self.updates_per_epoch,
                initial=max(0, self.first_update - (epoch - 1) * self.updates_per_epoch),
                desc=f"epoch {epoch}/{self.epochs}",
                unit="update",
                leave=False,
                file=sys.stdout,
                dynamic_ncols=True,
                postfix="compiling" if not self.timed_updates else None,
            )
        self._start_window()

    def advance(self, update: int, wait: Callable[[], object]) -> None:
        """Count an update that was started.

        Args:
            update: its number from 1 over the whole run.
            wait: returns when the update is done.
        """
        self.last_started = update
        if self.bar is not None:
            self.bar.update(1)
        if update > self.first_update + 1:
            self.window_updates += 1
        else:  # the first update's time is that of compilation, not of training
            wait()
            self.line(f"compiled the training graph in {time.perf_counter() - self.window_start:.0f} s")
            self._start_window()

    def is_due(self, update: int) -> bool:
        """Return whether an update is one of those that are shown."""
        number = self._number_in_epoch(update)
        return number % self.log_interval == 0 or number == self.updates_per_epoch

    def show(self, update: int, images: int, loss: float, learning_rate: float) -> float | None:
        """Show an update of so many images; return the images per second since the last one shown, None if unknown."""
        rate, speed = None, ()
        if self.window_updates:
            seconds = max(time.perf_counter() - self.window_start, 1e-9)
            rate = self.window_updates * images / seconds
            self.timed_updates += self.window_updates
            self.timed_seconds += seconds
            left = (self.total - self.last_started) * self.timed_seconds / self.timed_updates
            speed = f"{rate:.0f} img/s", f"{duration(left)} left"
            self._start_window()
        epoch = (update - 1) // self.updates_per_epoch + 1
        done = f"epoch {epoch}/{self.epochs}  update {self._number_in_epoch(update)}/{self.updates_per_epoch}"
        line = "  ".join([done, f"loss {loss:.4f}", f"lr {learning_rate:.3e}", *speed])
        if self.bar is not None:
            self.shown = line
            self.bar.set_postfix_str(", ".join([f"loss {loss:.4f}", f"lr {learning_rate:.2e}", *speed]))
        elif self.enabled:
            print(line, flush=True)
        return rate

    def _number_in_epoch(self, update: int) -> int:
        """Return the number of an update in its epoch, from 1."""
        return (update - 1) % self.updates_per_epoch + 1

    def _start_window(self) -> None:
        self.window_updates, self.window_start = 0, time.perf_counter()

    def end_epoch(self) -> None:
        """Remove the bar from the terminal, so that lines can follow; the loss that it showed last stays, as a line."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
            if self.shown is not None:
                print(self.shown, flush=True)
                self.shown = None

    def line(self, text: str) -> None:
        """Print a line of text, above the bar if there is one."""
        if self.enabled:
            tqdm.write(text, file=sys.stdout) if self.bar is not None else print(text, flush=True)


def duration(seconds: float) -> str:
    """Format seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
