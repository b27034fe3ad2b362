"""Defines layers that the model families share. Feature maps are tokens [B, L, C], L = H * W in row-major order."""

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, Uniform, initializer
from mindspore.ops.functional import is_sequence_value_unknown

# The originals draw with timm's trunc_normal_(std=0.02). It cuts at the absolute values -2 and 2, a hundred standard
# deviations away, so this is a plain normal distribution.
WEIGHT_INIT = Normal(0.02)


class AddBias(nn.Cell):
    """Adds a bias [C] to rows [R, C]. Its gradient is a plain sum: BiasAddGrad takes 2 to 5 times as long on CPU."""

    def __init__(self):
        super().__init__()
        self.add = ops.BiasAdd()
        self.sum = ops.ReduceSum()  # every layer has one, and Tensor.sum takes longer to compile

    def construct(self, rows, bias):
        return self.add(rows, bias)

    def bprop(self, rows, bias, out, gradient):
        # A product with ones is faster still. In mixed precision the types of rows, bias and result differ; the bias is
        # a float32 parameter whatever type it is added in, and float16 stops counting at 2,048.
        return gradient.astype(rows.dtype), self.sum(gradient.astype(ms.float32), 0)


class Dense(nn.Cell):
    """Applies a linear layer over the last axis, initialised as the originals do: weights N(0, 0.02), bias zero."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.weight = Parameter(initializer(WEIGHT_INIT, (out_channels, in_channels), ms.float32), name="weight")
        self.bias = Parameter(initializer("zeros", (out_channels,), ms.float32), name="bias")
        self.matmul = ops.MatMul(transpose_b=True)
        self.add_bias = AddBias()

    def construct(self, x):
        rows = self.matmul(x.reshape((-1, self.in_channels)), self.weight)
        return self.add_bias(rows, self.bias).reshape((-1, *x.shape[1:-1], self.out_channels))


class NormByProducts(nn.Cell):
    """Applies LayerNorm to rows [R, C], with a gradient made of products with vectors of ones.

    On CPU LayerNormGrad takes 2.2 to 3 times as long. Here products sum over rows and columns, and spread a row's value
    over its columns, for elementwise operators that repeat a side are slow. Float32 only: means would lose accuracy.
    """

    def __init__(self, channels, epsilon):
        super().__init__()
        self.channels = channels
        self.epsilon = epsilon
        self.norm = ops.LayerNorm(-1, -1, epsilon)  # ONNX export knows no other axes
        self.matmul = ops.MatMul()
        self.rsqrt = ops.Rsqrt()
        self.spread = Tensor(np.ones((1, channels), np.float32))

    def construct(self, rows, gamma, beta):
        """Return normalised rows [R, C], with the mean and variance of each row, [R, 1], which the gradient needs."""
        return self.norm(rows, gamma, beta)

    def bprop(self, rows, gamma, beta, out, gradient):
        mean, variance = out[1], out[2]
        gradient = gradient[0]
        scale = self.rsqrt(variance + self.epsilon)
        centred = rows - self.matmul(mean, self.spread)
        product = gradient * centred
        weights = gamma.reshape((-1, 1)) / self.channels
        # The parts of the gradient by normalised rows that are parallel to the rows or to their mean have no effect.
        along_rows = self.matmul(product, weights) * (scale * scale * scale)  # [R, 1]
        along_mean = self.matmul(gradient, weights) * scale
        to_rows = gradient * self.matmul(scale, gamma.reshape((1, -1)))
        to_rows = to_rows - centred * self.matmul(along_rows, self.spread) - self.matmul(along_mean, self.spread)
        ones = ops.ones((1, rows.shape[0]), rows.dtype)
        to_gamma = self.matmul(scale.reshape((1, -1)), product).reshape(-1)
        return to_rows, to_gamma, self.matmul(ones, gradient).reshape(-1)


class LayerNorm(nn.LayerNorm):
    """Applies LayerNorm over the last axis with PyTorch's default epsilon (MindSpore's own default differs).

    Attributes:
        gradient: "products" (see NormByProducts) or "operator", MindSpore's own, the better choice on Ascend.
    """

    def __init__(self, channels, epsilon=1e-5):
        super().__init__((channels,), epsilon=epsilon)
        self.channels = channels
        self.gradient = "products"
        self.by_products = NormByProducts(channels, epsilon)

    def construct(self, x):
        if self.gradient == "products":
            normed, _, _ = self.by_products(x.reshape((-1, self.channels)), self.gamma, self.beta)
            return normed.reshape((-1, *x.shape[1:]))
        return self.layer_norm(x, self.gamma.astype(x.dtype), self.beta.astype(x.dtype))[0]


class SlicedDense(nn.Cell):
    """Holds several linear layers of equal size in one weight, [parts * dim, dim], and applies one at a time.

    The originals multiply by the whole weight and cut q, k and v out of the product. Here the weight is cut instead:
    slicing the product took 24% of inference time in a prototype, and tokens that are only keys need no queries.
    """

    def __init__(self, dim, parts, has_bias=True):
        super().__init__()
        self.dim = dim
        self.weight = Parameter(initializer(WEIGHT_INIT, (parts * dim, dim), ms.float32), name="weight")
        self.has_bias = has_bias
        if has_bias:
            self.bias = Parameter(initializer("zeros", (parts * dim,), ms.float32), name="bias")
        self.matmul = ops.MatMul(transpose_b=True)
        self.add_bias = AddBias()

    def construct(self, rows, part):
        """Apply the part-th layer to rows [R, C]: [R, C]."""
        start = part * self.dim
        # Mixed precision casts parameters, not slices of them: the slices follow the activations.
        projected = self.matmul(rows, self.weight[start : start + self.dim].astype(rows.dtype))
        if self.has_bias:
            projected = self.add_bias(projected, self.bias[start : start + self.dim].astype(rows.dtype))
        return projected


def convolution_parameters(out_channels, fan_in_channels, kernel_size, fan_out_init=False, groups=1):
    """Create weight [out_channels, fan_in_channels, k, k] and bias of a convolution.

    Initialisation is PyTorch's default for convolutions, which the Focal originals leave as it is: U(-b, b) with
    b = 1 / sqrt(fan_in), for weight and bias alike. `fan_out_init=True` is Twins': weights N(0, sqrt(2 / fan_out)) with
    fan_out = out_channels * kernel_size^2 / groups, bias zero.
    """
    area = kernel_size * kernel_size
    bound = Uniform(1 / math.sqrt(fan_in_channels * area))
    weight_init = Normal(math.sqrt(2 * groups / (out_channels * area))) if fan_out_init else bound
    shape = (out_channels, fan_in_channels, kernel_size, kernel_size)
    return (
        Parameter(initializer(weight_init, shape, ms.float32), name="weight"),
        Parameter(initializer("zeros" if fan_out_init else bound, (out_channels,), ms.float32), name="bias"),
    )


class Conv2d(nn.Cell):
    """Convolves images [B, C, H, W], or the tokens [B, H * W, C] of a map, in 2-D to tokens [B, L, out_channels].

    On CPU MindSpore's convolution is a naive kernel (700 ms for the stem at batch 8 where im2col and a matrix product
    take 5), so the default makes a row of every patch and multiplies the rows. Tokens are gathered, so that no map is
    transposed to channels first and back; images go through `ops.unfold`. The real operator is the better choice on
    Ascend's cube unit, and the only one ONNX can express. Weights and results are the same.

    Args:
        map_size: (H, W) of the map whose tokens it takes; None: it takes images.
        extra_padding: rows below and columns to the right, beside the padding on all sides.

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
        fan_out_init=False,
    ):
        super().__init__()
        self.implementation = "unfold"
        self.weight, self.bias = convolution_parameters(out_channels, in_channels, kernel_size, fan_out_init)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.map_size = map_size
        self.extra_padding = extra_padding
        self.fan_in = in_channels * kernel_size * kernel_size
        self.matmul = ops.MatMul(transpose_b=True)
        self.add_bias = AddBias()
        kernel = (kernel_size, kernel_size)  # a pair: MindSpore's ONNX exporter cannot read a single number
        self.conv2d = ops.Conv2D(out_channels, kernel, pad_mode="pad", pad=padding, stride=stride)
        if map_size is not None:
            self.pick_patches = RowGather(patch_tokens(map_size, kernel_size, stride, padding, extra_padding))

    def patches(self, x):
        """Return the rows of the patches, [B, L, fan_in], and the weight that fits them, [out_channels, fan_in]."""
        if self.map_size is None:
            x = with_zeros_below_and_right(x, *self.extra_padding)
            rows = ops.unfold(x, self.kernel_size, padding=self.padding, stride=self.stride)  # [B, C * k * k, L]
            return rows.transpose((0, 2, 1)), self.weight.reshape((self.out_channels, self.fan_in))
        tokens = with_padding_token(x) if self.padding or any(self.extra_padding) else x
        rows = self.pick_patches(tokens).reshape((x.shape[0], -1, self.fan_in))  # of k * k tokens each
        weight = self.weight.reshape((self.out_channels, self.in_channels, -1)).transpose((0, 2, 1))
        return rows, weight.reshape((self.out_channels, self.fan_in))

    def construct(self, x):
        if self.implementation == "unfold":
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
        rows = self.add_bias(rows, self.bias.astype(rows.dtype))
        return rows.reshape((-1, length, self.out_channels))


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


