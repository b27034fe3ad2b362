"""Selects an image's detections among a detector's candidates, in NumPy."""

from dataclasses import dataclass

import numpy as np

from focal_twins.models.detectors.boxes import clip, iou
from focal_twins.models.detectors.detector import Detector


@dataclass(frozen=True)
class SelectionRule:
    """Says how candidates are laid out and which of them are detections; see Detector.construct and its attributes."""

    num_classes: int
    class_boxes: bool
    has_factor: bool
    score_threshold: float
    nms_iou: float | None
    max_detections: int
    clips_boxes: bool = True

    @property
    def box_columns(self) -> int:
        """Return the number of values of a candidate's box, or boxes, which come first."""
        return 4 * self.num_classes if self.class_boxes else 4

    @property
    def columns(self) -> int:
        """Return D, the number of values of a candidate."""
        return self.box_columns + self.num_classes + self.has_factor

    @classmethod
    def of(
        cls,
        model: Detector,
        score_threshold: float | None = None,
        nms_iou: float | None = None,
        max_detections: int | None = None,
    ) -> "SelectionRule":
        """Return a model's own rule, with what is given in place of its own."""
        return cls(
            model.num_classes,
            model.class_boxes,
            model.has_factor,
            model.score_threshold if score_threshold is None else score_threshold,
            model.nms_iou if nms_iou is None else nms_iou,
            model.max_detections if max_detections is None else max_detections,
            model.clips_boxes,
        )


@dataclass(frozen=True, eq=False)
class Detections:
    """Holds what was found in one image, best first.

    Attributes:
        boxes: [n, 4] float32. scores: [n] float32, by which they are ranked. labels: [n] int32.
        candidates: [n] int64, the candidate that each comes from.
        masks: [n, M, M] float32, the probability of each place in the box that it belongs to the object; None without.
        mask_boxes: [n, 4] float32, the boxes that the masks lie over: `boxes` before anything was cut off, of what an
            exported file found; None without masks.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    candidates: np.ndarray
    masks: np.ndarray | None = None
    mask_boxes: np.ndarray | None = None


def select_detections(candidates: np.ndarray, rule: SelectionRule, extent: tuple[float, float]) -> Detections:
    """Select the detections among the candidates [K, D] of an image of (height, width).

    Every class of a candidate can be a detection, not its best alone. The factor does not count for the threshold.
    """
    classes, first = rule.num_classes, rule.box_columns
    scores = candidates[:, first : first + classes]
    candidate, label = np.nonzero(scores > np.float32(rule.score_threshold))
    score = scores[candidate, label]
    if rule.has_factor:
        score = score * candidates[candidate, first + classes]
    if rule.class_boxes:
        boxes = candidates[:, :first].reshape(-1, classes, 4)[candidate, label]
    else:
        boxes = candidates[candidate, :4]
    if rule.clips_boxes:
        boxes = clip(boxes, extent)
    kept = non_maximum_suppression(boxes, score, label, rule.nms_iou, rule.max_detections)
    return Detections(boxes[kept], score[kept], label[kept].astype(np.int32), candidate[kept])


def non_maximum_suppression(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, threshold: float | None, most: int | None = None
) -> np.ndarray:
    """Choose the best boxes [n, 4], and none that overlaps a better one of its class: their numbers, best first.

    Of equal scores the first comes first.

    Args:
        scores: [n]. labels: [n].
        threshold: a box goes if its IoU with a better one that stays is more than this; None: none goes.
        most: boxes that are chosen at most; None: no limit.
    """
    left = np.argsort(-scores, kind="stable")
    if threshold is None:
        return left[:most]
    boxes = boxes[left]
    labels = labels[left]
    kept: list[int] = []
    while len(left) and (most is None or len(kept) < most):
        kept.append(left[0])
        stays = iou(boxes, boxes[0]) <= np.float32(threshold)
        stays |= labels != labels[0]
        stays[0] = False
        left, boxes, labels = left[stays], boxes[stays], labels[stays]
    return np.asarray(kept, np.int64)
