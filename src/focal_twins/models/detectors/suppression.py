"""Drops, in a graph, boxes that overlap better ones: non-maximum suppression of one shape."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from focal_twins.models.detectors.boxes import IOU_EPS

ROUNDS = 20


class RankedSuppression(nn.Cell):
    """Finds which boxes stay by MindSpore's operator.

    It answers as it should on every device if the boxes come sorted and each has its rank for a score.

    Args:
        iou: of two boxes that overlap by more than this, the weaker is dropped.
    """

    def __init__(self, iou: float):
        super().__init__()
        self.iou = iou
        self.suppress = ops.NMSWithMask(iou)

    def construct(self, boxes):
        """Tell by 1 and 0 which of boxes [B, N, 4], the best first, stay: [B, N] float32."""
        ranks = Tensor(np.linspace(1, 0.1, boxes.shape[1], dtype=np.float32).reshape(-1, 1))
        kept = ()
        for i in range(boxes.shape[0]):
            _, _, mask = self.suppress(ops.concat((boxes[i], ranks), 1))
            kept = kept + (mask.astype(ms.float32),)
        return ops.stack(kept)


class ComposedSuppression(nn.Cell):
    """Finds which boxes stay by products of matrices, which every format of exported files has.

    In each round, those stay that no better box suppresses which stayed in the last one. So after n rounds all are
    right that are suppressed through chains of up to n boxes, and all others as well where no chain is longer; chains
    of a thousand clustered boxes end after five or six.

    Args:
        iou: of two boxes of a class that overlap by more than this, the weaker is dropped.
    """

    def __init__(self, iou: float):
        super().__init__()
        self.iou = iou
        self.matmul = ops.BatchMatMul()

    def construct(self, boxes, labels=None):
        """Tell by 1 and 0 which of boxes [B, N, 4], the best first, stay: [B, N] float32.

        Args:
            labels: [B, N] float32, of classes that do not concern each other; None where there is one.
        """
        batch, count, _ = boxes.shape
        square = (batch, count, count)
        # Elementwise operators that broadcast are ten times slower on CPU than ones of equal shapes.
        columns = [ops.broadcast_to(part, square) for part in ops.split(boxes, 1, 2)]
        x1, y1, x2, y2 = columns
        row_x1, row_y1, row_x2, row_y2 = [part.transpose((0, 2, 1)) for part in columns]
        shared = ops.relu(ops.minimum(x2, row_x2) - ops.maximum(x1, row_x1))
        shared = shared * ops.relu(ops.minimum(y2, row_y2) - ops.maximum(y1, row_y1))
        union = ops.maximum((x2 - x1) * (y2 - y1) + (row_x2 - row_x1) * (row_y2 - row_y1) - shared, IOU_EPS)
        better = Tensor(np.triu(np.ones((1, count, count), np.float32), 1))
        suppresses = (shared / union > self.iou).astype(ms.float32) * better  # [B, N, N]
        if labels is not None:
            label = ops.broadcast_to(labels.expand_dims(2), square)
            suppresses = suppresses * (label == label.transpose((0, 2, 1))).astype(ms.float32)
        kept = ops.ones((batch, 1, count), ms.float32)
        for _ in range(ROUNDS):
            kept = (self.matmul(kept, suppresses) <= 0.5).astype(ms.float32)
        return kept.reshape((batch, count))
