"""Rearranges the order of an epoch so that all samples of an update are of one group, such as of one size."""

import numpy as np


def grouped_positions(groups: np.ndarray, unit: int) -> np.ndarray:
    """Return positions of an epoch's order in the order in which they are to be trained on, in units of one group each.

    The samples of a group are gathered in their order; as soon as a group has a unit full, it comes. So the order stays
    about the same, and is a function of the groups alone. An epoch has as many units as without groups: in the end,
    those that are still to be filled are of the groups that have most samples left, filled up with the first samples of
    the same group, which are then trained on twice. What the other groups have left is dropped, as the rest of an epoch
    without groups is.

    Args:
        groups: [size] the group of each position, from 0.
        unit: number of samples of an update, on all ranks.

    Returns:
        [size // unit * unit] positions.
    """
    size = len(groups)
    members = [np.flatnonzero(groups == group) for group in range(groups.max(initial=-1) + 1)]
    whole = [positions[: len(positions) // unit * unit].reshape(-1, unit) for positions in members]
    units = np.concatenate([*whole, np.empty((0, unit), np.int64)])
    units = units[np.argsort(units[:, -1], kind="stable")]
    left = [len(positions) % unit for positions in members]
    to_fill = sorted(range(len(members)), key=lambda group: -left[group])[: size // unit - len(units)]
    filled = [np.resize(np.roll(members[group], left[group]), unit) for group in to_fill]
    return np.concatenate([units.ravel(), *filled]).astype(np.int64)
