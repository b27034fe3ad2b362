"""Proposes boxes that may hold an object: the region proposal network (arXiv 1506.01497, section 3.1).

Its head scores and moves the anchors of a pyramid. What is left of the best ones after non-maximum suppression goes to
the heads that classify. It learns from a sample of anchors that is drawn in the data workers, where anchors are
matched with objects: an image brings the numbers of the sampled anchors, not targets for all of them.

Sources: mmdetection 2.11, models/dense_heads/rpn_head.py and anchor_head.py.
"""

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from focal_twins.models.convolutions import Conv2d
from focal_twins.models.detectors.anchors import Anchors, AnchorShapes, anchors_on
from focal_twins.models.detectors.assign import BACKGROUND, IGNORED, IouRule, assign_by_iou
from focal_twins.models.detectors.box_layers import clip_to_extents, decode_deltas
from focal_twins.models.detectors.boxes import encode
from focal_twins.models.detectors.candidates import stands_on_image
from focal_twins.models.detectors.suppression import RankedSuppression
from focal_twins.models.gathers import gather_rows
from focal_twins.models.level_layers import SharedConv

STDS = (1.0, 1.0, 1.0, 1.0)  # of the deltas of anchors
MOST_SUPPRESSED = 2864  # boxes that MindSpore's operator takes
RULE = IouRule(positive=0.7, negative=0.3, least=0.3)


class RPNHead(nn.Cell):
    """Scores and moves the anchors of all levels of a pyramid, by the same weights.

    Args:
        map_sizes: (h, w) of each level.
        per_place: anchors at each place.
    """

    def __init__(self, channels: int, map_sizes, per_place: int):
        super().__init__()
        self.rpn_conv = SharedConv(channels, channels, 3, map_sizes)
        length = sum(height * width for height, width in map_sizes)
        self.rpn_cls, self.rpn_reg = (
            Conv2d(channels, per_place * values, 1, 1, 0, (length, 1), weights="small") for values in (1, 4)
        )
        self.relu = ops.ReLU()

    def construct(self, pyramid):
        """Map tokens [B, L, C] of all levels to logits [B, A] and deltas [B, A, 4] of the anchors, float32."""
        x = self.relu(self.rpn_conv(pyramid))
        batch = x.shape[0]
        logits = self.rpn_cls(x).reshape((batch, -1))
        return logits.astype(ms.float32), self.rpn_reg(x).reshape((batch, -1, 4)).astype(ms.float32)


class Proposals(nn.Cell):
    """Selects boxes from the anchors that the head has scored and moved, without a gradient.

    Of each level the best are taken, moved, clipped to the image, and of any two that overlap by more than `iou` the
    weaker is dropped; of what all levels have left, the best are the proposals.

    Args:
        per_level: anchors of each level that are moved, at most MOST_SUPPRESSED.
        count: proposals of an image.
        iou: see above.
    """

    def __init__(self, anchors: Anchors, per_level: int, count: int, iou: float):
        super().__init__()
        self.levels = tuple((s.start, s.stop, min(per_level, s.stop - s.start)) for s in anchors.levels)
        self.anchors = Tensor(anchors.boxes)
        self.corners = Tensor(anchors.corners[None])
        self.count = min(count, sum(taken for _, _, taken in self.levels))
        self.top = ops.TopK(sorted=True)
        self.suppress = RankedSuppression(iou)
        self.sigmoid = ops.Sigmoid()

    def construct(self, logits, deltas, extents):
        """Map logits [B, A] and deltas [B, A, 4] of anchors, and extents [B, 2], to the proposals.

        Returns:
            Boxes [B, count, 4], the best first, and [B, count] float32, 1 where there is one and else 0.
        """
        batch = logits.shape[0]
        scores = self.scores(ops.stop_gradient(logits), extents)
        deltas = ops.stop_gradient(deltas)
        boxes, left = (), ()
        for first, end, taken in self.levels:
            score, index = self.top(scores[:, first:end], taken)  # [B, taken]
            anchors = ops.gather(self.anchors[first:end], index.reshape(-1), 0).reshape((batch, taken, 4))
            moved = decode_deltas(anchors, gather_rows(deltas[:, first:end], index), STDS)
            moved = clip_to_extents(moved, extents)
            boxes = boxes + (moved,)
            left = left + ((score + 1) * self.suppress(moved) - 1,)
        boxes, left = ops.concat(boxes, 1), ops.concat(left, 1)
        score, index = self.top(left, self.count)
        return ops.stop_gradient(gather_rows(boxes, index)), (score >= 0).astype(ms.float32)

    def scores(self, logits, extents):
        """Return the scores [B, A] of anchors; -1 for those that stand beyond the image, see Anchors.valid."""
        return (self.sigmoid(logits) + 1) * stands_on_image(self.corners, extents) - 1


@dataclass(frozen=True)
class AnchorSampler:
    """Draws the anchors that the head learns from, with their targets, in a data worker.

    An anchor is positive if it overlaps an object by 0.7 or more, or if no other overlaps the object more and it does
    by 0.3; negative if it overlaps none by 0.3; half of the sample is positive where there are so many.

    Attributes:
        shapes: of the anchors.
        size: of the sample.
        inside: take only anchors that lie within the image, as Cascade R-CNN does.
    """

    shapes: AnchorShapes
    size: int = 256
    inside: bool = False

    def __call__(self, canvas, extent, boxes, generator):
        """Sample an image's anchors.

        Args:
            canvas, extent: (height, width) of the frame and of the image in it.
            boxes: [n, 4] float32, of the objects.

        Returns:
            Numbers of anchors [size] int32, labels [size] float32 (1 positive, 0 negative, -1 no sample: there are not
            enough anchors) and deltas [size, 4] float32, zero where not positive.
        """
        anchors = anchors_on(canvas, self.shapes)
        usable = anchors.valid(extent)
        if self.inside:
            usable &= (anchors.boxes[:, :2] >= 0).all(axis=1) & (anchors.boxes[:, 2:] < extent[::-1]).all(axis=1)
        match = np.full(len(usable), IGNORED, np.int32)
        match[usable] = assign_by_iou(anchors.boxes[usable], boxes, RULE)
        positive = drawn(np.flatnonzero(match >= 0), self.size // 2, generator)
        negative = drawn(np.flatnonzero(match == BACKGROUND), self.size - len(positive), generator)
        sampled = np.concatenate([positive, negative])
        index, labels = np.zeros(self.size, np.int32), np.full(self.size, -1, np.float32)
        index[: len(sampled)], labels[: len(sampled)] = sampled, 0
        labels[: len(positive)] = 1
        deltas = np.zeros((self.size, 4), np.float32)
        deltas[: len(positive)] = encode(anchors.boxes[positive], boxes[match[positive]], STDS)
        return index, labels, deltas


def drawn(numbers: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Draw `count` of some numbers without replacement; all of them where there are no more."""
    return numbers if len(numbers) <= count else generator.choice(numbers, count, replace=False)
