"""Defines Sparse R-CNN (arXiv 2011.12450), with the names and defaults of mmdetection 2.11.

Sources: roi_heads/sparse_roi_head.py, roi_heads/bbox_heads/dii_head.py, dense_heads/embedding_rpn_head.py and
models/utils/transformer.py there. Published models have 300 proposals.
"""

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, XavierUniform, initializer

from focal_twins.models.backbones.backbone import Backbone
from focal_twins.models.detectors.box_heads import REGION_SIDE, HeadDense
from focal_twins.models.detectors.box_layers import decode_deltas
from focal_twins.models.detectors.detector import Detector, TargetMaker
from focal_twins.models.detectors.losses import PRIOR_BIAS
from focal_twins.models.detectors.padded_objects import padded_objects
from focal_twins.models.detectors.rois import RoIAlign
from focal_twins.models.detectors.set_losses import FACTORS, SetLosses, relative_sides
from focal_twins.models.layers import AddBias, LayerNorm
from focal_twins.models.network_on_backbone import check_positive
from focal_twins.models.pyramid import FPN
from focal_twins.models.registry import ArgumentError, register_family

STDS = (0.5, 0.5, 1.0, 1.0)
SAMPLING_RATIO = 2  # of RoIAlign


class LearnedProposals(nn.Cell):
    """Holds what every image starts from: boxes, relative to the image, and features.

    Args:
        count: N. channels: C.
    """

    def __init__(self, count: int, channels: int):
        super().__init__()
        self.init_proposal_bboxes = nn.Cell()
        whole = Tensor(np.tile(np.array([0.5, 0.5, 1, 1], np.float32), (count, 1)))
        self.init_proposal_bboxes.weight = Parameter(whole, name="weight")
        self.init_proposal_features = nn.Cell()
        features = initializer(Normal(1.0), (count, channels), ms.float32)
        self.init_proposal_features.weight = Parameter(features, name="weight")

    def construct(self, sides):
        """Map sides [B, 1, 4], see relative_sides, to boxes [B, N, 4] in pixels and features [B, N, C]."""
        boxes = self.init_proposal_bboxes.weight
        middles, half = boxes[:, :2], boxes[:, 2:] * 0.5
        boxes = ops.concat((middles - half, middles + half), 1).expand_dims(0) * sides
        features = self.init_proposal_features.weight.expand_dims(0)
        return boxes, ops.tile(features, (sides.shape[0], 1, 1))


class SelfAttention(nn.Cell):
    """Attends from each proposal of an image to all (torch.nn.MultiheadAttention)."""

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.channels, self.num_heads, self.head_dim = channels, num_heads, channels // num_heads
        start = initializer(XavierUniform(), (3 * channels, channels), ms.float32)
        self.in_proj_weight = Parameter(start, name="in_proj_weight")
        self.in_proj_bias = Parameter(initializer("zeros", (3 * channels,), ms.float32), name="in_proj_bias")
        self.out_proj = HeadDense(channels, channels, XavierUniform())
        self.matmul, self.add_bias = ops.MatMul(transpose_b=True), AddBias()
        self.scores, self.mix = ops.BatchMatMul(transpose_b=True), ops.BatchMatMul()

    def construct(self, x):
        """Map tokens [B, N, C] to [B, N, C]."""
        batch, count, channels = x.shape
        rows = self.matmul(x.reshape((-1, channels)), self.in_proj_weight.astype(x.dtype))
        rows = self.add_bias(rows, self.in_proj_bias.astype(x.dtype))
        parts = rows.reshape((batch, count, 3, self.num_heads, self.head_dim)).transpose((2, 0, 3, 1, 4))
        scores = self.scores(parts[0] * self.head_dim**-0.5, parts[1])  # [B, heads, N, N]
        out = self.mix(ops.softmax(scores, -1), parts[2]).transpose((0, 2, 1, 3))
        return self.out_proj(out.reshape((-1, channels))).reshape(x.shape)


