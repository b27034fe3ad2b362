"""Resizes position parameters trained at one image or window size for another. Pure NumPy and SciPy.

Two ways, after Swin Transformer's fine-tuning: bicubic where positions are places in a map, and a spline over
geometrically spaced displacements where they are displacements within a window (near ones keep their meaning, far ones
are stretched to the new reach).
"""

import math

import numpy as np
from scipy.interpolate import RectBivariateSpline
from scipy.optimize import brentq

from focal_twins.models.backbones.focal_windows import ring_tokens


def bicubic(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize the last two axes, [..., H, W] to [..., *size]; torch's F.interpolate(mode="bicubic") without corners."""
    for axis, target in zip((-2, -1), size, strict=True):
        values = np.moveaxis(np.moveaxis(values, axis, -1) @ bicubic_weights(values.shape[axis], target).T, -1, axis)
    return values


def bicubic_weights(source: int, target: int) -> np.ndarray:
    """Compute weights [target, source] float64: Keys' cubic kernel, a = -0.75, pixel centres at .5, edges repeated."""
    a = -0.75
    weights = np.zeros((target, source))
    for i in range(target):
        place = (i + 0.5) * source / target - 0.5
        first = math.floor(place) - 1
        for tap in range(first, first + 4):
            d = abs(place - tap)
            weight = ((a + 2) * d - (a + 3)) * d * d + 1 if d <= 1 else ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
            weights[i, min(max(tap, 0), source - 1)] += weight
    return weights


def geometric(values: np.ndarray, side: int) -> np.ndarray:
    """Resize tables of displacements, [..., s, s] to [..., side, side], both odd with displacement 0 in the middle.

    A smaller table is the middle of the larger one: the displacements that remain mean what they meant. For a larger
    one, the source's displacements are laid out at 0, 1, 1 + q, 1 + q + q^2, ... with q such that the last is the
    target's last, and a cubic spline through them is read at whole numbers. Source: the window resizing in the
    fine-tuning code of Swin Transformer and BEiT.
    """
    reach, target_reach = values.shape[-1] // 2, side // 2
    if target_reach <= reach:
        middle = slice(reach - target_reach, reach + target_reach + 1)
        return values[..., middle, middle].copy()
    if reach == 0:
        return np.broadcast_to(values, (*values.shape[:-2], side, side)).copy()
    ratio = brentq(lambda q: sum(q**i for i in range(reach)) - target_reach, 1, target_reach) if reach > 1 else 1
    steps = np.cumsum(ratio ** np.arange(reach))
    places = np.concatenate([-steps[::-1], [0], steps]) * (target_reach / steps[-1])
    targets = np.arange(side) - target_reach
    degree = min(3, len(places) - 1)
    tables = values.reshape(-1, *values.shape[-2:])
    resized = [RectBivariateSpline(places, places, table, kx=degree, ky=degree)(targets, targets) for table in tables]
    return np.stack(resized).reshape(*values.shape[:-2], side, side)


def whole_root(number: int) -> int | None:
    """Return the square root of a number if it is whole and not 0, else None."""
    root = math.isqrt(number)
    return root if root and root * root == number else None


def resize_own_table(table: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Resize biases within a window, [(2w-1)^2, heads], for another window; None where more than the window differs."""
    side, new_side = whole_root(len(table)), whole_root(shape[0])
    if side is None or new_side is None or side % 2 == 0 or new_side % 2 == 0 or table.shape[1:] != shape[1:]:
        return None
    maps = table.T.reshape(-1, side, side)
    return geometric(maps, new_side).reshape(-1, shape[0]).T


def resize_pooled_table(table: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Resize biases to pooled windows, [heads, side^2], for another window or focal window.

    Queries are counted in tokens and keys in windows here, so that no displacement in the table is zero for all pairs:
    bicubic, not geometric.
    """
    side, new_side = whole_root(table.shape[1]), whole_root(shape[1])
    if side is None or new_side is None or table.shape[0] != shape[0]:
        return None
    return bicubic(table.reshape(-1, side, side), (new_side, new_side)).reshape(shape)


def resize_ring_table(table: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Resize biases to the ring of neighbours, [1, heads, w^2, keys], for another window or width of the ring.

    Bicubic over the queries' places in the window, and over the keys' in the strips and corners around it.
    """
    if table.shape == shape:
        return table
    source, target = _window_and_ring(table.shape), _window_and_ring(shape)
    if source is None or target is None or table.shape[1] != shape[1]:
        return None
    (window, expand), (new_window, new_expand) = source, target
    heads = table.shape[1]
    queries = table[0].reshape(heads, window, window, -1).transpose(0, 3, 1, 2)  # [heads, keys, w, w]
    queries = bicubic(queries, (new_window, new_window)).reshape(heads, -1, new_window**2).transpose(0, 2, 1)

    # The ring as a picture of the window and its surroundings; keys that come twice are averaged.
    side = window + 2 * expand
    rows, columns = _ring_places(window, expand)
    picture, count = np.zeros((heads, new_window**2, side, side)), np.zeros((side, side))
    np.add.at(picture, (slice(None), slice(None), rows, columns), queries)  # type: ignore[arg-type]  # slices are missing
    np.add.at(count, (rows, columns), 1)
    picture /= np.maximum(count, 1)

    # Its strips and corners stretch as the window and the ring do.
    new_side = new_window + 2 * new_expand
    result = np.zeros((heads, new_window**2, new_side, new_side))
    for row, new_row in zip(_thirds(window, expand), _thirds(new_window, new_expand), strict=True):
        for column, new_column in zip(_thirds(window, expand), _thirds(new_window, new_expand), strict=True):
            size = new_row.stop - new_row.start, new_column.stop - new_column.start
            result[..., new_row, new_column] = bicubic(picture[..., row, column], size)
    rows, columns = _ring_places(new_window, new_expand)
    return result[None, ..., rows, columns]


def _ring_places(window, expand):
    """Return row and column of every key of a ring table, counted from the top left of the ring."""
    token, roll = ring_tokens(window, expand)
    row, column = np.divmod(token, window)
    return row + roll[:, 0] + expand, column + roll[:, 1] + expand


def _thirds(window, expand):
    """Return the slices of an axis before, within and after the window."""
    return slice(0, expand), slice(expand, expand + window), slice(expand + window, window + 2 * expand)


def _window_and_ring(shape):
    """Return (window, expand) of a ring table's shape [1, heads, w^2, 4 w^2 - 4 (w - expand)^2], or None."""
    window, inside = whole_root(shape[2]), shape[2] - shape[3] // 4
    inner = 0 if inside == 0 else whole_root(max(inside, 0))
    return None if window is None or inner is None or shape[3] % 4 else (window, window - inner)


def resize_map(values: np.ndarray, map_size: tuple[int, int]) -> np.ndarray | None:
    """Resize embeddings of the places of a map, [1, L, C], for a map of another size.

    The map that they come from is taken to have the aspect of the target or, failing that, to be square; the result is
    None where it can be neither.
    """
    length = values.shape[1]
    unit = np.array(map_size) // math.gcd(*map_size)  # (3, 4) of a 6 x 8 map
    scale = whole_root(length // math.prod(unit)) if length % math.prod(unit) == 0 else None
    rows = whole_root(length) if scale is None else scale * unit[0]
    if rows is None:
        return None
    maps = values[0].T.reshape(-1, rows, length // rows)
    return bicubic(maps, map_size).reshape(values.shape[2], -1).T[None]


def resize_pool(weight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Resize weights of a window pool, [1, w^2] or [C, 1, w, w], for another window; their sum stays about the same."""
    side, new_side = whole_root(math.prod(weight.shape[1:])), whole_root(math.prod(shape[1:]))
    if side is None or new_side is None or weight.shape[0] != shape[0] or weight.ndim != len(shape):
        return None
    maps = weight.reshape(-1, side, side)
    return bicubic(maps, (new_side, new_side)).reshape(shape) * (side / new_side) ** 2
