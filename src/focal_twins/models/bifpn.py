"""Defines BiFPN (arXiv 1911.09070) as Swin's configuration of RepPoints v2 has it, with GroupNorm after convolutions.

Source: necks/bifpn.py of SwinTransformer/Swin-Transformer-Object-Detection.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from focal_twins.models.backbones.backbone import FeatureMap
from focal_twins.models.level_layers import SharedConvNorm
from focal_twins.models.resize import MaxPool, NearestResize


class WeightedFusion(nn.Cell):
    """Adds maps up by learned weights, which are rectified and divided by their sum, and applies swish.

    Args:
        inputs: how many maps there are.
    """

    def __init__(self, inputs: int):
        super().__init__()
        self.inputs = inputs
        self.weights = Parameter(Tensor(np.ones((1, 1, 1, 1, inputs), np.float32)), name="weights")
        self.relu, self.sigmoid = ops.ReLU(), ops.Sigmoid()

    def construct(self, maps):
        """Map a tuple of tokens [B, L, C] to tokens [B, L, C]."""
        weights = self.relu(self.weights.reshape(-1))
        weights = (weights / (weights.sum() + 1e-4)).astype(maps[0].dtype)
        out = maps[0] * weights[0]
        for i in range(1, self.inputs):
            out = out + maps[i] * weights[i]
        return out * self.sigmoid(out)


def fused_conv(channels: int, size: tuple[int, int]) -> SharedConvNorm:
    """Create the 3x3 convolution behind a fusion."""
    return SharedConvNorm(channels, channels, 3, (size,), "xavier")


class SingleBiFPN(nn.Cell):
    """Passes over a pyramid once: from the deepest map up to the largest, and down again.

    On the way down a level takes the pooled level above, its own result of the way up, and its own input. The deepest
    level has no way up: it takes two maps.

    Args:
        maps: descriptions of the maps, from the largest on; each has half the side of the one before, rounded up.
        channels: of every map that it gives. Maps that have as many already are not convolved first.
    """

    def __init__(self, maps: Sequence[FeatureMap], channels: int):
        super().__init__()
        self.levels = len(maps)
        self.lateral_convs = nn.CellList(
            [
                nn.Identity()
                if m.channels == channels
                else SharedConvNorm(m.channels, channels, 1, (m.size,), "xavier")
                for m in maps
            ]
        )
        self.lateral_combine = nn.CellList([WeightedFusion(2) for _ in maps[:-1]])
        self.lateral_combine_conv = nn.CellList([fused_conv(channels, m.size) for m in maps[:-1]])
        self.out_combine = nn.CellList([*(WeightedFusion(3) for _ in maps[1:-1]), WeightedFusion(2)])
        self.out_combine_conv = nn.CellList([fused_conv(channels, m.size) for m in maps[1:]])
        self.enlarge = nn.CellList([NearestResize(below.size, above.size) for above, below in itertools.pairwise(maps)])
        self.shrink = nn.CellList([MaxPool(m.size, 3, 2, 1) for m in maps[:-1]])

    def construct(self, maps):
        """Map a tuple of tokens [B, H * W, C] to a tuple of tokens [B, H * W, channels] of the same maps."""
        last = self.levels - 1
        laterals = ()
        for i in range(self.levels):
            laterals = laterals + (self.lateral_convs[i](maps[i]),)
        x = laterals[last]
        ups = (x,)
        for i in range(last - 1, -1, -1):
            x = self.lateral_combine_conv[i](self.lateral_combine[i]((laterals[i], self.enlarge[i](x))))
            ups = (x, *ups)
        outputs = (x,)
        for i in range(last):
            joined = (self.shrink[i](x), ups[i + 1])
            if i + 1 < last:
                joined = (*joined, laterals[i + 1])
            x = self.out_combine_conv[i](self.out_combine[i](joined))
            outputs = (*outputs, x)
        return outputs


class BiFPN(nn.Cell):
    """Gives maps of equal channels, to which all maps of a backbone have contributed in several passes up and down.

    Levels beyond the backbone's maps start as its deepest map, pooled (3x3, stride 2) once for each.

    Args:
        maps: descriptions of the backbone's maps, from the largest on.
        channels: of every map that it gives, a multiple of 32, for the norms' groups.
        levels: how many maps it gives, at least as many as it takes.
        repeats: passes.

    Attributes:
        feature_maps: descriptions of the maps that it gives.
    """

    def __init__(self, maps: Sequence[FeatureMap], channels: int = 256, levels: int = 5, repeats: int = 2):
        super().__init__()
        maps, pools = list(maps), []
        self.extra_levels = levels - len(maps)
        for _ in range(self.extra_levels):
            deepest = maps[-1]
            pools.append(MaxPool(deepest.size, 3, 2, 1))
            maps.append(FeatureMap(deepest.channels, 2 * deepest.stride, pools[-1].size))
        self.pools = nn.CellList(pools)
        self.feature_maps = tuple(FeatureMap(channels, m.stride, m.size) for m in maps)
        self.bi_fpn = nn.CellList(
            [SingleBiFPN(maps if i == 0 else self.feature_maps, channels) for i in range(repeats)]
        )

    def construct(self, maps):
        """Map a tuple of tokens [B, H * W, C] to a tuple of `levels` tokens [B, H * W, channels]."""
        for i in range(self.extra_levels):
            maps = (*maps, self.pools[i](maps[len(maps) - 1]))
        for single in self.bi_fpn:
            maps = single(maps)
        return maps
