"""Generators of random numbers by what they are for.

Each is keyed by the run's seed, its purpose and whatever tells one use from another (epoch, position, update, rank),
and drawn from once: no state goes from one use to the next, so a resumed run and any number of workers draw the same.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """Purposes. A new one takes a new number; a changed one changes every run."""

    ORDER = 0
    AUGMENTATION = 1
    NOISE = 2  # stochastic depth and dropout
    ERASING = 3
    MIXING = 4


def generator(seed: int, stream: Stream, *key: int) -> np.random.Generator:
    """The generator of one use."""
    return np.random.default_rng([seed, stream, *key])
