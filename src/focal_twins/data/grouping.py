"""Rearranges the order of an epoch so that all samples of an update are of one group, such as of one size."""

import numpy as np


def grouped_positions(groups: np.ndarray, unit: int, offset: float) -> np.ndarray:
    """Return positions of an epoch's order in the order in which they are to be trained on, in units of one group each.

    An epoch has as many units as without groups, and each group its share of them, rounded down or up: up in as many
    epochs as it takes for every sample to be trained on equally often, on average. The samples of a group are gathered
    in their order, and a unit comes when it is full, so the order stays about the same. A unit that the samples of its
    group do not fill is filled up with the first of them, which are then trained on twice; what is left of a group is
    dropped, as the rest of an epoch without groups is.

    Args:
        groups: [size] the group of each position, from 0.
        unit: number of samples of an update, on all ranks.
        offset: from 0 to below 1, drawn for each epoch: it decides which shares are rounded up.

    Returns:
        [size // unit * unit] positions.
    """
    size = len(groups)
    members = [np.flatnonzero(groups == group) for group in range(groups.max(initial=-1) + 1)]
    units = size // unit
    counts = np.cumsum([len(positions) for positions in members])
    # Systematic sampling: a group has the whole numbers between the sums of shares before and after its own.
    ends = (counts * units + int(offset * size)) // max(size, 1)
    given = np.diff(ends, prepend=0)
    chosen, times = [np.empty((0, unit), np.int64)], []
    for positions, count in zip(members, given, strict=True):
        short = max(count * unit - len(positions), 0)
        places = np.concatenate([positions[: count * unit], np.resize(positions, short)]).reshape(-1, unit)
        chosen.append(places)
        times.extend([*places[: count - 1, -1], size if short else places[-1, -1]] if count else [])
    return np.concatenate(chosen)[np.argsort(times, kind="stable")].ravel().astype(np.int64)
