"""Computes with boxes in NumPy: overlaps, and the deltas by which a network moves one box onto another.

Boxes are (x1, y1, x2, y2) in pixels; a width is x2 - x1, without the 1 that older detectors added. The conventions are
those of mmdetection 2.11 (core/bbox/iou_calculators and coder/delta_xywh_bbox_coder.py). What graphs compute with
boxes is in box_layers.py.
"""

import numpy as np

IOU_EPS = 1e-6  # the least union that an overlap is divided by


def areas(boxes: np.ndarray) -> np.ndarray:
    """Return the areas [...] of boxes [..., 4]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the intersection over union [...] of boxes [..., 4] with others; the shapes broadcast."""
    corner = np.maximum(boxes[..., :2], others[..., :2])
    sides = np.maximum(np.minimum(boxes[..., 2:], others[..., 2:]) - corner, 0)
    shared = sides[..., 0] * sides[..., 1]
    union = areas(boxes) + areas(others) - shared
    return shared / np.maximum(union, np.asarray(IOU_EPS, union.dtype))


def encode(anchors: np.ndarray, boxes: np.ndarray, stds: tuple[float, ...]) -> np.ndarray:
    """Return the deltas [n, 4] float32 that move anchors [n, 4] onto boxes [n, 4].

    They are (dx, dy) of the centres in sides of the anchor and the logarithms of the ratios of the sides, each divided
    by its standard deviation.
    """
    anchors, boxes = anchors.astype(np.float32), boxes.astype(np.float32)
    sides, wanted = anchors[:, 2:] - anchors[:, :2], boxes[:, 2:] - boxes[:, :2]
    centres, targets = (anchors[:, :2] + anchors[:, 2:]) * 0.5, (boxes[:, :2] + boxes[:, 2:]) * 0.5
    deltas = np.concatenate([(targets - centres) / sides, np.log(wanted / sides)], axis=1)
    return deltas / np.asarray(stds, np.float32)


def clip(boxes: np.ndarray, extent: tuple[float, float]) -> np.ndarray:
    """Cut boxes [..., 4] off at the edges of an image of (height, width)."""
    height, width = extent
    return np.clip(boxes, 0, np.asarray([width, height, width, height], boxes.dtype))
