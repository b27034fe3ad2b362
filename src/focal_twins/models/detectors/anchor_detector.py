"""Defines what detectors have in common that score every anchor and move it onto an object: RetinaNet, ATSS."""

from typing import Literal

import mindspore as ms
from mindspore import Tensor, nn, ops

from focal_twins.models.backbones.backbone import Backbone
from focal_twins.models.detectors.anchors import Anchors, AnchorShapes, anchors_on
from focal_twins.models.detectors.box_layers import clip_to_extents, decode_deltas
from focal_twins.models.detectors.candidates import BestOfLevels, stands_on_image
from focal_twins.models.detectors.detector import Detector
from focal_twins.models.gathers import gather_rows
from focal_twins.models.network_on_backbone import check_positive
from focal_twins.models.pyramid import FPN
from focal_twins.models.registry import ArgumentError


class AnchorDetector(Detector):
    """Runs images through a backbone, a feature pyramid and a dense head, whose parameters all levels share.

    A family's constructor sets bbox_head, by what this one has set. The head maps the tokens [B, L, neck_channels] of
    all levels, one after the other, to logits [B, A, num_classes] and deltas [B, A, 4] of the anchors and, with
    has_factor, logits [B, A] of the factor.

    Args:
        neck_channels: of the feature pyramid. channels: of the head's towers. stacked_convs: convolutions of a tower.
        start_level: the first of the backbone's maps that the pyramid takes.
        num_outs: levels of the pyramid, see FPN.
        anchor_scale: side of the smallest anchors, in strides.
        candidates_per_level: anchors of each level that evaluation goes on with.

    Attributes:
        further: what makes the levels after the backbone's maps, see FPN.
        scales_per_octave: sizes of anchors, of which each is the next larger one's side over 2^(1 / their number).
        ratios: height over width of anchors of one size.
        stds: standard deviations by which deltas are divided.
        shapes: describes the anchors. anchors: those of this size of images.
        map_sizes: (h, w) of each level.
    """

    further: Literal["on_input", "on_output"]
    scales_per_octave: int
    ratios: tuple[float, ...]
    stds: tuple[float, float, float, float]
    bbox_head: nn.Cell

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int = 80,
        neck_channels: int = 256,
        channels: int = 256,
        stacked_convs: int = 4,
        start_level: int = 1,
        num_outs: int = 5,
        anchor_scale: float = 4.0,
        candidates_per_level: int = 1000,
    ):
        arguments = {name: value for name, value in locals().items() if name not in ("self", "backbone", "__class__")}
        super().__init__(backbone, arguments)
        maps = backbone.feature_maps
        if start_level >= len(maps):
            raise ArgumentError("start_level", f"the backbone gives {len(maps)} maps, got {start_level}")
        if num_outs < len(maps) - start_level:
            raise ArgumentError("num_outs", f"the backbone gives {len(maps) - start_level} from {start_level} on")
        self.neck = FPN(maps, neck_channels, start_level, num_outs, self.further)
        strides = tuple(level.stride for level in self.neck.feature_maps)
        scales = tuple(anchor_scale * 2 ** (i / self.scales_per_octave) for i in range(self.scales_per_octave))
        self.shapes = AnchorShapes(strides, scales, self.ratios)
        self.anchors = anchors_on(self.img_size, self.shapes)
        self.map_sizes = self.anchors.map_sizes
        self.choose = CandidateChoice(self.anchors, self.stds, candidates_per_level)

    @property
    def candidate_count(self):
        return sum(self.choose.best.counts)

    def outputs(self, images, drop_path=None):
        """Map images to the head's outputs, see the class."""
        return self.bbox_head(ops.concat(self.neck(self.backbone(images, drop_path)), 1))

    def training_outputs(self, images, extents, targets, drop_path):
        return self.outputs(images, drop_path)

    def candidates(self, images, extents):
        outputs = self.outputs(images)
        return self.choose(outputs[0], outputs[1], outputs[2] if self.has_factor else None, extents)


class CandidateChoice(nn.Cell):
    """Chooses the anchors of each level that score best, and moves them: the candidates of Detector.construct.

    Args:
        stds: see AnchorDetector.
        per_level: how many of each level; of one that has no more, all.
    """

    def __init__(self, anchors: Anchors, stds: tuple[float, ...], per_level: int):
        super().__init__()
        self.boxes, self.corners = Tensor(anchors.boxes), Tensor(anchors.corners[None])
        self.stds = stds
        self.best = BestOfLevels([(level.start, level.stop) for level in anchors.levels], per_level)
        self.sigmoid, self.most = ops.Sigmoid(), ops.ReduceMax()

    def construct(self, logits, deltas, factor, extents):
        """Map the outputs of the head, see AnchorDetector, and extents [B, 2] to candidates [B, K, D]."""
        batch = logits.shape[0]
        scores = self.sigmoid(logits.astype(ms.float32))
        ranks = self.most(scores, -1)
        if factor is not None:
            factor = self.sigmoid(factor.astype(ms.float32))
            ranks = ranks * factor
        valid = stands_on_image(self.corners, extents)
        ranks = ranks * valid
        scores = scores * valid.reshape((batch, -1, 1))
        chosen = self.best(ranks)  # [B, K]
        anchors = ops.gather(self.boxes, chosen.reshape(-1), 0).reshape((batch, -1, 4))
        boxes = decode_deltas(anchors, gather_rows(deltas.astype(ms.float32), chosen), self.stds)
        parts = clip_to_extents(boxes, extents), gather_rows(scores, chosen)
        if factor is not None:
            parts = (*parts, gather_rows(factor.reshape((batch, -1, 1)), chosen))
        return ops.concat(parts, -1)


def check_anchor_detector(arguments: dict) -> None:
    """Refuse arguments that no detector on anchors can have.

    Raises:
        ArgumentError: names the argument.
    """
    check_positive(arguments, ("neck_channels", "channels", "stacked_convs", "num_outs", "candidates_per_level"))
    if arguments["start_level"] < 0:
        raise ArgumentError("start_level", f"must be at least 0, got {arguments['start_level']}")
    if arguments["anchor_scale"] <= 0:
        raise ArgumentError("anchor_scale", f"must be above 0, got {arguments['anchor_scale']}")


def positives(labels, classes: int):
    """Mark the anchors of objects among labels [B, A], and count them.

    Args:
        classes: labels from 0 to below this are those of objects.

    Returns:
        [B, A] float32 of ones and zeros, and the count, to which every image adds at least 1 (a quirk of mmdetection).
    """
    marks = (labels >= 0).astype(ms.float32) * (labels <= classes - 1).astype(ms.float32)
    return marks, ops.maximum(marks.sum(-1), 1.0).sum()
