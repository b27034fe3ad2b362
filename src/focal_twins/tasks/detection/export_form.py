"""Runs a detector in an exported file, and arranges its output as candidates or selects detections among them."""

import mindspore as ms
from mindspore import nn, ops

from focal_twins.models.detectors.detector import Detector
from focal_twins.models.detectors.selection import SelectionRule
from focal_twins.models.detectors.suppression import ComposedSuppression
from focal_twins.models.gathers import gather_rows

CANDIDATES, DETECTIONS = "candidates", "detections"
PAIRS = 1000  # of a candidate and a class, the best of which a graph selects among; as many as detections at least


class ExportForm(nn.Cell):
    """Runs a detector and arranges its output for programs that know nothing of it.

    Args:
        output: "candidates": [B, K, D] as Detector.construct gives them; "detections": [B, max_detections, 6], the
            best first: box (x1, y1, x2, y2), score and label, with zeros where there are fewer; of a detector that has
            masks, also the probabilities [B, max_detections, M, M] of each.
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
        boxes, scores, labels = self.select(candidates)
        is_there = (scores > 0).astype(ms.float32)
        rows = ops.concat((boxes, scores, labels.astype(ms.float32)), 2) * is_there
        if self.draw is None:
            return rows
        # The exporter of ONNX loses the name of an output that something else takes, too, or that ends with a reshape.
        masks = self.draw(outputs[1], boxes, labels.reshape(labels.shape[:2]))
        return rows, masks * is_there.expand_dims(3)


class SelectedDetections(nn.Cell):
    """Selects detections among candidates as selection.py does, in a graph of one shape.

    It selects among the PAIRS best pairs of a candidate and a class alone, equal scores come in any order, and long
    chains of overlapping boxes may end otherwise, see ComposedSuppression.

    Args:
        rule: see SelectionRule.
    """

    def __init__(self, rule: SelectionRule):
        super().__init__()
        self.rule = rule
        self.classes = rule.num_classes
        self.first = rule.box_columns
        self.top = ops.TopK()
        self.suppress = None if rule.nms_iou is None else ComposedSuppression(rule.nms_iou)

    def construct(self, candidates):
        """Map candidates [B, K, D] to the best detections: boxes, scores and labels.

        Returns:
            [B, n, 4] float32, [B, n, 1] float32 and [B, n, 1] int32, with n = max_detections; where there are fewer,
            scores are 0.
        """
        rule, first, classes = self.rule, self.first, self.classes
        batch, count, _ = candidates.shape
        scores = candidates[:, :, first : first + classes]
        ranks = scores * (scores > rule.score_threshold).astype(ms.float32)
        if rule.has_factor:
            ranks = ranks * candidates[:, :, first + classes :]
        ranks = ranks.reshape((batch, count * classes))
        if count * classes < rule.max_detections:
            fill = ops.zeros((batch, rule.max_detections - count * classes), ms.float32)
            ranks = ops.concat((ranks, fill), 1)
        ranks, chosen = self.top(ranks, min(max(PAIRS, rule.max_detections), ranks.shape[1]))  # [B, N]
        chosen = ops.minimum(chosen, count * classes - 1)
        places = chosen // classes
        labels = chosen - places * classes
        if rule.class_boxes:
            boxes = gather_rows(candidates[:, :, :first].reshape((batch, count * classes, 4)), chosen)
        else:
            boxes = gather_rows(candidates[:, :, :4], places)
        if self.suppress is not None:
            ranks = ranks * self.suppress(boxes, labels.astype(ms.float32))
        ranks, best = self.top(ranks, rule.max_detections)
        return gather_rows(boxes, best), ranks.expand_dims(2), gather_rows(labels.expand_dims(2), best)
