"""Losses that are not means: an update is the same however its rows are spread over accumulated batches.

Over ranks: tests/distributed/test_ranks.py.
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from focal_twins.files.weights import select_weights
from focal_twins.measuring.graph import compiled_operators
from focal_twins.models.batch_norm import BatchNorm
from focal_twins.training.checkpoint import Progress
from focal_twins.training.ema import ExponentialMovingAverage
from focal_twins.training.outcomes import Outcome, Outcomes
from tests.training.counted_losses import (
    UPDATES,
    CountedLosses,
    build,
    make_update,
    reference,
    rows_of,
    split,
    weights_of,
)


@pytest.fixture(autouse=True)
def _operator_by_operator():
    """Without compiling; the mode of before afterwards."""
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=mode)


@pytest.mark.parametrize("in_graph", [False, True], ids=["counts of the batch", "counts of the network"])
@pytest.mark.parametrize("batches", [1, 2, 3])
def test_accumulated_batches_are_one(batches, in_graph):
    network, step = build(in_graph, accumulation_steps=batches)
    outcomes = [make_update(step, split(rows_of(update), batches)) for update in range(UPDATES)]
    weights, losses = reference(in_graph)
    np.testing.assert_allclose(weights_of(network), weights, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose([outcome[5:] for outcome in outcomes], losses, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose([outcome[0] for outcome in outcomes], losses.sum(1), rtol=1e-5)
    if batches > 1:  # what averages of averages would have come to
        assert np.abs(reference(in_graph, means_of=batches)[0] - weights).max() > 1e-2


def test_a_part_that_nothing_counts_for_is_zero():
    """Its divisor is the floor that the loss states."""
    x, y, chosen = rows_of(0)
    _, step = build(accumulation_steps=2)
    loss, _, finite, _, _, error, size = make_update(step, split((x, y + 3, 0 * chosen), 2))
    assert (loss, finite, error, size) == (0, 1, 0, 0)  # the network starts at zero
    network, step = build()
    network.dense.bias.set_data(Tensor([1.0]))
    assert make_update(step, [(x[:1], y[:1], 0 * chosen[:1])])[6] == pytest.approx(0.1 / 2)  # one row, floor 2


def test_weights_and_floors_go_together(monkeypatch):
    monkeypatch.setattr(CountedLosses, "weight_floors", None)
    _, step = build()
    with pytest.raises(ValueError, match="returns weights where it states weight_floors"):
        make_update(step, [rows_of(0)])


def test_an_overflow_in_any_batch_skips_the_update_and_its_counts():
    network, step = build(accumulation_steps=2)
    x, y, chosen = rows_of(0)
    y[0] = np.inf  # of the first batch, and chosen
    outcome = make_update(step, split((x, y, chosen), 2))
    assert not outcome[2]
    assert not weights_of(network).any()
    assert not step.weight_sum.asnumpy().any()
    for update in range(UPDATES):
        make_update(step, split(rows_of(update), 2))
    np.testing.assert_allclose(weights_of(network), reference()[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("in_graph", [False, True])
def test_counting_costs_a_forward_pass_only_where_counts_are_the_networks(in_graph):
    _, step = build(in_graph, accumulation_steps=2)
    names = {operator.name for operator in compiled_operators(step.counting, *map(Tensor, rows_of(0)))}
    assert ("MatMul" in names or "Dense" in names) is in_graph
    assert "AssignAdd" in names


class Normed(nn.Cell):
    def __init__(self):
        super().__init__()
        self.norm = BatchNorm(4)
        self.dense = nn.Dense(4, 1)

    def construct(self, x):
        return self.dense(self.norm(x)).reshape(-1)


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE], ids=["graph", "pynative"])
def test_running_statistics_take_in_a_batch_once(mode):
    """The forward pass that counts first leaves them alone; a graph settles that when it is compiled."""
    ms.set_context(mode=mode)
    network, step = build(True, Normed(), accumulation_steps=2)
    first, second = split(rows_of(0), 2)
    make_update(step, [first, second])
    expected = 0.9 * 0.1 * first[0].mean(0) + 0.1 * second[0].mean(0)
    np.testing.assert_allclose(network.norm.running_mean.asnumpy(), expected, rtol=1e-5, atol=1e-7)


def test_accumulation_with_batch_norm_is_said_not_to_be_the_large_batch():
    said = build(network=Normed(), accumulation_steps=4)[1].accumulation_caveat()
    assert said.startswith("train.accumulation_steps: BatchNorm")
    assert "4 accumulated batches are not one of 4 times the size" in said
    assert "\n" not in said
    assert build(network=Normed())[1].accumulation_caveat() is None
    assert build(accumulation_steps=4)[1].accumulation_caveat() is None


def test_the_averaged_model_has_the_newest_buffers():
    network, step = build(network=Normed())
    step.ema = ema = ExponentialMovingAverage(network.trainable_params(), 0.5)
    for update in range(2):
        make_update(step, [rows_of(update)])
    newest, own = network.norm.running_mean.asnumpy().copy(), network.norm.weight.asnumpy().copy()
    assert newest.any()
    with ema.applied():
        np.testing.assert_array_equal(network.norm.running_mean.asnumpy(), newest)
        averaged = network.norm.weight.asnumpy().copy()
        assert not np.array_equal(averaged, own)
    np.testing.assert_array_equal(network.norm.running_mean.asnumpy(), newest)
    # So does the averaged model of a checkpoint.
    saved = {p.name: p.asnumpy() for p in [*network.get_parameters(), *ema.state()]}
    weights, used = select_weights(saved)
    assert used == "ema"
    np.testing.assert_array_equal(weights["norm.running_mean"], newest)
    np.testing.assert_array_equal(weights["norm.weight"], averaged)


class Lines:
    """A metrics log that keeps its lines; and a progress log in which every update is due."""

    def __init__(self):
        self.lines = []

    def add(self, **values):
        self.lines.append(values)

    def is_due(self, update):
        return True

    def show(self, *arguments):
        return None


@pytest.mark.parametrize(("names", "parts"), [(("loss",), {}), (("error", "size"), {"error": 0.5, "size": 0.25})])
def test_parts_of_a_loss_are_logged_by_name(names, parts):
    log = Lines()
    outcomes = Outcomes(Progress(), log, log, 10, 3, names)
    values = [0.75, 2.0, 1.0, 0.0, 1024.0, *([0.5, 0.25] if parts else [0.75])]
    outcomes.note(Outcome(1, 1e-3, Tensor(np.array(values, np.float32))))
    (line,) = log.lines
    assert line["loss"] == 0.75
    assert {key: line[key] for key in line if key in ("error", "size")} == parts
