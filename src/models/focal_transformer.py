"""Focal Transformer v2 (arXiv 2107.00641), after the official focal_transformer_v2.py.

Reading order: attention, block, stage, model, sizes. Parameter names are the official ones, MindSpore's gamma and beta
aside, so official checkpoints load by name (src/weights.py).

The attention gathers. Each window's keys are rows of one token matrix (the fine tokens, then the pooled tokens of each
coarser level) chosen by a static table, so a block is two gathers, two batched products and one softmax, with static
shapes throughout; see focal_windows.py for the tables.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from src.models.focal_windows import displacements, nearest_keys, window_grid
from src.models.layers import WEIGHT_INIT, Conv2d, Dropout, DropPath, Mlp, dense, draw_drop_path, layer_norm
from src.models.registry import ArgumentError, register_family, register_model

POOLS = ("none", "mean", "max", "fc", "conv")


class QKVProjection(nn.Cell):
    """Queries from one set of tokens, keys and values from another, by thirds of one weight.

    The weight is sliced rather than the product: slicing q, k and v out of one activation took 24% of inference time
    in a prototype, and pooled tokens need no queries.
    """

    def __init__(self, dim, has_bias=True):
        super().__init__()
        self.dim = dim
        self.weight = Parameter(initializer(WEIGHT_INIT, (3 * dim, dim), ms.float32), name="weight")
        self.has_bias = has_bias
        if has_bias:
            self.bias = Parameter(initializer("zeros", (3 * dim,), ms.float32), name="bias")
        self.matmul = ops.MatMul(transpose_b=True)

    def project(self, rows, third):
        """rows [R, C] times one third of the weight: [R, C]."""
        start = third * self.dim
        # Mixed precision casts parameters, not slices of them: the slices follow the activations.
        projected = self.matmul(rows, self.weight[start : start + self.dim].astype(rows.dtype))
        if self.has_bias:
            projected = projected + self.bias[start : start + self.dim].astype(rows.dtype)
        return projected

    def construct(self, query_tokens, key_tokens):
        """[B, L, C] and [B, T, C] to q [B*L, C] and k, v [B, T, C]."""
        key_rows = key_tokens.reshape((-1, self.dim))
        q = self.project(query_tokens.reshape((-1, self.dim)), 0)
        k = self.project(key_rows, 1).reshape(key_tokens.shape)
        v = self.project(key_rows, 2).reshape(key_tokens.shape)
        return q, k, v


class FocalAttention(nn.Cell):
    """Window attention over the keys nearest to the window at each level (WindowAttention in the original file).

    Args:
        map_size: (H, W) of the stage, tiled by whole windows.
        focal_level: number of granularities; level 0 is the map itself.
        top_k: keys per window and level, at most.
    """

    def __init__(
        self, dim, map_size, window_size, num_heads, focal_level, top_k, qkv_bias, qk_scale, attn_drop, proj_drop, index
    ):
        super().__init__()
        head_dim = dim // num_heads
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.window_area = window_size * window_size
        self.num_windows = math.prod(window_grid(map_size, window_size))
        self.map_size = map_size
        self.window_size = window_size
        self.focal_level = focal_level
        self.scale = float(qk_scale or head_dim**-0.5)  # the original's configs carry qk_scale: False

        self.qkv = QKVProjection(dim, qkv_bias)
        self.proj = dense(dim, dim)
        self.attn_drop = Dropout(attn_drop, index)
        self.proj_drop = Dropout(proj_drop, index + 1)
        self.coord2rpb_all = nn.CellList(
            [nn.SequentialCell(dense(2, head_dim), nn.ReLU(), dense(head_dim, num_heads)) for _ in range(focal_level)]
        )
        # The tables are saved with the weights, under the official (misspelt) names: which keys a window sees was
        # fixed when the weights were trained, and ties at the K-th distance can be broken in more than one way.
        for level in range(focal_level):
            table = Tensor(nearest_keys(map_size, window_size, level, top_k))
            name = key_table_name(level)
            self.insert_param_to_cell(
                name, Parameter(table, name=name, requires_grad=False), check_name_contain_dot=False
            )
        self.adopt_key_tables()

        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()

    def key_tables(self) -> list[Parameter]:
        """The stored key table of each level: [nW, K_level] int32, indices into that level's tokens."""
        return [getattr(self, key_table_name(level)) for level in range(self.focal_level)]

    def adopt_key_tables(self):
        """Rebuild everything derived from the key tables. Call after their values change.

        Raises:
            ValueError: a table does not fit the map.
        """
        key_index, distinct, inverse = [], [], []
        offset = 0
        for level, table in enumerate(self.key_tables()):
            index = table.asnumpy()
            values, places = displacements(index, self.map_size, self.window_size, level)
            distinct.append(Tensor(values))
            inverse.append(Tensor(places))
            key_index.append(index + offset)
            offset += math.prod(self.map_size) if level == 0 else self.num_windows
        self.distinct = tuple(distinct)
        self.inverse = tuple(inverse)
        self.num_keys = sum(index.shape[1] for index in key_index)
        self.key_index = Tensor(np.concatenate(key_index, axis=1).reshape(-1).astype(np.int32))

    def position_bias(self):
        """Bias of every query-key pair, [nW, heads, N, K]: an MLP of displacements, run once per distinct one."""
        biases = ()
        for level in range(self.focal_level):
            values = self.coord2rpb_all[level](self.distinct[level])  # [D, heads]
            bias = ops.gather(values.transpose((1, 0)), self.inverse[level], 1)  # [heads, nW, N, K_level]
            biases = biases + (bias,)
        bias = ops.concat(biases, -1) if self.focal_level > 1 else biases[0]
        return bias.transpose((1, 0, 2, 3))  # [nW, heads, N, K]

    def gather_heads(self, tokens):
        """Keys or values of every window: [B, T, C] to [B*nW, heads, K, head_dim]."""
        rows = ops.gather(tokens, self.key_index, 1)  # [B, nW*K, C]
        rows = rows.reshape((-1, self.num_keys, self.num_heads, self.head_dim))  # [B*nW, K, heads, head_dim]
        return rows.transpose((0, 2, 1, 3))

    def construct(self, windows, tokens, dropout_seed=None):
        """windows [B*nW, N, C], tokens [B, T, C] (every level in turn) to windows [B*nW, N, C]."""
        q, k, v = self.qkv(windows, tokens)
        q = (q * self.scale).reshape((-1, self.window_area, self.num_heads, self.head_dim)).transpose((0, 2, 1, 3))
        scores = self.scores(q, self.gather_heads(k))  # [B*nW, heads, N, K]
        # [B, nW, heads, N, K]
        scores = scores.reshape((-1, self.num_windows, self.num_heads, self.window_area, self.num_keys))
        weights = ops.softmax(scores + self.position_bias(), -1)
        weights = self.attn_drop(weights, dropout_seed)
        weights = weights.reshape((-1, self.num_heads, self.window_area, self.num_keys)).astype(v.dtype)
        out = self.mix(weights, self.gather_heads(v))  # [B*nW, heads, N, head_dim]
        out = out.transpose((0, 2, 1, 3)).reshape((-1, self.window_area, self.dim))  # [B*nW, N, C]
        return self.proj_drop(self.proj(out), dropout_seed)


