"""Regularisation: statistics and keys."""

import numpy as np
import pytest
from mindspore import Tensor
from mindspore import dtype as mstype
from scipy import special

from src.models.layers import Dropout, ErfFreeGelu, draw_drop_path, mix_bits


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


def test_gelu_without_the_error_function():
    x = np.concatenate([np.linspace(-8, 8, 40001), [-1e4, -50, 50, 1e4]]).astype(np.float32)
    exact = x.astype(np.float64) * special.ndtr(x.astype(np.float64))
    error = np.abs(ErfFreeGelu()(Tensor(x)).asnumpy() - exact)
    assert error.max() < 8e-7  # the exact one of this file, in float32: 4.5e-7
    clipped = np.clip(x.astype(np.float64), -ErfFreeGelu.LIMIT, ErfFreeGelu.LIMIT)
    polynomial = np.polyval(ErfFreeGelu.COEFFICIENTS[::-1], clipped**2)
    assert np.abs(x * special.expit(clipped * polynomial) - exact).max() < 7.5e-8
