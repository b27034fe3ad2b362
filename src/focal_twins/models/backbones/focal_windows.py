"""Computes the static index tables of focal attention, in NumPy: which keys each window sees, and from where.

Everything here depends only on sizes, never on weights or images, so it is computed once when a model is built (or
when a checkpoint brings its own tables) and the compiled graph sees constants.

Coordinates are (row, column) on the feature map of one stage. A *level* is a granularity of keys: level 0 holds the
H x W fine tokens, level 1 one pooled token per window, and level 1 + k (v1 only) 2^k x 2^k pooled tokens per window.
"""

from functools import lru_cache

import numpy as np


def window_grid(map_size: tuple[int, int], window_size: int) -> tuple[int, int]:
    """Return the number of windows down and across a map that whole windows tile.

    Raises:
        ValueError: the map is not a whole number of windows.
    """
    height, width = map_size
    if height % window_size or width % window_size:
        raise ValueError(f"a {height}x{width} map is not tiled by {window_size}x{window_size} windows")
    return height // window_size, width // window_size


# --- v2: the nearest tokens ------------------------------------------------------------------------------------------


def query_centres(grid: tuple[int, int], window_size: int, level: int) -> np.ndarray:
    """Return the centre of every window in the coordinates of `level`: [nW, 2] int64, windows in row-major order.

    Source: get_topk_closest_indice in the original focal_transformer_v2.py, which scales window indices onto the key
    map only when the two differ in size: with a single window at level 0 the centre is still the window's middle,
    but windows of one token need no scaling.
    """
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    centres = np.stack([rows.ravel(), columns.ravel()], axis=-1)
    if level == 0 and window_size > 1:
        centres = centres * window_size + window_size // 2
    return centres


def level_size(map_size: tuple[int, int], window_size: int, level: int) -> tuple[int, int]:
    """Return the rows and columns of tokens at a level: the whole map at level 0, one token per window at level 1."""
    return map_size if level == 0 else window_grid(map_size, window_size)


def nearest_keys(map_size: tuple[int, int], window_size: int, level: int, top_k: int) -> np.ndarray:
    """Find the `top_k` tokens of a level closest to each window's centre: [nW, min(top_k, tokens)] int32.

    Distance is Euclidean from token to token. Ties, which sit on the boundary of almost every window, are broken by
    the token's index; the original leaves them to torch.topk, which is why its checkpoints carry their own tables.
    """
    grid = window_grid(map_size, window_size)
    centres = query_centres(grid, window_size, level)
    rows, columns = level_size(map_size, window_size, level)
    key_row, key_column = np.divmod(np.arange(rows * columns), columns)
    count = min(top_k, rows * columns)
    chosen = np.empty((len(centres), count), dtype=np.int32)
    # One window at a time: all at once would hold windows x tokens distances, 400 MB at 896 px.
    for window, (row, column) in enumerate(centres):
        squared = (row - key_row) ** 2 + (column - key_column) ** 2
        near = np.flatnonzero(squared <= np.partition(squared, count - 1)[count - 1])  # sorting them all takes long
        chosen[window] = near[np.argsort(squared[near], kind="stable")[:count]]
    return chosen


def equally_near(table: np.ndarray, other: np.ndarray, map_size: tuple[int, int], window_size: int, level: int) -> bool:
    """Tell whether two key tables [nW, K] of a level choose keys at the same distances, so differ in ties at most."""
    rows, columns = level_size(map_size, window_size, level)
    if table.shape != other.shape or other.min() < 0 or other.max() >= rows * columns:
        return False
    centres = query_centres(window_grid(map_size, window_size), window_size, level)
    first, second = (
        np.sort(((centres[:, None] - np.stack(np.divmod(keys, columns), axis=-1)) ** 2).sum(-1), axis=1)
        for keys in (table.astype(np.int64), other.astype(np.int64))
    )
    return np.array_equal(first, second)


