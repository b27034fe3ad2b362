"""What updates came to, read while the next one runs, so that no device waits for the host."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from mindspore import Tensor


@dataclass(frozen=True)
class Outcome:
    """An update and what TrainStep returned of it; the first look at a value waits for the device."""

    update: int  # counted from 1 over the whole run
    learning_rate: float
    returned: Tensor

    @cached_property
    def values(self) -> np.ndarray:
        return self.returned.asnumpy().astype(np.float64)

    @property
    def loss(self) -> float:
        """Mean over all devices."""
        return float(self.values[0])

    @property
    def grad_norm(self) -> float:
        return float(self.values[1])

    @property
    def finite(self) -> bool:
        """Whether the update was made, and not skipped for overflow or NaN."""
        return bool(self.values[2])

    @property
    def stop_votes(self) -> int:
        """Number of processes that had been asked to stop."""
        return int(self.values[3])

    @property
    def loss_scale(self) -> float:
        return float(self.values[4])


class Outcomes:
    """Outcomes in the order of updates, each handed over when the next update has been started.

    All ranks so get the same values after the same update. What they must decide alike, such as to stop, they decide
    then; `newest` is for what one does by itself.
    """

    def __init__(self):
        self.newest: Outcome | None = None

    def add(self, outcome: Outcome) -> Outcome | None:
        """Take in the outcome of an update just started; returns that of the one before."""
        before, self.newest = self.newest, outcome
        return before

    def drain(self) -> Outcome | None:
        """The outcome of the last update, when no other follows for now."""
        last, self.newest = self.newest, None
        return last
