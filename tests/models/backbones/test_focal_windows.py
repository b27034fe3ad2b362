"""Index tables against their definitions, by loops."""

import numpy as np
import pytest

from focal_twins.models.backbones.focal_windows import displacements, distinct, nearest_keys, window_grid
from tests.reference import FOLDER


@pytest.mark.parametrize("level", [0, 1])
def test_nearest_keys_are_the_nearest(level):
    map_size, window, top_k = (8, 12), 4, 5
    rows, columns = map_size if level == 0 else (2, 3)
    table = nearest_keys(map_size, window, level, top_k)
    for index in range(6):
        row, column = divmod(index, 3)
        centre = (row * 4 + 2, column * 4 + 2) if level == 0 else (row, column)
        by_distance = sorted(
            range(rows * columns), key=lambda k: (np.hypot(centre[0] - k // columns, centre[1] - k % columns), k)
        )
        assert table[index].tolist() == by_distance[:top_k]


@pytest.mark.parametrize("level", [0, 1])
def test_displacements_rebuild_every_pair(level):
    map_size, window = (8, 8), 4
    table = nearest_keys(map_size, window, level, 7)
    distinct, inverse = displacements(table, map_size, window, level)
    columns, unit = (8, 1) if level == 0 else (2, 4)
    assert len(np.unique(distinct, axis=0)) == len(distinct)
    for w in range(4):
        centre = np.array(divmod(w, 2)) * (4 if level == 0 else 1) + (2 if level == 0 else 0)
        for q in range(16):
            offset = np.array(divmod(q, 4)) - 2
            for k in range(table.shape[1]):
                key = np.array(divmod(table[w, k], columns))
                assert distinct[inverse[w, q, k]].tolist() == ((centre - key) * unit + offset).tolist()


def test_own_tables_choose_keys_as_near_as_the_original():
    """Where they differ from the original's, it is between keys at the same distance."""
    for name, table in np.load(FOLDER / "focalv2_neighbours_224_window7_top128.npz").items():
        stage, level = int(name[5]), int(name[-1])
        side = 56 >> stage
        own = nearest_keys((side, side), 7, level, 128)
        assert own.shape == table.shape
        columns, centres = (side, 7) if level == 0 else (side // 7, 1)
        rows_, columns_ = np.divmod(np.arange(len(own)), side // 7)
        centre = np.stack([rows_, columns_], -1) * centres + (3 if level == 0 else 0)
        distances = [
            np.sort(((centre[:, None] - np.stack(np.divmod(t.astype(int), columns), -1)) ** 2).sum(-1), axis=1)
            for t in (own, table)
        ]
        np.testing.assert_array_equal(*distances)


def test_bad_tables_are_refused():
    table = nearest_keys((8, 8), 4, 0, 7)
    with pytest.raises(ValueError, match="outside"):
        displacements(table + 60, (8, 8), 4, 0)
    with pytest.raises(ValueError, match="windows"):
        displacements(table[:3], (8, 8), 4, 0)
    with pytest.raises(ValueError, match="not tiled"):
        window_grid((8, 9), 4)


def test_different_arrays_are_found_in_their_order():
    arrays = np.array([[[3, 1]], [[0, 2]], [[3, 1]], [[0, 0]]])
    kinds, kind = distinct(arrays)
    np.testing.assert_array_equal(kind, [0, 1, 0, 2])
    np.testing.assert_array_equal(kinds, arrays[[0, 1, 3]])
