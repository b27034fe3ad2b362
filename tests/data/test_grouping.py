"""The order of an epoch whose updates are of one group each."""

import numpy as np
import pytest

from src.data.grouping import grouped_positions


@pytest.mark.parametrize(("size", "unit", "number"), [(96, 8, 2), (101, 8, 3), (50, 16, 2), (17, 4, 1), (5, 8, 2)])
def test_every_unit_is_of_one_group_and_nearly_every_sample_comes_once(size, unit, number):
    groups = np.random.default_rng(size).integers(0, number, size)
    positions = grouped_positions(groups, unit)
    assert len(positions) == size // unit * unit
    units = positions.reshape(-1, unit)
    assert all(len(set(groups[row])) == 1 for row in units)
    filled = len(positions) - len(set(positions.tolist()))
    assert filled <= (number - 1) * unit
    left = [np.count_nonzero(groups == group) % unit for group in range(number)]
    assert filled == 0 or filled <= sum(unit - rest for rest in sorted(left)[1:])


def test_a_group_comes_as_soon_as_a_unit_of_it_is_full():
    groups = np.array([0, 1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0])
    assert grouped_positions(groups, 4).tolist() == [0, 2, 5, 6, 1, 3, 4, 7, 10, 11, 0, 2]
    assert grouped_positions(np.zeros(10, int), 4).tolist() == [*range(8)]


def test_the_fullest_group_is_filled_up():
    """Of the last 8 samples, 5 are of the second group: three of its first ones come again, and 3 others not at all."""
    groups = np.array([0] * 8 + [1] * 8 + [1] * 5 + [0] * 3)
    assert grouped_positions(groups, 8)[-8:].tolist() == [16, 17, 18, 19, 20, 8, 9, 10]
    assert grouped_positions(np.array([0, 1, 0, 1]), 4).tolist() == [0, 2, 0, 2]


def test_few_samples_make_no_unit():
    assert grouped_positions(np.array([0, 1]), 4).shape == (0,)
    assert grouped_positions(np.empty(0, int), 4).shape == (0,)
