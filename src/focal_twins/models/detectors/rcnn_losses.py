"""Computes the losses of two-stage detectors.

Sources: mmdetection 2.11, dense_heads/anchor_head.py, bbox_heads/bbox_head.py and mask_heads/fcn_mask_head.py.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from focal_twins.models.detectors.box_layers import decode_deltas, encode_deltas
from focal_twins.models.detectors.losses import BinaryCrossEntropy, GIoULoss, SmoothL1Loss
from focal_twins.models.detectors.mask_head import MASK_SIDE, MaskTargets
from focal_twins.models.gathers import gather_rows, rows_of_batch

GIOU_WEIGHT = 10.0  # of a cascade's boxes


class RCNNLoss(nn.Cell):
    """Sums the losses of both steps of a batch, and counts what they are divided by.

    - proposal_classification, proposal_boxes: of sampled anchors, by their number. As in the original, an image without
      a positive or without a negative one counts one for them.
    - classification: cross entropy of sampled boxes; boxes: of those matched with an object. Both by the number of
      samples.
    - masks: binary cross entropy of the own class, by the number of pixels.

    In a cascade each stage has the last three, with _1, _2 and _3 behind their names.

    Args:
        stages: of the detector, see rcnn.Stage.
        is_cascade: the losses of a cascade's boxes are GIoU and, of anchors, smooth L1; otherwise L1.
        has_masks: whether there are masks.
    """

    def __init__(self, stages, num_classes, is_cascade, has_masks):
        super().__init__(auto_prefix=False)
        self.weights = tuple(stage.weight for stage in stages)
        self.num_classes = num_classes
        self.is_cascade = is_cascade
        self.entropy = BinaryCrossEntropy()
        self.anchor_distance = SmoothL1Loss(1 / 9 if is_cascade else 0.0)
        self.distance, self.overlap = SmoothL1Loss(), GIoULoss()
        self.stds = tuple(stage.stds for stage in stages)
        self.has_masks = has_masks
        self.mask_targets = MaskTargets()
        self.classes = Tensor(np.arange(num_classes + 1, dtype=np.int32))
        self.log_softmax = ops.LogSoftmax(-1)

    def construct(self, outputs, targets):
        """Map a detector's training outputs and its targets to sums [K] and weights [K] float32.

        Args:
            outputs: logits [B, A] and deltas [B, A, 4] of anchors, and for each stage boxes [B, S, 4], matched [B, S],
                is_sample [B, S] (see RoISampler), class logits [B, S, C + 1], deltas [B, S, 4] and, with masks, mask
                logits [B, positives, 28, 28].
            targets: see rcnn.RCNNTargets.
        """
        parts, weights = self.anchor_losses(outputs[0], outputs[1], targets[0], targets[1], targets[2])
        of_stage = 6 if self.has_masks else 5
        for i in range(len(self.weights)):
            first = 2 + i * of_stage
            boxes, matched, is_sample = outputs[first], outputs[first + 1], outputs[first + 2]
            is_positive = (matched >= 0).astype(ms.float32)
            samples = is_sample.sum()
            entropy = self.class_loss(outputs[first + 3].astype(ms.float32), targets[4], matched, is_sample)
            distance = self.box_loss(i, boxes, outputs[first + 4].astype(ms.float32), targets[3], matched, is_positive)
            parts = parts + (entropy * self.weights[i], distance * self.weights[i])
            weights = weights + (samples, samples)
            if self.has_masks:
                logits = outputs[first + 5].astype(ms.float32)
                drawn, pixels = self.mask_loss(logits, boxes, matched, is_positive, targets[7], targets[8])
                parts, weights = parts + (drawn * self.weights[i],), weights + (pixels,)
        return ops.stack(parts), ops.stop_gradient(ops.stack(weights))

    def anchor_losses(self, logits, deltas, index, labels, wanted):
        """Return the sums of the first step's two losses, and their weights, of sampled anchors."""
        logits = gather_rows(logits.astype(ms.float32), index)
        deltas = gather_rows(deltas.astype(ms.float32), index)
        is_positive = (labels >= 1).astype(ms.float32)
        is_negative = ops.equal(labels, 0).astype(ms.float32)
        entropy = self.entropy(logits, is_positive, is_positive + is_negative)
        distance = self.anchor_distance(deltas, wanted, is_positive)
        counts = ops.maximum(is_positive.sum(1), 1.0) + ops.maximum(is_negative.sum(1), 1.0)
        return (entropy, distance), (counts.sum(), counts.sum())

    def class_loss(self, logits, labels, matched, is_sample):
        """Return the sum of the cross entropy of samples with the class of their object, or the background."""
        own = gather_rows(labels, matched)
        own = ops.select(matched >= 0, own, ops.zeros_like(own) + self.num_classes)
        at_own = (own.expand_dims(2) == self.classes).astype(ms.float32)
        return -((self.log_softmax(logits) * at_own).sum(-1) * is_sample).sum()

    def box_loss(self, stage, boxes, moves, truth, matched, is_positive):
        """Return the sum of a stage's loss of the boxes that are matched with an object."""
        wanted = gather_rows(truth, matched)
        if self.is_cascade:
            return self.overlap(decode_deltas(boxes, moves, self.stds[stage]), wanted, is_positive) * GIOU_WEIGHT
        # Others, which may have no area, count as boxes of one pixel: what is multiplied by zero must be finite.
        unit = Tensor(np.array([0, 0, 1, 1], np.float32)) * (1 - is_positive.expand_dims(2))
        boxes = boxes * is_positive.expand_dims(2) + unit
        wanted = wanted * is_positive.expand_dims(2) + unit
        return self.distance(moves, encode_deltas(boxes, wanted, self.stds[stage]), is_positive)

    def mask_loss(self, logits, boxes, matched, is_positive, bitmaps, frames):
        """Return the sum of the cross entropy of masks, and the number of their pixels."""
        count = logits.shape[1]
        boxes, matched, is_positive = boxes[:, :count], matched[:, :count], is_positive[:, :count]
        numbers = rows_of_batch(ops.maximum(matched, 0), bitmaps.shape[0], bitmaps.shape[1])
        packed = bitmaps.reshape((-1, *bitmaps.shape[2:]))
        frames = ops.tile(frames.expand_dims(1), (1, count, 1)).reshape((-1, 2))
        wanted = ops.stop_gradient(self.mask_targets(packed, boxes.reshape((-1, 4)), numbers, frames))
        weights = ops.tile(is_positive.reshape((-1, 1)), (1, MASK_SIDE * MASK_SIDE))
        pixels = MASK_SIDE * MASK_SIDE
        drawn = self.entropy(logits.reshape((-1, pixels)), wanted.reshape((-1, pixels)), weights)
        return drawn, is_positive.sum() * pixels
