"""Classifies the boxes of a pyramid's regions and moves them (arXiv 1506.01497 and 1712.00726).

Sources: mmdetection 2.11, roi_heads/bbox_heads/convfc_bbox_head.py and bbox_head.py.
"""

import mindspore as ms
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import Constant, Normal, XavierUniform, initializer

from focal_twins.models.layers import AddBias
from focal_twins.models.pyramid import ConvNorm, same_conv

REGION_SIDE = 7  # of the maps that heads take


class HeadDense(nn.Cell):
    """Applies a linear layer to rows.

    Args:
        start: MindSpore's initialiser of the weight, or its name. bias_start: the value that the bias starts at.
    """

    def __init__(self, in_channels: int, out_channels: int, start, has_bias: bool = True, bias_start: float = 0.0):
        super().__init__()
        self.weight = Parameter(initializer(start, (out_channels, in_channels), ms.float32), name="weight")
        self.has_bias = has_bias
        if has_bias:
            self.bias = Parameter(initializer(Constant(bias_start), (out_channels,), ms.float32), name="bias")
        self.matmul, self.add_bias = ops.MatMul(transpose_b=True), AddBias()

    def construct(self, rows):
        rows = self.matmul(rows, self.weight.astype(rows.dtype))
        return self.add_bias(rows, self.bias.astype(rows.dtype)) if self.has_bias else rows


class BoxHead(nn.Cell):
    """Classifies regions, and moves each for every class.

    Convolutions with BatchNorm, then linear layers, each with ReLU, come before both. Mask R-CNN has two linear layers;
    the published Cascade R-CNN has four convolutions and a linear layer.

    Args:
        channels: of the regions and of the convolutions. hidden: of the linear layers.
        num_classes: C, without the background, which is the last column of the logits.
    """

    def __init__(self, channels: int, num_classes: int, convs: int, dense: int, hidden: int):
        super().__init__()
        self.num_classes = num_classes
        size = (REGION_SIDE, REGION_SIDE)
        self.shared_convs = nn.CellList([ConvNorm(same_conv(channels, channels, 3, size)) for _ in range(convs)])
        inputs = [channels * REGION_SIDE**2, *[hidden] * (dense - 1)]
        self.shared_fcs = nn.CellList([HeadDense(given, hidden, XavierUniform()) for given in inputs])
        self.fc_cls = HeadDense(hidden, num_classes + 1, Normal(0.01))
        self.fc_reg = HeadDense(hidden, num_classes * 4, Normal(0.001))
        self.relu = ops.ReLU()

    def construct(self, x, is_region=None):
        """Map tokens [N, 7 * 7, channels] of regions to logits [N, C + 1] and deltas [N, C, 4] float32.

        Args:
            is_region: [N] float32, 0 for those that BatchNorm's statistics leave out; None: they take all.
        """
        places = None if is_region is None else ops.tile(is_region.reshape((-1, 1)), (1, x.shape[1]))
        for conv in self.shared_convs:
            x = conv(x, places)
        rows = x.transpose((0, 2, 1)).reshape((x.shape[0], -1))  # channels first, as in the published weights
        for dense in self.shared_fcs:
            rows = self.relu(dense(rows))
        deltas = self.fc_reg(rows).reshape((-1, self.num_classes, 4))
        return self.fc_cls(rows).astype(ms.float32), deltas.astype(ms.float32)
