"""Matches anchors with the boxes of an image, in NumPy: which box each anchor is to predict, and which predict none.

A match is the number of a box, BACKGROUND, or IGNORED for an anchor that training leaves alone. Many anchors can have
one box. The rules are those of mmdetection 2.11 (core/bbox/assigners).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from focal_twins.models.detectors.boxes import IOU_EPS, iou

BACKGROUND = -1
IGNORED = -2
NEAREST = 9  # anchors of each level that are an object's candidates by the rule of ATSS
LEAST_MARGIN = 0.01  # by the same rule, an anchor's centre lies within its object by more pixels than this


def labels_of_matches(match: np.ndarray, labels: np.ndarray, background: int) -> np.ndarray:
    """Return the label that each anchor is to predict, [n] int32: its box's, the background's, or -1 if it is ignored.

    Args:
        match: [n]. labels: [k], of the boxes.
    """
    wanted = np.where(match == BACKGROUND, background, -1).astype(np.int32)
    positive = match >= 0
    wanted[positive] = labels[match[positive]]
    return wanted


@dataclass(frozen=True)
class IouRule:
    """Decides by the intersection over union (IoU) of an anchor with its best box.

    Attributes:
        positive: from this on an anchor has the box.
        negative: below this it is background; between the two it is ignored.
        low_quality: the anchors of highest IoU with a box have that box, whatever the IoU is above 0, even where
            another box is better for them (of boxes that share a best anchor the last has it). A box that no anchor
            overlaps has none; in the originals it has all.
        least: of the IoU, for `low_quality`.
    """

    positive: float
    negative: float
    low_quality: bool = True
    least: float = 0.0


def assign_by_iou(anchors: np.ndarray, boxes: np.ndarray, rule: IouRule) -> np.ndarray:
    """Match anchors [n, 4] with boxes [k, 4] by their overlap: [n] int32.

    It goes through boxes one by one and holds one row of overlaps at a time: of 200,000 anchors that is faster than the
    matrix of all, which no cache holds.
    """
    match = np.full(len(anchors), BACKGROUND, np.int32)
    if not len(boxes):
        return match
    x1, y1, x2, y2 = np.ascontiguousarray(anchors.T)
    anchor_areas = (x2 - x1) * (y2 - y1)
    best = np.full(len(anchors), -1, np.float32)
    nearest = np.zeros(len(anchors), np.int32)
    best_anchors: list[np.ndarray] = []
    for i, (left, top, right, bottom) in enumerate(boxes):
        widths = np.maximum(np.minimum(x2, right) - np.maximum(x1, left), 0)
        shared = widths * np.maximum(np.minimum(y2, bottom) - np.maximum(y1, top), 0)
        union = anchor_areas + (right - left) * (bottom - top) - shared
        overlap = shared / np.maximum(union, np.float32(IOU_EPS))
        better = overlap > best
        best = np.where(better, overlap, best)
        nearest[better] = i
        most = overlap.max(initial=-1.0)
        has_any = most > 0 and most >= rule.least
        best_anchors.append(np.flatnonzero(overlap == most) if has_any else np.empty(0, np.intp))
    match[best >= np.float32(rule.negative)] = IGNORED
    positive = best >= np.float32(rule.positive)
    match[positive] = nearest[positive]
    if rule.low_quality:
        for i, places in enumerate(best_anchors):
            match[places] = i
    return match


def assign_by_centres(anchors: np.ndarray, boxes: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Match anchors [n, 4] with boxes [k, 4] by the rule of ATSS (arXiv 1912.02424): [n] int32, none ignored.

    A box has candidates: on each level, the NEAREST anchors whose centres are the nearest to its own; all, where there
    are no more. Those have the box whose IoU with it is at least the candidates' mean and standard deviation together,
    and whose centre lies in the box. Of several boxes an anchor has the one of highest IoU. Of anchors as near as each
    other, the original takes any; here those of higher IoU come first.

    Args:
        counts: anchors of each level, in the order of the anchors.
    """
    match = np.full(len(anchors), BACKGROUND, np.int32)
    best = np.full(len(anchors), -1, np.float32)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    ends = np.cumsum(counts)
    for i, box in enumerate(boxes):
        squares = np.square(centres - (box[:2] + box[2:]) / 2)
        distances = np.sqrt(squares[:, 0] + squares[:, 1])
        candidates, overlaps = [], []
        for end, count in zip(ends, counts, strict=True):
            level = distances[end - count : end]
            last = min(NEAREST, count) - 1
            near = np.flatnonzero(level <= np.partition(level, last)[last])
            overlap = iou(anchors[end - count + near], box)
            first = np.lexsort((-overlap, level[near]))[:NEAREST]
            candidates.append(end - count + near[first])
            overlaps.append(overlap[first])
        candidate, overlap = np.concatenate(candidates), np.concatenate(overlaps)
        deviation = overlap.std(ddof=1) if len(overlap) > 1 else 0.0  # of one it is not defined
        threshold = overlap.mean() + deviation
        centre = centres[candidate]
        inside = np.minimum(centre - box[:2], box[2:] - centre).min(axis=1) > np.float32(LEAST_MARGIN)
        positive = (overlap >= threshold) & inside & (overlap > best[candidate])
        match[candidate[positive]], best[candidate[positive]] = i, overlap[positive]
    return match
