"""Gives an exported detector one of two kinds of output."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.models.detectors.boxes import IOU_EPS
from src.models.detectors.candidates import rows_of
from src.models.detectors.detector import Detector
from src.models.detectors.selection import SelectionRule

CANDIDATES, DETECTIONS = "candidates", "detections"
PAIRS = 1000  # of a candidate and a class, the best of which a graph selects among
ROUNDS = 20  # of suppression


class ExportForm(nn.Cell):
    """Runs a detector and arranges its output for programs that know nothing of it.

    Args:
        output: "candidates": [B, K, D] as Detector.construct gives them; "detections": see SelectedDetections, with a
            mask [B, max_detections, M, M] of probabilities for each from a detector that has masks.
        rule: by which detections are selected.
    """

    def __init__(self, model: Detector, output: str, rule: SelectionRule):
        super().__init__()
        self.model = model
        self.select = SelectedDetections(rule) if output == DETECTIONS else None
        self.has_masks = model.has_masks
        self.draw = model.mask_cell() if model.has_masks and output == DETECTIONS else None

    def construct(self, images):
        """Map images [B, C, H, W], which fill the canvas, to what was chosen."""
        outputs = self.model(images)
        candidates = outputs[0] if self.has_masks else outputs
        if self.select is None:
            return candidates
        rows = self.select(candidates)
        if self.draw is None:
            return rows
        return rows, self.draw(outputs[1], rows[:, :, :4], rows[:, :, 5].astype(ms.int32))


class SelectedDetections(nn.Cell):
    """Selects detections among candidates as selection.py does, in a graph of one shape.

    Boxes are sorted by their scores. In each round, those stay that no better box suppresses which stayed in the last
    one; so after n rounds all are right that are suppressed through chains of up to n boxes, and all others are right
    as well where no chain is longer. Chains of more than a few do not occur in practice.

    Differences to selection.py: among the PAIRS best pairs of a candidate and a class alone; and equal scores come in
    any order.

    Args:
        rule: see SelectionRule.
    """

    def __init__(self, rule: SelectionRule):
        super().__init__()
        self.rule = rule
        self.classes = rule.num_classes
        self.first = 4 * rule.num_classes if rule.class_boxes else 4
        self.top, self.matmul = ops.TopK(), ops.BatchMatMul()

    def construct(self, candidates):
        """Map candidates [B, K, D] to [B, max_detections, 6]: box (x1, y1, x2, y2), score and label, the best first.

        What fills up the rows is 0.
        """
        rule, first, classes = self.rule, self.first, self.classes
        batch, count, _ = candidates.shape
        scores = candidates[:, :, first : first + classes]
        ranks = scores * (scores > rule.score_threshold).astype(ms.float32)
        if rule.has_factor:
            ranks = ranks * candidates[:, :, first + classes :]
        pairs = min(PAIRS, count * classes)
        ranks, chosen = self.top(ranks.reshape((batch, count * classes)), pairs)  # [B, N]
        places = chosen // classes
        labels = chosen - places * classes
        if rule.class_boxes:
            boxes = rows_of(candidates[:, :, :first].reshape((batch, count * classes, 4)), chosen)
        else:
            boxes = rows_of(candidates[:, :, :4], places)
        if rule.nms_iou is not None:
            ranks = ranks * self._kept(boxes, labels)
        ranks, best = self.top(ranks, min(rule.max_detections, pairs))
        rows = ops.concat((rows_of(boxes, best), ranks.expand_dims(2), _column(labels, best)), 2)
        rows = rows * (ranks > 0).astype(ms.float32).expand_dims(2)
        if pairs < rule.max_detections:
            rows = ops.concat((rows, ops.zeros((batch, rule.max_detections - pairs, 6), ms.float32)), 1)
        return rows

    def _kept(self, boxes, labels):
        """Tell by 1 and 0 which boxes [B, N, 4], sorted by their scores, stay: [B, N] float32."""
        batch, count, _ = boxes.shape
        square = (batch, count, count)
        # Elementwise operators that broadcast are ten times slower on CPU than ones of equal shapes.
        columns = [ops.broadcast_to(part, square) for part in ops.split(boxes, 1, 2)]
        x1, y1, x2, y2 = columns
        row_x1, row_y1, row_x2, row_y2 = [part.transpose((0, 2, 1)) for part in columns]
        shared = ops.relu(ops.minimum(x2, row_x2) - ops.maximum(x1, row_x1))
        shared = shared * ops.relu(ops.minimum(y2, row_y2) - ops.maximum(y1, row_y1))
        union = ops.maximum((x2 - x1) * (y2 - y1) + (row_x2 - row_x1) * (row_y2 - row_y1) - shared, IOU_EPS)
        label = ops.broadcast_to(labels.astype(ms.float32).expand_dims(2), square)
        same = (label == label.transpose((0, 2, 1))).astype(ms.float32)
        better = Tensor(np.triu(np.ones((1, count, count), np.float32), 1))
        suppresses = (shared / union > self.rule.nms_iou).astype(ms.float32) * same * better  # [B, N, N]
        kept = ops.ones((batch, 1, count), ms.float32)
        for _ in range(ROUNDS):
            kept = (self.matmul(kept, suppresses) <= 0.5).astype(ms.float32)
        return kept.reshape((batch, count))


def _column(values, numbers):
    """Gather whole numbers [B, N] by numbers [B, n] as a column [B, n, 1] float32."""
    return rows_of(values.astype(ms.float32).expand_dims(2), numbers)
