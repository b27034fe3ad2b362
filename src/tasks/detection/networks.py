"""Finds what a detector sees on images of any of the configured canvases."""

from collections.abc import Callable, Sequence

import numpy as np
from mindspore import Tensor, nn

from src.models.detectors.detector import Detector
from src.models.detectors.selection import Detections, SelectionRule, select_detections
from src.models.precision import apply_precision
from src.tasks.task import call_cell


def networks_by_canvas(
    model: Detector, network: nn.Cell, canvases: Sequence[tuple[int, int]], level: str
) -> dict[tuple[int, int], nn.Cell]:
    """Return the network of each canvas (H, W); all have the model's parameters.

    Args:
        network: the model in the run's precision, which takes images of the model's own size.
        level: the precision, see apply_precision.
    """
    return {size: network if size == model.img_size else apply_precision(model.at(size), level) for size in canvases}


class CanvasDetector:
    """Finds objects on images of any of the canvases.

    Args:
        networks: the network of each canvas (H, W), in evaluation mode.
        rule: how detections are selected of the networks' candidates.
        call: calls a cell with its inputs.
    """

    def __init__(
        self,
        networks: dict[tuple[int, int], nn.Cell],
        rule: SelectionRule,
        call: Callable[..., Tensor] = call_cell,
    ):
        self.networks, self.rule, self.call = networks, rule, call

    def __call__(self, images: np.ndarray, extents: np.ndarray) -> list[Detections]:
        """Return the detections of each image, in pixels of the canvas.

        Args:
            images: [B, C, H, W] float32. extents: [B, 2] int32, the height and width that each takes of the canvas.
        """
        network = self.networks[images.shape[2:]]
        candidates = self.call(network, Tensor(images), Tensor(extents)).asnumpy()
        return [
            select_detections(of_image, self.rule, tuple(extent))
            for of_image, extent in zip(candidates, extents.tolist(), strict=True)
        ]