class DynamicConv(nn.Cell):
    """Convolves the region of each proposal by weights that its features give.

    Args:
        channels: C, of the features and of the regions. dynamic_channels: between the two convolutions.
    """

    def __init__(self, channels: int, dynamic_channels: int):
        super().__init__()
        self.channels, self.dynamic_channels = channels, dynamic_channels
        self.dynamic_layer = HeadDense(channels, 2 * channels * dynamic_channels, XavierUniform())
        self.norm_in, self.norm_out = LayerNorm(dynamic_channels), LayerNorm(channels)
        self.fc_layer = HeadDense(REGION_SIDE**2 * channels, channels, XavierUniform())
        self.fc_norm = LayerNorm(channels)
        self.relu, self.product = ops.ReLU(), ops.BatchMatMul()

    def construct(self, features, regions):
        """Map features [P, C] and regions [P, 7 * 7, C] to features [P, C]."""
        weights = self.dynamic_layer(features)
        middle = self.channels * self.dynamic_channels
        into = weights[:, :middle].reshape((-1, self.channels, self.dynamic_channels))
        out_of = weights[:, middle:].reshape((-1, self.dynamic_channels, self.channels))
        x = self.relu(self.norm_in(self.product(regions, into)))
        x = self.relu(self.norm_out(self.product(x, out_of)))
        return self.relu(self.fc_norm(self.fc_layer(x.reshape((x.shape[0], -1)))))


