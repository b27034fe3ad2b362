"""Defines Focal Transformer v1 and v2 (arXiv 2107.00641), after focal_transformer.py and focal_transformer_v2.py.

Reading order: attention, block, stage, models, sizes. Parameter names are the official ones, MindSpore's gamma and beta
aside, so official checkpoints load by name (files/weights.py).

The attention gathers (attention.GatheredAttention). Each window's keys are rows of one token matrix (the fine tokens,
then the pooled tokens of each coarser level) chosen by a static table, with static shapes throughout. Windows, shifts
and padding exist in the tables alone (focal_windows.py). The two versions differ only in the keys that a window sees
and in the source of a query-key pair's bias.
"""

import math
import re
from functools import partial

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.common.initializer import initializer

from focal_twins.models.attention import GatheredAttention
from focal_twins.models.backbones import focal_windows, position_tables
from focal_twins.models.backbones.backbone import (
    Backbone,
    FeatureMap,
    check_common_arguments,
    has_dropout,
    image_size,
    size_of_pretraining,
)
from focal_twins.models.compiled import CompiledPositionBias, CompiledWindowPool, KernelLayer
from focal_twins.models.convolutions import PatchEmbed, convolution_parameters
from focal_twins.models.gathers import RowGather, with_padding_token
from focal_twins.models.layers import WEIGHT_INIT, Dense, Dropout, DropPath, LayerNorm, Mlp
from focal_twins.models.registry import ArgumentError, register_family, register_model
from focal_twins.phrases import counted

POOLS = ("none", "mean", "max", "fc", "conv")
RING_TABLE = "relative_position_bias_table_to_neighbors"


class FocalAttentionV1(GatheredAttention):
    """Attends to a window, a ring of neighbours and pooled windows around it (WindowAttention in focal_transformer.py).

    Biases are learned tables: by displacement for the own window and for each pooled level, by query and key for the
    ring. Pooled keys outside the map are masked by -100, ring keys wrap around the edge of the map unmasked.

    Args:
        map_size: (H, W) of the map, before padding.
        shift: rows and columns that the map is rolled by.
        expand: width of the ring in tokens; 0 is none.
        focal_window: side of the square of windows seen at the first pooled level, odd.
        pooled_levels: number of pooled levels.
    """

    has_bias = True

    def __init__(self, dim, map_size, window_size, shift, num_heads, expand, focal_window, pooled_levels, **options):
        super().__init__(dim, num_heads, **options)
        self.window_size = window_size
        self.expand = expand
        self.focal_window = focal_window
        self.pooled_levels = pooled_levels
        area = window_size**2
        padded = focal_windows.padded_size(map_size, window_size)
        grid = focal_windows.window_grid(padded, window_size)
        own = focal_windows.window_positions(padded, window_size)
        keys = [focal_windows.tokens_at(own, map_size, window_size, shift)]
        own_mask = np.zeros((1, area, area), np.float32)
        if shift:
            own_mask = focal_windows.shift_mask(padded, window_size, shift)
        masks = [own_mask]

        self.relative_position_bias_table = Parameter(
            initializer("zeros", ((2 * window_size - 1) ** 2, num_heads), ms.float32),
            name="relative_position_bias_table",
        )
        self.own_index = Tensor(focal_windows.relative_positions(window_size, window_size).reshape(-1))
        if expand:
            neighbours = focal_windows.ring_positions(padded, window_size, expand)
            keys.append(focal_windows.tokens_at(neighbours, map_size, window_size, shift))
            ring = keys[-1].shape[1]
            masks.append(np.zeros((1, 1, ring), np.float32))
            self.relative_position_bias_table_to_neighbors = Parameter(
                initializer(WEIGHT_INIT, (1, num_heads, area, ring), ms.float32),
                name=RING_TABLE,
            )
        tables, pooled_index = [], []
        offset = math.prod(map_size) + (padded != tuple(map_size))  # behind the map's tokens, and that of padding
        for level in range(pooled_levels):
            index, inside = focal_windows.pooled_keys(grid, focal_window, level)
            side = focal_windows.pooled_side(focal_window, level)
            keys.append(index + offset)
            masks.append(np.where(inside, 0, -100).astype(np.float32)[:, None])
            offset += math.prod(grid) * 4**level
            shape = (num_heads, (window_size + side - 1) ** 2)
            name = f"relative_position_bias_table_to_windows.{level}"
            tables.append(Parameter(initializer(WEIGHT_INIT, shape, ms.float32), name=name))
            pooled_index.append(Tensor(focal_windows.relative_positions(window_size, side).reshape(-1)))
        if pooled_levels:
            self.relative_position_bias_table_to_windows = ParameterTuple(tables)
        self.pooled_index = tuple(pooled_index)

        # Windows differ in their masks alone, which depend on the distance to the map's edges: there are few kinds.
        windows, queries = (max(mask.shape[axis] for mask in masks) for axis in (0, 1))
        mask = np.concatenate([np.broadcast_to(mask, (windows, queries, mask.shape[2])) for mask in masks], axis=2)
        kinds, kind = focal_windows.distinct(mask)
        self.mask = Tensor(kinds[:, None])  # [kinds, 1, N or 1, K]
        self.masked = bool(kinds.any())
        kind = np.broadcast_to(kind, math.prod(grid))
        self.set_tables(keys[0], np.concatenate(keys, axis=1), math.prod(map_size), kind)

    def construct(self, fine, tokens, dropout_seed=None):
        return self.attend(fine, tokens, dropout_seed)

    def key_groups(self):
        ring = self.num_keys - self.window_area - sum(self.keys_of_levels()) if self.expand else 0
        groups = [("tokens of the window", self.window_area), ("tokens around the window", ring)]
        groups += [(f"pooled tokens, level {k + 1}", keys) for k, keys in enumerate(self.keys_of_levels())]
        return [(name, keys) for name, keys in groups if keys]

    def keys_of_levels(self) -> list[int]:
        """Return the number of keys at each pooled level."""
        return [focal_windows.pooled_side(self.focal_window, level) ** 2 for level in range(self.pooled_levels)]

    def position_bias(self):
        """Compute bias plus mask of every query-key pair: [kinds, heads, N, K]."""
        own = ops.gather(self.relative_position_bias_table, self.own_index, 0)  # [N*N, heads]
        biases = (own.transpose((1, 0)).reshape((self.num_heads, self.window_area, self.window_area)),)
        if self.expand:
            biases = biases + (self.relative_position_bias_table_to_neighbors[0],)
        for level in range(self.pooled_levels):
            bias = ops.gather(self.relative_position_bias_table_to_windows[level], self.pooled_index[level], 1)
            biases = biases + (bias.reshape((self.num_heads, self.window_area, -1)),)  # [heads, N, side^2]
        bias = ops.concat(biases, -1) if len(biases) > 1 else biases[0]
        bias = bias.reshape((1, self.num_heads, self.window_area, self.num_keys))
        return bias + self.mask if self.masked else bias

    def original_buffers(self) -> dict[str, np.ndarray]:
        """Return the index buffers that the original keeps in its checkpoints, by local name."""
        ws = self.window_size
        buffers = {"relative_position_index": focal_windows.relative_positions(ws, ws)}
        if self.expand:
            token, roll = focal_windows.ring_tokens(ws, self.expand)
            quadrant = (roll[:, 0] < 0) * 2 + (roll[:, 1] < 0)
            buffers["valid_ind_rolled"] = quadrant * ws**2 + token
        for level in range(self.pooled_levels):
            side = focal_windows.pooled_side(self.focal_window, level)
            buffers[f"relative_position_index_{level}"] = focal_windows.relative_positions(ws, side)
            if level:
                kernel = side + 2**level - 1  # side of the unfolded square; its last `side` rows and columns are used
                used = np.arange(kernel) >= kernel - side
                buffers[f"valid_ind_unfold_{level}"] = np.flatnonzero(used[:, None] & used[None])
        return {name: buffer.astype(np.int64) for name, buffer in buffers.items()}