class DepthwiseConv2d(nn.Cell):
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
        self.weight, self.bias = convolution_parameters(dim, 1, kernel_size, fan_out_init=True, groups=dim)
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

    def construct(self, tokens):
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
        fan_out_init=False,
    ):
        super().__init__()
        self.pre_norm = nn.GroupNorm(1, in_chans, eps=1e-5) if pre_norm else None
        self.proj = Conv2d(in_chans, embed_dim, kernel_size, stride, padding, map_size, extra_padding, fan_out_init)
        self.norm = LayerNorm(embed_dim) if norm else None

    def construct(self, x):
        if self.pre_norm is not None:
            maps = x.transpose((0, 2, 1)).reshape((-1, x.shape[2], x.shape[1], 1))  # [B, C, L, 1]
            x = self.pre_norm(maps).reshape((-1, x.shape[2], x.shape[1])).transpose((0, 2, 1))
        x = self.proj(x)
        if self.norm is not None:
            x = self.norm(x)
        return x


class RowGather(nn.Cell):
    """Gathers rows of every sample's matrix by a static table: [B, R, D] to [B, n, D].

    The batch becomes part of the row number: the gradient of a gather along the first axis is a plain scatter-add,
    along another it is wrapped in two transposes (2.3 times as slow, forward and backward together). A batch of unknown
    size, as exported models have, is left alone. A table that only reorders the rows has a gather as its gradient.
    """

    def __init__(self, index: np.ndarray):
        """Store the table `index`: row numbers below R, of any shape; they are used in row-major order."""
        super().__init__()
        index = index.reshape(-1).astype(np.int32)
        self.index = Tensor(index)
        self.count = index.size
        inverse = np.argsort(index).astype(np.int32)
        self.is_order = bool((index[inverse] == np.arange(index.size)).all())
        self.is_identity = bool((index == np.arange(index.size)).all())
        if self.is_order:
            self.reorder = RowOrder(index, inverse)

    def construct(self, rows):
        if is_sequence_value_unknown(rows.shape):
            return ops.gather(rows, self.index, 1)
        batch, count, width = rows.shape
        if self.is_identity and count == self.count:
            return rows
        rows = rows.reshape((-1, width))
        if self.is_order and count == self.count:
            return self.reorder(rows).reshape((batch, -1, width))
        return ops.gather(rows, rows_of_batch(self.index, batch, count), 0).reshape((batch, -1, width))


