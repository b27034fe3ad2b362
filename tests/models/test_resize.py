"""Products with static matrices against MindSpore's own operators for resizing and pooling."""

import numpy as np
import pytest
from mindspore import Tensor, ops

from focal_twins.models.resize import AdaptiveAveragePool, BilinearResize, NearestResize, bilinear_matrix

CHANNELS = 3
SIZES = [((3, 5), (6, 10)), ((4, 6), (7, 9)), ((7, 9), (4, 3)), ((1, 1), (3, 2)), ((5, 5), (1, 5)), ((2, 3), (2, 3))]


def maps(batch, size):
    return np.random.default_rng(0).standard_normal((batch, CHANNELS, *size)).astype(np.float32)


def as_tokens(x):
    return Tensor(np.ascontiguousarray(x.reshape(*x.shape[:2], -1).transpose(0, 2, 1)))


def as_maps(tokens, size):
    return tokens.asnumpy().transpose(0, 2, 1).reshape(-1, CHANNELS, *size)


@pytest.mark.parametrize(("source", "target"), SIZES)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("align_corners", [False, True])
def test_bilinear_resizing_is_interpolation(source, target, batch, align_corners):
    x = maps(batch, source)
    found = BilinearResize(source, target, align_corners)(as_tokens(x))
    expected = ops.interpolate(Tensor(x), size=target, mode="bilinear", align_corners=align_corners).asnumpy()
    np.testing.assert_allclose(as_maps(found, target), expected, atol=3e-6)


def test_each_value_is_a_mean_of_two_neighbours():
    for source, target in ((4, 9), (9, 4), (1, 3), (5, 5)):
        for align_corners in (False, True):
            matrix = bilinear_matrix(source, target, align_corners)
            assert matrix.shape == (target, source)
            np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-6)
            assert ((matrix > 0).sum(1) <= 2).all()
    np.testing.assert_array_equal(bilinear_matrix(5, 5), np.eye(5))


@pytest.mark.parametrize(("source", "target"), [sizes for sizes in SIZES if sizes[1] >= sizes[0]])
def test_nearest_resizing_is_interpolation(source, target):
    x = maps(2, source)
    found = NearestResize(source, target)(as_tokens(x))
    expected = ops.interpolate(Tensor(x), size=target, mode="nearest").asnumpy()
    np.testing.assert_array_equal(as_maps(found, target), expected)


@pytest.mark.parametrize("size", [(12, 6), (7, 10), (4, 6), (1, 2)])
@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_pooling_averages_the_bins_of_pytorch(size, bins):
    """Ragged and overlapping ones as well."""
    x = maps(2, size)
    found = AdaptiveAveragePool(size, bins)(as_tokens(x))
    expected = np.zeros((2, CHANNELS, bins, bins))
    rows, columns = ([(i * n // bins, -(-(i + 1) * n // bins)) for i in range(bins)] for n in size)
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            expected[:, :, i, j] = x[:, :, top:bottom, left:right].mean((2, 3))
    np.testing.assert_allclose(as_maps(found, (bins, bins)), expected, atol=1e-6)
