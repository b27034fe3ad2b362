"""Gives a backbone's token maps as images of channels."""

from mindspore import nn

from focal_twins.models.backbones.backbone import Backbone


class FeatureMaps(nn.Cell):
    """Maps images [B, in_chans, *img_size] to a tuple of maps [B, channels, height, width], of fine to coarse stages.

    Attributes:
        channels, strides: of each map, in order; a stride is in pixels of the image.
        img_size: (height, width) of the images.
        preprocessing: turns images into the input; None where there is none (focal_twins.create_model sets it).
    """

    preprocessing = None

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone
        self.channels = tuple(stage.channels for stage in backbone.feature_maps)
        self.strides = tuple(stage.stride for stage in backbone.feature_maps)
        self.sizes = tuple(stage.size for stage in backbone.feature_maps)
        self.img_size = backbone.img_size

    def freeze(self, stages: int | None = None) -> None:
        """Exclude the first stages from training, or with None all of them; see Backbone."""
        self.backbone.freeze(stages)

    def construct(self, images):
        maps = ()
        tokens = self.backbone(images)
        for stage in range(len(tokens)):
            height, width = self.sizes[stage]
            channels_first = tokens[stage].transpose((0, 2, 1))  # [B, H * W, C] to [B, C, H * W]
            maps = maps + (channels_first.reshape((-1, self.channels[stage], height, width)),)
        return maps
