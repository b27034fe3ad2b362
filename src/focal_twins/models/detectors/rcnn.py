"""Defines Mask R-CNN (arXiv 1703.06870) and Cascade Mask R-CNN (arXiv 1906.09756), each also for boxes alone.

Both find objects in two steps: a network proposes boxes, and heads classify, move and mask what the pyramid holds in
them. In a cascade three heads follow each other, each on the boxes of the one before.

Names and defaults are those of the published models on mmdetection 2.11 (models/detectors/two_stage.py,
roi_heads/standard_roi_head.py, cascade_roi_head.py), as Swin Transformer's and Twins' detection code configure them.
"""

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from focal_twins.models.backbones.backbone import Backbone
from focal_twins.models.class_layout import ClassLayout
from focal_twins.models.detectors.anchors import AnchorShapes, anchors_on, padded_extent
from focal_twins.models.detectors.box_heads import REGION_SIDE, BoxHead
from focal_twins.models.detectors.box_layers import clip_to_extents, decode_deltas
from focal_twins.models.detectors.detector import Detector, TargetMaker
from focal_twins.models.detectors.mask_head import MASK_SIDE, MaskHead, pack_bitmaps
from focal_twins.models.detectors.proposals import MOST_SUPPRESSED, AnchorSampler, Proposals, RPNHead
from focal_twins.models.detectors.rcnn_losses import RCNNLoss
from focal_twins.models.detectors.rois import RoIAlign
from focal_twins.models.detectors.sampling import RoISampler
from focal_twins.models.gathers import gather_rows
from focal_twins.models.network_on_backbone import check_positive, check_several_maps
from focal_twins.models.pyramid import FPN
from focal_twins.models.registry import ArgumentError, register_family

RATIOS = (0.5, 1.0, 2.0)  # height over width of anchors
NMS_IOU = 0.7  # of proposals
TEST_PROPOSALS = 1000
LAYOUTS = {  # of the layers that have rows for classes; the background is the last
    "fc_cls": ClassLayout(others=1),
    "fc_reg": ClassLayout(per_class=4),
    "conv_logits": ClassLayout(),
}


@dataclass(frozen=True)
class Stage:
    """Describes one head of a cascade.

    Attributes:
        stds: standard deviations by which deltas are divided, see boxes.encode.
        iou: of a proposal with an object, from which on it is matched with it.
        weight: factor of the head's losses.
    """

    stds: tuple[float, float, float, float]
    iou: float
    weight: float