class FocalAttentionV2(GatheredAttention):
    """Attends to the tokens nearest to the window at each level (WindowAttention in focal_transformer_v2.py).

    Biases are a small MLP of the displacement from query to key, run once per distinct displacement.

    Args:
        map_size: (H, W) of the map, which windows tile.
        shift: rows and columns that the map is rolled by.
        levels: number of granularities; level 0 is the map itself.
        top_k: keys per window and level, at most.
    """

    has_bias = True

    def __init__(self, dim, map_size, window_size, shift, num_heads, levels, top_k, **options):
        super().__init__(dim, num_heads, **options)
        self.map_size = map_size
        self.window_size = window_size
        self.shift = shift
        self.levels = levels
        self.look_up = None
        head_dim = self.head_dim
        self.coord2rpb_all = nn.CellList(
            [nn.SequentialCell(Dense(2, head_dim), nn.ReLU(), Dense(head_dim, num_heads)) for _ in range(levels)]
        )
        # The tables are saved with the weights, under the official (misspelt) names: a window's keys were fixed when
        # the weights were trained, and ties at the K-th distance can be broken in more than one way.
        for level in range(levels):
            table = Tensor(focal_windows.nearest_keys(map_size, window_size, level, top_k))
            name = key_table_name(level)
            self.insert_param_to_cell(
                name, Parameter(table, name=name, requires_grad=False), check_name_contain_dot=False
            )
        self.adopt_key_tables()

    def key_tables(self) -> list[Parameter]:
        """Return the stored key table of each level: [nW, K_level] int32, indices into that level's tokens."""
        return [getattr(self, key_table_name(level)) for level in range(self.levels)]

    def adopt_key_tables(self):
        """Rebuild everything derived from the key tables. Call it after their values change.

        Raises:
            ValueError: a table does not fit the map.
        """
        keys, distinct, inverse = [], [], []
        for level, table in enumerate(self.key_tables()):
            index = table.asnumpy()
            values, places = focal_windows.displacements(index, self.map_size, self.window_size, level)
            distinct.append(Tensor(values))
            inverse.append(Tensor(places))
            if level == 0:
                position = np.stack(np.divmod(index, self.map_size[1]), axis=-1)
                keys.append(focal_windows.tokens_at(position, self.map_size, self.window_size, self.shift))
            else:
                keys.append(index + math.prod(self.map_size))
        self.distinct = tuple(distinct)
        self.inverse = tuple(inverse)
        own = focal_windows.window_positions(self.map_size, self.window_size)
        queries = focal_windows.tokens_at(own, self.map_size, self.window_size, self.shift)
        self.set_tables(queries, np.concatenate(keys, axis=1), math.prod(self.map_size))

    def construct(self, fine, tokens, dropout_seed=None):
        return self.attend(fine, tokens, dropout_seed)

    def key_groups(self):
        names = ["tokens near the window", "pooled tokens, one a window"]
        return [(name, table.shape[1]) for name, table in zip(names, self.key_tables(), strict=False)]

    def use_kernels(self, library):
        super().use_kernels(library)
        self.look_up = None
        if library is not None:
            first = np.cumsum([0, *(len(values) for values in self.distinct[:-1])])  # of each level in one table
            index = [places.asnumpy() + start for places, start in zip(self.inverse, first, strict=True)]
            self.look_up = CompiledPositionBias(library, np.concatenate(index, axis=-1), self.num_heads)

    def position_bias(self):
        """Compute the bias of every query-key pair, for every window: [nW, heads, N, K]."""
        tables = ()
        for level in range(self.levels):
            tables = tables + (self.coord2rpb_all[level](self.distinct[level]),)  # [D, heads]
        if self.look_up is not None and tables[0].dtype == ms.float32:
            return self.look_up(ops.concat(tables, 0) if self.levels > 1 else tables[0])
        biases = ()
        for level in range(self.levels):
            bias = ops.gather(tables[level].transpose((1, 0)), self.inverse[level], 1)  # [heads, nW, N, K_level]
            biases = biases + (bias,)
        bias = ops.concat(biases, -1) if self.levels > 1 else biases[0]
        return bias.transpose((1, 0, 2, 3))  # [nW, heads, N, K]

    def original_buffers(self) -> dict[str, np.ndarray]:
        """Return the displacement buffers that the original keeps in its checkpoints, by local name."""
        offset = np.arange(self.window_size) - self.window_size // 2
        buffers = {"window_coords": np.stack(np.meshgrid(offset, offset, indexing="ij"), axis=-1).astype(np.int64)}
        for level, (distinct, inverse) in enumerate(zip(self.distinct, self.inverse, strict=True)):
            buffers[f"topk_cloest_coords_{level}"] = distinct.asnumpy()[inverse.asnumpy()]  # [nW, N, K, 2]
        return buffers


