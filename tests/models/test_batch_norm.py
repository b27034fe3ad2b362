"""BatchNorm against its formulas in float64. Over ranks: tests/distributed/test_ranks.py."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from focal_twins.models.batch_norm import BatchNorm, running_statistics_kept, synchronise_batch_norms
from focal_twins.models.device_options import set_device_options
from tests.kernels.compiler import EITHER

CHANNELS = 5


class WeightedSum(nn.Cell):
    """The sum of a layer's values times fixed factors: its gradient by the values is the factors."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def construct(self, x, factors, counted=None):
        return (self.layer(x, counted) * factors).sum()


def build(kernels="none"):
    """A layer whose scale, shift and running statistics are drawn."""
    layer = set_device_options(BatchNorm(CHANNELS), kernels=kernels)
    for name, values in drawn().items():
        getattr(layer, name).set_data(Tensor(values))
    return layer


def drawn():
    generator = np.random.default_rng(1)
    named = {name: generator.standard_normal(CHANNELS) for name in ("weight", "bias", "running_mean")}
    named["running_var"] = 1 + generator.random(CHANNELS)
    return {name: values.astype(np.float32) for name, values in named.items()}


def tokens(shape, seed=2):
    """Values far from zero, whose squares' sum would lose digits, and factors."""
    generator = np.random.default_rng(seed)
    x, factors = 30 + 2 * generator.standard_normal(shape), generator.standard_normal(shape)
    return x.astype(np.float32), factors.astype(np.float32)


def expected(x, factors, eps=1e-5):
    """Output, gradients by tokens, weight and bias, new running mean and variance; of rows [R, C], in float64."""
    weight, bias, running_mean, running_var = (values.astype(np.float64) for values in drawn().values())
    x, factors = x.astype(np.float64), factors.astype(np.float64)
    mean, deviation = x.mean(0), np.sqrt(x.var(0) + eps)
    normal = (x - mean) / deviation
    by_tokens = weight / deviation * (factors - factors.mean(0) - normal * (factors * normal).mean(0))
    running = 0.9 * running_mean + 0.1 * mean, 0.9 * running_var + 0.1 * x.var(0, ddof=1)
    return normal * weight + bias, by_tokens, (factors * normal).sum(0), factors.sum(0), *running


def measured(layer, x, factors, *counted):
    """The same of a layer in training."""
    network = WeightedSum(layer).set_train()
    parameters = [layer.weight, layer.bias]
    gradients = ops.grad(network, 0, ms.ParameterTuple(parameters))
    counted = tuple(map(Tensor, counted))
    by_tokens, by_parameters = gradients(Tensor(x), Tensor(factors), *counted)
    running = layer.running_mean.asnumpy().copy(), layer.running_var.asnumpy().copy()
    with running_statistics_kept(layer):
        out = layer(Tensor(x), *counted)
    return [out.asnumpy(), by_tokens.asnumpy(), *(g.asnumpy() for g in by_parameters), *running]


def assert_equal(actual, reference):
    for name, a, b in zip(("out", "x", "weight", "bias", "mean", "var"), actual, reference, strict=True):
        np.testing.assert_allclose(a.reshape(b.shape), b, rtol=1e-4, atol=1e-4 * np.abs(b).max(), err_msg=name)


@pytest.mark.parametrize("shape", [(12, CHANNELS), (2, 6, CHANNELS)], ids=["rows", "batches of tokens"])
@pytest.mark.parametrize("kernels", EITHER)
def test_training_equals_the_formulas(shape, kernels):
    x, factors = tokens(shape)
    rows = (12, CHANNELS)
    assert_equal(measured(build(kernels), x, factors), expected(x.reshape(rows), factors.reshape(rows)))


@pytest.mark.parametrize("kernels", EITHER)
def test_rows_that_do_not_count_leave_the_statistics_alone(kernels):
    """They are normalised like the others. Here nothing is made of them, so that their gradients are zero."""
    x, factors = tokens((12, CHANNELS))
    counts = np.array([1, 0, 1, 1, 0, 1, 1, 1, 0, 0, 1, 0], np.float32)
    x[counts == 0] += 100
    factors[counts == 0] = 0
    out, by_tokens, *others = measured(build(kernels), x, factors, counts)
    assert_equal([out[counts == 1], by_tokens[counts == 1], *others], expected(x[counts == 1], factors[counts == 1]))
    assert not by_tokens[counts == 0].any()


@pytest.mark.parametrize("kernels", EITHER)
def test_evaluation_is_an_affine_map(kernels):
    layer = build(kernels).set_train(False)
    values = drawn()
    x = tokens((2, 6, CHANNELS))[0]
    out = layer(Tensor(x)).asnumpy()
    normal = (x - values["running_mean"]) / np.sqrt(values["running_var"] + 1e-5)
    np.testing.assert_allclose(out, normal * values["weight"] + values["bias"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(layer.running_mean.asnumpy(), values["running_mean"])


def test_half_precision_comes_back_and_statistics_stay_float32():
    layer = build().set_train()
    x = tokens((4, CHANNELS))[0].astype(np.float16)
    assert layer(Tensor(x)).dtype == ms.float16
    mean = 0.9 * drawn()["running_mean"] + 0.1 * x.astype(np.float64).mean(0)
    np.testing.assert_allclose(layer.running_mean.asnumpy(), mean, rtol=1e-6)


def test_a_batch_that_overflows_leaves_the_running_statistics():
    layer = build().set_train()
    x = tokens((4, CHANNELS))[0]
    x[1, 2] = np.inf
    layer(Tensor(x))
    for name in ("running_mean", "running_var"):
        values = getattr(layer, name).asnumpy()
        assert values[2] == drawn()[name][2]
        assert np.isfinite(values).all()
        assert (values != drawn()[name])[[0, 1, 3, 4]].all()


def test_one_row_is_normalised_by_the_running_statistics():
    """PyTorch refuses it, for it has no variance; but pooling one image to one bin makes one row."""
    layer = build().set_train()
    x = tokens((1, CHANNELS))[0]
    out = layer(Tensor(x)).asnumpy()
    np.testing.assert_allclose(out, build().set_train(False)(Tensor(x)).asnumpy(), rtol=1e-6)
    for name in ("running_mean", "running_var"):
        np.testing.assert_array_equal(getattr(layer, name).asnumpy(), drawn()[name])


def test_names_are_those_of_published_checkpoints():
    layer = build()
    assert [parameter.name for parameter in layer.trainable_params()] == ["weight", "bias"]
    assert {parameter.name for parameter in layer.get_parameters()} == set(drawn())


def test_on_one_rank_there_is_nothing_to_synchronise():
    layer = build()
    synchronise_batch_norms(nn.SequentialCell(layer), 1)
    assert layer.all_reduce is None
