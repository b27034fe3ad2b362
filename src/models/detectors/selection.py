"""Selects detections from a detector's candidates (stand-in until branch onestage has its own)."""

from dataclasses import dataclass

import numpy as np

from src.models.detectors.boxes import clip, iou_matrix


@dataclass(frozen=True, eq=False)
class Detections:
    """Holds what a detector finds in one image, the best first.

    Attributes:
        boxes: [n, 4] float32. scores: [n] float32. labels: [n] int32.
        masks: [n, 28, 28] float32 probabilities within the boxes; None for a detector without masks.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None


@dataclass(frozen=True)
class SelectionRule:
    num_classes: int
    class_boxes: bool
    has_factor: bool
    score_threshold: float
    nms_iou: float | None
    max_detections: int


def select_detections(candidates: np.ndarray, rule: SelectionRule, extent: tuple[int, int]) -> Detections:
    classes = rule.num_classes
    split = 4 * classes if rule.class_boxes else 4
    scores = candidates[:, split : split + classes]
    place, labels = np.nonzero(scores > rule.score_threshold)
    values = scores[place, labels]
    boxes = clip(candidates[:, :split].reshape(len(candidates), -1, 4), extent)
    boxes = boxes[place, labels if rule.class_boxes else 0]
    ranking = values * candidates[place, -1] if rule.has_factor else values
    order = np.argsort(-ranking, kind="stable")
    kept: list[int] = []
    for number in order:
        rivals = [other for other in kept if labels[other] == labels[number]]
        if rule.nms_iou is None or not rivals or iou_matrix(boxes[[number]], boxes[rivals]).max() <= rule.nms_iou:
            kept.append(number)
        if len(kept) == rule.max_detections:
            break
    return Detections(boxes[kept], ranking[kept].astype(np.float32), labels[kept].astype(np.int32))
