"""Reads the outcomes of updates while the next update runs, so that no device waits for the host."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from mindspore import Tensor

from focal_twins.errors import UserError
from focal_twins.training.checkpoint import Progress
from focal_twins.training.metrics_log import MetricsLog
from focal_twins.training.progress import ProgressLog


@dataclass(frozen=True)
class Outcome:
    """Holds what TrainStep returned of an update; the first look at a value waits for the device."""

    update: int  # counted from 1 over the whole run
    learning_rate: float
    returned: Tensor

    @cached_property
    def values(self) -> np.ndarray:
        return self.returned.asnumpy().astype(np.float64)

    @property
    def loss(self) -> float:
        """The total loss over all devices."""
        return float(self.values[0])

    @property
    def grad_norm(self) -> float:
        return float(self.values[1])

    @property
    def finite(self) -> bool:
        """True if the update was made, and not skipped for overflow or NaN."""
        return bool(self.values[2])

    @property
    def stop_votes(self) -> int:
        """The number of processes that had been asked to stop."""
        return int(self.values[3])

    @property
    def loss_scale(self) -> float:
        return float(self.values[4])

    @property
    def parts(self) -> list[float]:
        """The parts of the loss, in the order of TrainStep.loss_names."""
        return self.values[5:].tolist()


class Diverged(UserError):
    """Says that too many updates in a row had a loss or gradients that were not finite."""

    REMEDY = (
        "try a lower optimizer.base_lr, a longer schedule.warmup_epochs or amp.level=O0 with train.resume=auto, or "
        "look at the images"
    )


class Outcomes:
    """Takes the outcomes of updates in order, and acts on each when the next update has been started.

    All ranks therefore see the same values after the same update. They then make the decisions that must be the same on
    all (to stop, to give up); one rank may `note` the newest outcome earlier.

    Args:
        progress: progress of the run; this object keeps its count of skipped updates.
        max_skipped: number of updates skipped in a row that ends the run.
        loss_names: names of the loss's parts; where there are several, each is logged beside the total.
    """

    def __init__(
        self,
        progress: Progress,
        log: ProgressLog,
        metrics: MetricsLog,
        updates_per_epoch: int,
        max_skipped: int,
        loss_names: tuple[str, ...],
    ):
        self.progress, self.log, self.metrics = progress, log, metrics
        self.updates_per_epoch, self.max_skipped = updates_per_epoch, max_skipped
        self.loss_names = loss_names
        self.newest: Outcome | None = None
        self.stop_agreed = False
        self.newest_noted = progress.update  # the newest update that was counted and logged
        self.skipped = 0  # updates skipped since the epoch began, or since the run resumed in it
        self.skipped_in_a_row = 0

    def add(self, outcome: Outcome) -> None:
        """Take the outcome of an update just started, and act on that of the update before.

        Raises:
            Diverged: the update before was one skipped update too many.
        """
        if (outcome.update - 1) % self.updates_per_epoch == 0:
            self.skipped = 0
        previous, self.newest = self.newest, outcome
        self._act_on(previous)

    def drain(self) -> None:
        """Act on the outcome of the last update, when no other follows for now.

        Raises:
            Diverged: see `add`.
        """
        last, self.newest = self.newest, None
        self._act_on(last)

    def note(self, outcome: Outcome) -> None:
        """Count and log an outcome, unless that was done before."""
        if outcome.update <= self.newest_noted:
            return
        self.newest_noted = outcome.update
        self.progress.skipped += not outcome.finite
        self.skipped += not outcome.finite
        if self.log.is_due(outcome.update):
            rate = self.log.show(outcome.update, self.progress.global_batch, outcome.loss, outcome.learning_rate)
            parts = zip(self.loss_names, outcome.parts, strict=True) if len(self.loss_names) > 1 else ()
            self.metrics.add(
                epoch=(outcome.update - 1) // self.updates_per_epoch + 1,
                update=outcome.update,
                epochs_done=round(outcome.update / self.updates_per_epoch, 6),
                loss=outcome.loss,
                **dict(parts),
                grad_norm=outcome.grad_norm,
                lr=outcome.learning_rate,
                loss_scale=outcome.loss_scale,
                images_per_second=rate,
            )

    def _act_on(self, outcome: Outcome | None) -> None:
        if outcome is None:
            return
        self.note(outcome)
        self.stop_agreed = self.stop_agreed or outcome.stop_votes > 0
        self.skipped_in_a_row = 0 if outcome.finite else self.skipped_in_a_row + 1
        if self.skipped_in_a_row >= self.max_skipped:
            epoch, within = divmod(outcome.update - 1, self.updates_per_epoch)
            raise Diverged(
                f"training diverged: update {outcome.update} (epoch {epoch + 1}, update {within + 1} of "
                f"{self.updates_per_epoch}) makes {self.skipped_in_a_row} in a row whose loss or gradients were not "
                f"finite, loss scale {outcome.loss_scale:g}"
            )
