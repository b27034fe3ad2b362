"""Convolutions of images and of token maps, by gathers and products or by MindSpore's operator."""

import math
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, Uniform, initializer

from focal_twins.models.compiled import CompiledDepthwise, KernelLayer
from focal_twins.models.gathers import RowGather, with_padding_token
from focal_twins.models.layers import AddBias, LayerNorm
from focal_twins.models.resize import BilinearResize, LeftProduct, bilinear_matrix, padded_rows

# How the weights of a convolution start, from the numbers of inputs and outputs of a place (fan-in, fan-out).
WEIGHTS = {
    "uniform": lambda fan_in, fan_out: Uniform(1 / math.sqrt(fan_in)),  # PyTorch's default, of the Focal originals
    "fan_out": lambda fan_in, fan_out: Normal(math.sqrt(2 / fan_out)),  # Twins', and He's before ReLU
    "xavier": lambda fan_in, fan_out: Uniform(math.sqrt(6 / (fan_in + fan_out))),
    "small": lambda fan_in, fan_out: Normal(0.01),
}


def convolution_parameters(out_channels, fan_in_channels, kernel_size, weights="uniform", groups=1, has_bias=True):
    """Create weight [out_channels, fan_in_channels, k, k] and bias of a convolution; without one, None in its place.

    Args:
        weights: a key of WEIGHTS. The bias starts at zero, but for "uniform", where it has the same distribution.
    """
    area = kernel_size * kernel_size
    start = WEIGHTS[weights](fan_in_channels * area, out_channels * area // groups)
    shape = (out_channels, fan_in_channels, kernel_size, kernel_size)
    weight = Parameter(initializer(start, shape, ms.float32), name="weight")
    if not has_bias:
        return weight, None
    bias_start = start if weights == "uniform" else "zeros"
    return weight, Parameter(initializer(bias_start, (out_channels,), ms.float32), name="bias")


class Conv2d(nn.Cell):
    """Convolves images [B, C, H, W], or the tokens [B, H * W, C] of a map, in 2-D to tokens [B, L, out_channels].

    On CPU MindSpore's convolution is a naive kernel (700 ms for the stem at batch 8 where im2col and a matrix product
    take 5), so the default makes a row of every patch and multiplies the rows. Tokens are gathered, so that no map is
    transposed to channels first and back; images go through `ops.unfold`. The real operator is the better choice on
    Ascend's cube unit, and the only one ONNX can express. Weights and results are the same. A kernel of one token is a
    product of rows whatever the choice.

    Args:
        map_size: (H, W) of the map whose tokens it takes; None: it takes images.
        extra_padding: rows below and columns to the right, beside the padding on all sides.
        weights: how they start, a key of WEIGHTS.

    Attributes:
        implementation: "unfold", or "conv2d", the real operator.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride,
        padding=0,
        map_size=None,
        extra_padding=(0, 0),
        weights="uniform",
        has_bias=True,
    ):
        super().__init__()
        self.implementation = "unfold"
        self.weight, bias = convolution_parameters(out_channels, in_channels, kernel_size, weights, has_bias=has_bias)
        self.has_bias = has_bias
        if has_bias:
            self.bias = bias
            self.add_bias = AddBias()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.map_size = map_size
        self.extra_padding = extra_padding
        self.fan_in = in_channels * kernel_size * kernel_size
        self.matmul = ops.MatMul(transpose_b=True)
        kernel = (kernel_size, kernel_size)  # a pair: MindSpore's ONNX exporter cannot read a single number
        self.conv2d = ops.Conv2D(out_channels, kernel, pad_mode="pad", pad=padding, stride=stride)
        is_map = map_size is not None
        self.is_pointwise = is_map and kernel_size == stride == 1 and padding == 0
        self.keeps_size = (
            is_map and (stride, 2 * padding, *extra_padding) == (1, kernel_size - 1, 0, 0) and kernel_size > 1
        )
        if self.keeps_size:
            self.same = MapConvolution(in_channels, out_channels, kernel_size, [map_size])
        elif is_map and not self.is_pointwise:
            self.pick_patches = RowGather(patch_tokens(map_size, kernel_size, stride, padding, extra_padding))

    def patches(self, x):
        """Return the rows of the patches, [B, L, fan_in], and the weight that fits them, [out_channels, fan_in]."""
        if self.map_size is None:
            x = with_zeros_below_and_right(x, *self.extra_padding)
            rows = ops.unfold(x, self.kernel_size, padding=self.padding, stride=self.stride)  # [B, C * k * k, L]
            return rows.transpose((0, 2, 1)), self.weight.reshape((self.out_channels, self.fan_in))
        tokens = with_padding_token(x) if self.padding or any(self.extra_padding) else x
        rows = self.pick_patches(tokens).reshape((x.shape[0], -1, self.fan_in))  # of k * k tokens each
        return rows, rows_of_taps(self.weight)

    def construct(self, x):
        if self.is_pointwise:
            length = x.shape[1]
            weight = self.weight.reshape((self.out_channels, self.in_channels)).astype(x.dtype)
            rows = self.matmul(x.reshape((-1, self.in_channels)), weight)
        elif self.keeps_size:
            length = x.shape[1]
            rows = self.same(x, self.weight).reshape((-1, self.out_channels))
        elif self.implementation == "unfold":
            rows, weight = self.patches(x)
            length = rows.shape[1]
            rows = self.matmul(rows.reshape((-1, self.fan_in)), weight.astype(x.dtype))  # [B * L, out]
        else:
            maps = x if self.map_size is None else x.transpose((0, 2, 1)).reshape((-1, x.shape[2], *self.map_size))
            maps = with_zeros_below_and_right(maps, *self.extra_padding)
            maps = self.conv2d(maps, self.weight)  # [B, out, H', W']
            length = maps.shape[2] * maps.shape[3]
            rows = maps.reshape((-1, self.out_channels, length)).transpose((0, 2, 1))
            rows = rows.reshape((-1, self.out_channels))  # [B * L, out]
        if self.has_bias:
            rows = self.add_bias(rows, self.bias.astype(rows.dtype))
        return rows.reshape((-1, length, self.out_channels))


def rows_of_taps(weight):
    """Reorder a weight [out, C, k, k] for rows of k * k tokens: [out, k * k * C]."""
    out, channels = weight.shape[:2]
    return weight.reshape((out, channels, -1)).transpose((0, 2, 1)).reshape((out, -1))


class MapConvolution(nn.Cell):
    """Convolves tokens by a weight that it is given, with stride 1 and zero padding that keeps the size.

    The tokens are those of one map, or of several maps one after the other, each with its own padding.

    Args:
        map_sizes: (H, W) of each map.

    Attributes:
        implementation: see Conv2d.
    """

    def __init__(self, in_channels, out_channels, kernel_size, map_sizes):
        super().__init__()
        self.implementation = "unfold"
        self.out_channels = out_channels
        self.map_sizes = tuple((height, width) for height, width in map_sizes)
        ends = np.cumsum([height * width for height, width in self.map_sizes]).tolist()
        self.slices = tuple(zip([0, *ends[:-1]], ends, strict=True))
        self.by_patches = ConvolutionByPatches(
            in_channels, out_channels, patch_tokens_of_maps(self.map_sizes, kernel_size)
        )
        kernel = (kernel_size, kernel_size)
        self.conv2d = ops.Conv2D(out_channels, kernel, pad_mode="pad", pad=kernel_size // 2)

    def construct(self, x, weight):
        """Convolve tokens [B, L, in_channels] by a weight [out_channels, in_channels, k, k]: [B, L, out_channels]."""
        if self.implementation == "unfold":
            return self.by_patches(x, weight)
        if len(self.map_sizes) == 1:
            return convolved_tokens(self.conv2d, x, weight, self.map_sizes[0])
        maps = ()
        for i in range(len(self.map_sizes)):
            first, end = self.slices[i]
            maps = maps + (convolved_tokens(self.conv2d, x[:, first:end], weight, self.map_sizes[i]),)
        return ops.concat(maps, 1)


def convolved_tokens(convolution, tokens, weight, map_size):
    """Convolve the tokens [B, H * W, C] of a map by MindSpore's operator, which keeps the size: [B, H * W, out]."""
    maps = tokens.transpose((0, 2, 1)).reshape((-1, tokens.shape[2], *map_size))
    maps = convolution(maps, weight)
    return maps.reshape((-1, maps.shape[1], maps.shape[2] * maps.shape[3])).transpose((0, 2, 1))


class ConvolutionByPatches(nn.Cell):
    """Convolves tokens as MapConvolution does, by a gather of patches and a product.

    Its gradient needs no patches of the input, which are k * k times the map and would be kept for it: one gather of
    patches of the output's gradient gives both gradients. With d the offset of a tap,
    dx(q) = sum over d of w(d)^T dy(q - d), and dw(d) = sum over q of dy(q - d) x(q)^T.

    Args:
        table: [L, k * k], the tokens that the taps see at each place, see patch_tokens.
    """

    def __init__(self, in_channels, out_channels, table):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.taps = table.shape[1]
        self.pick = RowGather(table)
        self.pick_back = RowGather(table[:, ::-1])
        self.matmul = ops.MatMul()
        self.by_rows = ops.MatMul(transpose_b=True)
        self.over_rows = ops.MatMul(transpose_a=True)

    def construct(self, x, weight):
        rows = self.pick(with_padding_token(x)).reshape((-1, self.taps * self.in_channels))
        out = self.by_rows(rows, rows_of_taps(weight).astype(x.dtype))
        return out.reshape((-1, x.shape[1], self.out_channels))

    def bprop(self, x, weight, out, gradient):
        channels, outputs, taps = self.in_channels, self.out_channels, self.taps
        rows = self.pick_back(with_padding_token(gradient.astype(x.dtype))).reshape((-1, taps * outputs))
        back = weight.reshape((outputs, channels, taps)).transpose((2, 0, 1)).reshape((taps * outputs, channels))
        to_x = self.matmul(rows, back.astype(x.dtype)).reshape(x.shape)
        to_weight = self.over_rows(x.reshape((-1, channels)), rows)  # [C, k * k * out]
        to_weight = to_weight.reshape((channels, taps, outputs)).transpose((2, 0, 1)).reshape(weight.shape)
        return to_x, to_weight.astype(weight.dtype)


def with_zeros_below_and_right(maps, rows, columns):
    """Append rows and columns of zeros to maps [B, C, H, W], at most as many as the maps have."""
    if rows:
        maps = ops.concat((maps, maps[:, :, :rows] * 0), 2)
    if columns:
        maps = ops.concat((maps, maps[:, :, :, :columns] * 0), 3)
    return maps


def patch_tokens(
    map_size: tuple[int, int], kernel_size: int, stride: int, padding: int, extra_padding: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """List the tokens that a convolution sees at each place: [L, kernel_size^2]; H * W, one past the last, is padding.

    Args:
        extra_padding: rows below and columns to the right, beside the padding on all sides.
    """
    height, width = map_size
    first_row, first_column = (
        np.arange(0, side + 2 * padding + extra - kernel_size + 1, stride) - padding
        for side, extra in zip(map_size, extra_padding, strict=True)
    )
    offset = np.arange(kernel_size)
    row = (first_row[:, None] + offset)[:, None, :, None]  # [H', 1, k, 1]
    column = (first_column[:, None] + offset)[None, :, None, :]  # [1, W', 1, k]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return np.where(inside, row * width + column, height * width).reshape(-1, kernel_size**2)


def patch_tokens_of_maps(map_sizes: Sequence[tuple[int, int]], kernel_size: int) -> np.ndarray:
    """List the tokens that a convolution which keeps sizes sees at each place of several maps, one after the other.

    Returns:
        [L, kernel_size^2], of all maps; L, one past the last token, is padding.
    """
    counts = [height * width for height, width in map_sizes]
    tables = []
    for i, size in enumerate(map_sizes):
        table = patch_tokens(size, kernel_size, 1, kernel_size // 2)
        tables.append(np.where(table == counts[i], sum(counts), table + sum(counts[:i])))
    return np.concatenate(tables)


class EnlargedConvolution(nn.Cell):
    """Enlarges a map bilinearly and convolves it, without ever holding the large map of all input channels.

    Both are linear, so tokens are first multiplied by each of the kernel's taps, at the small size; enlarging and
    shifting by the tap is one matrix along each axis. For twice the side that takes a third of the multiplications,
    and a quarter of the memory, of a convolution of the large map.

    Args:
        source, target: (h, w) of the map, and (H, W) after enlarging; zero padding keeps the latter.
        kernel_size: odd.

    Attributes:
        implementation: "unfold", the above, or "conv2d", the real operator on the large map, see Conv2d.
    """

    def __init__(self, in_channels, out_channels, kernel_size, source, target):
        super().__init__()
        self.implementation = "unfold"
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.source, self.target = tuple(source), tuple(target)
        rows, columns = self.matrices(target)
        self.rows, self.columns = LeftProduct(rows), LeftProduct(columns)
        self.matmul = ops.MatMul()
        self.enlarge = BilinearResize(source, target)
        kernel = (kernel_size, kernel_size)
        self.conv2d = ops.Conv2D(out_channels, kernel, pad_mode="pad", pad=kernel_size // 2)

    def matrices(self, part: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the matrices of rows and columns that enlarge to the top left part (H, W) of the target.

        Each has the matrices of all offsets side by side: of rows [H, k, h], of columns [W, w, k].
        """
        rows, columns = (
            shifted_resizes(source, filled, self.kernel_size, target)
            for source, filled, target in zip(self.source, part, self.target, strict=True)
        )
        return (
            rows.transpose(1, 0, 2).reshape(self.target[0], -1),
            columns.transpose(1, 2, 0).reshape(self.target[1], -1),
        )

    def products_of(self, part: tuple[int, int]) -> list[tuple[LeftProduct, np.ndarray]]:
        """Return the products, and the matrices by which the enlarged map is zero beyond its top left part (H, W)."""
        rows, columns = self.matrices(part)
        return [(self.rows, rows), (self.columns, columns), *self.enlarge.products_of(part)]

    def construct(self, x, weight):
        """Map tokens [B, h * w, C] and a weight [out, C, k, k] to tokens [B, H * W, out]."""
        if self.implementation == "conv2d":
            return convolved_tokens(self.conv2d, self.enlarge(x), weight, self.target)
        (height, width), out, k = self.source, self.out_channels, self.kernel_size
        rows = x.reshape((-1, self.in_channels))
        weight = weight.transpose((2, 1, 3, 0)).astype(x.dtype)  # [k, C, k, out]
        parts = ()
        for i in range(k):
            part = self.matmul(rows, weight[i].reshape((self.in_channels, k * out)))  # [B * h * w, k * out]
            part = self.columns(part.reshape((-1, width * k, out)))  # [B * h, W, out]
            parts = parts + (part.reshape((-1, height, self.target[1] * out)),)
        x = self.rows(ops.concat(parts, 1))  # [B, H, W * out]
        return x.reshape((-1, self.target[0] * self.target[1], out))


def shifted_resizes(source: int, filled: int, kernel_size: int, target: int) -> np.ndarray:
    """Return a bilinear_matrix for each tap of a kernel, shifted so that its row i is what the tap sees at place i.

    Args:
        filled: places of the target that the source is resized to; the others see zeros.

    Returns:
        [kernel_size, target, source] float32; rows of zeros where the tap sees padding.
    """
    reach = kernel_size // 2
    padded = np.pad(padded_rows(bilinear_matrix(source, filled), target), ((reach, reach), (0, 0)))
    return np.stack([padded[tap : tap + target] for tap in range(kernel_size)])


class DepthwiseConv2d(nn.Cell, KernelLayer):
    """Convolves every channel of tokens [B, L, C] by itself, with stride 1 and zero padding that keeps the size.

    On CPU no kernel does this well: unfolding makes nine times the map, which has to be written, weighed and summed.
    So the default multiplies rows of the map by band matrices, each with a row of the kernel along its diagonals. That
    takes a third of the time, although most factors are zero.

    Args:
        map_size: (H, W) of the map.
        kernel_size: odd.

    Attributes:
        implementation: "unfold", the band matrices, or "conv2d", the real operator.
    """

    def __init__(self, dim, map_size, kernel_size):
        super().__init__()
        self.implementation = "unfold"
        self.weight, self.bias = convolution_parameters(dim, 1, kernel_size, "fan_out", groups=dim)
        self.dim = dim
        self.map_size = tuple(map_size)
        self.kernel_area = kernel_size * kernel_size
        self.add_bias = AddBias()
        reach = min(kernel_size // 2, map_size[0] - 1)  # rows further away are padding everywhere
        self.offsets = tuple(range(-reach, reach + 1))
        self.bands = Tensor(band_matrices(kernel_size, self.offsets, map_size[1]))
        self.matmul = ops.MatMul()
        self.product = ops.BatchMatMul()
        self.conv2d = ops.Conv2D(dim, (kernel_size, kernel_size), pad_mode="pad", pad=kernel_size // 2, group=dim)
        self.kernel = None

    def make_kernel(self, library):
        return CompiledDepthwise(library, self.map_size)

    def construct(self, tokens):
        if self.kernel is not None and tokens.dtype == ms.float32:
            return self.kernel(tokens, self.weight, self.bias)
        channels, (height, width) = self.dim, self.map_size
        if self.implementation == "unfold":
            maps = tokens.reshape((-1, channels)).transpose((1, 0)).reshape((channels, -1, height, width))
            zeros = ops.zeros_like(maps)
            shifted = ()  # by whole rows, zeros where there are none: [C, B, H, W] each
            for offset in self.offsets:
                if offset < 0:
                    shifted = shifted + (ops.concat((zeros[:, :, :-offset], maps[:, :, :offset]), 2),)
                elif offset > 0:
                    shifted = shifted + (ops.concat((maps[:, :, offset:], zeros[:, :, :offset]), 2),)
                else:
                    shifted = shifted + (maps,)
            rows = ops.concat(shifted, 3) if len(shifted) > 1 else maps
            rows = rows.reshape((channels, -1, len(self.offsets) * width))  # [C, B * H, rows * W]
            weight = self.weight.reshape((channels, self.kernel_area)).astype(tokens.dtype)
            bands = self.matmul(weight, self.bands.astype(tokens.dtype)).reshape((channels, -1, width))
            out = self.product(rows, bands)  # [C, B * H, W]
            out = out.reshape((channels, -1)).transpose((1, 0))  # [B * L, C]
        else:
            maps = tokens.transpose((0, 2, 1)).reshape((-1, channels, height, width))
            maps = self.conv2d(maps, self.weight)  # [B, C, H, W]
            out = maps.reshape((-1, channels, height * width)).transpose((0, 2, 1)).reshape((-1, channels))
        return self.add_bias(out, self.bias.astype(out.dtype)).reshape((-1, *tokens.shape[1:]))


def band_matrices(kernel_size: int, offsets: tuple[int, ...], width: int) -> np.ndarray:
    """Make the matrix whose product with kernels gives matrices that convolve rows.

    Args:
        offsets: those of the rows that stand side by side, in rows of the map.

    Returns:
        [kernel_size^2, len(offsets) * width * width] float32 of zeros and ones. A kernel's elements times it are a
        matrix [len(offsets) * width, width]: element (i, c; w) is what column c of the i-th row adds to column w.
    """
    bands = np.zeros((kernel_size, kernel_size, len(offsets), width, width), np.float32)
    centre = kernel_size // 2
    for i, offset in enumerate(offsets):
        for column in range(kernel_size):
            bands[offset + centre, column, i] = np.eye(width, k=centre - column)
    return bands.reshape(kernel_size * kernel_size, -1)


class PatchEmbed(nn.Cell):
    """Embeds patches of images or tokens as tokens [B, L, embed_dim], by a convolution and then a LayerNorm.

    It is the stem, and the downsampling between stages (PatchEmbed in the originals of both families).

    Args:
        map_size: (H, W) of the map whose tokens it takes; None: it takes images [B, C, H, W].
        extra_padding: rows of zeros below and columns to the right, before the convolution.
        pre_norm: also normalises the map before the convolution, over places and channels (Focal's use_pre_norm).
    """

    def __init__(
        self,
        in_chans,
        embed_dim,
        kernel_size,
        stride,
        padding=0,
        map_size=None,
        extra_padding=(0, 0),
        norm=True,
        pre_norm=False,
        weights="uniform",
    ):
        super().__init__()
        self.pre_norm = nn.GroupNorm(1, in_chans, eps=1e-5) if pre_norm else None
        self.proj = Conv2d(in_chans, embed_dim, kernel_size, stride, padding, map_size, extra_padding, weights)
        self.norm = LayerNorm(embed_dim) if norm else None

    def construct(self, x):
        if self.pre_norm is not None:
            maps = x.transpose((0, 2, 1)).reshape((-1, x.shape[2], x.shape[1], 1))  # [B, C, L, 1]
            x = self.pre_norm(maps).reshape((-1, x.shape[2], x.shape[1])).transpose((0, 2, 1))
        x = self.proj(x)
        if self.norm is not None:
            x = self.norm(x)
        return x
