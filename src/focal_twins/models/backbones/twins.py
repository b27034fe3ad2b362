"""Defines Twins-PCPVT and Twins-SVT (arXiv 2104.13840), with parameter names of timm and the official repository.

Reading order: attentions, positional encoding, block, model, sizes. PCPVT attends globally in every block, to keys from
a map subsampled by a strided convolution; SVT alternates that with attention within windows.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from focal_twins.models.attention import GatheredAttention
from focal_twins.models.backbones.backbone import (
    Backbone,
    FeatureMap,
    check_common_arguments,
    has_dropout,
    image_size,
    size_of_pretraining,
)
from focal_twins.models.backbones.focal_windows import padded_size, tokens_at, window_positions
from focal_twins.models.compiled import NO_BIAS, CompiledAttention, KernelLayer
from focal_twins.models.convolutions import Conv2d, DepthwiseConv2d, PatchEmbed
from focal_twins.models.gathers import RowGather, with_padding_token
from focal_twins.models.layers import Dense, Dropout, DropPath, LayerNorm, Mlp, SlicedDense
from focal_twins.models.registry import ArgumentError, register_family, register_model

QUERIES_AT_A_TIME = 64  # of a kernel, at most, whose scores are to fit the cache
BLOCK_NORM_EPSILON = 1e-6  # of the norms in blocks and the final one; patch embeddings and subsampling have 1e-5


class LocallyGroupedAttention(GatheredAttention):
    """Attends within windows, "LSA" (paper section 3.2; LocallyGroupedAttn in timm).

    A map that windows do not tile is padded with zeros below and to the right, before the projections as in the
    original, so that padding is attended to with the projections' biases.

    Args:
        mask_padding: keep padding and map from attending to each other, as the official code for segmentation does. It
            does so where a map is padded below and to the right: with padding on one side alone its mask is void, and
            so it is here.
    """

    learns_bias = False  # which is a mask

    def __init__(self, dim, map_size, num_heads, window_size, attn_drop, proj_drop, index, mask_padding=False):
        super().__init__(dim, num_heads, attn_drop=attn_drop, proj_drop=proj_drop, index=index)
        padded = padded_size(map_size, window_size)
        self.padded = padded != tuple(map_size)
        own = tokens_at(window_positions(padded, window_size), map_size, window_size)
        kind = None
        self.has_bias = mask_padding and all(side != whole for side, whole in zip(map_size, padded, strict=True))
        if self.has_bias:
            inside = own < math.prod(map_size)  # [nW, N]
            masks = np.where(inside[:, :, None] == inside[:, None], 0, -1000).astype(np.float32)
            kinds, kind = np.unique(masks, axis=0, return_inverse=True)
            self.mask = Tensor(kinds[:, None])  # [kinds, 1, N, N]
        self.set_tables(own, own, math.prod(map_size), None if kind is None else kind.reshape(-1))

    def position_bias(self):
        """Return the mask that is added to the scores of each kind of window, [kinds, 1, N, N]."""
        return self.mask

    def tokens(self, x):
        """Return the tokens that windows consist of: [B, L, C], and a last token of padding where there is padding."""
        return with_padding_token(x) if self.padded else x

    def construct(self, x, dropout_seed=None):
        """Map tokens [B, L, C] to [B, L, C]."""
        tokens = self.tokens(x)
        return self.attend(tokens, tokens, dropout_seed)


class GlobalSubsampledAttention(nn.Cell, KernelLayer):
    """Attends from every token to a subsampled map, "GSA" (paper section 3.2; GlobalSubSampleAttn in timm)."""

    def __init__(self, dim, map_size, num_heads, sr_ratio, attn_drop, proj_drop, index):
        super().__init__()
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.queries = math.prod(map_size)
        self.sr_ratio = sr_ratio
        self.subsamples = sr_ratio > 1
        self.keys = math.prod(side // sr_ratio for side in map_size)
        if self.subsamples:
            self.sr = Conv2d(dim, dim, sr_ratio, sr_ratio, map_size=map_size, weights="fan_out")
            self.norm = LayerNorm(dim)
        self.q = Dense(dim, dim)
        self.kv = SlicedDense(dim, 2)
        self.proj = Dense(dim, dim)
        self.attn_drop = Dropout(attn_drop, index)
        self.proj_drop = Dropout(proj_drop, index + 1)
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()
        # On CPU a transpose holds twice its result for as long as the graph lives, and is slower than a gather.
        self.split_queries, self.split_keys = (
            RowGather(np.arange(tokens * num_heads).reshape(tokens, num_heads).T)
            for tokens in (self.queries, self.keys)
        )
        self.join_heads = RowGather(np.arange(num_heads * self.queries).reshape(num_heads, self.queries).T)
        self.kernel = None

    def make_kernel(self, library):
        groups = -(-self.queries // QUERIES_AT_A_TIME)
        count = -(-self.queries // groups)
        queries = np.arange(groups * count).reshape(groups, count)  # those from self.queries on are padding
        keys = np.tile(np.arange(self.keys), (groups, 1))
        kind = np.zeros(groups, np.int32)
        return CompiledAttention(
            library, queries, keys, kind, self.queries, self.dim, self.num_heads, self.scale, False
        )  # fmt: skip

    def heads_of(self, rows, split, length):
        """Split rows [B * length, C] into heads: [B, heads, length, head_dim]."""
        rows = rows.reshape((-1, length * self.num_heads, self.head_dim))
        return split(rows).reshape((-1, self.num_heads, length, self.head_dim))

    def subsampled(self, x):
        """Compute the tokens that serve as keys, as rows: [B, L, C] to [B * keys, C]."""
        if self.subsamples:
            x = self.norm(self.sr(x))  # [B, L / sr_ratio^2, C]
        return x.reshape((-1, self.dim))

    def attention_weights(self, x, rows):
        """Weigh keys for each query: tokens [B, L, C] and their `subsampled` to [B, heads, L, keys], which sum to 1."""
        q = self.heads_of(self.q(x) * self.scale, self.split_queries, self.queries)
        k = self.heads_of(self.kv(rows, 0), self.split_keys, self.keys)
        return ops.softmax(self.scores(q, k), -1)

    def construct(self, x, dropout_seed=None):
        """Map tokens [B, L, C] to [B, L, C]."""
        rows = self.subsampled(x)
        if self.kernel is not None and x.dtype == ms.float32 and not self.attn_drop.is_active():
            q = self.q.product(x).reshape(x.shape)
            kv = self.kv.product(rows).reshape((-1, self.keys, 2 * self.dim))
            out = self.kernel(q, kv, self.q.bias, self.kv.bias, NO_BIAS)
            return self.proj_drop(self.proj(out), dropout_seed)
        weights = self.attn_drop(self.attention_weights(x, rows), dropout_seed)
        v = self.heads_of(self.kv(rows, 1), self.split_keys, self.keys)
        out = self.mix(weights.astype(v.dtype), v)  # [B, heads, L, head_dim]
        out = self.join_heads(out.reshape((-1, self.num_heads * self.queries, self.head_dim)))
        out = out.reshape((-1, self.queries, self.dim))
        return self.proj_drop(self.proj(out), dropout_seed)


class PositionalEncoding(nn.Cell):
    """Adds to tokens a depthwise 3x3 convolution of their map, the conditional positional encoding PEG.

    Source: arXiv 2102.10882, section 3; PosConv in timm.
    """

    def __init__(self, dim, map_size):
        super().__init__()
        self.proj = nn.SequentialCell(DepthwiseConv2d(dim, map_size, 3))

    def construct(self, x):
        """Map tokens [B, L, C] to [B, L, C]."""
        return x + self.proj(x)


class TwinsBlock(nn.Cell):
    """Applies attention and an MLP, each in a residual branch (Block in timm)."""

    def __init__(self, dim, attention, mlp_ratio, drop, drop_path, index):
        """Create the layers; `index` is the block's number in the model."""
        super().__init__()
        self.norm1 = LayerNorm(dim, BLOCK_NORM_EPSILON)
        self.attn = attention
        self.norm2 = LayerNorm(dim, BLOCK_NORM_EPSILON)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop, 4 * index + 2)
        self.drop_path1 = DropPath(drop_path, 2 * index)
        self.drop_path2 = DropPath(drop_path, 2 * index + 1)

    def construct(self, x, drop_path=None, dropout_seed=None):
        """Map tokens [B, L, C] to [B, L, C]."""
        x = self.drop_path1(x, self.attn(self.norm1(x), dropout_seed), drop_path)
        return self.drop_path2(x, self.mlp(self.norm2(x), dropout_seed), drop_path)


