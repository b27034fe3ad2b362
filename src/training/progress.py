"""What training shows while it runs: a progress bar on a terminal, plain lines elsewhere."""

import sys
import time

from tqdm import tqdm


class ProgressLog:
    """Reports the updates of one run on stdout. On ranks other than the main one it is silent."""

    def __init__(self, epochs: int, updates_per_epoch: int, first_update: int, log_interval: int, enabled: bool):
        self.epochs = epochs
        self.updates_per_epoch = updates_per_epoch
        self.total = epochs * updates_per_epoch
        self.first_update = first_update
        self.log_interval = log_interval
        self.enabled = enabled
        self.terminal = enabled and sys.stdout.isatty()
        self.bar = None
        self.timed_updates, self.timed_seconds = 0, 0.0  # without compilation, evaluation and checkpoints
        self.window_updates, self.window_start = 0, 0.0

    def start_epoch(self, epoch: int) -> None:
        """`epoch` counts from 1."""
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

    def update(self, update: int, images: int, loss, learning_rate: float) -> None:
        """One update done; `update` counts from 1 over the whole run. `loss` is a callable, read only when shown."""
        in_epoch = (update - 1) % self.updates_per_epoch + 1
        if self.bar is not None:
            self.bar.update(1)
        if update == self.first_update + 1:  # its time says how long compilation takes, not how fast training is
            loss()
            self.line(f"compiled the training graph in {time.perf_counter() - self.window_start:.0f} s")
            self._start_window()
            return
        self.window_updates += 1
        if in_epoch % self.log_interval and in_epoch != self.updates_per_epoch:
            return
        value = loss()  # waits for the device
        seconds = time.perf_counter() - self.window_start
        self.timed_updates += self.window_updates
        self.timed_seconds += seconds
        rate = self.window_updates * images / max(seconds, 1e-9)
        left = (self.total - update) * self.timed_seconds / self.timed_updates
        self._start_window()
        if self.bar is not None:
            self.bar.set_postfix_str(
                f"loss {value:.4f}, lr {learning_rate:.2e}, {rate:.0f} img/s, {duration(left)} left"
            )
        elif self.enabled:
            epoch = (update - 1) // self.updates_per_epoch + 1
            print(
                f"epoch {epoch}/{self.epochs}  update {in_epoch}/{self.updates_per_epoch}  loss {value:.4f}  "
                f"lr {learning_rate:.3e}  {rate:.0f} img/s  {duration(left)} left",
                flush=True,
            )

    def _start_window(self) -> None:
        self.window_updates, self.window_start = 0, time.perf_counter()

    def end_epoch(self) -> None:
        """Take the bar off the terminal, so that lines can follow."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def line(self, text: str) -> None:
        """One line of text, above the bar if there is one."""
        if self.enabled:
            tqdm.write(text, file=sys.stdout) if self.bar is not None else print(text, flush=True)


def duration(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