def key_table_name(level: int) -> str:
    """Official name of the buffer with the key table of a level."""
    return f"topk_cloest_indice_{level}"


class WindowPool(nn.Cell):
    """One token per window (pool_layers in the original block): [B, nW, N, C] to [B, nW, C].

    "fc" weighs the window's tokens alike in every channel, "conv" each channel by itself, "mean" and "max" learn
    nothing. The original's 1/N initialisation of "fc" is overwritten by N(0, 0.02) afterwards; kept for fidelity.
    """

    def __init__(self, pool, dim, window_area):
        super().__init__()
        self.pool = pool
        window_size = math.isqrt(window_area)
        if pool == "fc":
            self.weight = Parameter(initializer(WEIGHT_INIT, (1, window_area), ms.float32), name="weight")
            self.bias = Parameter(initializer("zeros", (1,), ms.float32), name="bias")
        elif pool == "conv":
            depthwise = Conv2d(1, dim, window_size, stride=window_size)
            self.weight, self.bias = depthwise.weight, depthwise.bias  # [C, 1, window_size, window_size], [C]
        self.dim = dim
        self.window_area = window_area

    def construct(self, windows):
        if self.pool == "mean":
            return windows.mean(2)
        if self.pool == "max":
            return ops.amax(windows, 2)
        if self.pool == "fc":
            weight = self.weight.reshape((self.window_area, 1))
        else:
            weight = self.weight.reshape((self.dim, self.window_area)).transpose((1, 0))  # [N, C]
        return (windows * weight).sum(2) + self.bias