class RowOrder(nn.Cell):
    """Reorders every sample's R rows, [B * R, D] to the same; the gradient goes back by the inverse order."""

    def __init__(self, order: np.ndarray, inverse: np.ndarray):
        super().__init__()
        self.count = order.size
        self.order, self.inverse = Tensor(order), Tensor(inverse)

    def construct(self, rows):
        return ops.gather(rows, rows_of_batch(self.order, rows.shape[0] // self.count, self.count), 0)

    def bprop(self, rows, out, gradient):
        gradient = gradient.astype(rows.dtype)  # in mixed precision they may differ
        return (ops.gather(gradient, rows_of_batch(self.inverse, rows.shape[0] // self.count, self.count), 0),)


def rows_of_batch(index, batch, count):
    """Turn row numbers [n] of one sample's `count` rows into those [batch * n] of a batch's."""
    first = Tensor(np.arange(batch, dtype=np.int32) * count).reshape((-1, 1))
    return (first + index.reshape((1, -1))).reshape(-1)


class GatheredAttention(nn.Cell):
    """Attends within windows that a table describes: queries and keys are rows of token matrices.

    A window has N queries and K keys, which may be any tokens and may repeat. Rows are gathered head by head, so that
    they arrive in the order of the batched products and nothing needs transposing; the results are gathered back into
    the order of the map.

    A subclass calls `set_tables`. If `has_bias`, it defines `position_bias()`, [kinds, heads, N, K], which is added to
    the scores of every window according to its kind.

    Args:
        index: distinguishes the dropouts of a model, see Dropout.
    """

    has_bias = False

    def __init__(self, dim, num_heads, qkv_bias=True, qk_scale=None, attn_drop=0.0, proj_drop=0.0, index=0):
        super().__init__()
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = float(qk_scale or self.head_dim**-0.5)  # Focal's configs carry qk_scale: False
        self.qkv = SlicedDense(dim, 3, qkv_bias)
        self.proj = Dense(dim, dim)
        self.attn_drop = Dropout(attn_drop, index)
        self.proj_drop = Dropout(proj_drop, index + 1)
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()
        self.folded_bias = None

    def set_tables(self, query_index: np.ndarray, key_index: np.ndarray, length: int, kind: np.ndarray | None = None):
        """Set the tokens that each window has.

        Args:
            query_index: [nW, N] row numbers of the queries; every token below `length` is a query once. Numbers from
                `length` on are padding: their results are dropped.
            key_index: [nW, K] row numbers of the keys.
            kind: [nW] number of the position bias that each window has; None: the first, second, ...
        """
        self.one_kind_each = kind is None
        self.kind = Tensor((np.arange(len(query_index)) if kind is None else kind).astype(np.int32))
        self.query_index, self.key_index = query_index, key_index  # for pictures: the graph uses the tables below
        self.num_windows, self.window_area = query_index.shape
        self.num_keys = key_index.shape[1]
        self.length = length
        heads = np.arange(self.num_heads)
        self.pick_queries = RowGather(query_index[:, None] * self.num_heads + heads[:, None])  # [nW, heads, N]
        self.pick_keys = RowGather(key_index[:, None] * self.num_heads + heads[:, None])  # [nW, heads, K]
        place = np.argsort(query_index.reshape(-1), kind="stable")[:length]  # of every token among the queries
        window, query = np.divmod(place, self.window_area)
        # The result of (window, head, query) is row (window * heads + head) * N + query.
        self.restore = RowGather((window[:, None] * self.num_heads + heads) * self.window_area + query[:, None])

    def heads_of(self, rows, pick, count):
        """Pick each window's tokens, split into heads: [B, T, C] to [B * nW, heads, count, head_dim]."""
        rows = rows.reshape((-1, rows.shape[1] * self.num_heads, self.head_dim))  # [B, T * heads, head_dim]
        return pick(rows).reshape((-1, self.num_heads, count, self.head_dim))

    def fold_position_bias(self):
        """Make the position bias of the present weights a constant, so that an exported model need not compute it."""
        if self.has_bias:
            self.folded_bias = Tensor(self.position_bias().asnumpy())

    def add_position_bias(self, scores):
        """Add the position bias to the scores [B * nW, heads, N, K], by a gather and a plain sum.

        On CPU a sum that repeats a side takes twice as long, and holds four times its result while the graph lives.
        """
        bias = self.position_bias() if self.folded_bias is None else self.folded_bias  # [kinds, heads, N, K]
        if is_sequence_value_unknown(scores.shape):
            windows = (-1, self.num_windows, self.num_heads, self.window_area, self.num_keys)
            of_windows = bias if self.one_kind_each else ops.gather(bias, self.kind, 0)  # [nW, heads, N, K]
            return (scores.reshape(windows) + of_windows).reshape((-1, self.num_heads, self.window_area, self.num_keys))
        kind = ops.tile(self.kind, (scores.shape[0] // self.num_windows,))  # [B * nW]
        return scores + ops.gather(bias, kind, 0)

    def key_groups(self) -> list[tuple[str, int]]:
        """Return a name and a number of keys for each kind of key that a window has, in order."""
        return [("tokens of the window", self.num_keys)]

    def attention_weights(self, queries, tokens):
        """Compute the weights of each query of each window on its keys, [B * nW, heads, N, K]; they sum to 1.

        The tables number the rows of queries [B, L or more, C] and of tokens [B, T, C].
        """
        q = (self.qkv(queries.reshape((-1, self.dim)), 0) * self.scale).reshape((-1, *queries.shape[1:]))
        k = self.qkv(tokens.reshape((-1, self.dim)), 1).reshape((-1, *tokens.shape[1:]))
        q = self.heads_of(q, self.pick_queries, self.window_area)
        scores = self.scores(q, self.heads_of(k, self.pick_keys, self.num_keys))  # [B * nW, heads, N, K]
        if self.has_bias:
            scores = self.add_position_bias(scores)
        return ops.softmax(scores, -1)

    def attend(self, queries, tokens, dropout_seed):
        """Attend from queries [B, L or more, C] to tokens [B, T, C], which the tables number: [B, L, C]."""
        weights = self.attn_drop(self.attention_weights(queries, tokens), dropout_seed)
        v = self.qkv(tokens.reshape((-1, self.dim)), 2).reshape((-1, *tokens.shape[1:]))
        weights = weights.reshape((-1, self.num_heads, self.window_area, self.num_keys)).astype(v.dtype)
        out = self.mix(weights, self.heads_of(v, self.pick_keys, self.num_keys))  # [B * nW, heads, N, head_dim]
        out = out.reshape((-1, self.num_windows * self.num_heads * self.window_area, self.head_dim))
        out = self.restore(out).reshape((-1, self.length, self.dim))  # [B, L, C]
        return self.proj_drop(self.proj(out), dropout_seed)


def with_padding_token(tokens):
    """Append a token of zeros, which stands for all padding of a map: [B, L, C] to [B, L + 1, C]."""
    return ops.concat((tokens, tokens[:, :1] * 0), 1)  # a product, which ONNX has; it has no ZerosLike


class DropPath(nn.Cell):
    """Scales each sample's residual branch by 0 or 1 / keep in training: stochastic depth (arXiv 1603.09382).

    The scales are drawn outside the graph by `draw_drop_path` and passed in, so that they belong to (seed, update,
    rank) rather than to the state of an operator, and a resumed run draws what an uninterrupted one would have.
    """

    def __init__(self, rate: float, index: int):
        """Set the rate; `index` is this branch's row in the scales of `draw_drop_path`."""
        super().__init__()
        self.rate = rate
        self.index = index

    def construct(self, x, scales):
        if not self.training or self.rate == 0.0:
            return x
        if scales is None:
            raise ValueError("training with drop_path_rate > 0 needs drop_path=model.draw_drop_path(generator, batch)")
        # Spread over the sample first: on CPU a product that repeats one of its sides is slower and holds memory.
        spread = ops.tile(scales[self.index].reshape((-1, 1)), (1, x.shape[1] * x.shape[2])).reshape(x.shape)
        return x * spread.astype(x.dtype)


def draw_drop_path(rates: list[float], generator: np.random.Generator, batch_size: int) -> np.ndarray:
    """Draw scales for every DropPath of a model: [branches, batch_size] float32, each 0 or 1 / (1 - rate)."""
    keep = 1.0 - np.asarray(rates, dtype=np.float64)[:, None]
    kept = generator.random((len(rates), batch_size)) < keep
    return (kept / keep).astype(np.float32)


class Dropout(nn.Cell):
    """Drops elements by a hash of (seed, layer, element): the same seed gives the same mask on any device.

    MindSpore's own operator keeps a hidden generator that a checkpoint cannot carry. The published recipes do not use
    dropout, so this favours being exact over being fast: two rounds of a 32-bit integer hash per element.
    """

    def __init__(self, rate: float, index: int):
        """Set the rate; `index` distinguishes the dropouts of a model."""
        super().__init__()
        self.rate = rate
        self.salt = (index * 0x9E3779B1 + 0x7F4A7C15) % 2**31
        self.threshold = round(rate * 2**24)
        self.keep_scale = 1.0 / (1.0 - rate) if rate < 1.0 else 0.0

    def construct(self, x, seed):
        if not self.training or self.rate == 0.0:
            return x
        if seed is None:
            raise ValueError("training with dropout needs dropout_seed=<int32 scalar tensor>")
        element = Tensor(np.arange(x.size, dtype=np.int32)).reshape(x.shape)
        word = mix_bits(element ^ mix_bits(seed + self.salt))
        # 24 bits compare exactly; the sign bit is masked away.
        kept = (word & 0xFFFFFF) >= self.threshold
        return x * kept.astype(x.dtype) * self.keep_scale


def mix_bits(word):
    """Hash int32 values: xor-shift and multiply, twice (the "lowbias32" constants), in int32 arithmetic."""
    word = (word ^ logical_shift(word, 16)) * 0x7FEB352D
    word = (word ^ logical_shift(word, 15)) * -2073254261  # 0x846CA68B as int32
    return word ^ logical_shift(word, 16)


def logical_shift(word, bits):
    """Shift int32 right, filling with zeros."""
    return (word // (2**bits)) & (2 ** (32 - bits) - 1)


class Gelu(nn.Cell):
    """Computes exact GELU (arXiv 1606.08415): x times the normal distribution function of x.

    The distribution function is sigmoid(x P(x^2)), within 1e-7 after the multiplication by x, or made of Erf, the
    slowest elementwise operator on CPU (130 ms for 9.6M values; a product takes 4), which MindSpore cannot write to
    ONNX either. In float16, where the coefficients would vanish, it is always made of Erf.

    The gradient is its own and needs only x and the distribution: nn.GELU's holds four times the activation for as long
    as the graph lives on CPU, in inference too.

    Attributes:
        form: "polynomial", or "erf", the fewer operators and so the better choice on Ascend.
    """

    # Of P, highest power first: a least-squares fit on |x| <= 6.5. Beyond, P is positive, so the sigmoid is 0 or 1.
    coefficients = (
        3.71728930e-9, -2.71711680e-7, 8.01844462e-6, -1.11094282e-4, -6.40434163e-5, 7.26651268e-2, 1.59577012,
    )  # fmt: skip

    def __init__(self):
        super().__init__()
        self.form = "polynomial"
        self.erf = ops.Erf()
        self.exp = ops.Exp()
        self.sigmoid = ops.Sigmoid()

    def distribution(self, x):
        if self.form == "erf" or x.dtype == ms.float16:
            return self.erf(x * 0.7071067811865476) * 0.5 + 0.5
        a, b, c, d, e, f, g = self.coefficients  # not a loop: that takes a tenth longer to compile a training graph
        square = x * x
        value = (((((square * a + b) * square + c) * square + d) * square + e) * square + f) * square + g
        return self.sigmoid(x * value)

    def construct(self, x):
        return x * self.distribution(x)

    def bprop(self, x, out, gradient):
        # The compiler keeps the distribution of the forward pass for this one, and would keep x * x as well.
        density = self.exp(x * (x * -0.5)) * 0.3989422804014327
        return (gradient * (self.distribution(x) + x * density),)


class Mlp(nn.Cell):
    """Applies a two-layer perceptron with exact GELU (paper section 3.2; Mlp in the original files)."""

    def __init__(self, dim, hidden_dim, drop=0.0, dropout_index=0):
        super().__init__()
        self.fc1 = Dense(dim, hidden_dim)
        self.act = Gelu()
        self.fc2 = Dense(hidden_dim, dim)
        self.drop1 = Dropout(drop, dropout_index)
        self.drop2 = Dropout(drop, dropout_index + 1)

    def construct(self, x, dropout_seed=None):
        x = self.drop1(self.act(self.fc1(x)), dropout_seed)
        return self.drop2(self.fc2(x), dropout_seed)