def check_twins(arguments: dict) -> None:
    """Refuse arguments that cannot work.

    Raises:
        ArgumentError: names the argument and, where there is one, the nearest value that works.
    """
    a = arguments
    check_common_arguments(
        a,
        rates=("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"),
        positive=("embed_dims", "num_heads", "sr_ratios"),
        per_stage=("embed_dims", "num_heads", "mlp_ratios", "sr_ratios", "wss"),
    )
    stages = len(a["depths"])
    if min(dim * ratio for dim, ratio in zip(a["embed_dims"], a["mlp_ratios"], strict=True)) < 1:
        raise ArgumentError("mlp_ratios", f"leaves a stage no hidden channels, got {a['mlp_ratios']}")
    if a["wss"] is not None and min(a["wss"]) < 1:
        raise ArgumentError("wss", f"must be at least 1 (1 attends globally), got {a['wss']}")
    unit = a["patch_size"] * 2 ** (stages - 1)
    for side in image_size(a["img_size"]):
        # A backbone, like the original's, cuts a remainder of less than a patch off each map.
        if side < unit or (side % unit and a["out_indices"] is None):
            near = max(unit, round(side / unit) * unit)
            raise ArgumentError(
                "img_size", f"{a['img_size']} is not whole patches in every stage; the nearest that is is {near}"
            )
    for stage in range(stages):
        dim, heads, sr_ratio = a["embed_dims"][stage], a["num_heads"][stage], a["sr_ratios"][stage]
        if dim % heads:
            raise ArgumentError("num_heads", f"stage {stage} has {dim} channels, which {heads} heads do not divide")
        shortest = min(image_size(a["img_size"])) // (a["patch_size"] * 2**stage)
        if sr_ratio > shortest:
            raise ArgumentError("sr_ratios", f"stage {stage} cannot subsample a side of {shortest} by {sr_ratio}")


