"""Resizing of position parameters."""

import numpy as np
import pytest

from src.models.focal_windows import ring_tokens
from src.models.position_tables import (
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


def test_ring_keeps_how_far_and_where_a_neighbour_is():
    """Biases by quadrant and distance from the window, in rows or else in columns, are those of the larger window."""

    def table(window, expand):
        token, roll = ring_tokens(window, expand)
        place = np.stack(np.divmod(token, window), axis=-1) + roll
        rows, columns = np.maximum(np.maximum(-place, place - window + 1), 0).T  # outside the window
        quadrant = (roll[:, 0] < 0) * 2 + (roll[:, 1] < 0)
        values = 10 * quadrant + np.where(rows > 0, rows, columns)
        return np.broadcast_to(values, ring_shape(window, expand)).astype(np.float64), rows > 0

    (small, _), (large, in_rows) = table(7, 3), table(12, 3)
    error = np.abs(resize_ring_table(small, large.shape) - large)
    assert (error[..., in_rows] < 1e-9).all()
    assert (error[..., ~in_rows] < 1e-9).mean() > 0.5  # the others see the corner, where the rows' distance counts


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
    assert resize_pooled_table(np.zeros((3, 169)), (4, 144)) is None
    assert resize_ring_table(np.zeros(ring_shape(7, 3)), (1, 2, 144, 250)) is None
    assert resize_pool(np.zeros((1, 49)), (1, 50)) is None