def key_table_name(level: int) -> str:
    """Return the official name of the buffer with the key table of a level."""
    return f"topk_cloest_indice_{level}"


class WindowPool(nn.Cell, KernelLayer):
    """Pools the tokens of each part of a window into one token of a coarse level (pool_layers in the originals).

    The pooled tokens are put behind the others, in one matrix.

    "fc" weighs a part's tokens alike in every channel, "conv" each channel by itself, "mean" and "max" learn nothing.
    The original's 1/N initialisation of "fc" is overwritten by N(0, 0.02) afterwards; kept for fidelity.

    Args:
        part_index: [parts, area] the tokens of each part, see focal_windows.part_positions.
    """

    def __init__(self, pool, dim, part_index):
        super().__init__()
        self.pool = pool
        self.part_index = part_index
        self.parts, self.area = part_index.shape
        self.dim = dim
        self.pick = RowGather(part_index.T)  # first the first token of every part, then the second of every part, ...
        if pool == "fc":
            self.weight = Parameter(initializer(WEIGHT_INIT, (1, self.area), ms.float32), name="weight")
            self.bias = Parameter(initializer("zeros", (1,), ms.float32), name="bias")
        elif pool == "conv":
            side = math.isqrt(self.area)
            self.weight, self.bias = convolution_parameters(dim, 1, side)  # [C, 1, side, side], [C]
        self.matmul = ops.BatchMatMul()
        self.kernel = None

    def make_kernel(self, library):
        return CompiledWindowPool(library, self.part_index) if self.pool == "fc" else None

    def construct(self, tokens):
        """Put the pooled tokens behind tokens [B, T, C], of which they pool the first: [B, T + parts, C]."""
        if self.kernel is not None and tokens.dtype == ms.float32:
            return self.kernel(tokens, self.weight, self.bias)
        return ops.concat((tokens, self.pooled(tokens)), 1)

    def pooled(self, tokens):
        """Pool tokens [B, T, C] to [B, parts, C]."""
        tokens = self.pick(tokens)  # [B, area * parts, C]
        if self.pool == "fc":  # a product of matrices: 10 times as fast as weighing and summing
            tokens = tokens.reshape((-1, self.area, self.parts * self.dim))
            # Repeated for each sample, by a sum: ONNX has no OnesLike.
            weight = tokens[:, :1, :1] * 0 + self.weight.astype(tokens.dtype)  # [B, 1, area]
            return self.matmul(weight, tokens).reshape((-1, self.parts, self.dim)) + self.bias
        tokens = tokens.reshape((-1, self.area, self.parts, self.dim))
        if self.pool == "mean":
            return tokens.mean(1)
        if self.pool == "max":
            return ops.amax(tokens, 1)
        weight = self.weight.reshape((self.dim, self.area)).transpose((1, 0)).reshape((self.area, 1, self.dim))
        return (tokens * weight).sum(1) + self.bias


