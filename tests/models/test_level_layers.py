"""Layers that all levels of a pyramid share equal the same layers on each level's map: values and gradients."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from focal_twins.models.convolutions import Conv2d
from focal_twins.models.device_options import set_device_options
from focal_twins.models.level_layers import LevelGroupNorm, SharedConv, SharedConvNorm, level_spans
from focal_twins.models.resize import MaxPool

SIZES = ((5, 7), (3, 4), (1, 2))
LENGTH = sum(h * w for h, w in SIZES)


def drawn(*shape, seed=0):
    return Tensor(np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32))


class WeightedSum(nn.Cell):
    """The sum of a function's output by random factors, which are the gradients of the output."""

    def __init__(self, function, shape):
        super().__init__(auto_prefix=False)
        self.function = function
        self.factors = drawn(*shape, seed=1)

    def construct(self, x):
        return (self.function(x) * self.factors).sum()


def value_and_gradients(function, x, parameters):
    """The value, its gradient by the tokens, and those by the parameters."""
    value = function(x)
    by_x, by_parameters = ms.grad(WeightedSum(function, value.shape), 0, parameters)(x)
    return [value, by_x, *by_parameters]


def assert_close(found, expected, bound=2e-6):
    for value, other in zip(found, expected, strict=True):
        scale = np.abs(other.asnumpy()).max()
        np.testing.assert_allclose(value.asnumpy(), other.asnumpy(), atol=bound * scale)


def level_by_level(layers, x):
    parts = [layer(x[:, first:end]) for layer, (first, end) in zip(layers, level_spans(SIZES), strict=True)]
    return ops.concat(parts, 1)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("kernel", "has_bias"), [(1, True), (3, True), (3, False), (5, False)])
@pytest.mark.parametrize("implementation", ["unfold", "conv2d"])
def test_a_shared_convolution_is_that_of_each_level(kernel, has_bias, implementation, batch):
    shared = set_device_options(SharedConv(4, 6, kernel, SIZES, has_bias=has_bias), conv_implementation=implementation)
    each = [Conv2d(4, 6, kernel, 1, kernel // 2, size, has_bias=has_bias) for size in SIZES]
    for layer in each:
        layer.weight = shared.weight
        if has_bias:
            shared.bias.set_data(drawn(6, seed=3))
            layer.bias = shared.bias
    x, parameters = drawn(batch, LENGTH, 4), shared.trainable_params()
    expected = value_and_gradients(lambda tokens: level_by_level(each, tokens), x, parameters)
    assert_close(value_and_gradients(shared, x, parameters), expected)


class OperatorNorm(nn.Cell):
    """MindSpore's own norm on the map of a level."""

    def __init__(self, shared, size):
        super().__init__()
        self.weight, self.bias, self.size = shared.weight, shared.bias, size

    def construct(self, x):
        maps = x.transpose((0, 2, 1)).reshape((x.shape[0], -1, *self.size))
        normed = ops.group_norm(maps, 4, self.weight, self.bias, 1e-5)
        return normed.reshape((x.shape[0], x.shape[2], -1)).transpose((0, 2, 1))


@pytest.mark.parametrize("batch", [1, 2])
def test_groups_are_normalised_by_image_and_level(batch):
    shared = LevelGroupNorm(4, 8, SIZES)
    for seed, parameter in enumerate(shared.trainable_params()):
        parameter.set_data(drawn(8, seed=seed))
    x = drawn(batch, LENGTH, 8) * 3 + 2
    each = [OperatorNorm(shared, size) for size in SIZES]
    parameters = shared.trainable_params()
    expected = value_and_gradients(lambda tokens: level_by_level(each, tokens), x, parameters)
    assert_close(value_and_gradients(shared, x, parameters), expected, bound=5e-6)


def test_half_precision_is_normalised_in_float32():
    """Squares of these values are beyond float16's range."""
    norm = LevelGroupNorm(4, 8, SIZES)
    x = drawn(1, LENGTH, 8) * 1000
    half = norm(x.astype(ms.float16))
    assert half.dtype == ms.float16
    np.testing.assert_allclose(half.asnumpy(), norm(x).asnumpy(), atol=5e-3)


def test_a_graph_of_convolution_and_norm_equals_the_operators(graph_mode):
    layer, x = SharedConvNorm(8, 32, 3, SIZES, groups=4), drawn(2, LENGTH, 8)
    compiled = value_and_gradients(layer, x, layer.trainable_params())
    assert [p.name for p in layer.trainable_params()] == ["conv.weight", "gn.weight", "gn.bias"]
    ms.set_context(mode=ms.PYNATIVE_MODE)
    assert_close(compiled, value_and_gradients(layer, x, layer.trainable_params()), bound=1e-5)


@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 2)])
def test_pooling_takes_the_largest_value_of_each_window(size):
    x = drawn(2, size[0] * size[1], 3)
    maps = x.transpose((0, 2, 1)).reshape((2, 3, *size))
    pool = MaxPool(size, 3, 2, 1)
    padded = np.pad(maps.asnumpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::2, ::2]
    assert windows.shape[2:4] == pool.size
    expected = windows.max((4, 5)).reshape(2, 3, -1).transpose(0, 2, 1)
    np.testing.assert_array_equal(pool(x).asnumpy(), expected)
    gradient = ms.grad(lambda tokens: pool(tokens).sum())(x).asnumpy()
    assert gradient.sum() == expected.size  # every window gives the whole of its gradient to its largest value
    assert set(np.unique(x.asnumpy()[gradient > 0])) == set(np.unique(expected))