class FeedForward(nn.Cell):
    """Applies two linear layers with ReLU between."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        first = nn.SequentialCell([HeadDense(channels, hidden, XavierUniform()), nn.ReLU()])
        self.layers = nn.SequentialCell([first, HeadDense(hidden, channels, XavierUniform())])

    def construct(self, rows):
        return self.layers(rows)


def tower(channels: int, layers: int) -> nn.SequentialCell:
    """Create linear layers without bias, each with a norm and ReLU."""
    cells = []
    for _ in range(layers):
        cells += [HeadDense(channels, channels, XavierUniform(), has_bias=False), LayerNorm(channels), nn.ReLU()]
    return nn.SequentialCell(cells)


class DynamicHead(nn.Cell):
    """Classifies the proposals of an image and moves them, once (DIIHead of the original).

    Args:
        channels: of the features. hidden: of the feed-forward network. dynamic_channels: see DynamicConv.
    """

    def __init__(self, channels: int, num_classes: int, num_heads: int, hidden: int, dynamic_channels: int):
        super().__init__()
        self.channels = channels
        self.attention = nn.Cell()
        self.attention.attn = SelfAttention(channels, num_heads)
        self.attention_norm = LayerNorm(channels)
        self.instance_interactive_conv = DynamicConv(channels, dynamic_channels)
        self.instance_interactive_conv_norm = LayerNorm(channels)
        self.ffn, self.ffn_norm = FeedForward(channels, hidden), LayerNorm(channels)
        self.cls_fcs, self.reg_fcs = tower(channels, 1), tower(channels, 3)
        self.fc_cls = HeadDense(channels, num_classes, XavierUniform(), bias_start=PRIOR_BIAS)
        self.fc_reg = HeadDense(channels, 4, XavierUniform())

    def construct(self, features, regions):
        """Map features [B, N, C] and regions [B * N, 7 * 7, C] to logits [B, N, classes], deltas and features."""
        batch, count, channels = features.shape
        rows = self.attention_norm(features + self.attention.attn(features)).reshape((-1, channels))
        rows = self.instance_interactive_conv_norm(rows + self.instance_interactive_conv(rows, regions))
        rows = self.ffn_norm(rows + self.ffn(rows))
        logits, deltas = self.fc_cls(self.cls_fcs(rows)), self.fc_reg(self.reg_fcs(rows))
        return tuple(x.reshape((batch, count, -1)) for x in (logits, deltas, rows))


class SparseRoIHead(nn.Cell):
    """Moves the proposals of images onto objects in several stages, each by a head of its own.

    Args:
        map_sizes: (h, w) of each level. strides: of the levels.
        heads: one for each stage.
    """

    def __init__(self, map_sizes, strides, heads):
        super().__init__()
        self.bbox_head = nn.CellList(heads)
        self.regions = RoIAlign(map_sizes, strides, REGION_SIDE, SAMPLING_RATIO)

    def construct(self, pyramid, boxes, features):
        """Run all stages. A stage's boxes pass no gradient to the one before; its features do.

        Args:
            pyramid: tokens [B, L, C] of all levels. boxes: [B, N, 4] in pixels. features: [B, N, C].

        Returns:
            Logits [B, S, N, classes] and boxes [B, S, N, 4] float32 of all stages.
        """
        logits_of_stages, boxes_of_stages = (), ()
        for head in self.bbox_head:
            logits, deltas, features = head(features, self.regions(pyramid, boxes))
            boxes = decode_deltas(boxes, deltas.astype(ms.float32), STDS)
            logits_of_stages, boxes_of_stages = (*logits_of_stages, logits), (*boxes_of_stages, boxes)
            boxes = ops.stop_gradient(boxes)
        return ops.stack(logits_of_stages, 1), ops.stack(boxes_of_stages, 1)


@dataclass(frozen=True)
class ObjectTargets(TargetMaker):
    """Gives the objects themselves, as padded_objects does: what is matched in the graph needs no more."""

    max_boxes: int
    names = ("boxes", "labels")

    def __call__(self, canvas, extent, boxes, labels, generator, masks=None):
        return padded_objects(boxes, labels, self.max_boxes, generator)


def check_sparse_rcnn(arguments: dict) -> None:
    """Refuse arguments that cannot work.

    Raises:
        ArgumentError: names the argument.
    """
    numbers = ("channels", "proposals", "stages", "num_heads", "hidden", "dynamic_channels", "max_boxes")
    check_positive(arguments, numbers)
    if arguments["channels"] % arguments["num_heads"]:
        raise ArgumentError("num_heads", f"must divide channels, {arguments['channels']}, got {arguments['num_heads']}")
    if arguments["max_boxes"] > arguments["proposals"]:
        most = arguments["proposals"]
        raise ArgumentError("max_boxes", f"must be at most proposals, {most}: each object is matched with its own")


@register_family("sparse_rcnn")
class SparseRCNN(Detector):
    """Runs Sparse R-CNN on a backbone: proposals that are learned, and detections without suppression of any.

    Args:
        channels: of the pyramid and the proposals' features.
        proposals: N.
        stages: that move the proposals, one after the other.
        num_heads: of the attention between proposals.
        hidden, dynamic_channels: see DynamicHead.
        max_boxes: objects of an image that training takes; of more, so many are drawn.
    """

    check = staticmethod(check_sparse_rcnn)
    loss_names = tuple(FACTORS)
    loss_floors = (1.0,) * len(FACTORS)
    score_threshold = 0.0
    nms_iou = None
    clips_boxes = False

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int = 80,
        channels: int = 256,
        proposals: int = 100,
        stages: int = 6,
        num_heads: int = 8,
        hidden: int = 2048,
        dynamic_channels: int = 64,
        max_boxes: int = 100,
    ):
        arguments = {name: value for name, value in locals().items() if name not in ("self", "backbone", "__class__")}
        super().__init__(backbone, arguments)
        self.neck = FPN(backbone.feature_maps, channels)
        maps = self.neck.feature_maps
        self.rpn_head = LearnedProposals(proposals, channels)
        heads = [DynamicHead(channels, num_classes, num_heads, hidden, dynamic_channels) for _ in range(stages)]
        self.roi_head = SparseRoIHead([m.size for m in maps], [m.stride for m in maps], heads)
        self.classifiers = tuple(f"roi_head.bbox_head.{i}.fc_cls" for i in range(stages))
        self.proposals, self.max_boxes = proposals, max_boxes

    @property
    def candidate_count(self):
        return self.proposals

    def stages(self, images, extents, drop_path=None):
        """Return logits and boxes of all stages, see SparseRoIHead, and the sides of the images."""
        sides = relative_sides(extents)
        pyramid = ops.concat(self.neck(self.backbone(images, drop_path)), 1)
        return (*self.roi_head(pyramid, *self.rpn_head(sides)), sides)

    def training_outputs(self, images, extents, targets, drop_path):
        return self.stages(images, extents, drop_path)

    def candidates(self, images, extents):
        logits, boxes, _ = self.stages(images, extents)
        last = logits.shape[1] - 1  # the ONNX exporter makes an empty slice of [:, -1]
        return ops.concat((boxes[:, last], ops.sigmoid(logits[:, last].astype(ms.float32))), 2)

    def loss(self):
        return SetLosses(self.num_classes)

    def target_maker(self):
        return ObjectTargets(self.max_boxes)
