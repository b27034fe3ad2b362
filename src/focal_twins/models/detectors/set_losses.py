"""Computes the losses of detectors that match objects one to one with predictions, as sums with their divisors.

Sources: core/bbox/assigners/hungarian_assigner.py, core/bbox/match_costs/match_cost.py and
roi_heads/bbox_heads/dii_head.py of mmdetection 2.11.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from focal_twins.models.detectors.box_layers import paired_giou
from focal_twins.models.detectors.losses import GIoULoss, SigmoidFocalLoss, SmoothL1Loss
from focal_twins.models.detectors.matching import LeastCostMatching
from focal_twins.models.gathers import gather_rows

FACTORS = {"classification": 2.0, "boxes": 5.0, "overlaps": 2.0}  # of costs and losses alike; the last two: L1, GIoU
ALPHA = 0.25  # of the focal loss, whose exponent is 2


class MatchingCosts(nn.Cell):
    """Computes what each prediction would cost an object: focal loss, L1 of relative boxes, GIoU, by FACTORS.

    The first is the focal loss of the object's class if it is right, less that if it is wrong.
    """

    def construct(self, logits, boxes, sides, objects, labels):
        """Return the costs [M, G, N] float32.

        Args:
            logits: [M, N, C] float32. boxes: [M, N, 4] float32 in pixels. sides: [M, 1, 4], see relative_sides.
            objects: [M, G, 4] in pixels. labels: [M, G] int32; those of padding are -1, and count as 0.
        """
        count, columns, _ = logits.shape
        rows = labels.shape[1]
        tiny, probability = 1e-12, ops.sigmoid(logits)
        right = -ops.log(probability + tiny) * ALPHA * ops.square(1 - probability)
        wrong = -ops.log(1 - probability + tiny) * (1 - ALPHA) * ops.square(probability)
        of_classes = (right - wrong).transpose((0, 2, 1))  # [M, C, N]
        costs = gather_rows(of_classes, labels).reshape((count, rows, columns)) * FACTORS["classification"]
        predicted, wanted = boxes.reshape((count, 1, columns, 4)), objects.reshape((count, rows, 1, 4))
        sides = sides.reshape((count, 1, 1, 4))
        costs = costs + ops.abs(predicted / sides - wanted / sides).sum(-1) * FACTORS["boxes"]
        return costs - paired_giou(predicted, wanted) * FACTORS["overlaps"]


class SetLosses(nn.Cell):
    """Computes the parts of Sparse R-CNN's loss, in the order of FACTORS, each the sum of all stages.

    Every stage is matched by itself. The divisor of all parts is the number of objects.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.costs, self.match = MatchingCosts(), LeastCostMatching()
        self.focal, self.absolute, self.giou = SigmoidFocalLoss(num_classes, ALPHA), SmoothL1Loss(), GIoULoss()
        self.factors = Tensor(np.array(list(FACTORS.values()), np.float32))

    def construct(self, outputs, targets):
        """Map a network's outputs and the objects, in batches, to sums [3] and weights [3] float32.

        Args:
            outputs: logits [B, S, N, C], boxes [B, S, N, 4] float32, of S stages, and sides [B, 1, 4] float32, see
                relative_sides.
            targets: boxes [B, G, 4] and labels [B, G], see padded_objects.
        """
        logits, boxes, sides = outputs
        objects, labels = targets
        _, stages, columns, classes = logits.shape
        logits, boxes = logits.astype(ms.float32).reshape((-1, columns, classes)), boxes.reshape((-1, columns, 4))
        sides, objects, labels = of_stages(sides, stages), of_stages(objects, stages), of_stages(labels, stages)
        costs = self.costs(ops.stop_gradient(logits), ops.stop_gradient(boxes), sides, objects, labels)
        matches = self.match(costs, labels >= 0)  # [B * S, N]
        matched = (matches >= 0).astype(ms.float32)
        own = ops.select(matches >= 0, gather_rows(labels, matches), ops.full_like(matches, self.num_classes))
        wanted = gather_rows(objects, matches)
        # What is not matched has an empty box as target, and no weight.
        sums = ops.stack(
            (
                self.focal(logits, own),
                self.absolute(boxes / sides, wanted / sides, matched),
                self.giou(boxes, wanted, matched),
            )
        )
        count = (labels >= 0).astype(ms.float32).sum() / stages
        return sums * self.factors, ops.stop_gradient(ops.stack((count, count, count)))


def relative_sides(extents):
    """Return the sides [B, 1, 4] float32, (width, height, width, height), by which boxes of images become relative.

    Args:
        extents: [B, 2], (height, width).
    """
    height, width = extents[:, 0], extents[:, 1]
    return ops.stack((width, height, width, height), 1).astype(ms.float32).reshape((-1, 1, 4))


def of_stages(values, stages):
    """Repeat each image's values for all stages: [B, ...] to [B * stages, ...]."""
    shape = values.shape
    repeated = ops.tile(values.reshape((shape[0], 1, *shape[1:])), (1, stages, *([1] * (len(shape) - 1))))
    return repeated.reshape((shape[0] * stages, *shape[1:]))
