"""Matchings one to one in the graph cost as little as scipy's, whatever the conflicts; padding has no part in them."""

import numpy as np
import pytest
from mindspore import Tensor
from scipy.optimize import linear_sum_assignment

from focal_twins.models.detectors.matching import LeastCostMatching


def matched(costs, counts):
    """The row of each column [M, N], for the first counts[m] rows of each matrix."""
    is_row = np.arange(costs.shape[1]) < np.asarray(counts)[:, None]
    return LeastCostMatching()(Tensor(costs), Tensor(is_row)).asnumpy()


def expected(costs, counts):
    found = np.full((costs.shape[0], costs.shape[2]), -1)
    for matrix, count, row_of in zip(costs, counts, found, strict=True):
        rows, columns = linear_sum_assignment(matrix[:count])
        row_of[columns] = rows
    return found


def costs_of(kind, matrices, rows, columns):
    """Random costs; "wanted": all rows prefer the same columns, so that chains are long."""
    generator = np.random.default_rng(rows)
    costs = generator.standard_normal((matrices, rows, columns))
    if kind == "wanted":
        costs = 0.1 * costs + generator.standard_normal((matrices, 1, columns))
    return costs.astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "rows", "columns"),
    [("random", 5, 8), ("random", 30, 60), ("wanted", 6, 6), ("wanted", 9, 40), ("random", 1, 1)],
)
def test_it_equals_scipy(kind, rows, columns):
    costs = costs_of(kind, 3, rows, columns)
    counts = [rows, rows // 2, 0]
    np.testing.assert_array_equal(matched(costs, counts), expected(costs, counts))


def test_the_compiled_graph_equals_scipy(graph_mode):
    costs = costs_of("wanted", 4, 8, 20)
    np.testing.assert_array_equal(matched(costs, [8, 5, 1, 0]), expected(costs, [8, 5, 1, 0]))


def test_equal_costs_match_every_row():
    """So it is at the start of training, when all proposals are the same box."""
    row_of = matched(np.ones((1, 4, 6), np.float32), [4])
    assert sorted(row_of[0]) == [-1, -1, 0, 1, 2, 3]


def test_padding_has_no_part():
    costs = costs_of("wanted", 1, 6, 12)
    other = costs.copy()
    other[:, 3:] = -100
    np.testing.assert_array_equal(matched(costs, [3]), matched(other, [3]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_it_ends_when_costs_are_not_finite(value):
    """After an overflow, when the step is skipped anyway."""
    assert sorted(matched(np.full((1, 3, 5), value, np.float32), [3])[0]) == [-1, -1, 0, 1, 2]