class FocalBlock(nn.Cell):
    """Applies attention and an MLP, each in a residual branch (FocalTransformerBlock in the original files)."""

    def __init__(
        self,
        dim,
        map_size,
        window_size,
        shift,
        attention,
        pool,
        pooled_levels,
        mlp_ratio,
        drop,
        drop_path,
        layerscale_value,
        index,
    ):
        """Create the layers. `index`: the block's number in the model; `layerscale_value` None: no layer scale."""
        super().__init__()
        self.map_size = map_size
        self.window_size = window_size
        self.shift = shift
        padded = focal_windows.padded_size(map_size, window_size)
        self.padded = padded != tuple(map_size)

        self.norm1 = LayerNorm(dim)
        self.attn = attention
        self.pool_layers = nn.CellList()
        for level in range(pooled_levels):
            position = focal_windows.part_positions(padded, window_size, level)
            part_index = focal_windows.tokens_at(position, map_size, window_size, shift)
            self.pool_layers.append(WindowPool(pool, dim, part_index))
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop, 4 * index + 2)
        self.drop_path1 = DropPath(drop_path, 2 * index)
        self.drop_path2 = DropPath(drop_path, 2 * index + 1)
        self.use_layerscale = layerscale_value is not None
        if self.use_layerscale:
            self.gamma_1 = Parameter(Tensor(np.full(dim, layerscale_value, np.float32)), name="gamma_1")
            self.gamma_2 = Parameter(Tensor(np.full(dim, layerscale_value, np.float32)), name="gamma_2")

    def focal_attention(self, x, dropout_seed):
        """Attend to a normalised map and its pooled levels, [B, L, C] to [B, L, C].

        Padding comes after the normalisation and is attended to, as in the original.
        """
        fine = with_padding_token(x) if self.padded else x
        tokens = fine
        for pool in self.pool_layers:
            tokens = pool(tokens)
        return self.attn(fine, tokens, dropout_seed)

    def construct(self, x, drop_path=None, dropout_seed=None):
        """Map tokens [B, L, C] to [B, L, C]."""
        branch = self.focal_attention(self.norm1(x), dropout_seed)
        if self.use_layerscale:
            branch = self.gamma_1 * branch
        x = self.drop_path1(x, branch, drop_path)
        branch = self.mlp(self.norm2(x), dropout_seed)
        if self.use_layerscale:
            branch = self.gamma_2 * branch
        return self.drop_path2(x, branch, drop_path)

    def original_buffers(self) -> dict[str, np.ndarray]:
        """Return the buffers that the original keeps in its checkpoints, by local name."""
        buffers = {f"attn.{name}": buffer for name, buffer in self.attn.original_buffers().items()}
        if self.shift:  # v2 stores the mask without using it
            buffers["attn_mask"] = focal_windows.shift_mask(self.map_size, self.window_size, self.shift)
        return buffers


class FocalStage(nn.Cell):
    """Runs the blocks of one resolution; holds the downsampling after them (BasicLayer in the original files)."""

    def __init__(self, blocks, downsample):
        super().__init__()
        self.blocks = nn.CellList(blocks)
        self.downsample = downsample

    def construct(self, x, drop_path=None, dropout_seed=None):
        """Map tokens [B, L, C] to [B, L, C]. The model does the downsampling: a pair would take longer to compile."""
        for block in self.blocks:
            x = block(x, drop_path, dropout_seed)
        return x


def check_focal_transformer(arguments: dict) -> None:
    """Refuse arguments of either version that cannot work.

    Raises:
        ArgumentError: names the argument and, where there is one, the nearest value that works.
    """
    a = arguments
    check_common_arguments(
        a,
        rates=("drop_rate", "attn_drop_rate", "drop_path_rate"),
        positive=("embed_dim", "window_size", "num_heads"),
        per_stage=("num_heads", "focal_levels"),
    )
    stages = len(a["depths"])
    if a["embed_dim"] * a["mlp_ratio"] < 1:
        raise ArgumentError("mlp_ratio", f"leaves {a['embed_dim']} channels no hidden ones, got {a['mlp_ratio']}")
    for stage in a["focal_stages"]:
        # The published default names four stages whatever the depths.
        if not 0 <= stage < max(stages, 4):
            raise ArgumentError("focal_stages", f"must number stages from 0, got {a['focal_stages']}")
    if a["focal_pool"] not in POOLS:
        raise ArgumentError("focal_pool", f"must be one of {', '.join(POOLS)}, got {a['focal_pool']!r}")
    if a["expand_layer"] not in ("all", "even", "odd"):
        raise ArgumentError("expand_layer", f"must be all, even or odd, got {a['expand_layer']!r}")
    if a["use_conv_embed"] and a["patch_size"] != 4:
        raise ArgumentError("patch_size", "use_conv_embed has a fixed stem of stride 4; patch_size must be 4")
    for stage in range(stages):
        dim, heads = a["embed_dim"] * 2**stage, a["num_heads"][stage]
        if dim % heads:
            raise ArgumentError("num_heads", f"stage {stage} has {dim} channels, which {heads} heads do not divide")


