"""Layers that run by one compiled kernel each where MindSpore would run a chain of operators (focal_twins/kernels).

They compute in float32 on CPU, and what they compute is what the operators do, but for rounding.
"""

from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops

NO_BIAS = Tensor(np.zeros(1, np.float32))  # what CompiledAttention takes in place of a bias


class KernelLayer:
    """Is the part of a layer that can run by kernels: which library it uses, if any.

    A layer derives from this and from nn.Cell, and makes its kernels in `use_kernels`.
    """

    library: str | None = None
    kernel: Any  # the cell that runs the kernel, or None

    def use_kernels(self, library: str | None) -> None:
        """Run by the kernels of a library from here on, or None: by MindSpore's operators."""
        self.library = library
        self.kernel = None if library is None else self.make_kernel(library)

    def make_kernel(self, library: str) -> nn.Cell:
        """Return the cell that runs the kernel."""
        raise NotImplementedError


def custom(library: str, function: str, shapes, types) -> ops.Custom:
    """Return a function of a library as an operator, with functions that infer shapes and types of its outputs."""
    return ops.Custom(f"{library}:{function}", shapes, types, func_type="aot")


class CompiledMlp(nn.Cell):
    """Multiplies rows [R, C] by a weight [H, C], adds a bias [H], applies exact GELU and multiplies by a weight [D, H].

    The result, [R, D], has no bias. The kernel of GELU's gradient (kernels/bias.cpp) computes the result of GELU
    again, so that this largest activation of a network is not kept for the gradient.

    Where the rows of the hidden layer are a multiple of 4 KB apart, the numbers of a column compete for few places of a
    cache, and products that sum over rows take up to twice as long. There its gradient has PADDING columns more.
    """

    PADDING = 16  # a cache line
    CONFLICT = 1024  # float32 numbers in 4 KB

    def __init__(self, library, hidden):
        super().__init__()
        self.padding = self.PADDING if hidden % self.CONFLICT == 0 else 0
        wide = hidden + self.padding
        self.forward = custom(library, "bias_gelu", lambda rows, bias: rows, lambda rows, bias: rows)
        self.backward = custom(
            library, "bias_gelu_gradient",
            lambda rows, bias, gradient: ((rows[0], wide), bias, (rows[0], wide)),
            lambda rows, bias, gradient: (rows, bias, rows),
        )  # fmt: skip
        self.times_transposed = ops.MatMul(transpose_b=True)
        self.times = ops.MatMul()
        self.over_rows = ops.MatMul(transpose_a=True)
        if self.padding:
            self.narrow = custom(library, "fit_columns", lambda x: (x[0], hidden), lambda x: x)
            self.lengthen = custom(library, "fit_columns", lambda x: (1, x[1] // hidden * wide), lambda x: x)
            self.shorten = custom(library, "fit_columns", lambda x: (1, x[1] // wide * hidden), lambda x: x)

    def construct(self, rows, weight1, bias, weight2):
        """Return the result, and the first product, which the gradient needs."""
        inner = self.times_transposed(rows, weight1)
        return self.times_transposed(self.forward(inner, bias), weight2), inner

    def bprop(self, rows, weight1, bias, weight2, out, gradient):
        to_inner, to_bias, hidden = self.backward(out[1], bias, self.times(gradient[0], weight2))
        to_weight1, to_weight2 = self.over_rows(to_inner, rows), self.over_rows(gradient[0], hidden)
        wide1 = weight1
        if self.padding:
            channels = rows.shape[1]
            wide1 = self.lengthen(weight1.reshape((1, -1))).reshape((-1, channels))
            to_weight1 = self.shorten(to_weight1.reshape((1, -1))).reshape((-1, channels))
            to_weight2 = self.narrow(to_weight2)
        return self.times(to_inner, wide1), to_weight1, to_bias, to_weight2


class CompiledColumnSums(nn.Cell):
    """Sums the columns of rows [R, C], the gradient of a bias: [C] (kernels/bias.cpp). It has no gradient itself."""

    def __init__(self, library):
        super().__init__()
        self.sums = custom(library, "column_sums", lambda rows: rows[1:], lambda rows: rows)

    def construct(self, rows):
        return self.sums(rows)


class CompiledLayerNorm(nn.Cell):
    """Applies LayerNorm to rows [R, C] (kernels/layer_norm.cpp)."""

    def __init__(self, library, epsilon):
        super().__init__()
        self.epsilon = Tensor(np.array([epsilon], np.float32))
        self.forward = custom(
            library, "layer_norm", lambda rows, gamma, beta, epsilon: (rows, rows[:1], rows[:1]),
            lambda rows, gamma, beta, epsilon: (rows, rows, rows),
        )  # fmt: skip
        self.backward = custom(
            library, "layer_norm_gradient", lambda rows, gamma, mean, scale, gradient: (rows, gamma, gamma),
            lambda rows, gamma, mean, scale, gradient: (rows, gamma, gamma),
        )  # fmt: skip

    def construct(self, rows, gamma, beta):
        """Return normalised rows [R, C], and the means and inverse deviations [R] that the gradient needs."""
        return self.forward(rows, gamma, beta, self.epsilon)

    def bprop(self, rows, gamma, beta, out, gradient):
        return self.backward(rows, gamma, out[1], out[2], gradient[0])


class CompiledBranch(nn.Cell):
    """Adds a branch [B, L, C] to a shortcut, after scaling each sample by one of the scales [B] (kernels/residual.cpp).

    The scales have no gradient.
    """

    def __init__(self, library):
        super().__init__()
        self.forward = custom(
            library, "scaled_branch", lambda shortcut, branch, scales: branch,
            lambda shortcut, branch, scales: branch,
        )  # fmt: skip
        self.backward = custom(
            library, "scaled_branch_gradient", lambda gradient, scales: gradient, lambda gradient, scales: gradient
        )

    def construct(self, shortcut, branch, scales):
        return self.forward(shortcut, branch, scales)

    def bprop(self, shortcut, branch, scales, out, gradient):
        return gradient, self.backward(gradient, scales), ops.zeros_like(scales)


class CompiledAffine(nn.Cell):
    """Multiplies rows [R, C] by a scale [C] and adds a shift [C] (kernels/affine.cpp)."""

    def __init__(self, library):
        super().__init__()
        self.forward = custom(library, "affine", lambda rows, scale, shift: rows, lambda rows, scale, shift: rows)
        self.backward = custom(
            library, "affine_gradient", lambda rows, scale, gradient: (rows, scale, scale),
            lambda rows, scale, gradient: (rows, scale, scale),
        )  # fmt: skip

    def construct(self, rows, scale, shift):
        return self.forward(rows, scale, shift)

    def bprop(self, rows, scale, shift, out, gradient):
        return self.backward(rows, scale, gradient)


class CompiledCrossEntropy(nn.Cell):
    """Computes the cross entropy of rows of logits, 0 where the label is to be ignored (kernels/cross_entropy.cpp).

    It is for a cell that has a gradient of its own, which calls `gradient`.
    """

    def __init__(self, library, ignore_index):
        super().__init__()
        self.ignored = Tensor(np.array([ignore_index], np.int32))
        self.forward = custom(
            library, "cross_entropy", lambda logits, labels, ignored: labels, lambda logits, labels, ignored: logits
        )
        self.backward = custom(
            library, "cross_entropy_gradient", lambda logits, labels, ignored, gradient: logits,
            lambda logits, labels, ignored, gradient: logits,
        )  # fmt: skip

    def construct(self, logits, labels):
        """Map logits [R, classes] and labels [R], int32, to losses [R]."""
        return self.forward(logits, labels, self.ignored)

    def gradient(self, logits, labels, of_losses):
        """Return the gradient by the logits, from that by the losses [R]."""
        return self.backward(logits, labels, self.ignored, of_losses)


class CompiledWindows(nn.Cell):
    """Is what CompiledAttention and CompiledSelfAttention have in common.

    Args:
        query_index: [nW, N] rows of the queries; those from `length` on are padding, whose results are dropped.
        key_index: [nW, K] rows of the keys.
        kind: [nW] number of the bias that each window has.
        length: L, number of rows of the result.
        channels: C, of queries, keys, values and results.
        num_heads: number of heads.
        scale: factor of the scores.
        learns_bias: whether the bias of the scores needs a gradient.
    """

    gradient_kernel: str
    matrices: int  # of tokens, each of which has a gradient

    def __init__(self, library, query_index, key_index, kind, length, channels, num_heads, scale, learns_bias):
        super().__init__()
        self.tables = tuple(Tensor(table.astype(np.int32)) for table in (kind, query_index, key_index))
        self.scale = Tensor(np.full(num_heads, scale, np.float32))
        self.learns_bias = learns_bias
        self.forward = custom(
            library, "window_attention",
            lambda q, kv, of_q, of_kv, bias, kind, queries, keys, scale: (q[0], length, channels),
            lambda q, kv, of_q, of_kv, bias, kind, queries, keys, scale: q,
        )  # fmt: skip
        matrices = self.matrices
        self.backward = custom(
            library, self.gradient_kernel,
            lambda *inputs: (*inputs[:matrices], inputs[4] if learns_bias else (1,)),
            lambda *inputs: (*inputs[:matrices], inputs[4]),
        )  # fmt: skip
        self.column_sums = CompiledColumnSums(library)

    def sum_of(self, to_rows, added):
        """Sum the gradient of the rows of all samples, [B, T, C] to [C], which is that of what was added to them."""
        return self.column_sums(to_rows.reshape((-1, to_rows.shape[2]))) if added.shape[0] > 1 else added


class CompiledAttention(CompiledWindows):
    """Attends within windows whose queries and keys are rows of token matrices (kernels/attention.cpp).

    It adds the biases of their projections on the way. Arguments: see CompiledWindows.
    """

    gradient_kernel, matrices = "window_attention_gradient", 2

    def construct(self, q, kv, of_q, of_kv, bias):
        """Map products of tokens and weights to results [B, L, C].

        Args:
            q: [B, Lq, C], tokens times the weight of the queries.
            kv: [B, T, 2 * C], tokens times the weight of the keys and of the values.
            of_q, of_kv: the biases of these projections, [C] and [2 * C], or for none one number [1] each.
            bias: [kinds, heads, N, K], or for all heads the same [kinds, 1, N, K], or for none one number [1].
        """
        kind, queries, keys = self.tables
        return self.forward(q, kv, of_q, of_kv, bias, kind, queries, keys, self.scale)

    def bprop(self, q, kv, of_q, of_kv, bias, out, gradient):
        kind, queries, keys = self.tables
        to_q, to_kv, to_bias = self.backward(q, kv, of_q, of_kv, bias, kind, queries, keys, self.scale, gradient)
        to_bias = to_bias if self.learns_bias else ops.zeros_like(bias)
        return to_q, to_kv, self.sum_of(to_q, of_q), self.sum_of(to_kv, of_kv), to_bias


class CompiledSelfAttention(CompiledWindows):
    """Does the same where queries and keys are rows of one matrix of tokens."""

    gradient_kernel, matrices = "self_attention_gradient", 1

    def construct(self, qkv, of_qkv, bias):
        """Map products [B, T, 3 * C] of tokens and weights to results [B, L, C]; of_qkv, [3 * C], is added to them."""
        kind, queries, keys = self.tables
        return self.forward(qkv, qkv, of_qkv, of_qkv, bias, kind, queries, keys, self.scale)

    def bprop(self, qkv, of_qkv, bias, out, gradient):
        kind, queries, keys = self.tables
        to_qkv, to_bias = self.backward(
            qkv, qkv, of_qkv, of_qkv, bias, kind, queries, keys, self.scale, gradient
        )  # fmt: skip
        return to_qkv, self.sum_of(to_qkv, of_qkv), to_bias if self.learns_bias else ops.zeros_like(bias)


class CompiledPositionBias(nn.Cell):
    """Looks up the bias of every pair of query and key in a table (kernels/position_bias.cpp).

    Args:
        index: [kinds, N, K] rows of the table.
        num_heads: number of heads.
    """

    def __init__(self, library, index, num_heads):
        super().__init__()
        self.index = Tensor(index.astype(np.int32))
        kinds, queries, keys = index.shape
        self.forward = custom(
            library, "position_bias", lambda table, index: (kinds, num_heads, queries, keys), lambda table, index: table
        )
        self.backward = custom(
            library, "position_bias_gradient", lambda table, index, gradient: table,
            lambda table, index, gradient: table,
        )  # fmt: skip

    def construct(self, table):
        """Map a table [D, heads] to biases [kinds, heads, N, K]."""
        return self.forward(table, self.index)

    def bprop(self, table, out, gradient):
        return (self.backward(table, self.index, gradient),)


class CompiledWindowPool(nn.Cell):
    """Puts weighted sums of the tokens of windows behind the tokens [B, T, C] (kernels/window_pool.cpp).

    Args:
        index: [parts, area] rows of the tokens of each window.
    """

    def __init__(self, library, index):
        super().__init__()
        self.index = Tensor(index.astype(np.int32))
        parts = len(index)
        self.forward = custom(
            library, "window_pool", lambda tokens, weight, bias, index: (tokens[0], tokens[1] + parts, tokens[2]),
            lambda tokens, weight, bias, index: tokens,
        )  # fmt: skip
        self.backward = custom(
            library, "window_pool_gradient", lambda tokens, weight, index, gradient: (tokens, weight, (1,)),
            lambda tokens, weight, index, gradient: (tokens, weight, weight),
        )  # fmt: skip

    def construct(self, tokens, weight, bias):
        """Weigh by a weight [1, area], and add a bias [1] to the sums: [B, T + parts, C]."""
        return self.forward(tokens, weight, bias, self.index)

    def bprop(self, tokens, weight, bias, out, gradient):
        return self.backward(tokens, weight, self.index, gradient)


class CompiledDepthwise(nn.Cell):
    """Convolves every channel of the tokens [B, H * W, C] of a map by itself (kernels/depthwise.cpp).

    Stride is 1, and zero padding keeps the size.
    """

    def __init__(self, library, map_size):
        super().__init__()
        self.size = Tensor(np.array(map_size, np.int32))
        self.forward = custom(
            library, "depthwise_convolution", lambda tokens, weight, bias, size: tokens,
            lambda tokens, weight, bias, size: tokens,
        )  # fmt: skip
        self.backward = custom(
            library, "depthwise_convolution_gradient",
            lambda tokens, weight, size, gradient: (tokens, weight, weight[:1]),
            lambda tokens, weight, size, gradient: (tokens, weight, weight),
        )  # fmt: skip

    def construct(self, tokens, weight, bias):
        """Convolve by a weight [C, 1, k, k], k odd, and add a bias [C]."""
        return self.forward(tokens, weight, bias, self.size)

    def bprop(self, tokens, weight, bias, out, gradient):
        return self.backward(tokens, weight, self.size, gradient)


class CompiledSquares(nn.Cell):
    """Sums the squares of all values of a tuple of tensors (kernels/update.cpp). It has no gradient."""

    def __init__(self, library):
        super().__init__()
        self.squares = custom(library, "sum_of_squares", lambda *tensors: (1,), lambda *tensors: tensors[0])

    def construct(self, tensors):
        """Return a float32 scalar."""
        return self.squares(*tensors)[0]


def custom_update(library: str, function: str) -> ops.Custom:
    """Return a function that writes some of its inputs where they are, as an operator: its result is 0 [1].

    MindSpore runs it after whatever reads these inputs before it in the program, and before whatever does so later.
    """
    operator = custom(library, function, lambda *inputs: (1,), lambda *inputs: inputs[0])
    operator.add_prim_attr("side_effect_mem", True)
    return operator


class CompiledAdamW(nn.Cell):
    """Updates all weights and their moments by AdamW, where they are (kernels/update.cpp).

    Args:
        decays, rate_scales: the weight decay of each weight, and the factor of its learning rate.
    """

    def __init__(self, library, decays, rate_scales):
        super().__init__()
        self.decays, self.rate_scales = (Tensor(np.array(each, np.float32)) for each in (decays, rate_scales))
        self.update = custom_update(library, "adamw_update")

    def construct(self, numbers, weights, moment1, moment2, gradients):
        """Update tuples of weights and moments. `numbers`: [6], see the kernel."""
        return self.update(numbers, self.decays, self.rate_scales, *weights, *moment1, *moment2, *gradients)


class CompiledAverage(nn.Cell):
    """Moves averages a share of the way to weights, where they are (kernels/update.cpp)."""

    def __init__(self, library):
        super().__init__()
        self.update = custom_update(library, "average_update")

    def construct(self, share, averages, weights):
        """Update a tuple of averages by a tuple of weights. `share`: a float32 scalar."""
        return self.update(share.reshape(1), *averages, *weights)
