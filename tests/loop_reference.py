"""Focal Transformer v1 and v2 and Twins by plain loops, in float64: slow, to be read beside the papers.

Everything is worked out per image, window, query and key from coordinates; nothing here is shared with the package.
Weights come by their official (PyTorch) names, arguments are those of the original constructors, and the networks are
in evaluation mode. Agrees to 1e-13 with the official PyTorch code in double precision, and with timm's Twins.

Sources: arXiv 2107.00641 and classification/focal_transformer.py, focal_transformer_v2.py of
github.com/microsoft/Focal-Transformer (commit 57bb303); arXiv 2104.13840 and timm 1.0.31, models/twins.py.
"""

import math
from itertools import product

import numpy as np

MASKED = -100.0  # what the originals add to a score to mask a key

FOCAL_DEFAULTS = {
    "img_size": 224,
    "patch_size": 4,
    "in_chans": 3,
    "num_classes": 1000,
    "embed_dim": 96,
    "depths": [2, 2, 6, 2],
    "num_heads": [3, 6, 12, 24],
    "window_size": 7,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "qk_scale": None,
    "ape": False,
    "patch_norm": True,
    "use_shift": False,
    "focal_stages": [0, 1, 2, 3],
    "focal_levels": [1, 1, 1, 1],
    "focal_windows": [7, 5, 3, 1],
    "focal_topK": 64,
    "focal_pool": "fc",
    "expand_stages": [0, 1, 2, 3],  # the originals read it nowhere
    "expand_sizes": [3, 3, 3, 3],
    "expand_layer": "all",
    "use_conv_embed": False,
    "use_layerscale": False,
    "layerscale_value": 1e-4,  # only an initial value: the weights hold what became of it
    "use_pre_norm": False,
}

TWINS_DEFAULTS = {
    "img_size": 224,
    "patch_size": 4,
    "in_chans": 3,
    "num_classes": 1000,
    "embed_dims": [64, 128, 256, 512],
    "num_heads": [1, 2, 4, 8],
    "mlp_ratios": [4, 4, 4, 4],
    "depths": [3, 4, 6, 3],
    "sr_ratios": [8, 4, 2, 1],
    "wss": None,
}


class Weights:
    """Weights below a dotted name; asking for one that is not there is an error."""

    def __init__(self, values: dict[str, np.ndarray], prefix: str = ""):
        self.values, self.prefix = values, prefix

    def __getitem__(self, name: str) -> np.ndarray:
        value = np.asarray(self.values[self.prefix + name])
        return value.astype(np.float64) if value.dtype.kind == "f" else value

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.values

    def under(self, name: object) -> "Weights":
        return Weights(self.values, f"{self.prefix}{name}.")


# Layers. A map is [rows, columns, channels]; a token is [channels].


def linear(x: np.ndarray, weights: Weights, bias: bool = True) -> np.ndarray:
    """x [..., inputs] -> [..., outputs]."""
    y = x @ weights["weight"].T
    return y + weights["bias"] if bias else y


def layer_norm(x: np.ndarray, weights: Weights, epsilon: float = 1e-5) -> np.ndarray:
    """Each token to mean 0 and variance 1 over its channels, then a gain and an offset per channel."""
    out = np.empty_like(x)
    for place in np.ndindex(x.shape[:-1]):
        token = x[place]
        mean = sum(token) / len(token)
        variance = sum((value - mean) ** 2 for value in token) / len(token)
        out[place] = (token - mean) / math.sqrt(variance + epsilon) * weights["weight"] + weights["bias"]
    return out


def gelu(x: np.ndarray) -> np.ndarray:
    """x times the normal distribution function of x."""
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.ravel()]).reshape(x.shape)


def mlp(x: np.ndarray, weights: Weights) -> np.ndarray:
    return linear(gelu(linear(x, weights.under("fc1"))), weights.under("fc2"))


