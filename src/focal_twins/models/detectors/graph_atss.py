"""Assigns objects to boxes that arise in a network, in its graph: ATSS (arXiv 1912.02424) with static shapes.

Anchors, which do not change, are assigned in the data workers (assign.py). The second stage of RepPoints v2 assigns the
boxes of its first, which are known in the graph alone. (Rejected: a graph for these boxes, NumPy, and another graph for
the loss, for this runs the network twice.)
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from focal_twins.models.detectors.assign import LEAST_MARGIN, NEAREST
from focal_twins.models.detectors.box_layers import paired_iou
from focal_twins.models.gathers import gather_rows
from focal_twins.models.level_layers import MapSizes, level_spans


class GraphATSS(nn.Cell):
    """Assigns to each box the object that it shall become, or none.

    Of each level the NEAREST boxes whose middles are nearest to that of an object are its candidates. It takes those
    that overlap it by the mean and the standard deviation of all candidates' overlaps, and whose middle it holds. A box
    that several objects take has the one that it overlaps most. Of an object and all boxes only distances are computed:
    overlaps are of candidates alone.

    A level with fewer than NEAREST boxes has all of them as candidates, and some twice (see PointTargets.few_places).

    Args:
        sizes: (h, w) of each level.
    """

    def __init__(self, sizes: MapSizes):
        super().__init__()
        self.spans = level_spans(sizes)
        self.candidates = NEAREST * len(self.spans)
        self.top, self.update = ops.TopK(), ops.TensorScatterUpdate()
        self.largest, self.highest = ops.Argmax(1), ops.ReduceMax()  # ArgMaxWithValue's numbers are int64

    def construct(self, boxes, is_valid, objects, is_object, few_places):
        """Return the number [B, L] int32 of each box's object, -1 for none. No gradient flows through it.

        Args:
            boxes: [B, L, 4]. is_valid: [B, L] float32, 1 for boxes that take part.
            objects: [B, G, 4]. is_object: [B, G] bool, False for padding.
            few_places: [B, levels, NEAREST] int32.
        """
        batch, length = boxes.shape[:2]
        count = objects.shape[1]
        middles, targets = middles_of(boxes), middles_of(objects)
        distance = ops.zeros((batch, count, length), ms.float32)
        for axis in range(2):
            away = targets[..., axis].reshape((batch, count, 1)) - middles[..., axis].reshape((batch, 1, length))
            distance = distance + away * away
        nearness = -distance - (1 - is_valid).reshape((batch, 1, length)) * 1e12
        chosen = ()
        for level in range(len(self.spans)):
            first, end = self.spans[level]
            few = ops.tile(few_places[:, level : level + 1], (1, count, 1))  # [B, G, NEAREST]
            if end - first < NEAREST:
                chosen = chosen + (few,)
            else:
                _, nearest = self.top(nearness[..., first:end], NEAREST)
                chosen = chosen + (ops.select(few <= -1, nearest + first, few),)
        numbers = ops.concat(chosen, 2)  # [B, G, K]
        of_objects = gather_rows(boxes, numbers.reshape((batch, -1))).reshape((batch, count, -1, 4))
        objects = objects.reshape((batch, count, 1, 4))
        overlaps = paired_iou(of_objects, objects)  # [B, G, K]
        mean = overlaps.mean(2, keep_dims=True)
        deviation = overlaps - mean
        variance = (deviation * deviation).sum(2, keepdims=True) / (self.candidates - 1)
        is_taken = ops.logical_and(overlaps >= mean + ops.sqrt(variance), lies_inside(middles_of(of_objects), objects))
        is_taken = ops.logical_and(is_taken, is_object.reshape((batch, count, 1)))
        # Each object writes into a row of its own; candidates that come twice write the same value twice.
        first_of_row = Tensor(np.arange(batch * count, dtype=np.int32).reshape(batch, count, 1) * length)
        taken = ops.select(is_taken, overlaps, -ops.ones_like(overlaps))
        taken = self.update(
            -ops.ones((batch * count * length,), ms.float32),
            (first_of_row + numbers).reshape((-1, 1)),
            taken.reshape(-1),
        )
        taken = taken.reshape((batch, count, length))
        owner = self.largest(taken)
        return ops.stop_gradient(ops.select(self.highest(taken, 1) >= 0, owner, -ops.ones_like(owner)))


def middles_of(boxes):
    """Return the middles [..., 2] of boxes [..., 4]."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def lies_inside(middles, objects):
    """Tell which middles [..., 2] lie in their objects [..., 4], by more than LEAST_MARGIN."""
    margins = ops.minimum(middles - objects[..., :2], objects[..., 2:] - middles)
    return ops.minimum(margins[..., 0], margins[..., 1]) > LEAST_MARGIN
