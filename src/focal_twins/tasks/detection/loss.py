"""Computes the training loss of a detector on batches of any of the configured canvases."""

from collections.abc import Mapping

from mindspore import nn

from focal_twins.models.detectors.detector import Detector
from focal_twins.tasks.losses import Losses


class DetectionLosses(Losses):
    """Runs the network of the batch's canvas and computes the loss of its outputs, in float32.

    The networks of all canvases have the same parameters, and each canvas a graph of its own.

    Args:
        networks: for each canvas (H, W) the network, in the run's precision.
        models: the detectors that the networks are; they describe the loss, which may depend on the canvas.
    """

    def __init__(self, networks: Mapping[tuple[int, int], nn.Cell], models: Mapping[tuple[int, int], Detector]):
        super().__init__()
        self.canvases = tuple(networks)
        self.networks = nn.CellList(list(networks.values()), auto_prefix=False)
        model = next(iter(models.values()))
        self.names, self.weight_floors = model.loss_names, model.loss_floors
        self.losses = nn.CellList([models[size].loss() for size in self.canvases], auto_prefix=False)

    def construct(self, images, extents, *rest):
        """Return (sums [K], weights [K]); see Losses.

        Args:
            images: [B, C, H, W], of one of the canvases.
            extents: [B, 2] int32, the height and width that each image takes of the canvas.
            rest: the targets of the batch, then the drop-path scales, which are None without stochastic depth.
        """
        targets, drop_path = rest[:-1], rest[-1]
        for i in range(len(self.canvases)):  # the compiler keeps the branch of the images' shape
            if images.shape[2:] == self.canvases[i]:
                return self.losses[i](self.networks[i](images, extents, targets, drop_path), targets)
        raise ValueError(f"images of {images.shape[2:]} pixels fit none of the canvases {self.canvases}")
