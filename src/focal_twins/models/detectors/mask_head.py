"""Draws the masks of instances, and cuts out the targets of their training (arXiv 1703.06870).

Sources: mmdetection 2.11, roi_heads/mask_heads/fcn_mask_head.py and core/mask/mask_target.py.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from focal_twins.models.convolutions import WEIGHTS, convolution_parameters
from focal_twins.models.layers import AddBias
from focal_twins.models.pyramid import same_conv

MASK_SIDE = 28  # of a mask, twice that of the map it is made from


class ReluConv(nn.Cell):
    """Convolves tokens with a bias (3x3) and applies ReLU (ConvModule of the originals without norm)."""

    def __init__(self, in_channels: int, out_channels: int, map_size: tuple[int, int]):
        super().__init__()
        self.conv = same_conv(in_channels, out_channels, 3, map_size, has_bias=True)
        self.relu = ops.ReLU()

    def construct(self, x):
        return self.relu(self.conv(x))


class Doubling(nn.Cell):
    """Maps each token to the four of a map of twice the side, by a transposed convolution (2x2, stride 2) and ReLU.

    The four stay together: tokens [N, L, C] become [N, L, 4, out_channels], in the order of rows and columns.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        # The originals count as fan-out what is the fan-in of a transposed convolution.
        start = WEIGHTS["fan_out"](0, in_channels * 4)
        self.weight = Parameter(initializer(start, (in_channels, out_channels, 2, 2), ms.float32), name="weight")
        self.bias = Parameter(initializer("zeros", (out_channels,), ms.float32), name="bias")
        self.matmul, self.add_bias, self.relu = ops.MatMul(), AddBias(), ops.ReLU()

    def construct(self, x):
        weight = self.weight.astype(x.dtype).transpose((0, 2, 3, 1)).reshape((self.in_channels, -1))
        rows = self.matmul(x.reshape((-1, self.in_channels)), weight).reshape((-1, self.out_channels))
        rows = self.relu(self.add_bias(rows, self.bias.astype(x.dtype)))
        return rows.reshape((x.shape[0], x.shape[1], 4, self.out_channels))


class ClassLogits(nn.Cell):
    """Gives each token of a map the logit of one class, that of the map.

    Its parameters are those of a convolution of one token to the logits of all classes, of which the others are never
    computed.
    """

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.channels = channels
        self.weight, self.bias = convolution_parameters(num_classes, channels, 1, "fan_out")
        self.product = ops.BatchMatMul()

    def construct(self, x, labels):
        """Map tokens [N, T, C] and labels [N] int32 to logits [N, T]."""
        weight = ops.gather(self.weight.reshape((-1, self.channels)), labels, 0).astype(x.dtype)
        logits = self.product(x, weight.reshape((-1, self.channels, 1))).reshape((x.shape[0], -1))
        return logits + ops.gather(self.bias, labels, 0).astype(x.dtype).reshape((-1, 1))


class MaskHead(nn.Cell):
    """Draws the mask of an instance in its box: four convolutions, a doubling of the side, and the logits of its class.

    Args:
        channels: of the maps and of every layer.
    """

    def __init__(self, channels: int, num_classes: int, convs: int = 4):
        super().__init__()
        self.side = MASK_SIDE // 2
        size = (self.side, self.side)
        self.convs = nn.CellList([ReluConv(channels, channels, size) for _ in range(convs)])
        self.upsample = Doubling(channels, channels)
        self.conv_logits = ClassLogits(channels, num_classes)

    def construct(self, x, labels):
        """Map tokens [N, 14 * 14, C] of boxes, and their labels [N] int32, to logits [N, 28, 28] float32."""
        for conv in self.convs:
            x = conv(x)
        x = self.upsample(x)
        logits = self.conv_logits(x.reshape((x.shape[0], -1, x.shape[3])), labels)
        logits = logits.reshape((-1, self.side, self.side, 2, 2)).transpose((0, 1, 3, 2, 4))
        return logits.reshape((-1, MASK_SIDE, MASK_SIDE)).astype(ms.float32)


