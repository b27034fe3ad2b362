"""Defines RepPoints v2 (arXiv 2007.08508) as Swin Transformer's detection code trains it, with BiFPN.

Source: dense_heads/reppoints_v2_head.py and configs/_base_/models/reppointsv2_swin_bifpn.py of
SwinTransformer/Swin-Transformer-Object-Detection.
"""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from focal_twins.models.backbones.backbone import Backbone
from focal_twins.models.bifpn import BiFPN
from focal_twins.models.convolutions import WEIGHTS
from focal_twins.models.deformable import PlacesOnLevels, SharedDeformableConv
from focal_twins.models.detectors.box_layers import clip_to_extents
from focal_twins.models.detectors.candidates import BestOfLevels, stands_on_image
from focal_twins.models.detectors.corners import CornerFeatures, CornerRefinement
from focal_twins.models.detectors.detector import Detector
from focal_twins.models.detectors.losses import PRIOR_BIAS
from focal_twins.models.detectors.point_losses import FACTORS, FLOORS, RepPointsLosses, box_of_points, places_of_tokens
from focal_twins.models.detectors.point_targets import PointTargets
from focal_twins.models.gathers import gather_rows
from focal_twins.models.level_layers import MapSizes, SharedConv, SharedConvNorm, level_spans
from focal_twins.models.network_on_backbone import check_positive, check_several_maps
from focal_twins.models.registry import ArgumentError, register_family

POINTS = 9  # of each place: a deformable convolution of 3 x 3 sees the features there
GROUPS = 32  # of every norm
POINT_GRADIENT = 0.1  # share of the gradient that comes to the first points by the features seen there