@dataclass(frozen=True)
class RCNNTargets(TargetMaker):
    """Makes the targets of both steps: sampled anchors, the objects themselves, and the keys that sample proposals.

    Of an image with more objects than `max_boxes`, as many are drawn for the second step.

    Attributes:
        anchors: samples anchors.
        max_boxes: G.
        stages: heads of the cascade. keys: candidates that a head samples from, at most.
        needs_masks: whether there are masks.
    """

    anchors: AnchorSampler
    max_boxes: int
    stages: int
    keys: int
    needs_masks: bool

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Return the names of the arrays, see __call__."""
        names = ("rpn_index", "rpn_labels", "rpn_deltas", "boxes", "labels", "box_count", "sampling_keys")
        return (*names, "bitmaps", "frame") if self.needs_masks else names

    def __call__(self, canvas, extent, boxes, labels, generator, masks=None):
        """Return the arrays.

        Args:
            masks: [n, h, w] uint8 of 0 and 1, of the extent, in the order of the boxes.

        Returns:
            For the first step, see AnchorSampler: rpn_index, rpn_labels, rpn_deltas. Of the objects: boxes [G, 4]
            float32 and labels [G] int32, zero beyond the first box_count [] int32. sampling_keys [stages, keys]
            float32, see RoISampler. With masks bitmaps [G, H, W / 8] uint8, see pack_bitmaps, and frame [2] float32,
            (height, width) of the extent in whole multiples of 32, see MaskTargets.
        """
        sampled = self.anchors(canvas, extent, boxes, generator)
        keys = np.stack([generator.permutation(self.keys) for _ in range(self.stages)]).astype(np.float32)
        kept = np.arange(len(boxes))
        if len(boxes) > self.max_boxes:
            kept = np.sort(generator.choice(kept, self.max_boxes, replace=False))
        padded_boxes, padded_labels = np.zeros((self.max_boxes, 4), np.float32), np.zeros(self.max_boxes, np.int32)
        padded_boxes[: len(kept)], padded_labels[: len(kept)] = boxes[kept], labels[kept]
        arrays = (*sampled, padded_boxes, padded_labels, np.int32(len(kept)), keys)
        if not self.needs_masks:
            return arrays
        bitmaps = pack_bitmaps(masks[kept], canvas, self.max_boxes)
        return (*arrays, bitmaps, np.asarray(padded_extent(extent), np.float32))


class RoIHead(nn.Cell):
    """Holds the heads of the second step, by their published names: one of each, or lists of one for each stage."""

    def __init__(self, stages: int, is_cascade: bool, box_head, mask_head):
        """Create the heads by functions without arguments; `mask_head`: None for boxes alone."""
        super().__init__()
        self.is_cascade = is_cascade
        self.bbox_head = nn.CellList([box_head() for _ in range(stages)]) if is_cascade else box_head()
        self.has_masks = mask_head is not None
        if self.has_masks:
            self.mask_head = nn.CellList([mask_head() for _ in range(stages)]) if is_cascade else mask_head()

    def boxes_of(self, stage, regions, is_region=None):
        """Apply the box head of a stage, see BoxHead."""
        if self.is_cascade:
            return self.bbox_head[stage](regions, is_region)
        return self.bbox_head(regions, is_region)

    def masks_of(self, stage, regions, labels):
        """Apply the mask head of a stage, see MaskHead."""
        if self.is_cascade:
            return self.mask_head[stage](regions, labels)
        return self.mask_head(regions, labels)


class InstanceMasks(nn.Cell):
    """Draws the masks of detections that were selected on the host.

    Args:
        model: a detector with masks, whose heads it takes.
    """

    def __init__(self, model: "TwoStageDetector"):
        super().__init__(auto_prefix=False)
        self.roi_head, self.align = model.roi_head, model.align_masks
        self.stages = len(model.stages)

    def construct(self, pyramid, boxes, labels):
        """Map what the detector gives beside its candidates, boxes [B, n, 4] and labels [B, n] int32, to masks.

        Returns:
            Probabilities [B, n, 28, 28] float32: the mean of the stages'.
        """
        regions = self.align(pyramid, boxes)
        masks = ops.sigmoid(self.roi_head.masks_of(0, regions, labels.reshape(-1)))
        for stage in range(1, self.stages):
            masks = masks + ops.sigmoid(self.roi_head.masks_of(stage, regions, labels.reshape(-1)))
        return (masks / self.stages).reshape((*labels.shape, MASK_SIDE, MASK_SIDE))


def check_rcnn(arguments: dict) -> None:
    """Refuse arguments that cannot work.

    Raises:
        ArgumentError: names the argument.
    """
    numbers = ("channels", "hidden", "anchor_samples", "proposals", "proposals_per_level", "max_boxes")
    check_positive(arguments, numbers)
    if arguments["sampling_ratio"] < 0:
        raise ArgumentError("sampling_ratio", f"must be 0 or more, got {arguments['sampling_ratio']}")
    if arguments["anchor_scale"] <= 0:
        raise ArgumentError("anchor_scale", f"must be above 0, got {arguments['anchor_scale']}")
    if arguments["samples"] < 4:
        raise ArgumentError(
            "samples", f"must be at least 4, a quarter of which are objects, got {arguments['samples']}"
        )
    if arguments["proposals_per_level"] > MOST_SUPPRESSED:
        limit = f"must be at most {MOST_SUPPRESSED}, which MindSpore's NMSWithMask takes"
        raise ArgumentError("proposals_per_level", f"{limit}, got {arguments['proposals_per_level']}")


class TwoStageDetector(Detector):
    """Runs the two steps of Mask R-CNN and of a cascade; without masks, of Faster R-CNN and Cascade R-CNN.

    Args:
        masks: whether it draws masks.
        channels: of the pyramid and of convolutions. hidden: of the box heads' linear layers.
        sampling_ratio: samples along each side of a bin that regions are cut out by; 0: as many as it has cells, as the
            published weights were trained with. See RoIAlign.
        anchor_scale: side of the anchors, in strides.
        anchor_samples, samples: of each image, that the two steps learn from.
        proposals_per_level, proposals: of each image in training, before and after suppression; testing has
            no more than 1,000.
        max_boxes: objects of an image that the second step learns from.

    Attributes:
        stages: the heads that follow each other.
        is_cascade: names the heads as a cascade's. Its heads have four convolutions and one linear layer (4conv1fc),
            and learn boxes by their GIoU; its anchors are matched with objects only within the image.
    """

    check = staticmethod(check_rcnn)
    class_boxes = True
    stages: tuple[Stage, ...]
    is_cascade: bool

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int = 80,
        masks: bool = True,
        channels: int = 256,
        hidden: int = 1024,
        sampling_ratio: int = 2,
        anchor_scale: float = 8.0,
        anchor_samples: int = 256,
        samples: int = 512,
        proposals_per_level: int = 2000,
        proposals: int = 1000,
        max_boxes: int = 100,
    ):
        arguments = {name: value for name, value in locals().items() if name not in ("self", "backbone", "__class__")}
        super().__init__(backbone, arguments)
        check_several_maps(backbone)
        self.has_masks = masks
        taken = len(backbone.feature_maps)
        self.neck = FPN(backbone.feature_maps, channels, num_outs=taken + 1, further="pool")
        maps = self.neck.feature_maps
        self.shapes = AnchorShapes(tuple(m.stride for m in maps), (anchor_scale,), RATIOS)
        self.anchors = anchors_on(self.img_size, self.shapes)
        sizes = [m.size for m in maps]
        self.rpn_head = RPNHead(channels, sizes, self.shapes.per_place)
        self.propose = Proposals(self.anchors, proposals_per_level, proposals, NMS_IOU)
        tested, tested_per_level = min(proposals, TEST_PROPOSALS), min(proposals_per_level, TEST_PROPOSALS)
        self.propose_in_test = Proposals(self.anchors, tested_per_level, tested, NMS_IOU)
        self.positives = samples // 4
        stages, is_cascade = self.stages, self.is_cascade
        self.stds = tuple(stage.stds for stage in stages)
        self.samplers = nn.CellList([RoISampler(samples, self.positives, s.iou, not is_cascade) for s in stages])
        # Proposals are taken from the maps of the backbone's stages, not from the coarser one behind them.
        self.region_tokens = sum(height * width for height, width in sizes[:taken])
        strides = self.shapes.strides[:taken]
        self.align = RoIAlign(sizes[:taken], strides, REGION_SIDE, sampling_ratio)
        if self.has_masks:
            self.align_masks = RoIAlign(sizes[:taken], strides, MASK_SIDE // 2, sampling_ratio)
        convs, dense = (4, 1) if is_cascade else (0, 2)
        self.roi_head = RoIHead(
            len(stages),
            is_cascade,
            lambda: BoxHead(channels, num_classes, convs, dense, hidden),
            (lambda: MaskHead(channels, num_classes)) if masks else None,
        )
        parts = ("classification", "boxes", "masks") if masks else ("classification", "boxes")
        layers = {"bbox_head": ("fc_cls", "fc_reg"), "mask_head": ("conv_logits",) if masks else ()}
        heads = [(f"_{i + 1}", f".{i}") for i in range(len(stages))] if is_cascade else [("", "")]
        self.classifiers = tuple(
            f"roi_head.{head}{place}.{name}" for _, place in heads for head, names in layers.items() for name in names
        )
        self.class_layouts = {layer: LAYOUTS[layer.rpartition(".")[2]] for layer in self.classifiers}
        of_stages = [part + suffix for suffix, _ in heads for part in parts]
        self.loss_names = ("proposal_classification", "proposal_boxes", *of_stages)
        self.loss_floors = (1.0,) * len(self.loss_names)

    # --- training ----------------------------------------------------------------------------------------------------

    def target_maker(self) -> RCNNTargets:
        """Create the maker of targets, see RCNNTargets."""
        a = self.arguments
        anchors = AnchorSampler(self.shapes, a["anchor_samples"], self.is_cascade)
        keys = a["max_boxes"] + max(a["proposals"], a["samples"])
        return RCNNTargets(anchors, a["max_boxes"], len(self.stages), keys, self.has_masks)

    def loss(self) -> RCNNLoss:
        """Create the loss, see RCNNLoss."""
        return RCNNLoss(self.stages, self.num_classes, self.is_cascade, self.has_masks)

    def training_outputs(self, images, extents, targets, drop_path):
        """Return logits and deltas of all anchors, and then for each stage what RCNNLoss takes."""
        truth, labels, count, keys = targets[3], targets[4], targets[5], targets[6]
        pyramid = ops.concat(self.neck(self.backbone(images, drop_path)), 1)
        logits, deltas = self.rpn_head(pyramid)
        proposals, is_proposal = self.propose(logits, deltas, extents)
        number = Tensor(np.arange(truth.shape[1], dtype=np.int32).reshape(1, -1))
        is_object = (number < count.reshape((-1, 1))).astype(ms.float32)
        regions = pyramid[:, : self.region_tokens]
        outputs = (logits, deltas)
        for i in range(len(self.stages)):
            boxes, matched, is_sample, is_own = self.samplers[i](proposals, is_proposal, truth, is_object, keys[:, i])
            scores, moves = self.scores_and_moves(i, regions, boxes, is_sample)
            own_class = gather_rows(labels, matched)  # of what is matched with none, that of the first object
            is_matched = matched >= 0
            moved_class = ops.select(is_matched, own_class, self.best_class(scores))
            moves = self.moves_of_class(moves, moved_class)
            outputs = outputs + (boxes, matched, is_sample, scores, moves)
            if self.has_masks:
                positive = boxes[:, : self.positives]
                own = own_class[:, : self.positives].reshape(-1)
                masks = self.roi_head.masks_of(i, self.align_masks(regions, positive), own)
                outputs = outputs + (masks.reshape((*positive.shape[:2], MASK_SIDE, MASK_SIDE)),)
            if i + 1 < len(self.stages):
                proposals = self.refine(i, boxes, moves, extents)
                is_proposal = is_sample * (1 - is_own)
        return outputs

    # --- both --------------------------------------------------------------------------------------------------------

    def scores_and_moves(self, stage, regions, boxes, is_sample=None):
        """Classify boxes [B, S, 4] and move them for every class: logits [B, S, C + 1] and deltas [B * S, C, 4]."""
        counted = None if is_sample is None else is_sample.reshape(-1)
        scores, moves = self.roi_head.boxes_of(stage, self.align(regions, boxes), counted)
        return scores.reshape((*boxes.shape[:2], -1)), moves

    def best_class(self, scores):
        """Return the best of the classes but the background: [B, S, C + 1] to [B, S] int32."""
        return ops.Argmax(-1)(scores[:, :, : self.num_classes])

    def moves_of_class(self, moves, classes):
        """Pick each region's deltas of one class: [B * S, C, 4] and [B, S] int32 to [B, S, 4]."""
        return gather_rows(moves, classes.reshape((-1, 1))).reshape((*classes.shape, 4))

    def refine(self, stage, boxes, moves, extents):
        """Move boxes [B, S, 4] by deltas [B, S, 4] within the image; they pass no gradient."""
        return ops.stop_gradient(clip_to_extents(decode_deltas(boxes, moves, self.stds[stage]), extents))

    # --- detection ---------------------------------------------------------------------------------------------------

    def candidates(self, images, extents):
        """Return the candidates that construct describes; with masks, what InstanceMasks takes beside them.

        The scores of a cascade are the probabilities of the mean of all stages' logits.
        """
        pyramid = ops.concat(self.neck(self.backbone(images)), 1)
        logits, deltas = self.rpn_head(pyramid)
        boxes, is_proposal = self.propose_in_test(logits, deltas, extents)
        regions = pyramid[:, : self.region_tokens]
        size, last = is_proposal.shape, len(self.stages) - 1
        scores, moves = self.scores_and_moves(0, regions, boxes)
        total = scores
        for i in range(last):
            boxes = self.refine(i, boxes, self.moves_of_class(moves, self.best_class(scores)), extents)
            scores, moves = self.scores_and_moves(i + 1, regions, boxes)
            total = total + scores
        moves = moves.reshape((*size, -1, 4))
        boxes = decode_deltas(boxes.expand_dims(2), moves, self.stds[last]).reshape((size[0], -1, 4))
        boxes = clip_to_extents(boxes, extents).reshape((*size, -1))  # [B, P, C * 4]
        scores = ops.softmax(total / (last + 1), -1)[:, :, : self.num_classes] * is_proposal.expand_dims(2)
        found = ops.concat((boxes, scores), 2)
        return (found, regions) if self.has_masks else found

    @property
    def candidate_count(self):
        return self.propose_in_test.count

    def mask_cell(self) -> InstanceMasks:
        """Create the cell that draws masks of detections, with this model's parameters."""
        return InstanceMasks(self)


@register_family("mask_rcnn")
class MaskRCNN(TwoStageDetector):
    """Runs Mask R-CNN on a backbone. Arguments: see TwoStageDetector."""

    stages = (Stage((0.1, 0.1, 0.2, 0.2), 0.5, 1.0),)
    is_cascade = False


@register_family("cascade_rcnn")
class CascadeRCNN(TwoStageDetector):
    """Runs Cascade Mask R-CNN on a backbone, as Swin Transformer configures it. Arguments: see TwoStageDetector."""

    stages = (
        Stage((0.1, 0.1, 0.2, 0.2), 0.5, 1.0),
        Stage((0.05, 0.05, 0.1, 0.1), 0.6, 0.5),
        Stage((0.033, 0.033, 0.067, 0.067), 0.7, 0.25),
    )
    is_cascade = True

    def __init__(self, backbone: Backbone, proposals: int = 2000, **arguments):
        super().__init__(backbone, proposals=proposals, **arguments)
