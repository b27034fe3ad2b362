"""Makes generators of random numbers, one for each use.

Each is keyed by the run's seed, its purpose and the numbers that tell one use from another (epoch, position, update,
rank), and used once: no state goes from one use to the next, so a resumed run and any number of workers draw the same.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """Numbers the purposes of random numbers. A new purpose takes a new number; a changed number changes every run."""

    ORDER = 0
    AUGMENTATION = 1
    NOISE = 2  # stochastic depth and dropout
    ERASING = 3
    MIXING = 4


def generator(seed: int, stream: Stream, *key: int) -> np.random.Generator:
    """Make the generator of one use."""
    return np.random.default_rng([seed, stream, *key])
