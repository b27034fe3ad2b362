"""Each stage of the train cell against its formula, on a linear model that NumPy can follow.

As a graph, in which what reads a parameter and what changes it have to be kept in order.
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, ParameterTuple, Tensor, nn

from focal_twins.config.schema import OptimizerConfig
from focal_twins.data.mixup import soft_targets
from focal_twins.models import create_model
from focal_twins.models.device_options import set_device_options
from focal_twins.tasks.classification.loss import SoftTargetCrossEntropy
from focal_twins.training.ema import ExponentialMovingAverage
from focal_twins.training.optimizer import create_optimizer, has_weight_decay
from focal_twins.training.train_step import LossScale, TrainStep
from tests.kernels.compiler import EITHER
from tests.training.test_optimizer import NumpyAdamW

pytestmark = pytest.mark.usefixtures("graph_mode")


class Linear(nn.Cell):
    """Logits [B, 3] of inputs [B, 4]; ignores the regularisation inputs that models take."""

    def __init__(self):
        super().__init__()
        self.head = nn.Dense(4, 3)

    def construct(self, x, drop_path=None, dropout_seed=None):
        return self.head(x)


def build(
    clip_norm=None,
    ema_decay=None,
    accumulation_steps=1,
    init_scale=1024.0,
    growth_interval=2000,
    dynamic=True,
    optimizer="adamw",
    model=None,
    kernels="none",
):
    ms.set_seed(1)
    model = Linear() if model is None else model
    ema = ExponentialMovingAverage(model.trainable_params(), ema_decay) if ema_decay is not None else None
    scale = LossScale(init_scale, dynamic, growth_interval)
    optimizer = create_optimizer(model, OptimizerConfig(name=optimizer))
    step = TrainStep(
        SoftTargetCrossEntropy(model),
        model.trainable_params(),
        optimizer,
        scale,
        ema=ema,
        clip_norm=clip_norm,
        accumulation_steps=accumulation_steps,
    ).set_train()
    set_device_options(step, kernels=kernels)
    return model, step, scale, ema


def take(step, x, targets, rate=1e-2, update=True, stop_vote=0.0):
    """What a step returns of a batch, as NumPy array."""
    scalars = Tensor(rate, ms.float32), update, Tensor(stop_vote, ms.float32)
    return step(*scalars, Tensor(x), Tensor(targets)).asnumpy()


def batch(seed, size=8):
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((size, 4)).astype(np.float32)
    return x, soft_targets(generator.integers(0, 3, size), 3, 0.1)


def values(model):
    return [parameter.asnumpy().copy() for parameter in model.trainable_params()]


def numpy_gradients(weight, bias, x, targets):
    logits = x.astype(np.float64) @ weight.T + bias
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    delta = (probabilities * targets.sum(1, keepdims=True) - targets) / len(x)
    return delta.T @ x, delta.sum(0)


def test_decay_is_for_matrices_only():
    p = ms.Parameter(Tensor(np.zeros((2, 2)), ms.float32), name="x")
    v = ms.Parameter(Tensor(np.zeros(2), ms.float32), name="y")
    assert has_weight_decay("blocks.0.mlp.fc1.weight", p)
    assert not has_weight_decay("norm.gamma", v)
    assert not has_weight_decay("pool.bias", p)
    arguments = {
        "img_size": 32,
        "embed_dim": 16,
        "depths": [1],
        "num_heads": [1],
        "focal_levels": [2],
        "window_size": 2,
    }
    model = create_model("focalv2", **arguments, focal_stages=[0], ape=True)
    optimizer = create_optimizer(model, OptimizerConfig(weight_decay=0.05))
    named = {p.name: decay for p, decay in zip(optimizer.parameters, optimizer.weight_decays, strict=True)}
    assert named["absolute_pos_embed"] == 0
    assert named["layers.0.blocks.0.attn.coord2rpb_all.0.0.weight"] == 0.05


@pytest.mark.parametrize("kernels", EITHER)
@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_step_equals_numpy(clip_norm, kernels):
    """Loss scale, clipping by global norm, AdamW and EMA together, five steps."""
    model, step, _, ema = build(clip_norm=clip_norm, ema_decay=0.9, kernels=kernels)
    weights = [w.astype(np.float64) for w in values(model)]
    average, optimizer = list(weights), NumpyAdamW([0.05, 0.0])
    for t in range(5):
        x, targets = batch(t)
        _, norm, finite, *_ = take(step, x, targets)
        gradients = numpy_gradients(*weights, x, targets)
        expected_norm = np.sqrt(sum((g**2).sum() for g in gradients))
        assert bool(finite)
        assert abs(float(norm) / expected_norm - 1) < 1e-5
        if clip_norm:
            assert expected_norm > clip_norm
            gradients = [g * min(1, clip_norm / (expected_norm + 1e-6)) for g in gradients]
        weights = optimizer.step(weights, gradients, 1e-2)
        average = [0.9 * a + 0.1 * w for a, w in zip(average, weights, strict=True)]
        for actual, expected in zip(values(model), weights, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
        for parameter, expected in zip(ema.averages, average, strict=True):
            np.testing.assert_allclose(parameter.asnumpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernels", EITHER)
def test_overflow_skips_the_step_and_halves_the_scale(kernels):
    model, step, scale, ema = build(ema_decay=0.5, kernels=kernels)
    x, targets = batch(0)
    take(step, x, targets)
    state = [*values(model), *(p.asnumpy().copy() for p in [*step.optimizer.state(), *ema.state()])]
    _, _, finite, *_ = take(step, np.full_like(x, np.inf), targets)
    assert not bool(finite)
    assert float(scale.value.asnumpy()) == 512.0
    after = [*values(model), *(p.asnumpy() for p in [*step.optimizer.state(), *ema.state()])]
    for before, now in zip(state, after, strict=True):
        np.testing.assert_array_equal(before, now)
    _, _, finite, *_ = take(step, x, targets)
    assert bool(finite)
    assert not np.array_equal(values(model)[0], state[0])


def test_gradients_that_overflow_under_a_finite_loss_skip_the_step():
    """Which is what too large a scale does; halving it ends the overflow."""
    model, step, scale, _ = build(init_scale=3e38)
    x, targets = batch(0)
    before, outcomes = values(model), []
    while not outcomes or not outcomes[-1]:
        loss, _, finite, *_ = take(step, 10 * x, targets)
        assert np.isfinite(loss)
        outcomes.append(bool(finite))
        if not outcomes[-1]:
            np.testing.assert_array_equal(values(model)[0], before[0])
    assert len(outcomes) > 1
    assert float(scale.value.asnumpy()) == pytest.approx(3e38 / 2 ** (len(outcomes) - 1))
    assert np.isfinite(values(model)[0]).all()


def test_scale_grows_after_the_interval_and_never_falls_below_one():
    _, step, scale, _ = build(init_scale=2.0, growth_interval=3)
    x, targets = batch(0)
    seen = []
    for good in (True, True, True, True, False, False, False, False):
        take(step, x if good else np.full_like(x, np.nan), targets)
        seen.append(float(scale.value.asnumpy()))
    assert seen == [2, 2, 4, 4, 2, 1, 1, 1]


def test_fixed_scale_stays_and_still_skips():
    model, step, scale, _ = build(dynamic=False, init_scale=8.0)
    x, targets = batch(0)
    before = values(model)
    _, _, finite, *_ = take(step, np.full_like(x, np.inf), targets)
    assert not bool(finite)
    assert float(scale.value.asnumpy()) == 8.0
    np.testing.assert_array_equal(values(model)[0], before[0])


@pytest.mark.parametrize("kernels", EITHER)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb"])
def test_accumulation_equals_the_large_batch(optimizer, kernels):
    options = {"clip_norm": 0.1, "optimizer": optimizer, "kernels": kernels}
    model, step, _, _ = build(**options)
    accumulated, accumulated_step, _, _ = build(accumulation_steps=2, **options)
    for t in range(3):
        x, targets = batch(t, 16)
        loss, norm, _, *_ = take(step, x, targets)
        for part in range(2):
            rows = slice(8 * part, 8 * part + 8)
            half_loss, half_norm, *_ = take(accumulated_step, x[rows], targets[rows], update=part == 1)
        np.testing.assert_allclose(half_loss, loss, rtol=1e-6)
        np.testing.assert_allclose(half_norm, norm, rtol=1e-5)
        for a, b in zip(values(accumulated), values(model), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_overflow_in_any_accumulated_part_skips_the_update():
    model, step, scale, _ = build(accumulation_steps=2)
    x, targets = batch(0)
    before = values(model)
    for part, inputs in enumerate((np.full_like(x, np.inf), x)):
        _, _, finite, *_ = take(step, inputs, targets, update=part == 1)
    assert not bool(finite)
    assert float(scale.value.asnumpy()) == 512.0
    np.testing.assert_array_equal(values(model)[0], before[0])
    for part in range(2):
        _, _, finite, *_ = take(step, x, targets, update=part == 1)
    assert bool(finite)
    assert np.isfinite(values(model)[0]).all()


def test_the_status_register_skips_saturated_steps():
    """On Ascend 910 an overflow leaves finite, saturated gradients and a flag in a register, played here by stubs."""

    class Register(nn.Cell):
        def __init__(self, overflowed):
            super().__init__()
            self.flag = Tensor([0] * 7 + [int(overflowed)], ms.int32)

        def construct(self, status):
            return status + self.flag

    for overflowed in (False, True):
        model, step, scale, _ = build()
        step.float_status, step.get_status, step.clear_status = True, Register(overflowed), Register(False)
        before = values(model)
        x, targets = batch(0)
        _, norm, finite, *_ = take(step, x, targets)
        assert np.isfinite(norm)
        assert bool(finite) is not overflowed
        assert np.array_equal(values(model)[0], before[0]) is overflowed
        assert float(scale.value.asnumpy()) == (512 if overflowed else 1024)


def test_ema_warmup_limits_the_early_decay():
    parameter = ms.Parameter(Tensor([0.0], ms.float32), name="w")
    ema = ExponentialMovingAverage([parameter], 0.99, warmup=True)
    parameter.set_data(Tensor([1.0], ms.float32))
    expected = 0.0
    for t in range(1, 6):
        ema(Tensor(t, ms.float32))
        decay = min(0.99, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay)
        np.testing.assert_allclose(ema.averages[0].asnumpy(), [expected], rtol=1e-6)


class Scales(nn.Cell):
    """Products with some weights, one after the other."""

    def __init__(self, count):
        super().__init__()
        self.scales = ParameterTuple([Parameter(np.ones(3, np.float32), name=f"scale{i}") for i in range(count)])

    def construct(self, x):
        for scale in self.scales:
            x = x * scale
        return x


class ManyWeights(Linear):
    """700 weights, as many as twins_pcpvt_large has, in 35 blocks."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.CellList([Scales(20) for _ in range(35)])

    def construct(self, x, drop_path=None, dropout_seed=None):
        x = self.head(x)
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("kernels", EITHER)
def test_a_step_of_many_weights_compiles(kernels):
    """A loop over them in the graph, as for their norm, would exceed the compiler's call depth."""
    model, step, _, _ = build(clip_norm=1.0, ema_decay=0.9, model=ManyWeights(), kernels=kernels)
    assert len(model.trainable_params()) == 702
    before = values(model)[-1]
    x, targets = batch(0)
    _, _, finite, *_ = take(step, x, targets)
    assert finite == 1
    assert not np.array_equal(values(model)[-1], before)