def convolution(x: np.ndarray, weights: Weights, stride: int, padding: int = 0) -> np.ndarray:
    """Map [H, W, C] -> [H', W', D] with weight [D, C, k, k]; places beyond the edge count as zero."""
    kernel, bias = weights["weight"], weights["bias"]
    rows, columns, _ = x.shape
    size = kernel.shape[-1]
    out = np.zeros(
        (
            (rows + 2 * padding - size) // stride + 1,
            (columns + 2 * padding - size) // stride + 1,
            kernel.shape[0],
        )
    )
    for row, column in np.ndindex(out.shape[:2]):
        out[row, column] = bias
        for a, b in product(range(size), repeat=2):
            r, c = row * stride - padding + a, column * stride - padding + b
            if 0 <= r < rows and 0 <= c < columns:
                out[row, column] += kernel[:, :, a, b] @ x[r, c]
    return out


def attend(query: np.ndarray, seen: list, heads: int, scale: float) -> np.ndarray:
    """Multi-head softmax attention of one query.

    Args:
        query: [C]; head h owns the h-th of `heads` equal runs of channels.
        seen: per key a triple (key [C], value [C], bias [heads]).

    Returns:
        [C]: per head the average of the values, weighted by exp(scale * query . key + bias).
    """
    width = len(query) // heads
    out = np.zeros(len(query))
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        scores = [scale * float(query[own] @ key[own]) + float(bias[head]) for key, _, bias in seen]
        largest = max(scores)
        shares = [math.exp(score - largest) for score in scores]
        total = sum(shares)
        for share, (_, value, _) in zip(shares, seen, strict=True):
            out[own] += share / total * value[own]
    return out


def pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


# Focal Transformer


def focal_transformer(weights: dict[str, np.ndarray], images: np.ndarray, arguments: dict, version: int) -> np.ndarray:
    """Focal Transformer in evaluation mode.

    Args:
        weights: by official names. For v2 they may hold the key tables `layers.i.blocks.j.attn.topk_cloest_indice_k`
            [windows, keys], which are then used; otherwise ties of distance go to the lower index.
        images: [B, in_chans, H, W].
        arguments: of the original constructor, where they are not its defaults.
        version: 1 or 2.

    Returns:
        Logits [B, num_classes], float64.

    Raises:
        ValueError: an unknown argument, or a map that v2's windows do not tile.
    """
    unknown = set(arguments) - set(FOCAL_DEFAULTS)
    if unknown or version not in (1, 2):
        raise ValueError(f"unknown arguments {unknown} or version {version}")
    options = FOCAL_DEFAULTS | arguments
    top = Weights(weights)
    return np.stack([focal_image(top, np.moveaxis(np.float64(image), 0, 2), options, version) for image in images])


