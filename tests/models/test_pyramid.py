"""Convolutions that keep a map's size or enlarge it first: both implementations, values and gradients."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from focal_twins.models.backbones.backbone import FeatureMap
from focal_twins.models.convolutions import EnlargedConvolution, MapConvolution
from focal_twins.models.device_options import set_device_options
from focal_twins.models.pyramid import FPN, PyramidConv, same_conv
from focal_twins.models.resize import BilinearResize


def drawn(*shape, seed=0):
    return Tensor(np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32))


def value_and_gradients(cell, *inputs):
    out = cell(*inputs)
    factors = drawn(*out.shape, seed=1)
    gradients = ms.grad(lambda *given: (cell(*given) * factors).sum(), tuple(range(len(inputs))))(*inputs)
    return [out, *(gradients if isinstance(gradients, tuple) else (gradients,))]


def assert_close(found, expected):
    for value, other in zip(found, expected, strict=True):
        scale = np.abs(other.asnumpy()).max()
        np.testing.assert_allclose(value.asnumpy(), other.asnumpy(), atol=2e-6 * scale)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("size", "channels", "out", "kernel"), [((4, 7), 3, 5, 3), ((1, 2), 4, 2, 3), ((6, 5), 2, 3, 5)]
)
def test_patches_and_their_own_gradient_equal_the_operator(size, channels, out, kernel, batch):
    inputs = drawn(batch, size[0] * size[1], channels), drawn(out, channels, kernel, kernel)
    cell = MapConvolution(channels, out, kernel, [size])
    found = value_and_gradients(cell, *inputs)
    assert_close(found, value_and_gradients(set_device_options(cell, conv_implementation="conv2d"), *inputs))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("source", "target"), [((3, 4), (6, 8)), ((4, 3), (7, 9)), ((1, 1), (3, 5)), ((5, 6), (3, 4))])
def test_taps_at_the_small_size_equal_a_convolution_of_the_large_map(source, target, batch):
    inputs = drawn(batch, source[0] * source[1], 3), drawn(4, 3, 3, 3)
    cell = EnlargedConvolution(3, 4, 3, source, target)
    found = value_and_gradients(cell, *inputs)
    assert found[0].shape == (batch, target[0] * target[1], 4)
    assert_close(found, value_and_gradients(set_device_options(cell, conv_implementation="conv2d"), *inputs))


def test_a_sum_of_convolutions_is_that_of_the_concatenation():
    target, sizes, channels = (6, 8), ((6, 8), (3, 4), (1, 1)), (2, 5, 3)
    cell = PyramidConv(list(zip(channels, sizes, strict=True)), 4, 3, target)
    assert cell.weight.shape == (4, 10, 3, 3)
    tokens = tuple(drawn(2, h * w, c) for c, (h, w) in zip(channels, sizes, strict=True))
    joined = ops.concat([BilinearResize(s, target)(x) for s, x in zip(sizes, tokens, strict=True)], 2)
    whole = set_device_options(MapConvolution(10, 4, 3, [target]), conv_implementation="conv2d")
    assert_close([cell(tokens)], [whole(joined, cell.weight)])


def test_a_layer_without_bias_has_none():
    assert [p.name for p in same_conv(3, 4, 3, (5, 5)).get_parameters()] == ["weight"]
    assert [p.name for p in same_conv(3, 4, 1, (5, 5), has_bias=True).get_parameters()] == ["weight", "bias"]


def test_a_feature_pyramid_carries_deep_maps_up():
    """The output of the largest map depends on every map, that of the deepest on itself alone."""
    neck = FPN(
        [FeatureMap(c, 4 * 2**i, size) for i, (c, size) in enumerate(((2, (5, 7)), (3, (3, 4)), (4, (2, 2))))], 4
    )
    tokens = (drawn(1, 35, 2), drawn(1, 12, 3), drawn(1, 4, 4))
    assert [out.shape for out in neck(tokens)] == [(1, 35, 4), (1, 12, 4), (1, 4, 4)]
    for output, reached in ((0, [True, True, True]), (2, [False, False, True])):
        gradients = ms.grad(lambda *maps, output=output: (neck(maps)[output]).sum(), (0, 1, 2))(*tokens)
        assert [bool(np.abs(g.asnumpy()).max() > 0) for g in gradients] == reached
