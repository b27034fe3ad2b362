"""Defines UPerNet (arXiv 1807.10221) with an auxiliary FCN head, with names and defaults of the published models."""

import itertools

import numpy as np
from mindspore import nn

from focal_twins.models.backbones.backbone import Backbone
from focal_twins.models.convolutions import EnlargedConvolution
from focal_twins.models.network_on_backbone import check_several_maps
from focal_twins.models.pyramid import ConvNorm, PyramidConv, pooling_branches, same_conv
from focal_twins.models.registry import ArgumentError, register_family
from focal_twins.models.resize import BilinearResize, LeftProduct
from focal_twins.models.segmentors.segmentor import PixelClassifier, Segmentor, check_segmentor


class UPerHead(nn.Cell):
    """Joins a pyramid of maps: pooling on the deepest, a top-down path, and a convolution of all outputs together.

    Args:
        maps: the backbone's feature maps.
        channels: of every map within.
        pool_scales: bins along each side that the deepest map is averaged over.
    """

    def __init__(self, maps, channels, pool_scales, num_classes, background_share=0.0):
        super().__init__()
        *upper, deepest = maps
        sizes = [feature.size for feature in maps]
        self.levels = len(upper)
        self.pools = len(pool_scales)
        self.psp_modules = pooling_branches(deepest.channels, deepest.size, pool_scales, channels)
        pooled = [(channels, (bins, bins)) for bins in pool_scales]
        joined = [(deepest.channels, deepest.size), *pooled]
        self.bottleneck = ConvNorm(PyramidConv(joined, channels, 3, deepest.size))
        self.lateral_convs = nn.CellList([ConvNorm(same_conv(m.channels, channels, 1, m.size)) for m in upper])
        self.fpn_convs = nn.CellList([ConvNorm(same_conv(channels, channels, 3, m.size)) for m in upper])
        self.enlarge = nn.CellList([BilinearResize(below, above) for above, below in itertools.pairwise(sizes)])
        self.fpn_bottleneck = ConvNorm(PyramidConv([(channels, size) for size in sizes], channels, 3, sizes[0]))
        self.conv_seg = PixelClassifier(channels, num_classes, background_share)

    def products_of(self, part: tuple[int, int]) -> list[tuple[LeftProduct, np.ndarray]]:
        """Return the products of pyramid pooling, and the matrices by which it sees the top left part (h, w) alone."""
        products = []
        for branch, enlarged in zip(self.psp_modules, list(self.bottleneck.conv.parts)[1:], strict=True):
            products += branch[0].products_of(part)
            if isinstance(enlarged, EnlargedConvolution):  # as many bins as the map has places need none
                products += enlarged.products_of(part)
        return products

    def construct(self, maps):
        """Map a tuple of tokens to the tokens [B, H * W, channels] of the largest map, which conv_seg classifies."""
        deepest = maps[self.levels]
        joined = (deepest,)
        for i in range(self.pools):
            joined = joined + (self.psp_modules[i](deepest),)
        x = self.bottleneck(joined)
        outputs = (x,)  # the deepest passes unchanged, the others through a 3x3 convolution
        for level in range(self.levels - 1, -1, -1):
            x = self.lateral_convs[level](maps[level]) + self.enlarge[level](x)
            outputs = (self.fpn_convs[level](x), *outputs)
        return self.fpn_bottleneck(outputs)


class FCNHead(nn.Cell):
    """Convolves one map (3x3) before its classifier."""

    def __init__(self, feature, channels, num_classes, background_share=0.0):
        super().__init__()
        self.convs = nn.CellList([ConvNorm(same_conv(feature.channels, channels, 3, feature.size))])
        self.conv_seg = PixelClassifier(channels, num_classes, background_share)

    def construct(self, x):
        return self.convs[0](x)


def check_upernet(arguments: dict) -> None:
    """Refuse arguments that cannot work.

    Raises:
        ArgumentError: names the argument.
    """
    check_segmentor(arguments, ("channels", "auxiliary_channels"))
    scales = arguments["pool_scales"]
    if not scales or min(scales) < 1:
        raise ArgumentError("pool_scales", f"must be numbers of bins, at least 1, got {scales}")
    if arguments["auxiliary_weight"] < 0:
        raise ArgumentError("auxiliary_weight", f"must be at least 0, got {arguments['auxiliary_weight']}")


@register_family("upernet")
class UPerNet(Segmentor):
    """Runs UPerNet on a backbone. An FCN head on the last map but one helps it to learn.

    Args:
        channels: of every map of the decode head. pool_scales: see UPerHead.
        auxiliary_channels: of the FCN head. auxiliary_weight: factor of its loss; 0 builds none.
        dropout: probability that training drops a channel before the classifiers.
        background_share: where the classifiers' biases start, see PixelClassifier.
    """

    check = staticmethod(check_upernet)

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int = 150,
        channels: int = 512,
        pool_scales: list[int] = (1, 2, 3, 6),
        auxiliary_channels: int = 256,
        auxiliary_weight: float = 0.4,
        dropout: float = 0.1,
        background_share: float = 0.0,
    ):
        super().__init__(
            backbone,
            {
                "num_classes": num_classes,
                "channels": channels,
                "pool_scales": pool_scales,
                "auxiliary_channels": auxiliary_channels,
                "auxiliary_weight": auxiliary_weight,
                "dropout": dropout,
                "background_share": background_share,
            },
        )
        check_several_maps(backbone)
        maps = backbone.feature_maps
        self.decode_head = UPerHead(maps, channels, pool_scales, num_classes, background_share)
        heads = [("decode", 1.0, self.decode_head.conv_seg, maps[0].size)]
        self.has_auxiliary = auxiliary_weight > 0
        if self.has_auxiliary:
            self.auxiliary_head = FCNHead(maps[-2], auxiliary_channels, num_classes, background_share)
            heads.append(("auxiliary", auxiliary_weight, self.auxiliary_head.conv_seg, maps[-2].size))
        self.set_heads(heads)

    def decode_features(self, maps):
        return self.decode_head(maps)

    def auxiliary_logits(self, maps, channel_scales):
        if not self.has_auxiliary:
            return ()
        features = self.auxiliary_head(maps[len(maps) - 2])
        return (self.auxiliary_head.conv_seg(features, self.scales_of_head(1, channel_scales)),)

    def products_of(self, part):
        deepest = self.backbone.feature_maps[-1]
        height, width = (-(-side // deepest.stride) for side in part)
        return self.decode_head.products_of((min(height, deepest.size[0]), min(width, deepest.size[1])))

    def batch_caveat(self, batch_size, ranks):
        if batch_size * ranks > 1 or 1 not in self.arguments["pool_scales"]:
            return None
        return (
            "train.batch_size: with one image on one device, pooling to one bin leaves BatchNorm one value for each "
            "channel, which has no variance; there it normalises by its initial statistics"
        )
