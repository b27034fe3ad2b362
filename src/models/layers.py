"""Layers shared by the model families. Feature maps travel as tokens, [B, L, C] with L = H * W in row-major order."""

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, Uniform, initializer

# The originals draw with timm's trunc_normal_(std=0.02), which cuts at the absolute values -2 and 2: a hundred standard
# deviations away, so it is a plain normal distribution.
WEIGHT_INIT = Normal(0.02)


def image_size(img_size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an img_size argument."""
    return (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)


def dense(in_channels: int, out_channels: int, has_bias: bool = True) -> nn.Dense:
    """Linear layer initialised as the originals do: weights N(0, 0.02), bias zero."""
    return nn.Dense(in_channels, out_channels, weight_init=WEIGHT_INIT, bias_init="zeros", has_bias=has_bias)


def layer_norm(channels: int, epsilon: float = 1e-5) -> nn.LayerNorm:
    """LayerNorm over the last axis with PyTorch's default epsilon (MindSpore's own default differs)."""
    return nn.LayerNorm((channels,), epsilon=epsilon)


class SlicedDense(nn.Cell):
    """Several linear layers of equal size in one weight, [parts * dim, dim], applied one at a time.

    The originals multiply by the whole weight and cut q, k and v out of the product. Here the weight is cut instead:
    slicing the product took 24% of inference time in a prototype, and tokens that are keys alone need no queries.
    """

    def __init__(self, dim, parts, has_bias=True):
        super().__init__()
        self.dim = dim
        self.weight = Parameter(initializer(WEIGHT_INIT, (parts * dim, dim), ms.float32), name="weight")
        self.has_bias = has_bias
        if has_bias:
            self.bias = Parameter(initializer("zeros", (parts * dim,), ms.float32), name="bias")
        self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, rows, part):
        """rows [R, C] by the part-th layer: [R, C]."""
        start = part * self.dim
        # Mixed precision casts parameters, not slices of them: the slices follow the activations.
        projected = self.matmul(rows, self.weight[start : start + self.dim].astype(rows.dtype))
        if self.has_bias:
            projected = projected + self.bias[start : start + self.dim].astype(rows.dtype)
        return projected


class Conv2d(nn.Cell):
    """2-D convolution of a [B, C, H, W] map that returns tokens [B, L, out_channels].

    On CPU MindSpore's convolution is a naive kernel (700 ms for the stem at batch 8 where im2col and a matrix product
    take 5), so the default gathers patches with `ops.unfold`. `implementation="conv2d"` uses the real operator: the
    better choice on Ascend's cube unit, and the only one ONNX can express. Weights and results are the same.

    Initialisation is PyTorch's default for convolutions, which the Focal originals leave as it is: U(-b, b) with
    b = 1 / sqrt(fan_in), for weight and bias alike. `fan_out_init=True` is Twins': weights N(0, sqrt(2 / fan_out)) with
    fan_out = out_channels * kernel_size^2 / groups, bias zero.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride,
        padding=0,
        implementation="unfold",
        depthwise=False,
        fan_out_init=False,
    ):
        super().__init__()
        kernel_area = kernel_size * kernel_size
        groups = in_channels if depthwise else 1
        fan_in = in_channels // groups * kernel_area
        bound = Uniform(1 / math.sqrt(fan_in))
        weight_init = Normal(math.sqrt(2 * groups / (out_channels * kernel_area))) if fan_out_init else bound
        shape = (out_channels, in_channels // groups, kernel_size, kernel_size)
        self.weight = Parameter(initializer(weight_init, shape, ms.float32), name="weight")
        self.bias = Parameter(initializer("zeros" if fan_out_init else bound, (out_channels,), ms.float32), name="bias")
        self.kernel_size = kernel_size
        self.kernel_area = kernel_area
        self.stride = stride
        self.padding = padding
        self.out_channels = out_channels
        self.fan_in = fan_in
        self.depthwise = depthwise
        self.unfold = implementation == "unfold"
        self.conv2d = ops.Conv2D(out_channels, kernel_size, pad_mode="pad", pad=padding, stride=stride, group=groups)

    def construct(self, x):
        if self.unfold:
            patches = ops.unfold(x, self.kernel_size, padding=self.padding, stride=self.stride)  # [B, C * k * k, L]
            if self.depthwise:
                patches = patches.reshape((x.shape[0], self.out_channels, self.kernel_area, -1))
                weight = self.weight.reshape((self.out_channels, self.kernel_area, 1)).astype(x.dtype)
                tokens = (patches * weight).sum(2).transpose((0, 2, 1))  # [B, L, out]
            else:
                weight = self.weight.reshape((self.out_channels, self.fan_in)).astype(x.dtype)
                tokens = ops.matmul(patches.transpose((0, 2, 1)), weight.transpose((1, 0)))  # [B, L, out]
        else:
            maps = self.conv2d(x, self.weight)  # [B, out, H', W']
            tokens = maps.reshape((maps.shape[0], self.out_channels, -1)).transpose((0, 2, 1))  # [B, L, out]
        return tokens + self.bias


class PatchEmbed(nn.Cell):
    """Stem and downsampling between stages: [B, C, H, W] to tokens [B, L, embed_dim]; convolution, then LayerNorm.

    PatchEmbed in the originals of both families. `pre_norm` normalises the input map (Focal's use_pre_norm).
    """

    def __init__(
        self,
        in_chans,
        embed_dim,
        kernel_size,
        stride,
        padding=0,
        norm=True,
        pre_norm=False,
        fan_out_init=False,
        conv_implementation="unfold",
    ):
        super().__init__()
        self.pre_norm = nn.GroupNorm(1, in_chans, eps=1e-5) if pre_norm else None
        self.proj = Conv2d(
            in_chans, embed_dim, kernel_size, stride, padding, conv_implementation, fan_out_init=fan_out_init
        )
        self.norm = layer_norm(embed_dim) if norm else None

    def construct(self, x):
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        x = self.proj(x)
        if self.norm is not None:
            x = self.norm(x)
        return x


def padded_size(map_size: tuple[int, int], window_size: int) -> tuple[int, int]:
    """A map's size after padding below and to the right to whole windows."""
    height, width = (-(-side // window_size) * window_size for side in map_size)
    return height, width


class WindowPadding(nn.Cell):
    """Zeros below and to the right of a map, up to whole windows: [B, L, C] to [B, H', W', C]; `crop` undoes it."""

    def __init__(self, map_size, window_size, dim):
        super().__init__()
        self.height, self.width = map_size
        padded = padded_size(map_size, window_size)
        self.pads = padded != tuple(map_size)
        self.map_shape = (-1, *map_size, dim)
        self.padded_shape = (-1, *padded, dim)
        self.token_shape = (-1, math.prod(map_size), dim)
        self.pad = ops.Pad(((0, 0), (0, padded[0] - self.height), (0, padded[1] - self.width), (0, 0)))

    def construct(self, tokens):
        maps = tokens.reshape(self.map_shape)
        return self.pad(maps) if self.pads else maps

    def crop(self, maps):
        """[B, H', W', C] or [B, H' * W', C] to [B, L, C]."""
        if self.pads:
            maps = maps.reshape(self.padded_shape)[:, : self.height, : self.width]
        return maps.reshape(self.token_shape)


class WindowPartition(nn.Cell):
    """Windows of a map that they tile: [B, L, C] or [B, H, W, C] to [B, nW, N, C], row by row; `merge` undoes it."""

    def __init__(self, map_size, window_size, dim):
        super().__init__()
        rows, columns = (side // window_size for side in map_size)
        # Whole rows of a window move together: [B, rows, ws, columns, ws * C].
        self.split_shape = (-1, rows, window_size, columns, window_size * dim)
        self.merge_shape = (-1, rows, columns, window_size, window_size * dim)
        self.window_shape = (-1, rows * columns, window_size * window_size, dim)
        self.token_shape = (-1, math.prod(map_size), dim)

    def construct(self, maps):
        return maps.reshape(self.split_shape).transpose((0, 1, 3, 2, 4)).reshape(self.window_shape)

    def merge(self, windows):
        """[B * nW, N, C] or [B, nW, N, C] to [B, L, C]."""
        return windows.reshape(self.merge_shape).transpose((0, 1, 3, 2, 4)).reshape(self.token_shape)


class DropPath(nn.Cell):
    """Stochastic depth (arXiv 1603.09382): in training, scales each sample's residual branch by 0 or 1 / keep.

    The scales are drawn outside the graph by `draw_drop_path` and passed in, so that they belong to (seed, update,
    rank) rather than to the state of an operator, and a resumed run draws what an uninterrupted one would have.
    """

    def __init__(self, rate: float, index: int):
        """`index` is this branch's row in the scales of `draw_drop_path`."""
        super().__init__()
        self.rate = rate
        self.index = index

    def construct(self, x, scales):
        if not self.training or self.rate == 0.0:
            return x
        if scales is None:
            raise ValueError("training with drop_path_rate > 0 needs drop_path=model.draw_drop_path(generator, batch)")
        return x * scales[self.index].reshape((-1, 1, 1)).astype(x.dtype)


def draw_drop_path(rates: list[float], generator: np.random.Generator, batch_size: int) -> np.ndarray:
    """Scales for every DropPath of a model: [branches, batch_size] float32, each 0 or 1 / (1 - rate)."""
    keep = 1.0 - np.asarray(rates, dtype=np.float64)[:, None]
    kept = generator.random((len(rates), batch_size)) < keep
    return (kept / keep).astype(np.float32)


class Dropout(nn.Cell):
    """Dropout whose mask is a hash of (seed, layer, element): the same seed gives the same mask on any device.

    MindSpore's own operator keeps a hidden generator that a checkpoint cannot carry. The published recipes do not use
    dropout, so this favours being exact over being fast: two rounds of a 32-bit integer hash per element.
    """

    def __init__(self, rate: float, index: int):
        """`index` tells the dropouts of a model apart."""
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
    """Hash of int32 values: xor-shift and multiply, twice (the "lowbias32" constants), in int32 arithmetic."""
    word = (word ^ logical_shift(word, 16)) * 0x7FEB352D
    word = (word ^ logical_shift(word, 15)) * -2073254261  # 0x846CA68B as int32
    return word ^ logical_shift(word, 16)


def logical_shift(word, bits):
    """Shift int32 right, filling with zeros."""
    return (word // (2**bits)) & (2 ** (32 - bits) - 1)


class Mlp(nn.Cell):
    """Two-layer perceptron with exact GELU (paper section 3.2; Mlp in the original files)."""

    def __init__(self, dim, hidden_dim, drop=0.0, dropout_index=0):
        super().__init__()
        self.fc1 = dense(dim, hidden_dim)
        self.act = nn.GELU(approximate=False)
        self.fc2 = dense(hidden_dim, dim)
        self.drop1 = Dropout(drop, dropout_index)
        self.drop2 = Dropout(drop, dropout_index + 1)

    def construct(self, x, dropout_seed=None):
        x = self.drop1(self.act(self.fc1(x)), dropout_seed)
        return self.drop2(self.fc2(x), dropout_seed)