def focal_image(weights: Weights, image: np.ndarray, options: dict, version: int) -> np.ndarray:
    """Image [H, W, in_chans] -> logits [num_classes]."""
    assert image.shape == (*pair(options["img_size"]), options["in_chans"])
    patch = options["patch_size"]
    stem = weights.under("patch_embed")
    x = convolution(image, stem.under("proj"), *((4, 2) if options["use_conv_embed"] else (patch, 0)))
    if options["patch_norm"]:
        x = layer_norm(x, stem.under("norm"))
    assert x.shape == (image.shape[0] // patch, image.shape[1] // patch, options["embed_dim"])
    if options["ape"]:
        x = x + weights["absolute_pos_embed"].reshape(x.shape)  # one row of the table per token, row by row

    for stage, depth in enumerate(options["depths"]):
        layer = weights.under(f"layers.{stage}")
        for block in range(depth):
            x = focal_block(x, layer.under(f"blocks.{block}"), stage, block, options, version)
        if stage + 1 < len(options["depths"]):
            x = focal_downsample(x, layer.under("downsample"), options)

    x = layer_norm(x, weights.under("norm"))
    return linear(x.mean(axis=(0, 1)), weights.under("head"))


def focal_downsample(x: np.ndarray, weights: Weights, options: dict) -> np.ndarray:
    """Map [H, W, C] -> [H // 2, W // 2, 2 C]. Pre-norm is one group: mean and variance over the whole map."""
    if options["use_pre_norm"]:
        norm = weights.under("pre_norm")
        x = (x - x.mean()) / math.sqrt(x.var() + 1e-5) * norm["weight"] + norm["bias"]
    x = convolution(x, weights.under("proj"), 2, 1 if options["use_conv_embed"] else 0)
    return layer_norm(x, weights.under("norm"))  # whatever patch_norm says: that is for the stem alone


def focal_block(x: np.ndarray, weights: Weights, stage: int, block: int, options: dict, version: int) -> np.ndarray:
    """x plus attention over its focal neighbourhood, then plus MLP; map [H, W, C] -> the same shape."""
    rows, columns, channels = x.shape
    window = options["window_size"]
    expand = options["expand_sizes"][stage]
    if (options["expand_layer"] == "even" and block % 2 == 0) or (options["expand_layer"] == "odd" and block % 2 == 1):
        expand = 0  # "even" switches expansion off in even blocks
    shift = window // 2 if options["use_shift"] and block % 2 == 1 else 0
    if min(rows, columns) <= window:
        window, expand, shift = min(rows, columns), 0, 0
    if options["focal_levels"][stage] == 0:
        expand = 0

    normed = layer_norm(x, weights.under("norm1"))
    whole_rows = math.ceil(rows / window) * window
    whole_columns = math.ceil(columns / window) * window
    if version == 2 and (whole_rows, whole_columns) != (rows, columns):
        raise ValueError(f"windows of {window} do not tile {rows} x {columns}")
    # The map that windows see: padded with zero tokens to whole windows (they take part: after the projection they
    # are not zero), then moved `shift` tokens up and left, around the edge.
    seen = np.zeros((whole_rows, whole_columns, channels))
    for row, column in np.ndindex(whole_rows, whole_columns):
        r, c = (row + shift) % whole_rows, (column + shift) % whole_columns
        if r < rows and c < columns:
            seen[row, column] = normed[r, c]

    pooled = []
    if options["focal_pool"] != "none" and stage in options["focal_stages"]:
        for level in range(options["focal_levels"][stage] - 1):
            pool = weights.under(f"pool_layers.{level}")
            pooled.append(pool_windows(seen, window, 2**level, options["focal_pool"], pool))

    attention = weights.under("attn")
    geometry = {
        "heads": options["num_heads"][stage],
        "window": window,
        "expand": expand,
        "shift": shift,
        "focal_window": options["focal_windows"][stage],
        "levels": options["focal_levels"][stage],
        "top": options["focal_topK"],
    }
    scale = options["qk_scale"] or (channels // geometry["heads"]) ** -0.5  # 0 counts as None
    queries, *fine = np.split(linear(seen, attention.under("qkv"), options["qkv_bias"]), 3, axis=-1)
    coarse = [np.split(linear(level, attention.under("qkv"), options["qkv_bias"]), 3, axis=-1)[1:] for level in pooled]

    attended = np.zeros_like(seen)
    for window_row, window_column in product(range(whole_rows // window), range(whole_columns // window)):
        find_keys = KeysOfWindow[version](window_row, window_column, fine, coarse, attention, geometry)
        for i, j in product(range(window), repeat=2):
            place = window_row * window + i, window_column * window + j
            attended[place] = attend(queries[place], find_keys(i, j), geometry["heads"], scale)
    attended = linear(attended, attention.under("proj"))

    out = np.zeros_like(x)
    for row, column in np.ndindex(rows, columns):  # back where the tokens were; padding is dropped
        out[row, column] = attended[(row - shift) % whole_rows, (column - shift) % whole_columns]
    if options["use_layerscale"]:
        out = out * weights["gamma_1"]
    x = x + out
    out = mlp(layer_norm(x, weights.under("norm2")), weights.under("mlp"))
    if options["use_layerscale"]:
        out = out * weights["gamma_2"]
    return x + out


def pool_windows(x: np.ndarray, window: int, parts: int, method: str, weights: Weights) -> np.ndarray:
    """Pool a map of whole windows into parts x parts cells per window.

    A cell is window // parts tokens wide. Where that does not divide, the cells do not follow the windows: they lie
    edge to edge in the middle of the map, and what remains at its border is left out (the odd row below and right).

    Returns:
        [parts * H / window, parts * W / window, C].
    """
    size = window // parts
    rows, columns = x.shape[0] // window * parts, x.shape[1] // window * parts
    top, left = (x.shape[0] - rows * size) // 2, (x.shape[1] - columns * size) // 2
    out = np.zeros((rows, columns, x.shape[2]))
    for row, column in np.ndindex(rows, columns):
        places = list(product(range(size), repeat=2))
        tokens = [x[top + row * size + a, left + column * size + b] for a, b in places]
        if method == "mean":
            out[row, column] = sum(tokens) / len(tokens)
        elif method == "max":
            out[row, column] = np.max(tokens, axis=0)
        elif method == "fc":  # one weight per place, the same for all channels
            out[row, column] = weights["bias"]
            for token, weight in zip(tokens, weights["weight"][0], strict=True):
                out[row, column] += weight * token
        elif method == "conv":  # one weight per place and channel
            out[row, column] = weights["bias"]
            for token, (a, b) in zip(tokens, places, strict=True):
                out[row, column] += weights["weight"][:, 0, a, b] * token
        else:
            raise ValueError(f"focal_pool {method!r}")
    return out


class KeysOfWindowV1:
    """What the queries of one window see in Focal Transformer v1.

    Args:
        window_row, window_column: of the window, in windows.
        fine: keys and values of the map, each [H, W, C].
        coarse: keys and values per pooled level, each [H_k, W_k, C].
        weights: of the attention layer.
        geometry: heads, window, expand, shift, focal_window.
    """

    def __init__(self, window_row, window_column, fine, coarse, weights, geometry):
        self.window_row, self.window_column = window_row, window_column
        self.fine, self.coarse, self.weights, self.geometry = fine, coarse, weights, geometry

    def __call__(self, i: int, j: int) -> list:
        """(key, value, bias per head) of all keys for the query in row i, column j of the window."""
        return self.own_window(i, j) + self.neighbours(i, j) + self.pooled(i, j)

    def own_window(self, i: int, j: int) -> list:
        """Its own tokens, biased by displacement; across the seam of a shifted map they are masked."""
        window, (keys, values) = self.geometry["window"], self.fine
        table = self.weights["relative_position_bias_table"]
        entry = rank(displacements(window, window))
        top, left = self.window_row * window, self.window_column * window
        seen = []
        for a, b in product(range(window), repeat=2):
            bias = table[entry[i - a, j - b]]
            if self.came_around(top + i, left + j) != self.came_around(top + a, left + b):
                bias = bias + MASKED
            seen.append((keys[top + a, left + b], values[top + a, left + b], bias))
        return seen

    def came_around(self, row: int, column: int) -> tuple[bool, bool]:
        """Whether the shift brought this place's token around the edge, by row and by column."""
        rows, columns, _ = self.fine[0].shape
        shift = self.geometry["shift"]
        return row + shift >= rows, column + shift >= columns

    def neighbours(self, i: int, j: int) -> list:
        """Tokens around the window: it is laid `expand` tokens off in the four diagonal directions, and each time what
        it newly covers is seen. So tokens in line with it on two sides at once are seen twice; the map is a torus
        and nothing is masked. The bias belongs to the place in this list."""
        window, expand = self.geometry["window"], self.geometry["expand"]
        if expand == 0:
            return []
        keys, values = self.fine
        rows, columns, _ = keys.shape
        table = self.weights["relative_position_bias_table_to_neighbors"][0]  # [heads, queries, neighbours]
        seen = []
        for down, right in ((expand, expand), (expand, -expand), (-expand, expand), (-expand, -expand)):
            for a, b in product(range(window), repeat=2):
                a_seen, b_seen = a + down, b + right
                if 0 <= a_seen < window and 0 <= b_seen < window:
                    continue
                row = (self.window_row * window + a_seen) % rows
                column = (self.window_column * window + b_seen) % columns
                seen.append((keys[row, column], values[row, column], table[:, i * window + j, len(seen)]))
        assert len(seen) == table.shape[2]
        return seen

    def pooled(self, i: int, j: int) -> list:
        """Per level, the window's own 2^level x 2^level cells and focal_window // 2 more on each side. Those beyond
        the map are zero keys and values, masked. The bias goes by the difference of the query's place in the window,
        in tokens, and the cell's place in the region, in cells."""
        window, reach = self.geometry["window"], self.geometry["focal_window"] // 2
        seen = []
        for level, (keys, values) in enumerate(self.coarse):
            table = self.weights[f"relative_position_bias_table_to_windows.{level}"]  # [heads, displacements]
            cells = 2**level
            side = cells + 2 * reach
            entry = rank(displacements(window, side))
            rows, columns, channels = keys.shape
            for a, b in product(range(side), repeat=2):
                row = self.window_row * cells - reach + a
                column = self.window_column * cells - reach + b
                bias = table[:, entry[i - a, j - b]]
                if 0 <= row < rows and 0 <= column < columns:
                    seen.append((keys[row, column], values[row, column], bias))
                else:
                    seen.append((np.zeros(channels), np.zeros(channels), bias + MASKED))
        return seen


def displacements(queries: int, keys: int) -> list[tuple[int, int]]:
    """All differences of a place in a square of `queries` a side and one in a square of `keys`, row by row."""
    return list(product(range(1 - keys, queries), repeat=2))


def rank(items: list) -> dict:
    """The position of each item."""
    return {item: position for position, item in enumerate(items)}


class KeysOfWindowV2:
    """What the queries of one window see in Focal Transformer v2: per level the `top` places closest to its centre.

    Level 0 is the map itself; the centre of a window of 7 is its token (3, 3), of an even one the token below and right
    of the middle. Level 1 has a place per window, and a step there counts as `window` tokens in a displacement.
    The map is not a torus here, and no key is masked, not even across the seam of a shifted map.
    With more than two levels the originals still number the places of a window grid and read that number from the
    finer pooled map: the wrong cells, of which only those of the first rows are ever seen.
    """

    def __init__(self, window_row, window_column, fine, coarse, weights, geometry):
        self.weights, self.window = weights, geometry["window"]
        self.middle = self.window // 2
        rows, columns, channels = fine[0].shape
        windows = rows // self.window, columns // self.window
        self.seen = []  # per key: key, value, level, row and column of the centre minus the key's
        for level in range(geometry["levels"]):
            places, step = (windows, self.window) if level else ((rows, columns), 1)
            centre = window_row, window_column
            if level == 0:
                centre = window_row * self.window + self.middle, window_column * self.window + self.middle
            keys, values = (part.reshape(-1, channels) for part in (coarse[level - 1] if level else fine))
            if f"topk_cloest_indice_{level}" in weights:
                table = weights[f"topk_cloest_indice_{level}"]
                chosen = [int(index) for index in table[window_row * windows[1] + window_column]]
            else:
                chosen = closest(centre, places, geometry["top"])
            for index in chosen:
                row, column = divmod(index, places[1])
                away = (centre[0] - row) * step, (centre[1] - column) * step
                self.seen.append((keys[index], values[index], level, away))

    def __call__(self, i: int, j: int) -> list:
        """(key, value, bias per head) of all keys for the query in row i, column j of the window."""
        return [
            (key, value, self.bias(level, away[0] + i - self.middle, away[1] + j - self.middle))
            for key, value, level, away in self.seen
        ]

    def bias(self, level: int, rows: int, columns: int) -> np.ndarray:
        """[heads]: a two-layer perceptron of the displacement, query minus key, in tokens."""
        perceptron = self.weights.under(f"coord2rpb_all.{level}")
        hidden = linear(np.array([rows, columns], np.float64), perceptron.under("0"))
        return linear(np.maximum(hidden, 0), perceptron.under("2"))


def closest(centre: tuple[int, int], places: tuple[int, int], count: int) -> list[int]:
    """Numbers (row by row) of the `count` places closest to the centre, or all of them; ties to the lower number."""
    far = []
    for number, (row, column) in enumerate(np.ndindex(places)):
        far.append(((row - centre[0]) ** 2 + (column - centre[1]) ** 2, number))
    return [number for _, number in sorted(far)[:count]]


KeysOfWindow = {1: KeysOfWindowV1, 2: KeysOfWindowV2}


# Twins


def twins(weights: dict[str, np.ndarray], images: np.ndarray, arguments: dict) -> np.ndarray:
    """Twins in evaluation mode: PCPVT where wss is None, SVT otherwise.

    Args:
        weights: by timm's names.
        images: [B, in_chans, H, W].
        arguments: of timm's constructor, where they are not its defaults.

    Returns:
        Logits [B, num_classes], float64.

    Raises:
        ValueError: an unknown argument.
    """
    unknown = set(arguments) - set(TWINS_DEFAULTS)
    if unknown:
        raise ValueError(f"unknown arguments {unknown}")
    options = TWINS_DEFAULTS | arguments
    top = Weights(weights)
    return np.stack([twins_image(top, np.moveaxis(np.float64(image), 0, 2), options) for image in images])


def twins_image(weights: Weights, x: np.ndarray, options: dict) -> np.ndarray:
    """Image [H, W, in_chans] -> logits [num_classes]."""
    assert x.shape == (*pair(options["img_size"]), options["in_chans"])
    for stage, depth in enumerate(options["depths"]):
        embed = weights.under(f"patch_embeds.{stage}")
        x = convolution(x, embed.under("proj"), options["patch_size"] if stage == 0 else 2)
        x = layer_norm(x, embed.under("norm"))
        assert x.shape[2] == options["embed_dims"][stage]
        heads = options["num_heads"][stage]
        for number in range(depth):
            block = weights.under(f"blocks.{stage}.{number}")
            normed = layer_norm(x, block.under("norm1"), 1e-6)
            local = options["wss"] is not None and number % 2 == 0 and options["wss"][stage] != 1
            if local:
                x = x + local_attention(normed, block.under("attn"), heads, options["wss"][stage])
            else:
                x = x + global_attention(normed, block.under("attn"), heads, options["sr_ratios"][stage])
            x = x + mlp(layer_norm(x, block.under("norm2"), 1e-6), block.under("mlp"))
            if number == 0:
                x = x + position_convolution(x, weights.under(f"pos_block.{stage}.proj.0"))
    x = layer_norm(x, weights.under("norm"), 1e-6)
    return linear(x.mean(axis=(0, 1)), weights.under("head"))


def local_attention(x: np.ndarray, weights: Weights, heads: int, window: int) -> np.ndarray:
    """Every token sees its window; zero tokens fill the map up to whole windows and are seen too."""
    rows, columns, channels = x.shape
    padded = np.zeros((math.ceil(rows / window) * window, math.ceil(columns / window) * window, channels))
    padded[:rows, :columns] = x
    queries, keys, values = np.split(linear(padded, weights.under("qkv")), 3, axis=-1)
    out = np.zeros_like(x)
    for row, column in np.ndindex(rows, columns):
        top, left = row // window * window, column // window * window
        places = list(product(range(top, top + window), range(left, left + window)))
        seen = [(keys[place], values[place], np.zeros(heads)) for place in places]
        out[row, column] = attend(queries[row, column], seen, heads, (channels // heads) ** -0.5)
    return linear(out, weights.under("proj"))


def global_attention(x: np.ndarray, weights: Weights, heads: int, ratio: int) -> np.ndarray:
    """Every token sees the whole map, at 1/ratio of its resolution."""
    channels = x.shape[2]
    reduced = x
    if ratio > 1:
        reduced = layer_norm(convolution(x, weights.under("sr"), ratio), weights.under("norm"))
    queries = linear(x, weights.under("q"))
    keys, values = np.split(linear(reduced, weights.under("kv")), 2, axis=-1)
    seen = [(keys[place], values[place], np.zeros(heads)) for place in np.ndindex(keys.shape[:2])]
    out = np.zeros_like(x)
    for place in np.ndindex(x.shape[:2]):
        out[place] = attend(queries[place], seen, heads, (channels // heads) ** -0.5)
    return linear(out, weights.under("proj"))


def position_convolution(x: np.ndarray, weights: Weights) -> np.ndarray:
    """Depthwise 3x3 convolution; places beyond the edge count as zero. Map [H, W, C] -> the same shape."""
    rows, columns, _ = x.shape
    out = np.zeros_like(x)
    for row, column in np.ndindex(rows, columns):
        out[row, column] = weights["bias"]
        for a, b in product(range(3), repeat=2):
            r, c = row + a - 1, column + b - 1
            if 0 <= r < rows and 0 <= c < columns:
                out[row, column] += weights["weight"][:, 0, a, b] * x[r, c]
    return out