def displacements(
    key_index: np.ndarray, map_size: tuple[int, int], window_size: int, level: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compute every query-to-key displacement of a level, as distinct values and an index into them.

    The displacement of a query at offset o from its window's centre c and a key at k is (c - k) * unit + o, where the
    unit is one token at level 0 and one window at level 1 (WindowAttention.__init__ in focal_transformer_v2.py).
    These are few distinct pairs of integers: 471 for the 401,408 (query, key) pairs of level 0 in stage 1 at 224 px.

    Args:
        key_index: [nW, K] tokens of this level seen by each window.

    Returns:
        distinct: [D, 2] float32, row and column displacement in tokens of the fine map.
        inverse: [nW, window_size^2, K] int32, the number of each pair's distinct displacement.

    Raises:
        ValueError: the table has another number of windows, or points outside the level.
    """
    key_index = np.ascontiguousarray(key_index, dtype=np.int32)
    grid = window_grid(map_size, window_size)
    rows, columns = level_size(map_size, window_size, level)
    if key_index.ndim != 2 or key_index.shape[0] != grid[0] * grid[1]:
        raise ValueError(f"key table has shape {key_index.shape}, expected {grid[0] * grid[1]} windows by keys")
    if key_index.min() < 0 or key_index.max() >= rows * columns:
        raise ValueError(f"key table points outside the {rows}x{columns} tokens of level {level}")
    return _displacements(key_index.tobytes(), key_index.shape[1], map_size, window_size, level)


@lru_cache(maxsize=64)  # the blocks of a stage usually have equal tables
def _displacements(key_bytes, keys, map_size, window_size, level):
    key_index = np.frombuffer(key_bytes, dtype=np.int32).reshape(-1, keys)
    grid = window_grid(map_size, window_size)
    columns = level_size(map_size, window_size, level)[1]
    centres = query_centres(grid, window_size, level)
    key_position = np.stack(np.divmod(key_index, columns), axis=-1)  # [nW, K, 2]
    unit = 1 if level == 0 else window_size
    from_centre = (centres[:, None] - key_position) * unit  # [nW, K, 2]
    offset = np.arange(window_size) - window_size // 2
    offsets = np.stack(np.meshgrid(offset, offset, indexing="ij"), axis=-1).reshape(-1, 2)  # [window_size^2, 2]
    pairs = from_centre[:, None] + offsets[None, :, None]  # [nW, window_size^2, K, 2]
    lowest = pairs.reshape(-1, 2).min(axis=0)
    span = pairs.reshape(-1, 2).max(axis=0) - lowest + 1
    code = (pairs[..., 0] - lowest[0]) * span[1] + (pairs[..., 1] - lowest[1])
    distinct_code, inverse = np.unique(code, return_inverse=True)
    distinct = np.stack(np.divmod(distinct_code, span[1]), axis=-1) + lowest
    return distinct.astype(np.float32), inverse.reshape(code.shape).astype(np.int32)


# --- v1: the own window, its ring of neighbours, and pooled windows around it ---------------------------------------


def fit_window(map_size: tuple[int, int], window_size: int) -> int:
    """Limit the window of a stage to the short side of its map (FocalTransformerBlock in the original files)."""
    return min(window_size, *map_size)


def padded_size(map_size: tuple[int, int], window_size: int) -> tuple[int, int]:
    """Return a map's size after padding below and to the right to whole windows."""
    height, width = (-(-side // window_size) * window_size for side in map_size)
    return height, width


def window_positions(map_size: tuple[int, int], window_size: int) -> np.ndarray:
    """Return (row, column) of every token of every window: [nW, window_size^2, 2] int64."""
    grid = window_grid(map_size, window_size)
    corner = np.stack(np.divmod(np.arange(grid[0] * grid[1]), grid[1]), axis=-1) * window_size
    within = np.stack(np.divmod(np.arange(window_size**2), window_size), axis=-1)
    return corner[:, None] + within[None]


def tokens_at(position: np.ndarray, map_size: tuple[int, int], window_size: int, shift: int = 0) -> np.ndarray:
    """Turn positions in the padded and rolled map that windows tile into tokens of the H x W map: [..., 2] to [...].

    The padded map is a torus: positions beyond an edge are those of the opposite edge. It is rolled by -shift rows and
    columns, as Swin Transformer shifts windows. Numbers are int32; all padding is H * W, one past the last token.
    """
    row, column = np.moveaxis((position + shift) % np.array(padded_size(map_size, window_size)), -1, 0)
    inside = (row < map_size[0]) & (column < map_size[1])
    return np.where(inside, row * map_size[1] + column, map_size[0] * map_size[1]).astype(np.int32)


def ring_tokens(window_size: int, expand: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the tokens of a window that reach its surroundings when the map rolls by `expand` diagonally.

    Rolling towards each corner moves `expand` rows and columns of neighbours into the window; the tokens that hold them
    form an L. Where the four Ls overlap, a neighbour comes twice: 12 of the 120 at window 7 and expand 3, a quirk that
    published weights rely on.

    Returns:
        token: [4 * window_size^2 - 4 * (window_size - expand)^2] index into the window, quadrant by quadrant (top left,
            top right, bottom left, bottom right as the original names the rolls).
        roll: [same, 2] rows and columns to add to the token's position to reach the neighbour.
    """
    row, column = np.divmod(np.arange(window_size**2), window_size)
    tokens, rolls = [], []
    for down, right in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        below = row >= window_size - expand if down > 0 else row < expand
        beside = column >= window_size - expand if right > 0 else column < expand
        (token,) = np.nonzero(below | beside)
        tokens.append(token)
        rolls.append(np.tile([down * expand, right * expand], (len(token), 1)))
    return np.concatenate(tokens), np.concatenate(rolls)


def ring_positions(map_size: tuple[int, int], window_size: int, expand: int) -> np.ndarray:
    """Return (row, column) of each window's neighbours: [nW, keys of ring_tokens, 2] int64, also beyond the edge."""
    token, roll = ring_tokens(window_size, expand)
    return window_positions(map_size, window_size)[:, token] + roll


def part_positions(map_size: tuple[int, int], window_size: int, level: int) -> np.ndarray:
    """Return (row, column) of the tokens behind each pooled token of a coarse level: [parts, area, 2], row by row.

    A window is pooled in 2^level x 2^level parts, squares of floor(window_size / 2^level) tokens. Where they do not add
    up to the window, the map is trimmed on all sides to as many parts as there are and cut anew, so that a part need
    not lie within its window. Source: FocalTransformerBlock.forward in the original focal_transformer.py.
    """
    side = window_size // 2**level
    height, width = (size // window_size * 2**level * side for size in map_size)
    trimmed = np.array([(map_size[0] - height) // 2, (map_size[1] - width) // 2])
    return window_positions((height, width), side) + trimmed


def pooled_side(focal_window: int, level: int) -> int:
    """Return the side of the square of pooled tokens that a window sees at coarse level 0, 1, ..."""
    return focal_window + 2**level - 1


def pooled_keys(grid: tuple[int, int], focal_window: int, level: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the pooled tokens around each window at a coarse level: index into the level's tokens, and if it exists.

    At coarse level k a window is 2^k x 2^k pooled tokens, and sees the square of pooled_side(focal_window, k) tokens
    that has it in the middle. Parts of the square outside the map have index 0 and are to be masked.

    Source: the unfolding in WindowAttention of the original focal_transformer.py (for odd focal windows).

    Args:
        grid: windows down and across.

    Returns:
        index: [nW, side^2] int32. inside: [nW, side^2] bool.
    """
    per_window = 2**level
    rows, columns = grid[0] * per_window, grid[1] * per_window
    window = np.stack(np.divmod(np.arange(grid[0] * grid[1]), grid[1]), axis=-1)
    first = window * per_window - focal_window // 2  # top left of the square
    side = pooled_side(focal_window, level)
    offset = np.stack(np.divmod(np.arange(side**2), side), axis=-1)
    row, column = np.moveaxis(first[:, None] + offset[None], -1, 0)
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    return np.where(inside, row * columns + column, 0).astype(np.int32), inside


def relative_positions(query_side: int, key_side: int) -> np.ndarray:
    """Index the displacement of every query of a square to every key of another: [queries, keys] int32.

    Displacements (row, column) run from 1 - key_side to query_side - 1 and are counted in row-major order, which is the
    layout of the relative position tables in checkpoints.
    """
    query = np.arange(query_side)
    displacement = query[:, None] - np.arange(key_side)[None] + key_side - 1  # [query_side, key_side], along one axis
    span = query_side + key_side - 1
    index = displacement[:, None, :, None] * span + displacement[None, :, None, :]
    return index.reshape(query_side**2, key_side**2).astype(np.int32)


def shift_mask(map_size: tuple[int, int], window_size: int, shift: int) -> np.ndarray:
    """Make the masks that separate regions brought into one window by a cyclic shift: [nW, N, N] float32, 0 or -100.

    Source: Swin Transformer (arXiv 2103.14030, section 3.2), which the original follows.
    """
    height, width = map_size
    row, column = np.moveaxis(window_positions(map_size, window_size), -1, 0)
    region = np.digitize(row, [height - window_size, height - shift]) * 3
    region += np.digitize(column, [width - window_size, width - shift])
    return np.where(region[:, :, None] == region[:, None, :], 0, -100).astype(np.float32)


def distinct(arrays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the different ones among arrays [n, ...], in the order in which they come, and which of them each is, [n].

    It compares their bytes: np.unique sorts them, which takes seconds for the windows of a large map.
    """
    places: dict[bytes, int] = {}
    kind = np.array([places.setdefault(array.tobytes(), len(places)) for array in arrays], np.int64)
    return arrays[np.unique(kind, return_index=True)[1]], kind
