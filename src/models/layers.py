"""Layers shared by the model families. Feature maps travel as tokens, [B, L, C] with L = H * W in row-major order."""

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, Uniform, initializer

# The originals draw with timm's trunc_normal_(std=0.02), which cuts at the absolute values -2 and 2: a hundred standard
# deviations away, so it is a plain normal distribution.
WEIGHT_INIT = Normal(0.02)


def dense(in_channels: int, out_channels: int, has_bias: bool = True) -> nn.Dense:
    """Linear layer initialised as the originals do: weights N(0, 0.02), bias zero."""
    return nn.Dense(in_channels, out_channels, weight_init=WEIGHT_INIT, bias_init="zeros", has_bias=has_bias)


def layer_norm(channels: int, epsilon: float = 1e-5) -> nn.LayerNorm:
    """LayerNorm over the last axis with PyTorch's default epsilon (MindSpore's own default differs)."""
    return nn.LayerNorm((channels,), epsilon=epsilon)


class Conv2d(nn.Cell):
    """2-D convolution of a [B, C, H, W] map that returns tokens [B, L, out_channels].

    On CPU MindSpore's convolution is a naive kernel (700 ms for the stem at batch 8 where im2col and a matrix product
    take 5), so the default gathers patches with `ops.unfold`. `implementation="conv2d"` uses the real operator: the
    better choice on Ascend's cube unit, and the only one ONNX can express. Weights and results are the same.

    Initialisation is PyTorch's default for convolutions, which the originals leave as it is: U(-b, b) with
    b = 1 / sqrt(fan_in), for weight and bias alike.
    """

    def __init__(self, in_channels, out_channels, kernel_size, stride, padding=0, implementation="unfold"):
        super().__init__()
        fan_in = in_channels * kernel_size * kernel_size
        bound = Uniform(1 / math.sqrt(fan_in))
        self.weight = Parameter(
            initializer(bound, (out_channels, in_channels, kernel_size, kernel_size), ms.float32), name="weight"
        )
        self.bias = Parameter(initializer(bound, (out_channels,), ms.float32), name="bias")
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.out_channels = out_channels
        self.fan_in = fan_in
        self.unfold = implementation == "unfold"
        self.conv2d = ops.Conv2D(out_channels, kernel_size, pad_mode="pad", pad=padding, stride=stride)

    def construct(self, x):
        if self.unfold:
            patches = ops.unfold(x, self.kernel_size, padding=self.padding, stride=self.stride)  # [B, fan_in, L]
            weight = self.weight.reshape((self.out_channels, self.fan_in)).astype(x.dtype)
            tokens = ops.matmul(patches.transpose((0, 2, 1)), weight.transpose((1, 0)))  # [B, L, out]
        else:
            maps = self.conv2d(x, self.weight)  # [B, out, H', W']
            tokens = maps.reshape((maps.shape[0], self.out_channels, -1)).transpose((0, 2, 1))  # [B, L, out]
        return tokens + self.bias


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
