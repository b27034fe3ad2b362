"""Layers by themselves: those with a faster way on CPU; statistics and keys of regularisation."""

import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor, nn, ops
from mindspore import dtype as mstype
from scipy.special import ndtr

from focal_twins.models.convolutions import Conv2d, DepthwiseConv2d
from focal_twins.models.device_options import set_device_options
from focal_twins.models.gathers import RowGather, gather_rows
from focal_twins.models.layers import AddBias, Dense, Dropout, Gelu, LayerNorm, draw_drop_path, mix_bits


class Gradients(nn.Cell):
    """Gradients of a layer's output, weighed by `weights`: of its input, then of its parameters."""

    def __init__(self, layer):
        super().__init__()
        self.gradients = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)(
            layer, ParameterTuple(layer.trainable_params())
        )

    def construct(self, x, weights):
        return self.gradients(x, weights)


def gradients(layer, x, weights):
    (of_input,), of_parameters = Gradients(layer)(Tensor(x), Tensor(weights))
    return [of_input.asnumpy(), *(gradient.asnumpy() for gradient in of_parameters)]


def drawn(*shapes):
    generator = np.random.default_rng(0)
    return [generator.standard_normal(shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("form", ["polynomial", "erf"])
def test_gelu_is_exact(form):
    gelu = Gelu()
    gelu.form = form
    x = np.linspace(-12, 12, 20001).astype(np.float32)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(gelu(Tensor(x)).asnumpy(), exact * ndtr(exact), atol=1e-6)
    density = np.exp(-(exact**2) / 2) / np.sqrt(2 * np.pi)
    (slope,) = ops.GradOperation(get_all=True)(gelu)(Tensor(x))
    np.testing.assert_allclose(slope.asnumpy(), ndtr(exact) + exact * density, atol=1e-6)
    far = np.array([-1e4, -100, 100, 1e4], np.float32)
    np.testing.assert_array_equal(gelu(Tensor(far)).asnumpy(), [0, 0, 100, 1e4])


def test_gelu_in_half_precision():
    x = np.linspace(-6, 6, 1001).astype(np.float16)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(Gelu()(Tensor(x)).asnumpy(), exact * ndtr(exact), atol=4e-3)


@pytest.mark.parametrize("map_size", [(5, 7), (1, 1), (2, 1), (1, 4)])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_depthwise_convolution_by_bands_is_the_operator(map_size, kernel_size):
    dim, length = 4, map_size[0] * map_size[1]
    layers = [
        set_device_options(DepthwiseConv2d(dim, map_size, kernel_size), conv_implementation=name)
        for name in ("unfold", "conv2d")
    ]
    weight, bias, x, weights = drawn((dim, 1, kernel_size, kernel_size), dim, (2, length, dim), (2, length, dim))
    for layer in layers:
        layer.weight.set_data(Tensor(weight))
        layer.bias.set_data(Tensor(bias))
    np.testing.assert_allclose(*(layer(Tensor(x)).asnumpy() for layer in layers), atol=1e-5)
    for bands, operator in zip(*(gradients(layer, x, weights) for layer in layers), strict=True):
        np.testing.assert_allclose(bands, operator, atol=1e-5)


@pytest.mark.parametrize(
    "kernel_size, stride, padding, extra",
    [(3, 2, 1, (0, 0)), (2, 2, 0, (0, 0)), (7, 4, 2, (0, 0)), (3, 2, 1, (1, 1)), (2, 2, 0, (1, 0)), (7, 4, 2, (0, 3))],
)
@pytest.mark.parametrize("map_size", [(8, 12), (9, 7)])
def test_a_convolution_of_tokens_is_the_operator_and_that_of_images(map_size, kernel_size, stride, padding, extra):
    channels, out, length = 3, 5, map_size[0] * map_size[1]
    x, weight, bias = drawn((2, length, channels), (out, channels, kernel_size, kernel_size), out)
    layers = [
        set_device_options(
            Conv2d(channels, out, kernel_size, stride, padding, size, extra), conv_implementation=implementation
        )
        for size, implementation in ((map_size, "unfold"), (map_size, "conv2d"), (None, "unfold"))
    ]
    for layer in layers:
        layer.weight.set_data(Tensor(weight))
        layer.bias.set_data(Tensor(bias))
    images = x.transpose(0, 2, 1).reshape(2, channels, *map_size)
    inputs = [x, x, images]
    found = [layer(Tensor(value)).asnumpy() for layer, value in zip(layers, inputs, strict=True)]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    np.testing.assert_allclose(found[0], found[2], atol=1e-5)
    (weights,) = drawn(found[0].shape)
    of_tokens, of_operator, of_images = (
        gradients(layer, value, weights) for layer, value in zip(layers, inputs, strict=True)
    )
    of_images[0] = of_images[0].reshape(2, channels, length).transpose(0, 2, 1)
    for tokens, operator, image in zip(of_tokens, of_operator, of_images, strict=True):
        np.testing.assert_allclose(tokens, operator, atol=2e-5)
        np.testing.assert_allclose(tokens, image, atol=2e-5)


@pytest.mark.parametrize("index", [[3, 0, 2, 1], [0, 1, 2, 3], [0, 1, 2], [3, 3, 0, 1], [2, 1, 3, 0, 1]])
def test_the_gradient_of_gathered_rows(index):
    """An order of all rows, of some, and rows that come more than once."""
    x, weights = drawn((3, 4, 2), (3, len(index), 2))
    layer = RowGather(np.array(index))
    np.testing.assert_array_equal(layer(Tensor(x)).asnumpy(), x[:, index])
    expected = np.zeros_like(x)
    np.add.at(expected, (slice(None), index), weights)
    (found,) = gradients(layer, x, weights)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 2), (3, 5, 2, 2)])
