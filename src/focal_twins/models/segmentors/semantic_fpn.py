"""Defines Semantic FPN (arXiv 1901.02446), with the names and defaults of the models that were published with Twins."""

import math
from collections import OrderedDict

from mindspore import nn

from focal_twins.models.backbones.backbone import Backbone
from focal_twins.models.network_on_backbone import check_several_maps
from focal_twins.models.pyramid import FPN, ConvNorm, EnlargingConv, same_conv
from focal_twins.models.registry import register_family
from focal_twins.models.resize import BilinearResize
from focal_twins.models.segmentors.segmentor import PixelClassifier, Segmentor, check_segmentor


class FPNHead(nn.Cell):
    """Convolves and doubles each map until all have the size of the largest, and adds them up.

    A map of twice the stride has one convolution and one doubling, of four times the stride two of each, and so on.
    All but the last doubling of a map are part of the convolution behind them.

    Args:
        maps: descriptions of the maps, from the largest on; all have `in_channels` channels.
    """

    def __init__(self, maps, in_channels, channels, num_classes, background_share=0.0):
        super().__init__()
        largest = maps[0]
        scale_heads, enlarge = [], []
        for feature in maps:
            doublings = round(math.log2(feature.stride / largest.stride))
            size, given = feature.size, in_channels
            # Named as in the originals, where a doubling stands behind every convolution.
            layers = OrderedDict({"0": ConvNorm(same_conv(given, channels, 3, size))})
            for i in range(1, doublings):
                doubled = (2 * size[0], 2 * size[1])
                layers[str(2 * i)] = ConvNorm(EnlargingConv(channels, channels, 3, size, doubled))
                size = doubled
            last = size if doublings == 0 else (2 * size[0], 2 * size[1])
            scale_heads.append(nn.SequentialCell(layers))
            # Where sides are odd, the doubled map is not of the size of the largest.
            enlarge.append(nn.SequentialCell([BilinearResize(size, last), BilinearResize(last, largest.size)]))
        self.scale_heads = nn.CellList(scale_heads)
        self.enlarge = nn.CellList(enlarge)
        self.conv_seg = PixelClassifier(channels, num_classes, background_share)

    def construct(self, maps):
        """Map a tuple of tokens to the tokens [B, H * W, channels] of the largest map, which conv_seg classifies."""
        x = self.scale_heads[0](maps[0])
        for i in range(1, len(self.scale_heads)):
            x = x + self.enlarge[i](self.scale_heads[i](maps[i]))
        return x


def check_semantic_fpn(arguments: dict) -> None:
    """Refuse arguments that cannot work.

    Raises:
        ArgumentError: names the argument.
    """
    check_segmentor(arguments, ("neck_channels", "channels"))


@register_family("semantic_fpn")
class SemanticFPN(Segmentor):
    """Runs Semantic FPN on a backbone.

    Args:
        neck_channels: of the feature pyramid. channels: of the head.
        dropout: probability that training drops a channel before the classifier.
        background_share: where the classifier's bias starts, see PixelClassifier.
    """

    check = staticmethod(check_semantic_fpn)

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int = 150,
        neck_channels: int = 256,
        channels: int = 128,
        dropout: float = 0.1,
        background_share: float = 0.0,
    ):
        super().__init__(
            backbone,
            {
                "num_classes": num_classes,
                "neck_channels": neck_channels,
                "channels": channels,
                "dropout": dropout,
                "background_share": background_share,
            },
        )
        check_several_maps(backbone)
        maps = backbone.feature_maps
        self.neck = FPN(maps, neck_channels)
        self.decode_head = FPNHead(maps, neck_channels, channels, num_classes, background_share)
        self.set_heads([("decode", 1.0, self.decode_head.conv_seg, maps[0].size)])

    def decode_features(self, maps):
        return self.decode_head(self.neck(maps))