class RepPointsV2Head(nn.Cell):
    """Puts points on the objects around each place, and finds corners and classes to help them.

    All levels have the same weights. The first points are refined, and classes found, by features at the first points.

    Args:
        map_sizes: (h, w) of each level.
        channels: of the tokens. corner_channels: of those that are pooled for corners.
        stacked_convs: convolutions before the classes' and the points' branches look at objects.
        deformable_weights: how the deformable convolutions start, see convolution_parameters.
    """

    def __init__(
        self,
        map_sizes: MapSizes,
        channels: int,
        corner_channels: int,
        num_classes: int,
        stacked_convs: int = 3,
        deformable_weights: str = "small",
    ):
        super().__init__()

        def towers(count):
            return nn.CellList([SharedConvNorm(channels, channels, 3, map_sizes, groups=GROUPS) for _ in range(count)])

        self.cls_convs, self.reg_convs, self.shared_convs = towers(stacked_convs), towers(stacked_convs), towers(1)
        self.reppoints_sem_out = SharedConv(channels, num_classes, 1, map_sizes, bias_start=PRIOR_BIAS)
        self.reppoints_sem_embedding = SharedConvNorm(channels, channels, 1, map_sizes, "fan_out", GROUPS)
        self.hem_tl = CornerFeatures(channels, corner_channels, map_sizes, "top_left", GROUPS)
        self.hem_br = CornerFeatures(channels, corner_channels, map_sizes, "bottom_right", GROUPS)
        self.reppoints_hem_tl_score_out = SharedConv(channels, 1, 3, map_sizes, bias_start=PRIOR_BIAS)
        self.reppoints_hem_br_score_out = SharedConv(channels, 1, 3, map_sizes, bias_start=PRIOR_BIAS)
        self.reppoints_hem_tl_offset_out = SharedConv(channels, 2, 3, map_sizes)
        self.reppoints_hem_br_offset_out = SharedConv(channels, 2, 3, map_sizes)
        self.reppoints_pts_init_conv = SharedConv(channels, channels, 3, map_sizes)
        self.reppoints_pts_init_out = SharedConv(channels, 2 * POINTS, 1, map_sizes)
        self.reppoints_cls_conv = SharedDeformableConv(channels + 6, channels, 3, deformable_weights)
        self.reppoints_cls_out = SharedConv(channels, num_classes, 1, map_sizes, bias_start=PRIOR_BIAS)
        self.reppoints_pts_refine_conv = SharedDeformableConv(channels + 6, channels, 3, deformable_weights)
        self.reppoints_pts_refine_out = SharedConv(channels, 2 * POINTS, 1, map_sizes)
        self.relu = ops.ReLU()
        self.cells_around = PlacesOnLevels(map_sizes, POINTS)
        rows, columns = [], []
        for height, width in map_sizes:
            row, column = np.divmod(np.arange(height * width), width)
            rows.append(row)
            columns.append(column)
        self.rows, self.columns = (
            Tensor(np.concatenate(values).reshape(1, -1, 1).astype(np.float32)) for values in (rows, columns)
        )

    def construct(self, x):
        """Map tokens [B, L, channels] of all levels to a tuple of tokens.

        Returns:
            Logits of the classes [B, L, C]; first and refined points [B, L, 18], (y, x) each, in strides from the
            place; logits of top left and bottom right corners [B, L, 2] and their offsets [B, L, 4], (x, y) each, in
            strides; logits of the map of classes [B, L, C].
        """
        class_features = points_features = x
        for conv in self.cls_convs:
            class_features = self.relu(conv(class_features))
        for conv in self.reg_convs:
            points_features = self.relu(conv(points_features))
        shared = points_features
        for conv in self.shared_convs:
            shared = self.relu(conv(shared))
        semantic_logits = self.reppoints_sem_out(shared)
        embedding = self.relu(self.reppoints_sem_embedding(shared))
        class_features, points_features = class_features + embedding, points_features + embedding
        corner_features = shared + embedding

        top_left, bottom_right = self.hem_tl(corner_features), self.hem_br(corner_features)
        heat = ops.concat((self.reppoints_hem_tl_score_out(top_left), self.reppoints_hem_br_score_out(bottom_right)), 2)
        offsets = (self.reppoints_hem_tl_offset_out(top_left), self.reppoints_hem_br_offset_out(bottom_right))
        offsets = ops.concat(offsets, 2)

        first = self.reppoints_pts_init_out(self.relu(self.reppoints_pts_init_conv(points_features)))
        held = ops.stop_gradient(first)
        numbers, shares = self.around(held * (1 - POINT_GRADIENT) + first * POINT_GRADIENT)
        class_features = ops.concat((class_features, heat, offsets), 2)
        points_features = ops.concat((points_features, heat, offsets), 2)
        logits = self.reppoints_cls_out(self.relu(self.reppoints_cls_conv(class_features, numbers, shares)))
        refined = self.reppoints_pts_refine_conv(points_features, numbers, shares)
        refined = self.reppoints_pts_refine_out(self.relu(refined)) + held
        return logits, first, refined, heat, offsets, semantic_logits

    def around(self, points):
        """Find the cells around points [B, L, 18], see PlacesOnLevels."""
        pairs = points.astype(ms.float32).reshape((points.shape[0], -1, POINTS, 2))
        return self.cells_around(self.rows + pairs[..., 0], self.columns + pairs[..., 1])


