"""Computes with boxes in graphs: decodes deltas, clips, and measures overlaps. See boxes.py, the same in NumPy."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.models.detectors.boxes import IOU_EPS, MAX_LOG_RATIO


class DeltaDecoder(nn.Cell):
    """Moves anchors by the deltas that a network gives, in float32.

    Args:
        stds: standard deviations by which the deltas were divided, see boxes.encode.
    """

    def __init__(self, stds: tuple[float, ...]):
        super().__init__()
        self.centre_stds, self.side_stds = (Tensor(np.asarray(part, np.float32)) for part in (stds[:2], stds[2:]))
        self.exp = ops.Exp()

    def construct(self, anchors, deltas):
        """Map anchors [..., 4] and deltas [..., 4], whose shapes broadcast, to boxes [..., 4]."""
        sides = anchors[..., 2:] - anchors[..., :2]
        centres = (anchors[..., :2] + anchors[..., 2:]) * 0.5 + sides * (deltas[..., :2] * self.centre_stds)
        ratios = ops.clip_by_value(deltas[..., 2:] * self.side_stds, -MAX_LOG_RATIO, MAX_LOG_RATIO)
        half = sides * self.exp(ratios) * 0.5
        return ops.concat((centres - half, centres + half), -1)


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
