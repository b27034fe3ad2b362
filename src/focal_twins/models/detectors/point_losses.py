"""Computes the losses of RepPoints v2 (arXiv 2007.08508), as sums with their divisors."""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from focal_twins.models.detectors.box_layers import paired_iou
from focal_twins.models.detectors.graph_atss import GraphATSS
from focal_twins.models.detectors.losses import SmoothL1Loss
from focal_twins.models.detectors.point_targets import POINT_SCALE
from focal_twins.models.gathers import RowGather, gather_rows
from focal_twins.models.level_layers import MapSizes
from focal_twins.models.resize import nearest_tokens

FACTORS = {
    "classification": 1.0,
    "first_boxes": 1.0,
    "refined_boxes": 2.0,
    "top_left_corners": 0.25 / 2,  # of the two kinds of corners, the mean counts
    "bottom_right_corners": 0.25 / 2,
    "top_left_offsets": 1.0 / 2,
    "bottom_right_offsets": 1.0 / 2,
    "semantic_objects": 0.1,
    "semantic_background": 0.1,
}
# Weights of covered cells are one over an area in pixels, which may sum up to less than 1.
FLOORS = {name: 1e-6 if name == "semantic_objects" else 1.0 for name in FACTORS}


class QualityFocalLoss(nn.Cell):
    """Sums the quality focal loss (arXiv 2006.04388): of each class, cross entropy times the squared difference.

    Its target is the quality of a box for the own class, and 0 for all others. The gradient is its own and keeps the
    logits alone.

    Args:
        classes: C.
    """

    def __init__(self, classes: int):
        super().__init__()
        self.classes = Tensor(np.arange(classes, dtype=np.int32))
        # Primitives, see PixelCrossEntropy.
        self.exp, self.log1p, self.abs, self.relu = ops.Exp(), ops.Log1p(), ops.Abs(), ops.ReLU()
        self.sigmoid, self.sum, self.zeros_like = ops.Sigmoid(), ops.ReduceSum(), ops.ZerosLike()

    def terms(self, logits, labels, quality):
        """Return each class's probability, less its target, and the cross entropy."""
        own = (labels.reshape((*labels.shape, 1)) == self.classes).astype(ms.float32)
        target = own * quality.reshape((*quality.shape, 1))
        probability = self.sigmoid(logits)
        entropy = self.relu(logits) - logits * target + self.log1p(self.exp(-self.abs(logits)))
        return probability, probability - target, entropy

    def construct(self, logits, labels, quality, weights):
        """Map logits [B, L, C] float32 to the sum, a scalar.

        Args:
            labels: [B, L] int32 of the own class; -1 for none. quality: [B, L] float32. weights: [B, L] float32.
        """
        _, difference, entropy = self.terms(logits, labels, quality)
        return self.sum(self.sum(entropy * difference * difference, -1) * weights)

    def bprop(self, logits, labels, quality, weights, out, dout):
        probability, difference, entropy = self.terms(logits, labels, quality)
        slope = difference * (difference * difference + 2 * entropy * probability * (1 - probability))
        to_logits = slope * (weights * dout).reshape((*weights.shape, 1))
        return to_logits, self.zeros_like(labels), self.zeros_like(quality), self.zeros_like(weights)


class WideGIoULoss(nn.Cell):
    """Sums 1 - GIoU of boxes whose sides are one longer than they are, as older detectors counted pixels.

    The published models learnt with it on boxes in multiples of strides, where one is much (losses/iou_loss.py,
    giou_loss_oldver).
    """

    def __init__(self):
        super().__init__()

    def construct(self, boxes, targets, weights):
        """Map boxes and targets [..., 4] and weights [...], float32, to the sum, a scalar."""
        low, high = ops.maximum(boxes[..., :2], targets[..., :2]), ops.minimum(boxes[..., 2:], targets[..., 2:])
        shared = area(ops.relu(high - low + 1))
        areas = area(boxes[..., 2:] - boxes[..., :2] + 1) + area(targets[..., 2:] - targets[..., :2] + 1)
        union = areas - shared + 1e-6
        low, high = ops.minimum(boxes[..., :2], targets[..., :2]), ops.maximum(boxes[..., 2:], targets[..., 2:])
        hull = area(ops.relu(high - low + 1)) + 1e-6
        return ((1 - shared / union + (hull - union) / hull) * weights).sum()