class FocalBlock(nn.Cell):
    """Attention and MLP, each with a residual branch (FocalTransformerBlock in the original file)."""

    def __init__(
        self,
        dim,
        map_size,
        num_heads,
        window_size,
        shift_size,
        mlp_ratio,
        qkv_bias,
        qk_scale,
        drop,
        attn_drop,
        drop_path,
        pool,
        focal_level,
        top_k,
        layerscale_value,
        index,
    ):
        """`index` is the block's place in the model; `layerscale_value` None means no layer scale."""
        super().__init__()
        height, width = map_size
        if min(map_size) <= window_size:  # one window covers the short side: nothing to shift
            window_size, shift_size = min(map_size), 0
        rows, columns = window_grid(map_size, window_size)
        self.shape = (-1, height, width, dim)
        self.split_shape = (-1, rows, window_size, columns, window_size * dim)
        self.merge_shape = (-1, rows, columns, window_size, window_size * dim)
        self.window_shape = (-1, window_size * window_size, dim)
        self.pool_shape = (-1, rows * columns, window_size * window_size, dim)
        self.token_shape = (-1, height * width, dim)
        self.shift_size = shift_size

        self.norm1 = layer_norm(dim)
        self.attn = FocalAttention(
            dim, map_size, window_size, num_heads, focal_level, top_k, qkv_bias, qk_scale, attn_drop, drop, 4 * index
        )
        self.pool_layers = nn.CellList([WindowPool(pool, dim, window_size**2) for _ in range(focal_level - 1)])
        self.norm2 = layer_norm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop, 4 * index + 2)
        self.drop_path1 = DropPath(drop_path, 2 * index)
        self.drop_path2 = DropPath(drop_path, 2 * index + 1)
        self.use_layerscale = layerscale_value is not None
        if self.use_layerscale:
            self.gamma_1 = Parameter(Tensor(np.full(dim, layerscale_value, np.float32)), name="gamma_1")
            self.gamma_2 = Parameter(Tensor(np.full(dim, layerscale_value, np.float32)), name="gamma_2")

    def attend(self, x, dropout_seed):
        """Focal attention over a normalised map, [B, L, C] to [B, L, C]."""
        if self.shift_size:
            x = roll(x.reshape(self.shape), -self.shift_size).reshape(self.token_shape)
        # [B, rows, ws, columns, ws*C] to [B, rows, columns, ws, ws*C]: whole rows of a window move together
        windows = x.reshape(self.split_shape).transpose((0, 1, 3, 2, 4))
        tokens = x
        for pool in self.pool_layers:
            tokens = ops.concat((tokens, pool(windows.reshape(self.pool_shape))), 1)  # [B, L + nW, C]
        windows = self.attn(windows.reshape(self.window_shape), tokens, dropout_seed)
        x = windows.reshape(self.merge_shape).transpose((0, 1, 3, 2, 4)).reshape(self.token_shape)
        if self.shift_size:
            x = roll(x.reshape(self.shape), self.shift_size).reshape(self.token_shape)
        return x

    def construct(self, x, drop_path=None, dropout_seed=None):
        """[B, L, C] to [B, L, C]."""
        branch = self.attend(self.norm1(x), dropout_seed)
        if self.use_layerscale:
            branch = self.gamma_1 * branch
        x = x + self.drop_path1(branch, drop_path)
        branch = self.mlp(self.norm2(x), dropout_seed)
        if self.use_layerscale:
            branch = self.gamma_2 * branch
        return x + self.drop_path2(branch, drop_path)


