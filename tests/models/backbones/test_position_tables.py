"""Resizing of position parameters."""

import numpy as np
import pytest

from focal_twins.models.backbones.focal_windows import ring_tokens
from focal_twins.models.backbones.position_tables import (
    bicubic,
    geometric,
    resize_map,
    resize_own_table,
    resize_pool,
    resize_pooled_table,
    resize_ring_table,
)
from tests.reference import images

# torch.nn.functional.interpolate(x, size, mode="bicubic") of x = arange(12).reshape(3, 4) ** 1.5 (torch 2.13, float64)
TORCH = {
    (5, 7): [
        [-0.846449, -0.601056, -0.099525, 0.721122, 1.893498, 3.260343, 4.138091],
        [1.876192, 2.502751, 3.599214, 4.909942, 6.489298, 8.246633, 9.356143],
        [7.684458, 8.867417, 10.835937, 12.87836, 15.07813, 17.433751, 18.899596],
        [17.124468, 18.648404, 21.162938, 23.706053, 26.370462, 29.183399, 30.925402],
        [23.586461, 25.269757, 28.043519, 30.838867, 33.749865, 36.808145, 38.69936],
    ],
    (2, 3): [[1.468945, 3.722988, 7.239194], [20.117488, 25.942897, 32.287433]],
}


def ring_shape(window, expand, heads=2):
    return 1, heads, window**2, 4 * window**2 - 4 * (window - expand) ** 2


@pytest.mark.parametrize("size", TORCH)
def test_bicubic_equals_torch(size):
    values = np.arange(12.0).reshape(3, 4) ** 1.5
    np.testing.assert_allclose(bicubic(values, size), TORCH[size], atol=1e-6)


@pytest.mark.parametrize(
    ("resize", "shape", "other"),
    [
        (resize_own_table, (169, 3), (529, 3)),
        (resize_own_table, (9, 3), (169, 3)),
        (resize_own_table, (1, 3), (25, 3)),
        (resize_pooled_table, (3, 13**2), (3, 18**2)),
        (resize_ring_table, ring_shape(7, 3), ring_shape(12, 3)),
        (resize_ring_table, ring_shape(4, 1), ring_shape(5, 2)),
        (resize_pool, (1, 49), (1, 144)),
        (resize_pool, (8, 1, 7, 7), (8, 1, 3, 3)),
    ],
)
def test_same_size_is_the_same_and_constants_stay(resize, shape, other):
    values = images(shape).astype(np.float64)
    np.testing.assert_allclose(resize(values, shape), values, atol=1e-12)
    for source, target in ((shape, other), (other, shape)):
        resized = resize(np.ones(source), target)
        assert resized.shape == target
        scale = np.prod(source[1:]) / np.prod(target[1:]) if resize is resize_pool else 1  # the sum stays
        np.testing.assert_allclose(resized, scale, atol=1e-9)


def test_geometric_keeps_the_nearest_and_reaches_the_farthest():
    """A table of displacement d, resized, has d at 0 and 1, then grows slower, and ends where the source ended."""
    displacement = np.arange(-6.0, 7)
    table = np.broadcast_to(displacement, (13, 13))
    larger = geometric(table, 23)
    assert larger.shape == (23, 23)
    row = larger[5]
    np.testing.assert_allclose(row[11:13], [0, 1], atol=1e-9)
    np.testing.assert_allclose(row[[0, -1]], [-6, 6], atol=1e-9)
    steps = np.diff(row[11:])
    assert (steps[1:] < steps[:-1] + 1e-9).all()
    np.testing.assert_allclose(row, -row[::-1], atol=1e-9)
    np.testing.assert_array_equal(geometric(table, 5), table[4:9, 4:9])


def ring_places(window, expand):
    """Row and column of the keys of a ring table, from -expand to window + expand - 1."""
    token, roll = ring_tokens(window, expand)
    return np.stack(np.divmod(token, window), axis=-1) + roll


@pytest.mark.parametrize("expand", [3, 4])
def test_ring_stretches_with_the_window(expand):
    """A table that is linear in the place around the window stays so; keys of one token get one bias."""

    def table(window, ring):
        """The row of a key: a unit a token outside the window, 7 units across it."""
        row = ring_places(window, ring)[:, 0] + 0.5
        outside = np.minimum(row, 0) * 3 / ring + np.maximum(row - window, 0) * 3 / ring
        values = outside + np.clip(row, 0, window) * 7 / window
        return np.broadcast_to(values, ring_shape(window, ring)).astype(np.float64)

    small, large = table(7, 3), table(12, expand)
    resized = resize_ring_table(small, large.shape)
    assert np.abs(resized - large).max() < 0.2  # the rounding of bicubic at borders, of a range of 13
    _, same = np.unique(ring_places(12, expand), axis=0, return_inverse=True)
    for token in range(same.max() + 1):
        assert np.ptp(resized[..., same.reshape(-1) == token], axis=-1).max() < 1e-9


def test_own_table_keeps_its_orientation():
    """The first index of a table is the displacement in rows."""
    rows = np.repeat(np.arange(-6.0, 7), 13)[:, None]
    resized = resize_own_table(rows, (23 * 23, 1)).reshape(23, 23)
    assert (np.diff(resized, axis=0) > 0).all()
    assert np.ptp(resized, axis=1).max() < 1e-9


def test_maps_keep_their_aspect():
    square, wide = images((1, 36, 4)), images((1, 32, 4))
    assert resize_map(square, (8, 16)).shape == (1, 128, 4)
    np.testing.assert_allclose(resize_map(wide, (4, 8)), wide, atol=1e-12)
    gradient = np.broadcast_to(np.arange(8.0), (4, 8)).reshape(1, 32, 1)
    resized = resize_map(gradient, (8, 16)).reshape(8, 16)
    np.testing.assert_allclose(resized, np.broadcast_to(resized[0], (8, 16)), atol=1e-9)
    assert (np.diff(resized[0]) > 0).all()
    assert resize_map(images((1, 35, 4)), (4, 8)) is None


def test_other_differences_are_not_resized():
    assert resize_own_table(np.zeros((169, 3)), (529, 4)) is None
    assert resize_own_table(np.zeros((168, 3)), (529, 3)) is None
    assert resize_own_table(np.zeros((36, 3)), (529, 3)) is None
    assert resize_own_table(np.zeros((0, 3)), (529, 3)) is None
    assert resize_ring_table(np.zeros((1, 2, 49, 63)), ring_shape(12, 3)) is None
    assert resize_pooled_table(np.zeros((3, 169)), (4, 144)) is None
    assert resize_ring_table(np.zeros(ring_shape(7, 3)), (1, 2, 144, 250)) is None
    assert resize_pool(np.zeros((1, 49)), (1, 50)) is None
