"""The order of an epoch whose updates are of one group each."""

import numpy as np
import pytest

from focal_twins.data.grouping import grouped_positions


@pytest.mark.parametrize("offset", [0.0, 0.4, 0.999])
@pytest.mark.parametrize(("size", "unit", "number"), [(96, 8, 2), (101, 8, 3), (50, 16, 2), (17, 4, 1), (5, 8, 2)])
def test_every_unit_is_of_one_group_and_each_has_its_share(size, unit, number, offset):
    groups = np.random.default_rng(size).integers(0, number, size)
    positions = grouped_positions(groups, unit, offset)
    assert len(positions) == size // unit * unit
    units = positions.reshape(-1, unit)
    assert all(len(set(groups[row])) == 1 for row in units)
    for group in range(number):
        share = np.count_nonzero(groups == group) * (size // unit) / size
        assert abs(np.count_nonzero(groups[units[:, 0]] == group) - share) < 1
        come = np.unique(positions[groups[positions] == group])
        assert come.tolist() == np.flatnonzero(groups == group)[: len(come)].tolist()


def test_a_group_comes_as_soon_as_a_unit_of_it_is_full():
    groups = np.array([0, 1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0])
    assert grouped_positions(groups, 4, 0.0).tolist() == [0, 2, 5, 6, 1, 3, 4, 7, 8, 9, 1, 3]
    assert grouped_positions(groups, 4, 0.5).tolist() == [0, 2, 5, 6, 1, 3, 4, 7, 10, 11, 0, 2]
    assert grouped_positions(np.zeros(10, int), 4, 0.5).tolist() == [*range(8)]


def test_a_rare_group_has_its_turn_in_as_many_epochs_as_it_is_due():
    """10 of 300 samples are 0.6 of the epoch's 18 units of 16."""
    groups = np.array([0] * 290 + [1] * 10)
    turns = [(groups[grouped_positions(groups, 16, offset)] == 1).any() for offset in np.arange(0, 1, 0.05)]
    assert np.mean(turns) == pytest.approx(0.6)


def test_few_samples_make_no_unit():
    assert grouped_positions(np.array([0, 1]), 4, 0.5).shape == (0,)
    assert grouped_positions(np.empty(0, int), 4, 0.5).shape == (0,)