def area(sides):
    """Return the products [...] of sides [..., 2]."""
    return sides[..., 0] * sides[..., 1]


class GaussianFocalLoss(nn.Cell):
    """Sums CornerNet's focal loss (arXiv 1808.01244) of heat, with exponents of 2, and of 4 for what is nearly hot."""

    def __init__(self):
        super().__init__()

    def construct(self, logits, heat):
        """Map logits [B, L, 2] and heat [B, L, 2], float32, to the sums [2].

        Args:
            heat: 1 at corners, less around them; below 0 for what is not counted.
        """
        probability, tiny = ops.sigmoid(logits), 1e-12
        hot = (heat >= 1).astype(ms.float32)
        cold = ops.square(ops.square(1 - heat)) * (heat >= 0).astype(ms.float32)
        rest = 1 - probability  # squares are products: the gradient of ops.square is a power, which Ascend lacks
        hits = -ops.log(probability + tiny) * (rest * rest) * hot
        misses = -ops.log(rest + tiny) * (probability * probability) * cold
        return (hits + misses).sum((0, 1))


class SemanticFocalLoss(nn.Cell):
    """Sums the focal loss of a map of classes, apart for cells with and without an object of a class.

    Args:
        alpha: factor of cells with an object; the others have 1 - alpha.
    """

    def __init__(self, alpha: float = 0.25):
        super().__init__()
        self.alpha = alpha

    def construct(self, logits, weights, is_valid):
        """Map logits [B, L, C] float32 to two sums.

        Args:
            weights: [B, L, C] float32 of cells with an object; 0 for those without.
            is_valid: [B, L] float32, 0 for cells beyond the image. (The original counts what pads a batch.)
        """
        probability = ops.sigmoid(logits)
        softplus = ops.relu(logits) + ops.log1p(ops.exp(-ops.abs(logits)))  # -log(1 - probability)
        rest = 1 - probability
        objects = (softplus - logits) * (rest * rest) * weights * self.alpha
        background = softplus * (probability * probability) * (weights <= 0).astype(ms.float32) * (1 - self.alpha)
        return objects.sum(), (background.sum(2) * is_valid).sum()