class Other(nn.Cell):
    """A second rank for the all-reduce: adds its numbers (overflows, loss / ranks, votes)."""

    def __init__(self, *numbers):
        super().__init__()
        self.numbers = Tensor(numbers, ms.float32)

    def construct(self, x):
        return x + self.numbers


class Same(nn.Cell):
    """A reducer on ranks with equal gradients."""

    def construct(self, gradients):
        return gradients


def test_the_outcome_is_that_of_all_ranks():
    """Mean loss, sum of the votes, the scale that the update was made with; one rank's overflow skips it for all."""
    x, targets = batch(0)
    loss, _, _, votes, scale, *parts = take(build()[1], x, targets)
    assert parts == [loss]
    assert (votes, scale) == (0, 1024)
    for overflows, finite in ((0.0, 1), (1.0, 0)):
        model, step, _, _ = build()
        before = values(model)
        step.reducer, step.all_reduce, step.ranks = Same(), Other(overflows, 3.0 / 2, 1.0), 2
        outcome = take(step, x, targets, stop_vote=1.0)
        np.testing.assert_allclose(outcome[0], (loss + 3) / 2, rtol=1e-6)
        assert (outcome[2], outcome[3], outcome[4]) == (finite, 2, 1024)
        assert np.array_equal(values(model)[0], before[0]) is not bool(finite)
