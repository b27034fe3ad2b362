"""Defines layers that the model families share. Feature maps are tokens [B, L, C], L = H * W in row-major order."""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer

from focal_twins.models.compiled import (
    CompiledBranch,
    CompiledColumnSums,
    CompiledLayerNorm,
    CompiledMlp,
    KernelLayer,
)

# The originals draw with timm's trunc_normal_(std=0.02). It cuts at the absolute values -2 and 2, a hundred standard
# deviations away, so this is a plain normal distribution.
WEIGHT_INIT = Normal(0.02)


class AddBias(nn.Cell, KernelLayer):
    """Adds a bias [C] to rows [R, C]. Its gradient is a plain sum: BiasAddGrad takes 2 to 5 times as long on CPU."""

    def __init__(self):
        super().__init__()
        self.add = ops.BiasAdd()
        self.sum = ops.ReduceSum()  # every layer has one, and Tensor.sum takes longer to compile
        self.kernel = None

    def make_kernel(self, library):
        return CompiledColumnSums(library)

    def construct(self, rows, bias):
        return self.add(rows, bias)

    def bprop(self, rows, bias, out, gradient):
        if self.kernel is not None and gradient.dtype == ms.float32:
            return gradient.astype(rows.dtype), self.kernel(gradient)
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

    def product(self, x):
        """Multiply by the weight alone: [..., in_channels] to rows [R, out_channels]."""
        return self.matmul(x.reshape((-1, self.in_channels)), self.weight)

    def construct(self, x):
        return self.add_bias(self.product(x), self.bias).reshape((-1, *x.shape[1:-1], self.out_channels))


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


class LayerNorm(nn.LayerNorm, KernelLayer):
    """Applies LayerNorm over the last axis with PyTorch's default epsilon (MindSpore's own default differs).

    Attributes:
        gradient: "products" (see NormByProducts) or "operator", MindSpore's own, the better choice on Ascend. It has no
            meaning for a layer that runs by a kernel.
    """

    def __init__(self, channels, epsilon=1e-5):
        super().__init__((channels,), epsilon=epsilon)
        self.channels = channels
        self.gradient = "products"
        self.by_products = NormByProducts(channels, epsilon)
        self.kernel = None

    def make_kernel(self, library):
        return CompiledLayerNorm(library, self.epsilon)

    def construct(self, x):
        if self.kernel is not None and x.dtype == ms.float32:
            normed, _, _ = self.kernel(x.reshape((-1, self.channels)), self.gamma, self.beta)
            return normed.reshape((-1, *x.shape[1:]))
        if self.gradient == "products":
            normed, _, _ = self.by_products(x.reshape((-1, self.channels)), self.gamma, self.beta)
            return normed.reshape((-1, *x.shape[1:]))
        return self.layer_norm(x, self.gamma.astype(x.dtype), self.beta.astype(x.dtype))[0]


class SlicedDense(nn.Cell):
    """Holds several linear layers of equal size in one weight, [parts * dim, dim], and applies one at a time.

    The originals multiply by the whole weight and cut q, k and v out of the product. Here the weight is cut instead:
    slicing the product took 24% of inference time in a prototype, and tokens that are only keys need no queries. A
    kernel of attention takes the whole product as it is.
    """

    def __init__(self, dim, parts, has_bias=True):
        super().__init__()
        self.dim = dim
        self.parts = parts
        self.weight = Parameter(initializer(WEIGHT_INIT, (parts * dim, dim), ms.float32), name="weight")
        self.has_bias = has_bias
        if has_bias:
            self.bias = Parameter(initializer("zeros", (parts * dim,), ms.float32), name="bias")
        self.matmul = ops.MatMul(transpose_b=True)
        self.add_bias = AddBias()

    def product(self, rows):
        """Multiply rows [R, C] by the weights of all layers, without their biases: [R, parts * C]."""
        return self.matmul(rows, self.weight)

    def construct(self, rows, part):
        """Apply the part-th layer to rows [R, C]: [R, C]."""
        layer = slice(part * self.dim, (part + 1) * self.dim)
        # Mixed precision casts parameters, not slices of them: the slices follow the activations.
        projected = self.matmul(rows, self.weight[layer].astype(rows.dtype))
        if self.has_bias:
            projected = self.add_bias(projected, self.bias[layer].astype(rows.dtype))
        return projected