def check_focal_transformer_v1(arguments: dict) -> None:
    """Refuse arguments that the original v1 cannot run.

    Raises:
        ArgumentError: names the argument and, where there is one, the nearest value that works.
    """
    a = arguments
    check_focal_transformer(a)
    stages = len(a["depths"])
    for key in ("focal_windows", "expand_sizes"):
        if len(a[key]) < stages:
            raise ArgumentError(
                key, f"has {counted(len(a[key]), 'entry')} for the {counted(stages, 'stage')} of depths {a['depths']}"
            )
    maps = map_sizes(a)
    if maps is None:
        raise _img_size_error(a, "does not give the patch embeddings whole patches", lambda size: map_sizes(a, size))
    for stage, (map_size, pretrain_map) in enumerate(zip(maps, pretrain_maps(a), strict=True)):
        window = focal_windows.fit_window(pretrain_map, a["window_size"])
        levels = a["focal_levels"][stage]
        pooled = pooled_levels(a, stage)
        focal_window, expand = a["focal_windows"][stage], a["expand_sizes"][stage]
        if levels < 0 or window < 2 ** max(pooled - 1, 0):
            raise ArgumentError("focal_levels", f"stage {stage} cannot have {levels} with windows of {window}x{window}")
        if pooled and (focal_window < 1 or focal_window % 2 == 0):
            raise ArgumentError("focal_windows", f"must be odd (the original cannot run even ones), got {focal_window}")
        if expand < 0 or (window == a["window_size"] and expand > window):
            raise ArgumentError("expand_sizes", f"must be from 0 to the window's {window}, got {expand}")
        is_shifted = a["use_shift"] and a["depths"][stage] > 1 and min(pretrain_map) > a["window_size"] > 1
        if is_shifted and focal_windows.padded_size(map_size, window) != map_size:
            raise ArgumentError(
                "use_shift",
                f"the original cannot shift a padded map: stage {stage} has {map_size[0]}x{map_size[1]} tokens, which "
                f"{window}x{window} windows do not tile",
            )


def check_focal_transformer_v2(arguments: dict) -> None:
    """Refuse arguments with which the original v2 cannot run, or gives wrong results.

    Raises:
        ArgumentError: names the argument and, where there is one, the nearest value that works.
    """
    a = arguments
    check_focal_transformer(a)
    if a["focal_topK"] < 1:
        raise ArgumentError("focal_topK", f"must be at least 1, got {a['focal_topK']}")
    for stage in range(len(a["depths"])):
        levels = a["focal_levels"][stage]
        if not 1 <= levels <= 2:
            raise ArgumentError(
                "focal_levels",
                f"stage {stage} asks for {levels}; v2 has 1 or 2 levels (with more, the original gathers wrong tokens)",
            )
        if levels > 1 and not pooled_levels(a, stage):
            raise ArgumentError(
                "focal_pool" if stage in a["focal_stages"] else "focal_stages",
                f"stage {stage} has {levels} focal levels but no pooling to build the second from",
            )
    if not _tiled(a):
        window = a["window_size"]
        problem = f"does not give maps that {window}x{window} windows tile in every stage"
        raise _img_size_error(a, problem, lambda size: _tiled(a, size))


def _img_size_error(arguments, problem, works):
    """Make the error of an image size, which names the nearest that works: a rectangle for a rectangle, if possible."""
    size = image_size(arguments["img_size"])
    unit = arguments["patch_size"] * 2 ** (len(arguments["depths"]) - 1)
    candidates = [side for side in range(1, 2 * max(size) + unit * arguments["window_size"]) if works((side, side))]
    near = [min(candidates, key=lambda side: abs(side - wanted)) for wanted in size]
    nearest = near if near[0] != near[1] and works(tuple(near)) else max(near)
    return ArgumentError("img_size", f"{arguments['img_size']} {problem}; the nearest that does is {nearest}")


def pooled_levels(arguments: dict, stage: int) -> int:
    """Return the number of coarse levels of a stage: 0 where nothing pools."""
    pools = stage in arguments["focal_stages"] and arguments["focal_pool"] != "none"
    return max(arguments["focal_levels"][stage] - 1, 0) if pools else 0


def embedding(arguments: dict, is_stem: bool) -> tuple[int, int, int]:
    """Return (kernel, stride, padding) of the patch embeddings; with use_conv_embed the patches overlap."""
    if arguments["use_conv_embed"]:
        return (7, 4, 2) if is_stem else (3, 2, 1)
    patch = arguments["patch_size"] if is_stem else 2
    return patch, patch, 0


def extra_padding(arguments: dict, size: tuple[int, int], is_stem: bool) -> tuple[int, int]:
    """Return how many rows below and columns to the right an embedding's input, of this size, is padded by."""
    if not pads_to_whole_patches(arguments):
        return 0, 0
    stride = embedding(arguments, is_stem)[1]
    return -size[0] % stride, -size[1] % stride


def pads_to_whole_patches(arguments: dict) -> bool:
    """Tell whether every embedding's input is padded, below and to the right, with zeros to whole patches.

    Backbones of dense prediction do this, after mmdetection's Swin Transformer and FocalNet.
    """
    return arguments["out_indices"] is not None


