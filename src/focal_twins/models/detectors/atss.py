"""Defines ATSS (arXiv 1912.02424), with the names and defaults of mmdetection 2.11, which the originals used."""

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from focal_twins.models.backbones.backbone import Backbone
from focal_twins.models.detectors.anchor_detector import AnchorDetector, check_anchor_detector, positives
from focal_twins.models.detectors.anchors import Anchors, AnchorShapes, anchors_on
from focal_twins.models.detectors.assign import IGNORED, assign_by_centres, labels_of_matches
from focal_twins.models.detectors.box_layers import decode_deltas
from focal_twins.models.detectors.detector import TargetMaker
from focal_twins.models.detectors.losses import PRIOR_BIAS, BinaryCrossEntropy, GIoULoss, SigmoidFocalLoss
from focal_twins.models.level_layers import SharedConv, SharedConvReLU, level_spans
from focal_twins.models.registry import ArgumentError, register_family

STDS = (0.1, 0.1, 0.2, 0.2)
GROUPS = 32
GIOU_FACTOR = 2.0


class Scale(nn.Cell):
    """Multiplies by a number that is learned, from 1 on."""

    def __init__(self):
        super().__init__()
        self.scale = Parameter(Tensor(1.0, ms.float32), name="scale")

    def construct(self, x):
        return x * self.scale.astype(x.dtype)


class ATSSHead(nn.Cell):
    """Gives logits of classes, deltas and the logit of centerness for the anchor of every place.

    Args:
        map_sizes: (h, w) of each level.
    """

    def __init__(self, in_channels, channels, stacked_convs, num_classes, map_sizes):
        super().__init__()
        inputs = [in_channels] + [channels] * (stacked_convs - 1)
        self.cls_convs = nn.SequentialCell([SharedConvReLU(given, channels, map_sizes, GROUPS) for given in inputs])
        self.reg_convs = nn.SequentialCell([SharedConvReLU(given, channels, map_sizes, GROUPS) for given in inputs])
        self.atss_cls = SharedConv(channels, num_classes, 3, map_sizes, bias_start=PRIOR_BIAS)
        self.atss_reg = SharedConv(channels, 4, 3, map_sizes)
        self.atss_centerness = SharedConv(channels, 1, 3, map_sizes)
        self.scales = nn.CellList([Scale() for _ in map_sizes])
        self.spans = level_spans(map_sizes)

    def construct(self, x):
        """Map the tokens [B, A, in_channels] of all levels to logits [B, A, C], deltas [B, A, 4] and logits [B, A]."""
        logits = self.atss_cls(self.cls_convs(x))
        x = self.reg_convs(x)
        deltas = self.atss_reg(x)
        scaled = ()
        for i in range(len(self.spans)):
            first, end = self.spans[i]
            scaled = scaled + (self.scales[i](deltas[:, first:end]),)
        return logits, ops.concat(scaled, 1), self.atss_centerness(x).reshape(x.shape[:2])


@dataclass(frozen=True)
class ATSSTargets(TargetMaker):
    """Gives each anchor the label that it is to predict, its box, and how central it is in the box.

    The arrays are labels [A] int32, C for background and -1 for what is ignored, boxes [A, 4] float32 and centerness
    [A] float32; the latter two are zero where there is no box.
    """

    shapes: AnchorShapes
    num_classes: int
    names = ("labels", "boxes", "centerness")

    def __call__(self, canvas, extent, boxes, labels, generator, masks=None):
        anchors = anchors_on(tuple(canvas), self.shapes)
        valid = anchors.valid(extent)
        counts = [int(valid[level].sum()) for level in anchors.levels]
        match = np.full(len(anchors.boxes), IGNORED, np.int32)
        match[valid] = assign_by_centres(anchors.boxes[valid], boxes, counts)
        own_boxes, central = np.zeros_like(anchors.boxes), np.zeros(len(match), np.float32)
        positive = np.flatnonzero(match >= 0)
        own_boxes[positive] = boxes[match[positive]]
        central[positive] = centerness(anchors.boxes[positive], own_boxes[positive])
        return labels_of_matches(match, labels, self.num_classes), own_boxes, central


def centerness(anchors: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Tell how central the centres of anchors [n, 4] are in boxes [n, 4]: [n], from 0 at an edge to 1 in the middle."""
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    before, after = centres - boxes[:, :2], boxes[:, 2:] - centres
    return np.sqrt((np.minimum(before, after) / np.maximum(before, after)).prod(axis=1))


class ATSSLoss(nn.Cell):
    """Sums the focal loss of all anchors, and the losses of the boxes and the centerness of objects.

    The first and the last divisor count positives. The GIoU losses are weighted by the centerness that anchors have,
    and their divisor is its sum.
    """

    def __init__(self, num_classes: int, anchors: Anchors):
        super().__init__()
        self.num_classes = num_classes
        self.anchors = Tensor(anchors.boxes)
        self.focal, self.giou, self.cross_entropy = SigmoidFocalLoss(num_classes), GIoULoss(), BinaryCrossEntropy()

    def construct(self, outputs, targets):
        logits, deltas, factor = outputs
        labels, boxes, central = targets
        positive, count = positives(labels, self.num_classes)
        found = decode_deltas(self.anchors, deltas.astype(ms.float32), STDS)
        sums = (
            self.focal(logits.astype(ms.float32), labels),
            self.giou(found, boxes, central) * GIOU_FACTOR,
            self.cross_entropy(factor.astype(ms.float32), central, positive),
        )
        return ops.stack(sums), ops.stack((count, central.sum(), count))


def check_atss(arguments: dict) -> None:
    """Refuse arguments that cannot work.

    Raises:
        ArgumentError: names the argument.
    """
    check_anchor_detector(arguments)
    if arguments["channels"] % GROUPS:
        raise ArgumentError("channels", f"must be a multiple of the {GROUPS} groups, got {arguments['channels']}")


@register_family("atss")
class ATSS(AnchorDetector):
    """Runs ATSS on a backbone. Arguments: see AnchorDetector."""

    check = staticmethod(check_atss)
    further = "on_output"
    scales_per_octave = 1
    ratios = (1.0,)
    stds = STDS
    loss_names = ("classification", "boxes", "centerness")
    loss_floors = (1.0, 1e-12, 1.0)
    nms_iou = 0.6
    has_factor = True
    classifiers = ("bbox_head.atss_cls",)

    def __init__(self, backbone: Backbone, anchor_scale: float = 8.0, **arguments):
        super().__init__(backbone, anchor_scale=anchor_scale, **arguments)
        a = self.arguments
        self.bbox_head = ATSSHead(
            a["neck_channels"], a["channels"], a["stacked_convs"], self.num_classes, self.map_sizes
        )

    def loss(self):
        return ATSSLoss(self.num_classes, self.anchors)

    def target_maker(self):
        return ATSSTargets(self.shapes, self.num_classes)