class DropPath(nn.Cell, KernelLayer):
    """Adds a residual branch, scaled for each sample by 0 or 1 / keep in training: stochastic depth (arXiv 1603.09382).

    The scales are drawn outside the graph by `draw_drop_path` and passed in, so that they belong to (seed, update,
    rank) rather than to the state of an operator, and a resumed run draws what an uninterrupted one would have.
    """

    def __init__(self, rate: float, index: int):
        """Set the rate; `index` is this branch's row in the scales of `draw_drop_path`."""
        super().__init__()
        self.rate = rate
        self.index = index
        self.kernel = None

    def make_kernel(self, library):
        return CompiledBranch(library)

    def construct(self, shortcut, branch, scales):
        """Add a branch [B, L, C] to its shortcut. `scales`: those of all branches, [branches, B]."""
        if not self.training or self.rate == 0.0:
            return shortcut + branch
        if scales is None:
            raise ValueError("a block that trains with drop_path_rate > 0 needs drop_path; a whole model draws its own")
        if self.kernel is not None and branch.dtype == ms.float32:
            return self.kernel(shortcut, branch, scales[self.index])
        # Spread over the sample first: on CPU a product that repeats one of its sides is slower and holds memory.
        size = branch.shape[1] * branch.shape[2]
        spread = ops.tile(scales[self.index].reshape((-1, 1)), (1, size)).reshape(branch.shape)
        return shortcut + branch * spread.astype(branch.dtype)


def draw_drop_path(rates: list[float], generator: np.random.Generator, batch_size: int) -> np.ndarray:
    """Draw scales for every DropPath of a model: [branches, batch_size] float32, each 0 or 1 / (1 - rate)."""
    keep = 1.0 - np.asarray(rates, dtype=np.float64)[:, None]
    kept = generator.random((len(rates), batch_size)) < keep
    return (kept / keep).astype(np.float32)


def random_scales(keep, shape):
    """Draw scales of 0 or 1 / keep, float32, in a graph, from MindSpore's own random state (mindspore.set_seed).

    Args:
        keep: the probability that a scale is not 0, a number or a tensor that can be spread to the shape.
    """
    return (ops.rand(*shape) < keep).astype(ms.float32) / keep


def random_seed():
    """Draw an int32 scalar in a graph, from MindSpore's own random state, that keys dropout in one training step."""
    return (ops.rand(1)[0] * 2.0**24).astype(ms.int32)  # float32 holds 24 bits exactly


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

    def is_active(self):
        """Tell whether it drops anything."""
        return self.training and self.rate > 0.0

    def construct(self, x, seed):
        if not self.is_active():
            return x
        if seed is None:
            raise ValueError("a block that trains with dropout needs dropout_seed; a whole model draws its own")
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


class Mlp(nn.Cell, KernelLayer):
    """Applies a two-layer perceptron with exact GELU (paper section 3.2; Mlp in the original files)."""

    def __init__(self, dim, hidden_dim, drop=0.0, dropout_index=0):
        super().__init__()
        self.fc1 = Dense(dim, hidden_dim)
        self.act = Gelu()
        self.fc2 = Dense(hidden_dim, dim)
        self.drop1 = Dropout(drop, dropout_index)
        self.drop2 = Dropout(drop, dropout_index + 1)
        self.kernel = None

    def make_kernel(self, library):
        return CompiledMlp(library, self.fc1.out_channels)

    def construct(self, x, dropout_seed=None):
        if self.kernel is not None and x.dtype == ms.float32 and not self.drop1.is_active():
            rows = x.reshape((-1, self.fc1.in_channels))
            rows, _ = self.kernel(rows, self.fc1.weight, self.fc1.bias, self.fc2.weight)
            return self.fc2.add_bias(rows, self.fc2.bias).reshape((-1, *x.shape[1:-1], self.fc2.out_channels))
        x = self.drop1(self.act(self.fc1(x)), dropout_seed)
        return self.drop2(self.fc2(x), dropout_seed)