def pack_bitmaps(masks: np.ndarray, canvas: tuple[int, int], count: int) -> np.ndarray:
    """Pack masks [n, h, w] of 0 and 1 of an image into bits of its canvas (H, W): [count, H, W / 8] uint8.

    The first bit of a byte is the leftmost pixel.
    """
    height, width = canvas
    packed = np.zeros((count, height, width // 8), np.uint8)
    if len(masks):
        bits = np.packbits(masks.astype(bool), axis=2)
        packed[: len(bits), : bits.shape[1], : bits.shape[2]] = bits
    return packed


class MaskTargets(nn.Cell):
    """Cuts the targets of masks out of the bitmaps of objects, exactly as the originals do: RoIAlign of the bitmap.

    A target is 1 where the mean of the bitmap over samples of a bin, one for each pixel of its sides, is 0.5 or more.
    There may be thousands of samples in a bin, but the mean is linear in the bitmap, along rows and columns each. So it
    is two products with matrices of weights, of whatever size the box is. Bitmaps are unpacked a few at a time.

    Attributes:
        chunk_pixels: pixels of bitmaps that are unpacked at a time.
    """

    def __init__(self):
        super().__init__(auto_prefix=False)
        self.chunk_pixels = 1 << 24  # 64 MB
        self.bins = Tensor(np.arange(MASK_SIDE, dtype=np.float32).reshape(1, -1, 1))
        self.product = ops.BatchMatMul()
        self.by_columns = ops.BatchMatMul(transpose_b=True)

    def construct(self, bitmaps, boxes, numbers, frames):
        """Make the targets of boxes.

        Args:
            bitmaps: [G, H, W / 8] uint8, see pack_bitmaps.
            boxes: [N, 4] float32. numbers: [N] int32, the bitmap of each.
            frames: [N, 2] float32, (height, width) of the bitmaps in the original: boxes are clipped to them, and the
                pixels at their edges go on beyond.

        Returns:
            [N, 28, 28] float32 of 0 and 1.
        """
        height, width = bitmaps.shape[1], bitmaps.shape[2] * 8
        # After unpacking, bits of one place in all bytes stand together: column c is at c % 8 * (W / 8) + c // 8.
        column = np.arange(width)
        place_of_column = Tensor((column % 8 * (width // 8) + column // 8).astype(np.int32))
        place_of_row = Tensor(np.arange(height, dtype=np.int32))
        rows, row_samples = self.weights(boxes[:, 1], boxes[:, 3], frames[:, 0], place_of_row)
        columns, column_samples = self.weights(boxes[:, 0], boxes[:, 2], frames[:, 1], place_of_column)
        chunk = max(self.chunk_pixels // (height * width), 1)
        sums = ()
        for first in range(0, boxes.shape[0], chunk):
            end = min(first + chunk, boxes.shape[0])
            pixels = self.unpack(ops.gather(bitmaps, numbers[first:end], 0))
            lines = self.by_columns(pixels, columns[first:end])  # [n, H, 28]
            sums = sums + (self.product(rows[first:end], lines),)
        sums = ops.concat(sums, 0) if len(sums) > 1 else sums[0]
        # Sums are compared, not means: a division could move a mean of exactly a half below it.
        return (sums >= 0.5 * row_samples * column_samples).astype(ms.float32)

    def unpack(self, packed):
        """Map bytes [n, H, W / 8] to their bits [n, H, W] float32, those of one place in all bytes together."""
        whole = packed.astype(ms.float32)
        higher = ops.floor(whole * 0.5**7)  # what the byte is without its lower bits: here the highest alone
        parts = (higher,)
        for bit in range(6, -1, -1):
            high = ops.floor(whole * 0.5**bit)
            parts = parts + (high - 2 * higher,)
            higher = high
        return ops.concat(parts, 2)

    def weights(self, low, high, frame, order):
        """Return the sums of weights that each pixel of a side has in each bin, and the number of samples of a bin.

        Args:
            low, high: [N], edges of the boxes along this side. frame: [N], pixels of the image along it.
            order: [pixels] int32, where the weight of each pixel of the canvas stands.

        Returns:
            [N, 28, pixels] and [N, 1, 1] float32.
        """
        boxes, pixels = low.shape[0], order.shape[0]
        most = math.ceil(pixels / MASK_SIDE)  # samples of a bin of the largest box that the canvas holds
        samples = Tensor(np.arange(most, dtype=np.float32).reshape(1, 1, -1))
        frame = frame.reshape((-1, 1, 1))
        low = ops.minimum(ops.maximum(low.reshape((-1, 1, 1)), 0.0), frame) - 0.5
        high = ops.minimum(ops.maximum(high.reshape((-1, 1, 1)), 0.0), frame) - 0.5
        side = (high - low) / MASK_SIDE
        count = ops.ceil(side)
        divisor = ops.maximum(count, ops.ones_like(count))
        place = low + (self.bins + (samples + 0.5) / divisor) * side  # [N, 28, S]
        place = ops.minimum(ops.maximum(place, 0.0), frame - 1)
        first = ops.floor(place)
        share = place - first
        is_sample = (samples < count).astype(ms.float32)
        second = ops.minimum(first + 1, frame - 1)
        values = ops.concat(((1 - share) * is_sample, share * is_sample), 2)  # [N, 28, 2 * S]
        pixel = ops.concat((first, second), 2).astype(ms.int32)
        line = Tensor(np.arange(boxes * MASK_SIDE, dtype=np.int32).reshape(-1, MASK_SIDE, 1) * pixels)
        cell = ops.gather(order, pixel.reshape(-1), 0).reshape(pixel.shape) + line
        sums = ops.unsorted_segment_sum(values.reshape(-1), cell.reshape(-1), boxes * MASK_SIDE * pixels)
        return sums.reshape((-1, MASK_SIDE, pixels)), divisor