def map_sizes(arguments: dict, image: tuple[int, int] | None = None) -> list[tuple[int, int]] | None:
    """Return (H, W) of every stage, or None where an embedding gives another map than the stage below it expects.

    Without padding to whole patches, the original cuts a remainder of less than a patch off; overlapping patches would
    make a token of it, and fail.
    """
    sizes: list[tuple[int, int]] = []
    size = image or image_size(arguments["img_size"])
    for stage in range(len(arguments["depths"])):
        kernel, stride, padding = embedding(arguments, stage == 0)
        if pads_to_whole_patches(arguments):
            size = focal_windows.padded_size(size, stride)
        embedded = [(side + 2 * padding - kernel) // stride + 1 for side in size]
        size = size[0] // stride, size[1] // stride
        if list(size) != embedded or min(size) < 1:
            return None
        sizes.append(size)
    return sizes


def pretrain_maps(arguments: dict, image: tuple[int, int] | None = None) -> list[tuple[int, int]]:
    """Return (H, W) of every stage at the size of pre-training, which decides windows, rings and shapes of tables.

    Args:
        image: (height, width) to use in place of img_size.

    Raises:
        ArgumentError: a size of pre-training without whole patches.
    """
    given = arguments["pretrain_size"]
    maps = map_sizes(arguments, image if given is None else image_size(given))
    if maps is None:
        raise ArgumentError("pretrain_size", f"{given} does not give the patch embeddings whole patches")
    return maps


def _tiled(arguments, image=None):
    """Tell whether whole windows tile the map of every stage."""
    unit = arguments["patch_size"] * 2 ** (len(arguments["depths"]) - 1)
    maps = map_sizes(arguments, image)
    if maps is None or any(side % unit for side in image or image_size(arguments["img_size"])):
        return False
    before = pretrain_maps(arguments, image)
    windows = [focal_windows.fit_window(map_size, arguments["window_size"]) for map_size in before]
    return all(side % window == 0 for map_size, window in zip(maps, windows, strict=True) for side in map_size)


@register_family("focal")
class FocalTransformer(Backbone):
    """Runs Focal Transformer v1: maps images [B, in_chans, H, W] float32 to logits [B, num_classes], or token maps.

    Arguments have the original constructor's names and defaults; build through `create_model`, which checks them.
    expand_stages is accepted because published configurations carry it, and is without effect, as in the original.

    As a backbone it has a LayerNorm `norm{i}` for each of its outputs, before the downsampling, and no other, like
    Swin Transformer's dense backbone, which the authors followed.

    Args:
        img_size: side of the square input, or (height, width), in pixels.
        pretrain_size: size of the images that the shapes of tables are for, None for img_size. At this size a window is
            no larger than its stage's map, and a stage whose short side one window covers has no ring.
        drop_path_rate: stochastic depth of the last branch; the rate grows linearly from 0 at the first.
        use_shift: roll every other block's map by half a window.
        focal_stages: stages with pooled levels.
        focal_levels: levels of granularity per stage; the first is the map itself.
        focal_windows: side of the square of windows seen at the first pooled level, per stage.
        expand_sizes: width of the ring of neighbours around the window, per stage.
        expand_layer: "even" ("odd") leaves the ring out in even (odd) blocks, "all" in none.
        use_checkpoint: recompute each block's activations in the backward pass, for less memory.
        out_indices: stages whose maps it gives, upwards; None: it classifies.
    """

    check = staticmethod(check_focal_transformer_v1)
    input_weight = "patch_embed.proj.weight"
    no_weight_decay = ("absolute_pos_embed", "relative_position_bias_table")
    # Buffers of the official files that follow from sizes alone.
    derived_buffers = re.compile(
        r"(^|\.)(relative_position_index(_\d+)?|valid_ind_rolled|valid_ind_unfold_\d+"
        r"|topk_cloest_coords_\d+|window_coords|attn_mask)$"
    )

    def __init__(
        self,
        img_size: int | list[int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 96,
        depths: list[int] = (2, 2, 6, 2),
        num_heads: list[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | bool | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        ape: bool = False,
        patch_norm: bool = True,
        use_checkpoint: bool = False,
        use_shift: bool = False,
        focal_stages: list[int] = (0, 1, 2, 3),
        focal_levels: list[int] = (1, 1, 1, 1),
        focal_windows: list[int] = (7, 5, 3, 1),
        focal_pool: str = "fc",
        expand_stages: list[int] = (0, 1, 2, 3),
        expand_sizes: list[int] = (3, 3, 3, 3),
        expand_layer: str = "all",
        use_conv_embed: bool = False,
        use_layerscale: bool = False,
        layerscale_value: float = 1e-4,
        use_pre_norm: bool = False,
        pretrain_size: int | list[int] | None = None,
        out_indices: list[int] | None = None,
    ):
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.build(arguments)

    def attention(self, arguments, stage, block):
        """Return the attention of a block as a constructor that still takes the arguments that both versions share."""
        a = arguments
        is_shrunk = min(pretrain_maps(a)[stage]) <= a["window_size"]  # one window covers the short side
        without_ring = {"even": 0, "odd": 1, "all": None}[a["expand_layer"]]
        has_ring = not is_shrunk and block % 2 != without_ring and a["focal_levels"][stage] > 0
        return partial(
            FocalAttentionV1,
            expand=a["expand_sizes"][stage] if has_ring else 0,
            focal_window=a["focal_windows"][stage],
            pooled_levels=pooled_levels(a, stage),
        )

    def build(self, arguments: dict) -> None:
        """Create all layers from the constructor's arguments."""
        a = self.arguments = arguments
        self.num_classes = a["num_classes"] if a["out_indices"] is None else None
        self.has_dropout = has_dropout(a)
        self.out_indices = None if a["out_indices"] is None else tuple(a["out_indices"])
        self.img_size = image_size(a["img_size"])
        self.pretrain_size = size_of_pretraining(a)
        self.in_chans = a["in_chans"]
        sizes = map_sizes(a)
        assert sizes is not None  # or the check would have refused the arguments
        self.depths = depths = tuple(a["depths"])
        embed_dim = a["embed_dim"]
        self.stage_maps = tuple(
            FeatureMap(embed_dim * 2**stage, a["patch_size"] * 2**stage, size) for stage, size in enumerate(sizes)
        )

        # Pre-norm never applies to the stem: a quirk of the original, kept for its weights.
        self.patch_embed = PatchEmbed(
            a["in_chans"],
            embed_dim,
            *embedding(a, is_stem=True),
            extra_padding=extra_padding(a, self.img_size, is_stem=True),
            norm=a["patch_norm"],
        )
        self.ape = a["ape"]
        if self.ape:
            self.ape_map = pretrain_maps(a)[0]
            shape = (1, math.prod(self.ape_map), embed_dim)
            self.absolute_pos_embed = Parameter(initializer(WEIGHT_INIT, shape, ms.float32), name="absolute_pos_embed")
            self.ape_is_resized = self.ape_map != sizes[0]
            self.ape_rows, self.ape_columns = (
                Tensor(position_tables.bicubic_weights(source, target).astype(np.float32))
                for source, target in zip(self.ape_map, sizes[0], strict=True)
            )
        self.pos_drop = Dropout(a["drop_rate"], 4 * sum(depths))

        block_rates = np.linspace(0, a["drop_path_rate"], sum(depths)).tolist()
        self.drop_path_rates = [rate for rate in block_rates for _ in range(2)]  # two branches a block
        layers = []
        for stage, map_size in enumerate(sizes):
            dim = embed_dim * 2**stage
            rates = block_rates[sum(depths[:stage]) :]
            blocks = [self.block(a, stage, i, map_size, rates[i]) for i in range(depths[stage])]
            if a["use_checkpoint"]:
                for block in blocks:
                    block.recompute()
            downsample = None
            if stage < len(depths) - 1:
                # Downsampling always normalises, whatever patch_norm says of the stem.
                downsample = PatchEmbed(
                    dim,
                    2 * dim,
                    *embedding(a, is_stem=False),
                    map_size=map_size,
                    extra_padding=extra_padding(a, map_size, is_stem=False),
                    pre_norm=a["use_pre_norm"],
                )
            layers.append(FocalStage(blocks, downsample))
        self.layers = nn.CellList(layers)
        if self.out_indices is None:
            self.norm = LayerNorm(dim)
            self.head = Dense(dim, a["num_classes"]) if a["num_classes"] else None
        else:
            for stage in self.out_indices:
                setattr(self, f"norm{stage}", LayerNorm(self.stage_maps[stage].channels))

    def block(self, arguments, stage, block, map_size, drop_path) -> FocalBlock:
        """Create one block of a stage."""
        a = arguments
        dim = a["embed_dim"] * 2**stage
        index = sum(a["depths"][:stage]) + block
        pretrain_map = pretrain_maps(a)[stage]
        window_size = focal_windows.fit_window(pretrain_map, a["window_size"])
        is_shifted = a["use_shift"] and block % 2 and min(pretrain_map) > a["window_size"]
        shift = a["window_size"] // 2 if is_shifted else 0
        attention = self.attention(a, stage, block)(
            dim,
            map_size,
            window_size,
            shift,
            a["num_heads"][stage],
            qkv_bias=a["qkv_bias"],
            qk_scale=a["qk_scale"],
            attn_drop=a["attn_drop_rate"],
            proj_drop=a["drop_rate"],
            index=4 * index,
        )
        return FocalBlock(
            dim,
            map_size,
            window_size,
            shift,
            attention,
            pool=a["focal_pool"],
            pooled_levels=pooled_levels(a, stage),
            mlp_ratio=a["mlp_ratio"],
            drop=a["drop_rate"],
            drop_path=drop_path,
            layerscale_value=a["layerscale_value"] if a["use_layerscale"] else None,
            index=index,
        )

    def stage_blocks(self, stage: int) -> nn.CellList:
        return self.layers[stage].blocks

    def position_embedding(self):
        """Return the absolute position embedding of the present map, [1, L, C].

        It is resized (bicubic) where the map is not that of pre-training, as in Swin Transformer's dense backbone.
        """
        embedding = self.absolute_pos_embed
        if not self.ape_is_resized:
            return embedding
        height, width = self.ape_map
        rows = ops.matmul(self.ape_rows, embedding.reshape((height, -1)))  # [H, width * C]
        maps = ops.matmul(self.ape_columns, rows.reshape((self.ape_rows.shape[0], width, -1)))  # [H, W, C]
        return maps.reshape((1, -1, embedding.shape[2]))

    def stage_outputs(self, images, drop_path=None, dropout_seed=None):
        """Map images to the tokens [B, H * W, C] of every stage, before norms and downsampling."""
        self.check_images(images)
        x = self.patch_embed(images)
        if self.ape:
            x = x + self.position_embedding()
        x = self.pos_drop(x, dropout_seed)
        maps = ()
        for layer in self.layers:
            x = layer(x, drop_path, dropout_seed)
            maps = maps + (x,)
            if layer.downsample is not None:
                x = layer.downsample(x)
        return maps

    def output_norm(self, stage, tokens):
        """Normalise a stage's tokens [B, L, C] by the norm of its output."""
        return getattr(self, "norm" + str(stage))(tokens)

    def logits(self, images, drop_path=None, dropout_seed=None):
        """Map images to logits [B, num_classes], from the mean of the last stage's tokens, or to that mean [B, C]."""
        features = self.norm(self.stage_outputs(images, drop_path, dropout_seed)[-1]).mean(1)
        return features if self.head is None else self.head(features)

    def block_index(self, name: str) -> int:
        """Return where a parameter or layer is, see Backbone; a downsampling belongs with the block before it."""
        kind, *place = name.split(".")
        if kind in ("patch_embed", "absolute_pos_embed", "pos_drop"):
            return 0
        if kind != "layers":
            return sum(self.depths) + 1
        stage = int(place[0])
        if place[1] == "blocks":
            return sum(self.depths[:stage]) + int(place[2]) + 1
        return sum(self.depths[: stage + 1])

    def resized(self, name: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
        """Resize a parameter from a model of another image or window size, by its official name, to its shape here.

        The result is None where the name is not a position's, or the shapes differ in more than size. A file does not
        say how high and wide its map was: see position_tables.resize_map.
        """
        rules = {
            r"\.relative_position_bias_table$": position_tables.resize_own_table,
            rf"\.{RING_TABLE}$": position_tables.resize_ring_table,
            r"\.relative_position_bias_table_to_windows\.\d+$": position_tables.resize_pooled_table,
            r"\.pool_layers\.\d+\.weight$": position_tables.resize_pool,
            r"^absolute_pos_embed$": lambda table, _: position_tables.resize_map(table, self.ape_map),
        }
        rule = next((rule for pattern, rule in rules.items() if re.search(pattern, name)), None)
        resized = rule(value.astype(np.float64), shape) if rule and value.ndim == len(shape) else None
        return None if resized is None or resized.shape != shape else resized.astype(np.float32)

    def is_optional(self, name: str, names) -> bool:
        """Tell whether a model of another image size, with these names, may do without the parameter.

        It may do without the ring's bias: a stage whose short side one window covers has no ring.
        """
        if not name.endswith(RING_TABLE):
            return False
        with_ring = {other.split(".")[1] for other in names if other.endswith(RING_TABLE)}
        return bool(with_ring) and name.split(".")[1] not in with_ring

    def is_derived_buffer(self, name: str) -> bool:
        return bool(self.derived_buffers.search(name))

    def original_buffers(self) -> dict[str, np.ndarray]:
        """Return the index buffers that follow from sizes and that the original saves, by the original's names."""
        return {
            f"layers.{stage}.blocks.{i}.{name}": buffer
            for stage, layer in enumerate(self.layers)
            for i, block in enumerate(layer.blocks)
            for name, buffer in block.original_buffers().items()
        }


@register_family("focalv2")
class FocalTransformerV2(FocalTransformer):
    """Runs Focal Transformer v2. It takes the arguments of v1, and

    Args:
        focal_topK: keys per window and level.

    The original accepts focal_windows, expand_stages, expand_sizes and expand_layer here too, because published
    configurations carry them, and ignores them; so does this.
    """

    check = staticmethod(check_focal_transformer_v2)
    no_weight_decay = ("absolute_pos_embed",)  # the MLPs of position biases do decay

    def __init__(self, focal_topK: int = 64, **arguments):
        self.focal_topK = focal_topK
        super().__init__(**arguments)
        self.arguments = self.arguments | {"focal_topK": focal_topK}

    def attention(self, arguments, stage, block):
        return partial(FocalAttentionV2, levels=arguments["focal_levels"][stage], top_k=self.focal_topK)

    def is_key_table(self, name: str) -> bool:
        """Tell whether an official name is that of a key table."""
        return ".topk_cloest_indice_" in name

    def fits_key_table(self, name: str, table: np.ndarray) -> bool:
        """Tell whether a table, by its official name, is of this model's image size: keys are as near as its own."""
        _, stage, _, block, _, local = name.split(".")
        attention = self.layers[int(stage)].blocks[int(block)].attn
        own = getattr(attention, local).asnumpy()
        return focal_windows.equally_near(
            own, table, attention.map_size, attention.window_size, level=int(local.rpartition("_")[2])
        )

    def adopt_key_tables(self):
        """Rebuild all that derives from the key tables, after a checkpoint brought its own."""
        for layer in self.layers:
            for block in layer.blocks:
                block.attn.adopt_key_tables()


# --- sizes: the YAML files of the official configs/ folder ---------------------------------------------------------

_FOCAL = {
    "window_size": 7,
    "focal_pool": "fc",
    "focal_levels": [2, 2, 2, 2],
    "focal_windows": [7, 5, 3, 1],
    "expand_sizes": [3, 3, 3, 3],
}

for _size, _embed_dim, _depths, _num_heads, _drop_path_rate in (
    ("tiny", 96, [2, 2, 6, 2], [3, 6, 12, 24], 0.2),
    ("small", 96, [2, 2, 18, 2], [3, 6, 12, 24], 0.3),
    ("base", 128, [2, 2, 18, 2], [4, 8, 16, 32], 0.5),
):
    _model = {
        **_FOCAL,
        "embed_dim": _embed_dim,
        "depths": _depths,
        "num_heads": _num_heads,
        "drop_path_rate": _drop_path_rate,
    }
    register_model(f"focal_{_size}_patch4_window7_224", "focal", **_model)
    register_model(f"focal_{_size}_useconv_patch4_window7_224", "focal", **_model, use_conv_embed=True)
    register_model(
        f"focalv2_{_size}_useconv_patch4_window7_224", "focalv2", **_model, use_conv_embed=True, focal_topK=128
    )

# Reconstructed: the official README reports results of a large model pre-trained on ImageNet-22K, but neither its files
# nor its configuration were published. Sizes follow the large model of Swin Transformer (arXiv 2103.14030).
_BASE = {**_FOCAL, "embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "drop_path_rate": 0.5}
_LARGE = {**_BASE, "embed_dim": 192, "num_heads": [6, 12, 24, 48]}
register_model("focal_large_patch4_window7_224", "focal", **_LARGE)
for _size, _model in (("base", _BASE), ("large", _LARGE)):
    register_model(f"focal_{_size}_patch4_window12_384", "focal", **{**_model, "img_size": 384, "window_size": 12})