def roll(maps, shift):
    """Cyclic shift of [B, H, W, C] by `shift` rows and columns, by slices (MindSpore's Roll has no CPU kernel)."""
    maps = ops.concat((maps[:, -shift:], maps[:, :-shift]), 1)
    return ops.concat((maps[:, :, -shift:], maps[:, :, :-shift]), 2)


class PatchEmbed(nn.Cell):
    """Stem and downsampling between stages: convolution, then LayerNorm (PatchEmbed in the original file).

    Takes [B, C, H, W] and returns tokens [B, L, embed_dim]. With `use_conv_embed` the patches overlap: kernel 7, stride
    4, padding 2 in the stem, and kernel 3, stride 2, padding 1 between stages.
    """

    def __init__(self, in_chans, embed_dim, patch_size, use_conv_embed, is_stem, norm, pre_norm, conv_implementation):
        super().__init__()
        if use_conv_embed:
            kernel_size, stride, padding = (7, 4, 2) if is_stem else (3, 2, 1)
        else:
            kernel_size, stride, padding = patch_size, patch_size, 0
        self.pre_norm = nn.GroupNorm(1, in_chans, eps=1e-5) if pre_norm else None
        self.proj = Conv2d(in_chans, embed_dim, kernel_size, stride, padding, conv_implementation)
        self.norm = layer_norm(embed_dim) if norm else None

    def construct(self, x):
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        x = self.proj(x)
        if self.norm is not None:
            x = self.norm(x)
        return x


class FocalStage(nn.Cell):
    """The blocks of one resolution and the downsampling after them (BasicLayer in the original file)."""

    def __init__(self, blocks, map_size, downsample):
        super().__init__()
        self.blocks = nn.CellList(blocks)
        self.map_size = map_size
        self.downsample = downsample

    def construct(self, x, drop_path=None, dropout_seed=None):
        """[B, L, C] to [B, L / 4, 2C], or [B, L, C] in the last stage."""
        for block in self.blocks:
            x = block(x, drop_path, dropout_seed)
        if self.downsample is not None:
            channels = x.shape[-1]
            x = x.transpose((0, 2, 1)).reshape((-1, channels, self.map_size[0], self.map_size[1]))  # [B, C, H, W]
            x = self.downsample(x)
        return x


def check_focal_transformer_v2(arguments: dict) -> None:
    """Refuse arguments that the original cannot run, or runs into wrong results with.

    Raises:
        ArgumentError: names the argument and, where there is one, the nearest value that works.
    """
    a = arguments
    stages = len(a["depths"])
    if not stages or min(a["depths"]) < 1:
        raise ArgumentError("depths", f"must be the number of blocks of each stage, at least 1, got {a['depths']}")
    if not isinstance(a["img_size"], int) and len(a["img_size"]) != 2:
        raise ArgumentError("img_size", f"must be one side or [height, width], got {a['img_size']}")
    if a["mlp_ratio"] <= 0:
        raise ArgumentError("mlp_ratio", f"must be above 0, got {a['mlp_ratio']}")
    for key in ("num_heads", "focal_levels"):
        if len(a[key]) != stages:
            raise ArgumentError(key, f"has {len(a[key])} entries for the {stages} stages of depths {a['depths']}")
    for key in ("img_size", "patch_size", "in_chans", "embed_dim", "window_size", "focal_topK"):
        if min(a[key] if isinstance(a[key], list | tuple) else [a[key]]) < 1:
            raise ArgumentError(key, f"must be at least 1, got {a[key]}")
    if a["num_classes"] < 1:
        raise ArgumentError("num_classes", f"must be at least 1, got {a['num_classes']}")
    for key in ("drop_rate", "attn_drop_rate", "drop_path_rate"):
        if not 0 <= a[key] < 1:
            raise ArgumentError(key, f"must be in [0, 1), got {a[key]}")
    if a["focal_pool"] not in POOLS:
        raise ArgumentError("focal_pool", f"must be one of {', '.join(POOLS)}, got {a['focal_pool']!r}")
    if a["expand_layer"] not in ("all", "even", "odd"):
        raise ArgumentError("expand_layer", f"must be all, even or odd, got {a['expand_layer']!r}")
    if a["use_conv_embed"] and a["patch_size"] != 4:
        raise ArgumentError("patch_size", "use_conv_embed has a fixed stem of stride 4; patch_size must be 4")

    unit = a["patch_size"] * 2 ** (stages - 1)
    for stage in range(stages):
        dim, heads = a["embed_dim"] * 2**stage, a["num_heads"][stage]
        if heads < 1 or dim % heads:
            raise ArgumentError("num_heads", f"stage {stage} has {dim} channels, which {heads} heads do not divide")
        levels = a["focal_levels"][stage]
        if not 1 <= levels <= 2:
            raise ArgumentError(
                "focal_levels",
                f"stage {stage} asks for {levels}; v2 has 1 or 2 levels (with more, the original gathers wrong tokens)",
            )
        pooled = stage in a["focal_stages"] and a["focal_pool"] != "none"
        if levels > 1 and not pooled:
            raise ArgumentError(
                "focal_pool" if stage in a["focal_stages"] else "focal_stages",
                f"stage {stage} has {levels} focal levels but no pooling to build the second from",
            )
    image = image_size(a["img_size"])
    if not _tiled(image, a):
        window = a["window_size"]
        candidates = [side for side in range(1, 2 * max(image) + unit * window) if _tiled((side, side), a)]
        nearest = min(candidates, key=lambda side: abs(side - max(image)))
        raise ArgumentError(
            "img_size",
            f"{a['img_size']} does not give maps that {window}x{window} windows tile in every stage; "
            f"the nearest that does is {nearest}",
        )