class PointCandidates(nn.Cell):
    """Chooses the places of each level that score best, and gives their boxes: the candidates of Detector.construct.

    Corners of boxes on the second and third level are moved to corners found on the first, and those of the levels
    beyond to corners found on the second.

    Args:
        map_sizes: (h, w) of each level. strides: of the levels.
        per_level: places of each level.
    """

    def __init__(self, map_sizes: MapSizes, strides: Sequence[int], per_level: int):
        super().__init__()
        self.places, self.strides = places_of_tokens(map_sizes, strides)
        self.corners = Tensor(self.places.asnumpy()[..., 1::-1].astype(np.int32))
        self.spans = level_spans(map_sizes)
        self.best = BestOfLevels(self.spans, per_level)
        self.sources = tuple(min((level - 1) // 2, 1) for level in range(1, len(map_sizes)))
        self.refine = nn.CellList([CornerRefinement(map_sizes[i], strides[i]) for i in self.sources])
        self.sigmoid, self.most = ops.Sigmoid(), ops.ReduceMax()

    def construct(self, outputs, extents):
        """Map the head's outputs, and extents [B, 2] int32, to candidates [B, K, 4 + C]."""
        logits, _, refined, heat, offsets, _ = outputs
        scores = self.sigmoid(logits.astype(ms.float32))
        scores = scores * stands_on_image(self.corners, extents).reshape((logits.shape[0], -1, 1))
        boxes = box_of_points(refined.astype(ms.float32)) * self.strides + self.places
        chosen = self.best(self.most(scores, -1))
        boxes = clip_to_extents(gather_rows(boxes, chosen), extents)
        heat, offsets = heat.astype(ms.float32), offsets.astype(ms.float32)
        levels, end = (boxes[:, : self.best.counts[0]],), self.best.counts[0]
        for i in range(len(self.sources)):
            first, end = end, end + self.best.counts[i + 1]
            start, stop = self.spans[self.sources[i]]
            moved = self.refine[i](boxes[:, first:end], heat[:, start:stop], offsets[:, start:stop])
            levels = levels + (clip_to_extents(moved, extents),)
        return ops.concat((ops.concat(levels, 1), gather_rows(scores, chosen)), 2)


def check_reppoints_v2(arguments: dict) -> None:
    """Refuse arguments that cannot work.

    Raises:
        ArgumentError: names the argument.
    """
    check_positive(arguments, ("channels", "corner_channels", "levels", "neck_repeats", "stacked_convs"))
    check_positive(arguments, ("max_boxes", "candidates_per_level"))
    if arguments["deformable_weights"] not in WEIGHTS:
        raise ArgumentError("deformable_weights", f"must be one of {', '.join(WEIGHTS)}")
    for key in ("channels", "corner_channels"):
        if arguments[key] % GROUPS:
            raise ArgumentError(key, f"must be a multiple of {GROUPS}, the groups of the norms, got {arguments[key]}")
    if arguments["max_boxes"] > 255:
        raise ArgumentError("max_boxes", f"must be at most 255, got {arguments['max_boxes']}")


@register_family("reppoints_v2")
class RepPointsV2(Detector):
    """Runs RepPoints v2 on a backbone, with BiFPN as its neck.

    Args:
        channels: of the pyramid and the head. corner_channels: of those that are pooled for corners.
        levels: of the pyramid. neck_repeats: passes of the neck.
        stacked_convs: convolutions of the head before its branches for classes and points look at objects.
        deformable_weights: how the head's deformable convolutions start. "small" is the original's normal distribution
            with a deviation of 0.01; "fan_out" is He's, with which narrow heads learn classes much earlier.
        max_boxes: objects of an image that training takes; of more, so many are drawn.
        candidates_per_level: places of each level that evaluation goes on with.
    """

    check = staticmethod(check_reppoints_v2)
    loss_names = tuple(FACTORS)
    loss_floors = tuple(FLOORS.values())
    nms_iou = 0.6
    classifiers = ("bbox_head.reppoints_cls_out", "bbox_head.reppoints_sem_out")

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int = 80,
        channels: int = 256,
        corner_channels: int = 64,
        levels: int = 5,
        neck_repeats: int = 2,
        stacked_convs: int = 3,
        deformable_weights: str = "small",
        max_boxes: int = 100,
        candidates_per_level: int = 1000,
    ):
        arguments = {name: value for name, value in locals().items() if name not in ("self", "backbone", "__class__")}
        super().__init__(backbone, arguments)
        check_several_maps(backbone)
        if levels < len(backbone.feature_maps):
            raise ArgumentError("levels", f"the backbone gives {len(backbone.feature_maps)} maps, got {levels}")
        self.neck = BiFPN(backbone.feature_maps, channels, levels, neck_repeats)
        self.strides = tuple(m.stride for m in self.neck.feature_maps)
        self.map_sizes = tuple(m.size for m in self.neck.feature_maps)
        self.max_boxes = max_boxes
        self.bbox_head = RepPointsV2Head(
            self.map_sizes, channels, corner_channels, num_classes, stacked_convs, deformable_weights
        )
        self.choose = PointCandidates(self.map_sizes, self.strides, candidates_per_level)

    def training_outputs(self, images, extents, targets, drop_path):
        return self.bbox_head(ops.concat(self.neck(self.backbone(images, drop_path)), 1))

    def candidates(self, images, extents):
        return self.choose(self.bbox_head(ops.concat(self.neck(self.backbone(images)), 1)), extents)

    @property
    def candidate_count(self):
        return sum(self.choose.best.counts)

    def loss(self):
        return RepPointsLosses(self.map_sizes, self.strides, self.num_classes)

    def target_maker(self):
        return PointTargets(self.num_classes, self.strides, self.max_boxes)
