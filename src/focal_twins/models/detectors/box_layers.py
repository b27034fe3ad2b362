"""Computes with boxes in graphs: decodes deltas, clips, and measures overlaps. Conventions are those of boxes.py.

These are functions and not cells: mixed precision casts what a cell is given, and float16 knows no half pixels beyond
1,024.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from focal_twins.models.detectors.boxes import IOU_EPS

MAX_LOG_RATIO = abs(math.log(16 / 1000))  # the most that a delta may enlarge or shrink a side, as a logarithm


def decode_deltas(anchors, deltas, stds: tuple[float, ...]):
    """Move anchors [..., 4] by the deltas [..., 4] that a network gives, float32; the shapes broadcast.

    Args:
        stds: standard deviations by which the deltas were divided, see boxes.encode.
    """
    centre_stds, side_stds = Tensor(np.asarray(stds[:2], np.float32)), Tensor(np.asarray(stds[2:], np.float32))
    sides = anchors[..., 2:] - anchors[..., :2]
    centres = (anchors[..., :2] + anchors[..., 2:]) * 0.5 + sides * (deltas[..., :2] * centre_stds)
    ratios = ops.clip_by_value(deltas[..., 2:] * side_stds, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    half = sides * ops.exp(ratios) * 0.5
    return ops.concat((centres - half, centres + half), -1)


def encode_deltas(boxes, targets, stds):
    """Return the deltas [..., 4] that move boxes [..., 4] onto targets, none of which is empty; see boxes.encode."""
    sides, wanted = boxes[..., 2:] - boxes[..., :2], targets[..., 2:] - targets[..., :2]
    centres, aims = (boxes[..., :2] + boxes[..., 2:]) * 0.5, (targets[..., :2] + targets[..., 2:]) * 0.5
    deltas = ops.concat(((aims - centres) / sides, ops.log(wanted / sides)), -1)
    return deltas / Tensor(np.asarray(stds, np.float32))


def clip_to_extents(boxes, extents):
    """Cut boxes [B, n, 4] off at the edges of images of extents [B, 2], (height, width)."""
    height, width = extents[:, 0], extents[:, 1]
    limits = ops.stack((width, height, width, height), 1).astype(ms.float32).reshape((-1, 1, 4))
    return ops.minimum(ops.maximum(boxes, 0.0), limits)


def paired_areas(boxes, others):
    """Return (intersection, union), each [...], of boxes [..., 4] with others; the shapes broadcast."""
    corner = ops.maximum(boxes[..., :2], others[..., :2])
    sides = ops.relu(ops.minimum(boxes[..., 2:], others[..., 2:]) - corner)
    shared = sides[..., 0] * sides[..., 1]
    own = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    other = (others[..., 2] - others[..., 0]) * (others[..., 3] - others[..., 1])
    return shared, ops.maximum(own + other - shared, IOU_EPS)


def paired_iou(boxes, others):
    """Return the intersection over union [...] of boxes [..., 4] with others; the shapes broadcast."""
    shared, union = paired_areas(boxes, others)
    return shared / union


def paired_giou(boxes, others):
    """Return the generalised IoU [...] (arXiv 1902.09630) of boxes [..., 4] with others; the shapes broadcast."""
    shared, union = paired_areas(boxes, others)
    hull = ops.maximum(boxes[..., 2:], others[..., 2:]) - ops.minimum(boxes[..., :2], others[..., :2])
    hull_area = ops.maximum(hull[..., 0] * hull[..., 1], IOU_EPS)
    return shared / union - (hull_area - union) / hull_area