def _tiled(image, arguments):
    """Whether whole windows tile the map of every stage; a window larger than a map shrinks to its short side."""
    for stage in range(len(arguments["depths"])):
        unit = arguments["patch_size"] * 2**stage
        map_size = [side // unit for side in image]
        if any(side % unit for side in image) or min(map_size) < 1:
            return False
        window = min(arguments["window_size"], *map_size)
        if any(side % window for side in map_size):
            return False
    return True


def image_size(img_size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an img_size argument."""
    return (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)


@register_family("focalv2", check_focal_transformer_v2)
class FocalTransformerV2(nn.Cell):
    """Focal Transformer v2: images [B, in_chans, H, W] float32 to logits [B, num_classes].

    Arguments have the original constructor's names and defaults. Those that the original accepts and ignores are
    accepted because published configurations carry them, and are without effect: focal_windows, expand_stages,
    expand_sizes, expand_layer.

    Args:
        img_size: side of the square input, or (height, width), in pixels.
        drop_path_rate: stochastic depth of the last branch; the rate grows linearly from 0 at the first.
        focal_stages: stages with a pooled level.
        focal_levels: levels of granularity per stage, 1 or 2.
        focal_topK: keys per window and level.
        use_checkpoint: recompute each block's activations in the backward pass, for less memory.
        conv_implementation: "unfold" or "conv2d", see layers.Conv2d.

    Raises:
        ArgumentError: arguments that cannot work; see check_focal_transformer_v2.
    """

    no_weight_decay = ("absolute_pos_embed",)  # beside 1-D parameters and biases; the MLPs of position biases do decay

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
        focal_topK: int = 64,
        focal_pool: str = "fc",
        expand_stages: list[int] = (0, 1, 2, 3),
        expand_sizes: list[int] = (3, 3, 3, 3),
        expand_layer: str = "all",
        use_conv_embed: bool = False,
        use_layerscale: bool = False,
        layerscale_value: float = 1e-4,
        use_pre_norm: bool = False,
        conv_implementation: str = "unfold",
    ):
        check_focal_transformer_v2(locals())
        super().__init__()
        height, width = image_size(img_size)
        self.num_classes = num_classes
        self.img_size = (height, width)
        self.in_chans = in_chans
        stages = len(depths)

        # Pre-norm never applies to the stem: a quirk of the original, kept for its weights.
        self.patch_embed = PatchEmbed(
            in_chans, embed_dim, patch_size, use_conv_embed, True, patch_norm, False, conv_implementation
        )
        map_size = (height // patch_size, width // patch_size)
        self.ape = ape
        if ape:
            self.absolute_pos_embed = Parameter(
                initializer(WEIGHT_INIT, (1, math.prod(map_size), embed_dim), ms.float32), name="absolute_pos_embed"
            )
        self.pos_drop = Dropout(drop_rate, 4 * sum(depths))

        block_rates = np.linspace(0, drop_path_rate, sum(depths)).tolist()
        self.drop_path_rates = [rate for rate in block_rates for _ in range(2)]  # two branches a block
        layers = []
        for stage in range(stages):
            dim = embed_dim * 2**stage
            first = sum(depths[:stage])
            blocks = [
                FocalBlock(
                    dim,
                    map_size,
                    num_heads[stage],
                    window_size,
                    shift_size=window_size // 2 if use_shift and i % 2 else 0,
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    qk_scale=qk_scale,
                    drop=drop_rate,
                    attn_drop=attn_drop_rate,
                    drop_path=block_rates[first + i],
                    pool=focal_pool if stage in focal_stages else "none",
                    focal_level=focal_levels[stage],
                    top_k=focal_topK,
                    layerscale_value=layerscale_value if use_layerscale else None,
                    index=first + i,
                )
                for i in range(depths[stage])
            ]
            if use_checkpoint:
                for block in blocks:
                    block.recompute()
            downsample = None
            if stage < stages - 1:
                # Downsampling always normalises, whatever patch_norm says of the stem.
                downsample = PatchEmbed(dim, 2 * dim, 2, use_conv_embed, False, True, use_pre_norm, conv_implementation)
            layers.append(FocalStage(blocks, map_size, downsample))
            map_size = (map_size[0] // 2, map_size[1] // 2)
        self.layers = nn.CellList(layers)
        self.norm = layer_norm(dim)
        self.head = dense(dim, num_classes)

    def draw_drop_path(self, generator: np.random.Generator, batch_size: int) -> Tensor | None:
        """Stochastic-depth scales for one training step, or None for a model without stochastic depth."""
        if not any(self.drop_path_rates):
            return None
        return Tensor(draw_drop_path(self.drop_path_rates, generator, batch_size))

    def forward_features(self, images, drop_path=None, dropout_seed=None):
        """Images to the mean of the last stage's normalised tokens, [B, C]."""
        x = self.patch_embed(images)
        if self.ape:
            x = x + self.absolute_pos_embed
        x = self.pos_drop(x, dropout_seed)
        for layer in self.layers:
            x = layer(x, drop_path, dropout_seed)
        return self.norm(x).mean(1)

    def construct(self, images, drop_path=None, dropout_seed=None):
        """Logits of a batch. Training passes the scales of draw_drop_path, and an int32 scalar to key dropout."""
        return self.head(self.forward_features(images, drop_path, dropout_seed))

    def adopt_key_tables(self):
        """Rebuild what derives from the key tables after a checkpoint brought its own."""
        for layer in self.layers:
            for block in layer.blocks:
                block.attn.adopt_key_tables()


# --- sizes: the YAML files of the official configs/ folder ---------------------------------------------------------

_V2 = {
    "use_conv_embed": True,
    "window_size": 7,
    "focal_pool": "fc",
    "focal_levels": [2, 2, 2, 2],
    "focal_windows": [7, 5, 3, 1],
    "expand_sizes": [3, 3, 3, 3],
    "focal_topK": 128,
}

for _size, _embed_dim, _depths, _num_heads, _drop_path_rate in (
    ("tiny", 96, [2, 2, 6, 2], [3, 6, 12, 24], 0.2),
    ("small", 96, [2, 2, 18, 2], [3, 6, 12, 24], 0.3),
    ("base", 128, [2, 2, 18, 2], [4, 8, 16, 32], 0.5),
):
    register_model(
        f"focalv2_{_size}_useconv_patch4_window7_224",
        "focalv2",
        embed_dim=_embed_dim,
        depths=_depths,
        num_heads=_num_heads,
        drop_path_rate=_drop_path_rate,
        **_V2,
    )
