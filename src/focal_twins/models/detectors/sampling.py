"""Matches proposals with ground truth and samples the ones that heads are trained on, within the graph.

Nothing is drawn in the graph: each candidate comes with a key, drawn for the image in a data worker, and the candidates
with the highest keys are the sample. All shapes are static; what does not exist is marked as such.

Sources: mmdetection 2.11, core/bbox/assigners/max_iou_assigner.py and core/bbox/samplers/random_sampler.py.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from focal_twins.models.detectors.box_layers import paired_iou
from focal_twins.models.gathers import gather_rows


class RoISampler(nn.Cell):
    """Matches proposals with objects by their overlap and samples from them and the objects' own boxes.

    A proposal is matched with the object that it overlaps most, if by `iou` at least, and is background otherwise.

    Args:
        size: S, samples of an image, of which at most `positives` are matched with an object.
        iou: see above.
        match_low_quality: also match the proposals that overlap an object most, of all proposals, with that object,
            again if by `iou` at least, even if they overlap another one more.
    """

    def __init__(self, size: int, positives: int, iou: float, match_low_quality: bool):
        super().__init__()
        self.size, self.positives = size, positives
        self.iou = iou
        self.match_low_quality = match_low_quality
        self.top = ops.TopK(sorted=True)
        # Both in place of ArgMaxWithValue, whose numbers are int64.
        self.best, self.highest = ops.Argmax(1), ops.ReduceMax(keep_dims=True)

    def construct(self, proposals, is_proposal, truth, is_truth, keys):
        """Sample from G objects and P proposals, candidates in this order.

        Args:
            proposals: [B, P, 4]. is_proposal: [B, P] float32, 1 where there is one, else 0.
            truth: [B, G, 4], boxes of objects. is_truth: [B, G] float32, as is_proposal.
            keys: [B, at least G + P] float32, a permutation of 0, 1, 2, ... for each image.

        Returns:
            The sample of each image, first what is matched with an object, then background:

            - boxes: [B, S, 4].
            - matched: [B, S] int32, the number of the object; -1 for background, and where there is no sample.
            - is_sample: [B, S] float32, 0 where there is none: an image may have too few candidates.
            - is_own: [B, S] float32, 1 where the box is the object's own, not a proposal.
        """
        objects, candidates = truth.shape[1], truth.shape[1] + proposals.shape[1]
        keys, most = keys[:, :candidates], keys.shape[1]
        matched = ops.concat((self.own_numbers(is_truth), self.match(proposals, is_proposal, truth, is_truth)), 1)
        exists = ops.concat((is_truth, is_proposal), 1)
        boxes = ops.concat((truth, proposals), 1)
        # Scores of the positives that are taken are above all keys, those of background are the keys; others have -1.
        is_positive = exists * (matched >= 0).astype(ms.float32)
        positives = self.chosen(is_positive * (keys + 1) - 1, min(self.positives, candidates))
        scores = exists * (1 - is_positive) * (keys + 1) + positives * (keys + 1 + most) - 1
        score, index = self.top(scores, min(self.size, candidates))  # [B, S]
        boxes, matched = gather_rows(boxes, index), gather_rows(matched, index)
        matched = ops.select(score >= 0, matched, ops.zeros_like(matched) - 1)
        return boxes, matched, (score >= 0).astype(ms.float32), (index <= objects - 1).astype(ms.float32)

    def chosen(self, scores, count):
        """Return 1 for each image's `count` highest scores that are not below 0, else 0: [B, N] float32."""
        least = self.top(scores, count)[0][:, count - 1 :]
        return ops.logical_and(scores >= least, scores >= 0).astype(ms.float32)

    def own_numbers(self, is_truth):
        """Match each object with itself: [B, G] int32, -1 where there is none."""
        numbers = Tensor(np.arange(1, is_truth.shape[1] + 1, dtype=np.float32))
        return (is_truth * numbers - 1).astype(ms.int32)

    def match(self, proposals, is_proposal, truth, is_truth):
        """Return the number of the object that each proposal is matched with, or -1: [B, P] int32."""
        overlaps = paired_iou(truth.expand_dims(2), proposals.expand_dims(1))  # [B, G, P]
        exists = is_truth.expand_dims(2) * is_proposal.expand_dims(1)
        overlaps = overlaps * exists - (1 - exists)  # -1 where one of the two is none
        number, overlap = self.best(overlaps), self.highest(overlaps, 1).reshape((overlaps.shape[0], -1))
        matched = ops.select(overlap >= self.iou, number, ops.zeros_like(number) - 1)
        if self.match_low_quality:
            highest = self.highest(overlaps, 2)  # [B, G, 1]
            is_highest = ops.logical_and(overlaps == highest, highest >= self.iou).astype(ms.float32)
            numbers = Tensor(np.arange(1, truth.shape[1] + 1, dtype=np.float32).reshape(1, -1, 1))
            last = self.highest(is_highest * numbers, 1).reshape(number.shape).astype(ms.int32) - 1  # the last object
            matched = ops.select(last >= 0, last, matched)
        return matched
