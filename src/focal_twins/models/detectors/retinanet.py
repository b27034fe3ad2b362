"""Defines RetinaNet (arXiv 1708.02002), with the names and defaults of mmdetection 2.11, which the originals used."""

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from focal_twins.models.backbones.backbone import Backbone
from focal_twins.models.class_layout import ClassLayout
from focal_twins.models.detectors.anchor_detector import AnchorDetector, check_anchor_detector, positives
from focal_twins.models.detectors.anchors import AnchorShapes, anchors_on
from focal_twins.models.detectors.assign import IGNORED, IouRule, assign_by_iou, labels_of_matches
from focal_twins.models.detectors.boxes import encode
from focal_twins.models.detectors.detector import TargetMaker
from focal_twins.models.detectors.losses import PRIOR_BIAS, SigmoidFocalLoss, SmoothL1Loss
from focal_twins.models.level_layers import SharedConv, SharedConvReLU
from focal_twins.models.registry import register_family

STDS = (1.0, 1.0, 1.0, 1.0)
RULE = IouRule(positive=0.5, negative=0.4)


class RetinaHead(nn.Cell):
    """Gives logits of classes and deltas for every anchor, by two towers of convolutions.

    Args:
        per_place: anchors at each place.
        map_sizes: (h, w) of each level.
    """

    def __init__(self, in_channels, channels, stacked_convs, num_classes, per_place, map_sizes):
        super().__init__()
        self.num_classes = num_classes
        inputs = [in_channels] + [channels] * (stacked_convs - 1)
        self.cls_convs = nn.SequentialCell([SharedConvReLU(given, channels, map_sizes) for given in inputs])
        self.reg_convs = nn.SequentialCell([SharedConvReLU(given, channels, map_sizes) for given in inputs])
        self.retina_cls = SharedConv(channels, per_place * num_classes, 3, map_sizes, bias_start=PRIOR_BIAS)
        self.retina_reg = SharedConv(channels, per_place * 4, 3, map_sizes)

    def construct(self, x):
        """Map the tokens [B, L, in_channels] of all levels to logits [B, A, num_classes] and deltas [B, A, 4]."""
        logits = self.retina_cls(self.cls_convs(x))  # [B, L, per_place * num_classes]
        deltas = self.retina_reg(self.reg_convs(x))
        return logits.reshape((x.shape[0], -1, self.num_classes)), deltas.reshape((x.shape[0], -1, 4))


@dataclass(frozen=True)
class RetinaNetTargets(TargetMaker):
    """Gives each anchor the label that it is to predict and the deltas to its box.

    The arrays are labels [A] int32, C for background and -1 for what is ignored, and deltas [A, 4] float32, zero
    where there is no box.
    """

    shapes: AnchorShapes
    num_classes: int
    names = ("labels", "deltas")

    def __call__(self, canvas, extent, boxes, labels, generator, masks=None):
        anchors = anchors_on(tuple(canvas), self.shapes)
        valid = anchors.valid(extent)
        match = np.full(len(anchors.boxes), IGNORED, np.int32)
        match[valid] = assign_by_iou(anchors.boxes[valid], boxes, RULE)
        deltas = np.zeros_like(anchors.boxes)
        positive = np.flatnonzero(match >= 0)
        deltas[positive] = encode(anchors.boxes[positive], boxes[match[positive]], STDS)
        return labels_of_matches(match, labels, self.num_classes), deltas


class RetinaNetLoss(nn.Cell):
    """Sums the focal loss of all anchors and the L1 loss of the deltas of objects; both divisors count positives."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.focal, self.absolute = SigmoidFocalLoss(num_classes), SmoothL1Loss()

    def construct(self, outputs, targets):
        logits, deltas = outputs
        labels, wanted = targets
        positive, count = positives(labels, self.num_classes)
        sums = self.focal(logits.astype(ms.float32), labels), self.absolute(deltas.astype(ms.float32), wanted, positive)
        return ops.stack(sums), ops.stack((count, count))


@register_family("retinanet")
class RetinaNet(AnchorDetector):
    """Runs RetinaNet on a backbone. Arguments: see AnchorDetector."""

    check = staticmethod(check_anchor_detector)
    further = "on_input"
    scales_per_octave = 3
    ratios = (0.5, 1.0, 2.0)
    stds = STDS
    loss_names = ("classification", "boxes")
    loss_floors = (1.0, 1.0)
    classifiers = ("bbox_head.retina_cls",)

    def __init__(self, backbone: Backbone, anchor_scale: float = 4.0, **arguments):
        super().__init__(backbone, anchor_scale=anchor_scale, **arguments)
        a, per_place = self.arguments, self.shapes.per_place
        self.class_layouts = {"bbox_head.retina_cls": ClassLayout(blocks=per_place)}
        self.bbox_head = RetinaHead(
            a["neck_channels"], a["channels"], a["stacked_convs"], self.num_classes, per_place, self.map_sizes
        )

    def loss(self):
        return RetinaNetLoss(self.num_classes)

    def target_maker(self):
        return RetinaNetTargets(self.shapes, self.num_classes)
