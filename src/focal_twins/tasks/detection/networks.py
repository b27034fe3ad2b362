"""Runs a detector on images of any of the configured canvases, each by a network of its own, and selects detections."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from mindspore import Tensor, nn

from focal_twins.models.detectors.detector import Detector
from focal_twins.models.detectors.selection import Detections, SelectionRule, select_detections
from focal_twins.models.precision import apply_precision
from focal_twins.tasks.task import call_cell


def models_by_canvas(model: Detector, canvases: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Detector]:
    """Return the detector of each canvas (H, W): the same parameters, with the anchors and map sizes of the canvas."""
    return {size: model.at(size) for size in canvases}


def in_precision(
    models: Mapping[tuple[int, int], Detector], model: Detector, network: nn.Cell, level: str
) -> dict[tuple[int, int], nn.Cell]:
    """Return the detectors of canvases in a precision.

    Args:
        models: see models_by_canvas; they are changed.
        network: `model` in the precision.
        level: the precision, see apply_precision.
    """
    return {size: network if other is model else apply_precision(other, level) for size, other in models.items()}


class CanvasDetector:
    """Finds objects on images of any of the canvases.

    Masks are drawn for the detections alone, so by a second graph, after these were selected. The networks of the
    canvases are kept from one evaluation to the next: their weights are those of the one that is evaluated.

    Args:
        model: the detector in float32, of which networks of other canvases are made.
        canvases: (H, W) of each.
        level: the precision of the networks, see apply_precision.
        rule: how detections are selected of the networks' candidates.
    """

    def __init__(self, model: Detector, canvases: Sequence[tuple[int, int]], level: str, rule: SelectionRule):
        self.model, self.level, self.rule = model, level, rule
        self.models = models_by_canvas(model, canvases)
        self.network: nn.Cell | None = None
        self.networks: dict[tuple[int, int], nn.Cell] = {}
        self.draw_masks = {}
        if model.has_masks:
            self.draw_masks = {
                size: apply_precision(other.mask_cell(), level).set_train(False) for size, other in self.models.items()
            }
        self.call: Callable[..., Tensor] = call_cell

    def with_network(self, network: nn.Cell, call: Callable[..., Tensor] = call_cell) -> "CanvasDetector":
        """Find objects by a network from now on.

        Args:
            network: the model in the run's precision.
            call: calls a cell with its inputs.
        """
        self.call = call
        if network is not self.network:
            self.network = network
            self.networks = in_precision(self.models, self.model, network, self.level)
        for other in self.networks.values():
            other.set_train(False)
        return self

    def __call__(self, images: np.ndarray, extents: np.ndarray) -> list[Detections]:
        """Return the detections of each image, in pixels of the canvas.

        Args:
            images: [B, C, H, W] float32. extents: [B, 2] int32, the height and width that each takes of the canvas.
        """
        canvas = images.shape[2], images.shape[3]
        outputs = self.call(self.networks[canvas], Tensor(images), Tensor(extents))
        candidates, pyramid = outputs if self.model.has_masks else (outputs, None)
        found = [
            select_detections(of_image, self.rule, tuple(extent))
            for of_image, extent in zip(candidates.asnumpy(), extents.tolist(), strict=True)
        ]
        return found if pyramid is None else self._with_masks(found, pyramid, self.draw_masks[canvas])

    def _with_masks(self, found: list[Detections], pyramid: Tensor, draw: nn.Cell) -> list[Detections]:
        """Draw the masks of each image's detections, which are filled up to one number for one graph."""
        boxes = np.zeros((len(found), self.rule.max_detections, 4), np.float32)
        labels = np.zeros(boxes.shape[:2], np.int32)
        for number, detections in enumerate(found):
            boxes[number, : len(detections.boxes)] = detections.boxes
            labels[number, : len(detections.labels)] = detections.labels
        masks = self.call(draw, pyramid, Tensor(boxes), Tensor(labels)).asnumpy()
        return [
            replace(detections, masks=of_image[: len(detections.boxes)], mask_boxes=detections.boxes)
            for detections, of_image in zip(found, masks, strict=True)
        ]