@register_family("twins")
class Twins(Backbone):
    """Runs Twins: maps images [B, in_chans, H, W] float32 to logits [B, num_classes], or to token maps.

    Arguments have timm's names and defaults; build through `create_model`, which checks them.

    As a backbone, after the official detection/gvt.py: SVT has a LayerNorm `norm_list.{i}` at the end of every stage,
    whose result the next one starts from too; PCPVT gives its maps as they are.

    Args:
        img_size: side of the square input, or (height, width), in pixels; for a classifier whole patches in every
            stage, for a backbone any: each patch embedding cuts off a remainder of less than a patch.
        pretrain_size: without effect: no parameter's shape depends on a size.
        sr_ratios: by how much the map is subsampled for keys and values, per stage.
        wss: window sizes per stage, used in every other block (SVT); 1 for global attention in all blocks of a stage,
            None in all stages (PCPVT).
        drop_rate: dropout before the head. pos_drop_rate: after each patch embedding. proj_drop_rate: after attention
            and in the MLP. attn_drop_rate: of attention weights.
        drop_path_rate: stochastic depth of the last branch; the rate grows linearly from 0 at the first.
        use_checkpoint: recompute each block's activations in the backward pass, for less memory.
        mask_padding: see LocallyGroupedAttention.
        out_indices: stages whose maps it gives, upwards; None: it classifies.
    """

    check = staticmethod(check_twins)
    input_weight = "patch_embeds.0.proj.weight"
    no_weight_decay = ("pos_block",)  # beside 1-D parameters and biases

    def __init__(
        self,
        img_size: int | list[int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dims: list[int] = (64, 128, 256, 512),
        num_heads: list[int] = (1, 2, 4, 8),
        mlp_ratios: list[float] = (4.0, 4.0, 4.0, 4.0),
        depths: list[int] = (3, 4, 6, 3),
        sr_ratios: list[int] = (8, 4, 2, 1),
        wss: list[int] | None = None,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        use_checkpoint: bool = False,
        mask_padding: bool = False,
        pretrain_size: int | list[int] | None = None,
        out_indices: list[int] | None = None,
    ):
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.arguments = arguments
        self.num_classes = num_classes if out_indices is None else None
        self.has_dropout = has_dropout(arguments)
        self.out_indices = None if out_indices is None else tuple(out_indices)
        self.img_size = image_size(img_size)
        self.pretrain_size = size_of_pretraining(arguments)
        self.in_chans = in_chans
        self.depths = tuple(depths)
        block_rates = np.linspace(0, drop_path_rate, sum(depths)).tolist()
        self.drop_path_rates = [rate for rate in block_rates for _ in range(2)]  # two branches a block

        patch_embeds, pos_drops, blocks, pos_blocks = [], [], [], []
        map_size, channels, patch = self.img_size, in_chans, patch_size
        stage_maps = []
        for stage, dim in enumerate(embed_dims):
            patch_embeds.append(
                PatchEmbed(
                    channels,
                    dim,
                    patch,
                    patch,
                    map_size=map_size if stage else None,
                    weights="fan_out",
                )
            )
            map_size = (map_size[0] // patch, map_size[1] // patch)
            stage_maps.append(FeatureMap(dim, patch_size * 2**stage, map_size))
            pos_drops.append(Dropout(pos_drop_rate, 4 * sum(depths) + stage))
            stage_blocks = []
            for i in range(depths[stage]):
                index = sum(depths[:stage]) + i
                drops = {"attn_drop": attn_drop_rate, "proj_drop": proj_drop_rate, "index": 4 * index}
                if wss is not None and wss[stage] > 1 and i % 2 == 0:
                    attention = LocallyGroupedAttention(
                        dim, map_size, num_heads[stage], wss[stage], **drops, mask_padding=mask_padding
                    )
                else:
                    attention = GlobalSubsampledAttention(dim, map_size, num_heads[stage], sr_ratios[stage], **drops)
                block = TwinsBlock(dim, attention, mlp_ratios[stage], proj_drop_rate, block_rates[index], index)
                if use_checkpoint:
                    block.recompute()
                stage_blocks.append(block)
            blocks.append(nn.CellList(stage_blocks))
            pos_blocks.append(PositionalEncoding(dim, map_size))
            channels, patch = dim, 2
        self.patch_embeds = nn.CellList(patch_embeds)
        self.pos_drops = nn.CellList(pos_drops)
        self.blocks = nn.CellList(blocks)
        self.pos_block = nn.CellList(pos_blocks)
        self.stage_maps = tuple(stage_maps)
        self.norm_list = None
        if self.out_indices is None:
            self.norm = LayerNorm(channels, BLOCK_NORM_EPSILON)
            self.head_drop = Dropout(drop_rate, 4 * sum(depths) + len(depths))
            self.head = Dense(channels, num_classes) if num_classes else None
        elif wss is not None:
            self.norm_list = nn.CellList([LayerNorm(dim, BLOCK_NORM_EPSILON) for dim in embed_dims])

    def block_index(self, name: str) -> int:
        """Return where a parameter or layer is, see Backbone.

        A patch embedding belongs with the last block of the stage before it, a positional encoding with the first block
        of its stage, which it follows.
        """
        kind, *place = name.split(".")
        if kind not in ("patch_embeds", "pos_drops", "blocks", "pos_block"):
            return sum(self.depths) + 1
        before = sum(self.depths[: int(place[0])])
        if kind == "blocks":
            return before + int(place[1]) + 1
        return before + (kind == "pos_block")

    def stage_blocks(self, stage: int) -> nn.CellList:
        return self.blocks[stage]

    def stage_outputs(self, images, drop_path=None, dropout_seed=None):
        """Map images to the tokens [B, H * W, C] of every stage."""
        self.check_images(images)
        x = images
        maps = ()
        for stage in range(len(self.blocks)):
            x = self.pos_drops[stage](self.patch_embeds[stage](x), dropout_seed)
            for i in range(len(self.blocks[stage])):
                x = self.blocks[stage][i](x, drop_path, dropout_seed)
                if i == 0:
                    x = self.pos_block[stage](x)
            if self.norm_list is not None:  # the next stage, too, starts from the normalised tokens
                x = self.norm_list[stage](x)
            maps = maps + (x,)
        return maps

    def logits(self, images, drop_path=None, dropout_seed=None):
        """Map images to logits [B, num_classes], from the mean of the last stage's tokens, or to that mean [B, C]."""
        features = self.norm(self.stage_outputs(images, drop_path, dropout_seed)[-1]).mean(1)
        return features if self.head is None else self.head(self.head_drop(features, dropout_seed))


# --- sizes: tables 3 and 4 of the paper --------------------------------------------------------------------------

for _size, _depths, _drop_path_rate in (
    ("small", [3, 4, 6, 3], 0.2),
    ("base", [3, 4, 18, 3], 0.3),
    ("large", [3, 8, 27, 3], 0.5),
):
    register_model(
        f"twins_pcpvt_{_size}",
        "twins",
        embed_dims=[64, 128, 320, 512],
        num_heads=[1, 2, 5, 8],
        mlp_ratios=[8.0, 8.0, 4.0, 4.0],
        depths=_depths,
        drop_path_rate=_drop_path_rate,
    )

for _size, _embed_dims, _num_heads, _depths, _drop_path_rate in (
    ("small", [64, 128, 256, 512], [2, 4, 8, 16], [2, 2, 10, 4], 0.2),
    ("base", [96, 192, 384, 768], [3, 6, 12, 24], [2, 2, 18, 2], 0.3),
    ("large", [128, 256, 512, 1024], [4, 8, 16, 32], [2, 2, 18, 2], 0.5),
):
    register_model(
        f"twins_svt_{_size}",
        "twins",
        embed_dims=_embed_dims,
        num_heads=_num_heads,
        depths=_depths,
        wss=[7, 7, 7, 7],
        drop_path_rate=_drop_path_rate,
    )