def test_rows_are_gathered_by_numbers_of_each_sample(shape):
    """A number below 0, which stands for none, takes the first row."""
    (values,) = drawn(shape)
    numbers = np.array([[4, 0, 2, 2], [-1, 1, 3, 0], [2, -2, 4, 4]], np.int32)
    found = gather_rows(Tensor(values), Tensor(numbers)).asnumpy()
    np.testing.assert_array_equal(found, values[np.arange(3)[:, None], np.maximum(numbers, 0)])


def test_the_gradient_of_a_norm_by_products_is_the_operators():
    x, weights, gamma, beta = drawn((2, 9, 24), (2, 9, 24), 24, 24)
    x = x * 3 + 1
    found = []
    for gradient in ("products", "operator"):
        layer = LayerNorm(24, 1e-5)
        layer.gradient = gradient
        layer.gamma.set_data(Tensor(gamma))
        layer.beta.set_data(Tensor(beta))
        found.append([layer(Tensor(x)).asnumpy(), *gradients(layer, x, weights)])
    assert len(found[0]) == 4
    for products, operator in zip(*found, strict=True):
        np.testing.assert_allclose(products, operator, atol=1e-5)


def test_gradients_of_a_linear_layer():
    x, weights, weight, bias = drawn((2, 9, 6), (2, 9, 5), (5, 6), 5)
    layer = Dense(6, 5)
    layer.weight.set_data(Tensor(weight))
    layer.bias.set_data(Tensor(bias))
    np.testing.assert_allclose(layer(Tensor(x)).asnumpy(), x @ weight.T + bias, atol=1e-5)
    of_input, of_weight, of_bias = gradients(layer, x, weights)
    np.testing.assert_allclose(of_input, weights @ weight, atol=1e-5)
    np.testing.assert_allclose(of_weight, np.einsum("blo,bli->oi", weights, x), atol=1e-5)
    np.testing.assert_allclose(of_bias, weights.sum((0, 1)), atol=1e-5)


def test_the_gradient_of_a_bias_in_half_precision():
    """Float16 cannot count beyond 2,048, but it can say 10,000."""
    rows, bias = Tensor(np.ones((10000, 2), np.float16)), Tensor(np.zeros(2, np.float16))
    _, of_bias = ops.GradOperation(get_all=True)(AddBias())(rows, bias)
    np.testing.assert_array_equal(of_bias.asnumpy(), [10000, 10000])


def test_hash_is_the_unsigned_one():
    words = np.random.default_rng(0).integers(-(2**31), 2**31, 1000).astype(np.int32)
    x = words.view(np.uint32)
    with np.errstate(over="ignore"):
        x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
        x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
        x = x ^ (x >> 16)
    np.testing.assert_array_equal(mix_bits(Tensor(words)).asnumpy().view(np.uint32), x)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_mean_and_is_keyed(rate):
    ones = Tensor(np.ones((100, 1000), np.float32))
    layers = [Dropout(rate, index).set_train() for index in (0, 1)]

    def mask(layer, seed):
        return layer(ones, Tensor(seed, mstype.int32)).asnumpy()

    first = mask(layers[0], 7)
    assert set(np.unique(first)) == {np.float32(0), np.float32(1 / (1 - rate))}
    assert abs(first.mean() - 1) < 0.02
    assert abs((first == 0).mean(axis=0).std() - np.sqrt(rate * (1 - rate) / 100)) < 0.005  # as independent draws
    np.testing.assert_array_equal(first, mask(layers[0], 7))
    for other in (mask(layers[0], 8), mask(layers[1], 7)):
        agreement = ((first == 0) == (other == 0)).mean()
        assert abs(agreement - (rate**2 + (1 - rate) ** 2)) < 0.01
    np.testing.assert_array_equal(layers[0].set_train(False)(ones, None).asnumpy(), ones.asnumpy())


def test_drop_path_scales_keep_the_mean():
    scales = draw_drop_path([0.0, 0.2, 0.5], np.random.default_rng(0), 20000)
    assert (scales[0] == 1).all()
    for row, rate in zip(scales[1:], (0.2, 0.5), strict=True):
        assert set(np.unique(row)) == {np.float32(0), np.float32(1 / (1 - rate))}
        assert abs(row.mean() - 1) < 0.03