class RepPointsLosses(nn.Cell):
    """Computes the parts of RepPoints v2's loss, in the order of FACTORS.

    Divisors: for "classification" and "refined_boxes" the places that the first boxes match with an object, for
    "first_boxes" those that start from one, for corners and their offsets the places of heat 1, for "semantic_objects"
    the weights of the covered cells and for "semantic_background" their number. All but the last two count an image
    without any as one.

    Args:
        map_sizes: (h, w) of each level. strides: of the levels.
        num_classes: C.
    """

    def __init__(self, map_sizes: MapSizes, strides: Sequence[int], num_classes: int):
        super().__init__()
        self.places, stride = places_of_tokens(map_sizes, strides)
        self.strides, self.scale = stride, stride * POINT_SCALE
        self.match = GraphATSS(map_sizes)
        self.to_levels = RowGather(np.concatenate([nearest_tokens(map_sizes[0], size) for size in map_sizes]))
        self.quality_focal, self.giou, self.heat_focal = (
            QualityFocalLoss(num_classes),
            WideGIoULoss(),
            GaussianFocalLoss(),
        )
        self.semantic_focal, self.smooth_l1 = SemanticFocalLoss(), SmoothL1Loss(1 / 9)
        self.factors = Tensor(np.array(list(FACTORS.values()), np.float32))

    def construct(self, outputs, targets):
        """Map outputs of RepPointsV2Head and targets of PointTargets, in batches, to sums [9] and weights [9]."""
        logits, first, refined, heat_logits, offsets, semantic_logits = outputs
        boxes, labels, starts, heat, corner_offsets, semantics, few_places = targets
        first_boxes = box_of_points(first.astype(ms.float32)) * self.strides + self.places
        refined_boxes = box_of_points(refined.astype(ms.float32)) * self.strides + self.places
        is_valid = (heat[..., 0] >= 0).astype(ms.float32)
        matches = self.match(ops.stop_gradient(first_boxes), is_valid, boxes, labels >= 0, few_places)

        started, start_boxes = matched_boxes(boxes, starts)
        starting_loss = self.giou(first_boxes / self.scale, start_boxes / self.scale, started)
        matched, match_boxes = matched_boxes(boxes, matches)
        refining_loss = self.giou(refined_boxes / self.scale, match_boxes / self.scale, matched)
        quality = ops.stop_gradient(paired_iou(refined_boxes, match_boxes) * matched)
        own = ops.select(matches <= -1, -ops.ones_like(matches), gather_rows(labels, matches))
        class_loss = self.quality_focal(logits.astype(ms.float32), own, quality, is_valid)

        heat_losses = self.heat_focal(heat_logits.astype(ms.float32), heat)
        hot = (heat >= 1).astype(ms.float32)
        offsets = offsets.astype(ms.float32)
        top_left = self.smooth_l1(offsets[..., :2], corner_offsets[..., :2], hot[..., 0])
        bottom_right = self.smooth_l1(offsets[..., 2:], corner_offsets[..., 2:], hot[..., 1])

        cell_weights = self.cell_weights(boxes, semantics.astype(ms.int32))
        objects, background = self.semantic_focal(semantic_logits.astype(ms.float32), cell_weights, is_valid)

        sums = (class_loss, starting_loss, refining_loss, heat_losses[0], heat_losses[1], top_left, bottom_right)
        sums = ops.stack((*sums, objects, background))
        all_matched, corners = at_least_one(matched), (at_least_one(hot[..., 0]), at_least_one(hot[..., 1]))
        cells = cell_weights.sum(), (cell_weights > 0).astype(ms.float32).sum()
        weights = ops.stack((all_matched, at_least_one(started), all_matched, *corners, *corners, *cells))
        return sums * self.factors, ops.stop_gradient(weights)

    def cell_weights(self, boxes, semantics):
        """Return one over the area of the smallest object of each class at each cell: [B, L, C], 0 for none.

        Every level takes the nearest cells of the largest map.
        """
        areas = ops.maximum(area(boxes[..., 2:] - boxes[..., :2]), 1e-6)  # [B, G]
        weights = ops.concat((ops.zeros_like(areas[:, :1]), 1 / areas), 1)  # object 0 is none
        weights = gather_rows(weights, semantics.reshape((semantics.shape[0], -1))).reshape(semantics.shape)
        return self.to_levels(weights)


def places_of_tokens(map_sizes: MapSizes, strides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the places [1, L, 4] of the tokens of all levels, (x, y, x, y) in pixels, and their strides [1, L, 1]."""
    places, of_tokens = [], []
    for (height, width), stride in zip(map_sizes, strides, strict=True):
        row, column = np.divmod(np.arange(height * width), width)
        places.append(np.stack([column, row, column, row], axis=1) * stride)
        of_tokens.append(np.full((height * width, 1), stride))
    return tuple(Tensor(np.concatenate(values)[None].astype(np.float32)) for values in (places, of_tokens))


def box_of_points(points):
    """Return the boxes [B, L, 4] of points [B, L, 2 n], (y, x) each: the first two are its corners."""
    return ops.concat((points[..., 1:2], points[..., 0:1], points[..., 3:4], points[..., 2:3]), -1)


def matched_boxes(boxes, matches):
    """Return which of matches [B, L] are some, [B, L] float32, and their boxes [B, L, 4] of boxes [B, G, 4]."""
    return (matches >= 0).astype(ms.float32), gather_rows(boxes, matches)


def at_least_one(counted):
    """Sum up the counts of images, of which each counts at least one: [B, L] to a scalar."""
    return ops.maximum(counted.sum(1), 1.0).sum()
