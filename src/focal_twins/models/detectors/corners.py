"""Finds the top left and bottom right corners of objects: the layers of CornerNet (arXiv 1808.01244) in RepPoints v2.

Source: dense_heads/reppoints_v2_head.py of SwinTransformer/Swin-Transformer-Object-Detection.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from focal_twins.models.gathers import RowGather, gather_rows
from focal_twins.models.level_layers import LevelGroupNorm, MapSizes, SharedConv, SharedConvNorm, level_spans

# Where each kind of corner looks for the edges that meet in it, as (rows, columns) per step: a top left corner for the
# object's left edge below it and its top edge to the right.
LOOKS = {"top_left": ((1, 0), (0, 1)), "bottom_right": ((-1, 0), (0, -1))}


class CornerPool(nn.Cell):
    """Gives each token the largest value, channel by channel, of the tokens in one direction on its level's map.

    Each step doubles how far it has looked.

    Args:
        sizes: (h, w) of each level.
        direction: (rows, columns), one of them 0 and the other 1 or -1.
    """

    def __init__(self, sizes: MapSizes, direction: tuple[int, int]):
        super().__init__()
        furthest = max(size[0] if direction[0] else size[1] for size in sizes) - 1
        self.steps = nn.CellList(
            [RowGather(shifted_tokens(sizes, direction, 2**step)) for step in range(furthest.bit_length())]
        )
        self.maximum = ops.Maximum()

    def construct(self, x):
        """Map tokens [B, L, C] of all levels to the same shape."""
        for step in self.steps:
            x = self.maximum(x, step(x))
        return x


def shifted_tokens(sizes: MapSizes, direction: tuple[int, int], distance: int) -> np.ndarray:
    """List the token that stands at a distance from each in a direction: [L]; at the edge that of the edge."""
    tokens = []
    for (height, width), (first, _) in zip(sizes, level_spans(sizes), strict=True):
        row = np.clip(np.arange(height) + direction[0] * distance, 0, height - 1)
        column = np.clip(np.arange(width) + direction[1] * distance, 0, width - 1)
        tokens.append((first + row[:, None] * width + column).reshape(-1))
    return np.concatenate(tokens)


class CornerFeatures(nn.Cell):
    """Lets each token see the edges that meet in a corner there.

    Args:
        channels: of the tokens. corner_channels: of those that are pooled.
        corner: a key of LOOKS.
    """

    def __init__(self, channels: int, corner_channels: int, sizes: MapSizes, corner: str, groups: int = 32):
        super().__init__()
        along, across = LOOKS[corner]
        self.p1_conv1 = SharedConvNorm(channels, corner_channels, 3, sizes, "fan_out", groups)
        self.p2_conv1 = SharedConvNorm(channels, corner_channels, 3, sizes, "fan_out", groups)
        self.pool1, self.pool2 = CornerPool(sizes, along), CornerPool(sizes, across)
        self.p_conv1 = SharedConv(corner_channels, channels, 3, sizes, "uniform", has_bias=False)
        self.p_gn1 = LevelGroupNorm(groups, channels, sizes)
        self.conv1 = SharedConv(channels, channels, 1, sizes, "uniform", has_bias=False)
        self.gn1 = LevelGroupNorm(groups, channels, sizes)
        self.relu = ops.ReLU()
        self.conv2 = SharedConvNorm(channels, channels, 1, sizes, "fan_out", groups)

    def construct(self, x):
        """Map tokens [B, L, channels] of all levels to the same shape."""
        pooled = self.pool1(self.relu(self.p1_conv1(x))) + self.pool2(self.relu(self.p2_conv1(x)))
        x = self.relu(self.p_gn1(self.p_conv1(pooled)) + self.gn1(self.conv1(x)))
        return self.relu(self.conv2(x))


class CornerRefinement(nn.Cell):
    """Moves the corners of boxes to where corners were found, for boxes of larger objects than a map's level has.

    A corner goes to the hottest of the cell that it lies in, the one to the right, the one below and the one between
    these, and by that cell's offset.

    Args:
        size: (h, w) of the map.
        stride: of the map, in pixels.
    """

    def __init__(self, size: tuple[int, int], stride: int):
        super().__init__()
        height, width = size
        self.stride, self.width = stride, width
        self.last_row, self.last_column = float(max(height - 2, 0)), float(max(width - 2, 0))
        down, across = min(1, height - 1), min(1, width - 1)
        steps = np.array([[0, 0], [across, 0], [0, down], [across, down]])  # (x, y) of the four cells
        self.steps = Tensor(steps.astype(np.float32))
        self.around = Tensor((steps[:, 1] * width + steps[:, 0]).astype(np.int32).reshape(1, 1, 4))
        self.hottest = ops.Argmax(-1)

    def construct(self, boxes, heat_logits, offsets):
        """Map boxes [B, n, 4], within the images, to boxes [B, n, 4], which may reach beyond.

        Args:
            heat_logits, offsets: [B, h * w, 2] and [B, h * w, 4] of the map's level, see RepPointsV2Head.
        """
        batch, count = boxes.shape[:2]
        corners = ()
        for i in range(2):
            column = ops.clip_by_value(ops.floor(boxes[..., 2 * i] / self.stride), 0.0, self.last_column)
            row = ops.clip_by_value(ops.floor(boxes[..., 2 * i + 1] / self.stride), 0.0, self.last_row)
            cell = row.astype(ms.int32) * self.width + column.astype(ms.int32)  # [B, n]
            cells = (cell.reshape((batch, count, 1)) + self.around).reshape((batch, -1))
            heat = gather_rows(ops.sigmoid(heat_logits[..., i : i + 1]), cells).reshape((batch, count, 4))
            place = ops.stack((column, row), 2) + ops.gather(self.steps, self.hottest(heat), 0)
            cell = place[..., 1].astype(ms.int32) * self.width + place[..., 0].astype(ms.int32)
            corners = corners + ((place + gather_rows(offsets[..., 2 * i : 2 * i + 2], cell)) * self.stride,)
        return ops.concat(corners, 2)
