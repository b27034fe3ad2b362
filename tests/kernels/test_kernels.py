"""The compiled kernels: what they compute against float64, infinity and NaN, and how they are built."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtr

from focal_twins.kernels import library as kernels
from tests.conftest import SOURCES
from tests.kernels.compiler import needs_compiler
from tests.kernels.kernel_calls import call, status


@pytest.fixture(scope="session")
def library() -> Path:
    """The library that all tests use, and users of this machine: compiling another takes seconds."""
    return kernels.build(kernels.cache_folder())


@pytest.fixture(params=[1, 3], ids=["one_thread", "three_threads"])
def threads(request, library):
    ctypes.CDLL(str(library)).focal_twins_set_threads(request.param)
    yield request.param
    ctypes.CDLL(str(library)).focal_twins_set_threads(1)


def drawn(seed, *shapes):
    generator = np.random.default_rng(seed)
    return [np.asarray(generator.standard_normal(shape), np.float32) for shape in shapes]


def assert_within(found, exact, bound):
    """Equal but for `bound` times the largest value, in float64."""
    size = np.abs(exact).max() if exact.size else 1.0
    np.testing.assert_allclose(found, exact, rtol=0, atol=bound * max(size, 1e-30))


SHAPES = [(1, 1), (3, 7), (5, 16), (130, 33), (700, 96), (2, 40000), (0, 8)]


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gelu_is_exact(shape, library, threads):
    rows, bias, gradient = drawn(0, shape, shape[1:], shape)
    rows *= 3
    z = rows.astype(np.float64) + bias
    slope = ndtr(z) + z * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    (found,) = call(library, "bias_gelu", [rows, bias], shape)
    np.testing.assert_allclose(found, z * ndtr(z), rtol=0, atol=1e-6)
    for padding in (0, 5):
        wide = (shape[0], shape[1] + padding)
        outputs = call(library, "bias_gelu_gradient", [rows, bias, gradient], wide, shape[1:], wide)
        to_rows, to_bias, again = outputs
        np.testing.assert_array_equal(again, np.pad(found, ((0, 0), (0, padding))))
        expected = np.pad(gradient * slope, ((0, 0), (0, padding)))
        np.testing.assert_allclose(to_rows, expected, rtol=0, atol=4e-6)
        np.testing.assert_allclose(to_bias, (gradient * slope).sum(0), rtol=0, atol=1e-6 * (shape[0] + 1))


@needs_compiler
@pytest.mark.parametrize("width", [1, 6, 7, 40])
def test_matrices_are_made_narrower_and_wider(width, library, threads):
    (rows,) = drawn(18, (70, 7))
    (found,) = call(library, "fit_columns", [rows], (70, width))
    np.testing.assert_array_equal(found, np.pad(rows, ((0, 0), (0, max(width - 7, 0))))[:, :width])


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_of_columns_are_exact(shape, library, threads):
    (rows,) = drawn(5, shape)
    (found,) = call(library, "column_sums", [rows], shape[1:])
    np.testing.assert_allclose(found, rows.astype(np.float64).sum(0), rtol=0, atol=1e-6 * (shape[0] + 1))


@needs_compiler
def test_gelu_of_special_values(library):
    x = np.array([[np.nan, np.inf, 3e38, 1e30, 100, -100, -1e30, -3e38, 0.0]], np.float32)
    with np.errstate(invalid="ignore"):
        (found,) = call(library, "bias_gelu", [x, np.zeros(9, np.float32)], x.shape)
    expected = np.array([[np.nan, np.inf, 3e38, 1e30, 100, 0, 0, 0, 0]], np.float32)
    np.testing.assert_array_equal(found, expected)
    one = np.ones_like(x)
    to_rows, _, _ = call(library, "bias_gelu_gradient", [x, np.zeros(9, np.float32), one], x.shape, (9,), x.shape)
    assert np.isnan(to_rows[0, 0])
    np.testing.assert_array_equal(to_rows[0, 4:], [1, 0, 0, 0, 0.5])
    to_rows, to_bias, _ = call(library, "bias_gelu_gradient", [one, one[0], x], x.shape, (9,), x.shape)
    for found in (to_rows[0], to_bias):
        assert np.isnan(found[0])
        assert found[1] == np.inf


@needs_compiler
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[1] > 1], ids=str)
@pytest.mark.parametrize("mean", [0, 100])
def test_layer_norm_is_exact(shape, mean, library, threads):
    rows, gamma, beta, gradient = drawn(1, shape, shape[1:], shape[1:], shape)
    rows += np.float32(mean)
    x, g = rows.astype(np.float64), gradient.astype(np.float64)
    centred = x - x.mean(1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(1, keepdims=True) + 1e-6)
    normal, by_normal = centred / deviation, g * gamma
    epsilon = np.array([1e-6], np.float32)
    found, means, scales = call(library, "layer_norm", [rows, gamma, beta, epsilon], shape, shape[:1], shape[:1])
    bound = 2e-6 * (1 + mean)  # what rounding takes from numbers far from zero
    assert_within(found, normal * gamma + beta, bound)
    expected = by_normal - by_normal.mean(1, keepdims=True) - normal * (by_normal * normal).mean(1, keepdims=True)
    outputs = call(library, "layer_norm_gradient", [rows, gamma, means, scales, gradient], shape, *2 * [shape[1:]])
    for values, exact in zip(outputs, (expected / deviation, (g * normal).sum(0), g.sum(0)), strict=True):
        assert_within(values, exact, bound)


@needs_compiler
def test_layer_norm_of_special_values(library):
    rows, gamma, beta = drawn(2, (4, 20), (20,), (20,))
    rows[1, 3], rows[2, 5], rows[3] = np.nan, np.inf, 0.5
    epsilon = np.array([1e-5], np.float32)
    with np.errstate(invalid="ignore"):
        found, _, _ = call(library, "layer_norm", [rows, gamma, beta, epsilon], (4, 20), (4,), (4,))
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1:3]).all()
    np.testing.assert_array_equal(found[3], beta)  # a constant row


# Of weights: of no, one, two and four dimensions, without values, and longer than what one thread takes at once.
WEIGHTS = [(), (1,), (7, 5), (0, 3), (3, 2, 5, 1), (40001,)]


@needs_compiler
def test_the_sum_of_squares_of_all_tensors_is_exact(library, threads):
    tensors = drawn(11, *WEIGHTS)
    (found,) = call(library, "sum_of_squares", tensors, (1,))
    exact = sum(np.square(tensor.astype(np.float64)).sum() for tensor in tensors)
    np.testing.assert_allclose(found, exact, rtol=3e-7)
    for value in (np.nan, np.inf, 1e30):  # the last one's square is none of float32
        tensors[2][3, 1] = value
        (found,) = call(library, "sum_of_squares", tensors, (1,))
        np.testing.assert_array_equal(found, np.nan if np.isnan(value) else np.inf)


@needs_compiler
def test_adamw_is_exact_and_in_place(library, threads):
    weights, means, squares, gradients = (drawn(seed, *WEIGHTS) for seed in range(12, 16))
    squares = [np.abs(each, out=each) for each in squares]
    learning_rate, rate, beta1, beta2, epsilon, factor = numbers = np.array(
        [0.1, 0.2, 0.9, 0.99, 1e-3, 0.5], np.float64
    )
    count = len(WEIGHTS)
    decays, scales = np.linspace(0, 0.5, count), np.linspace(1, 0.25, count)
    expected = []
    for w, m, v, g, decay, scale in zip(weights, means, squares, gradients, decays, scales, strict=True):
        w, g = w.astype(np.float64), g * factor
        m, v = m * beta1 + g * (1 - beta1), v * beta2 + np.square(g) * (1 - beta2)
        step = rate * scale * m / (np.sqrt(v) + epsilon)
        expected.append((w * (1 - learning_rate * scale * decay) - step, m, v))
    kept = [gradient.copy() for gradient in gradients]
    given = [each.astype(np.float32) for each in (numbers, decays, scales)]
    call(library, "adamw_update", [*given, *weights, *means, *squares, *gradients], (1,))
    for found, exact in zip(zip(weights, means, squares, strict=True), expected, strict=True):
        for values, exact_values in zip(found, exact, strict=True):
            np.testing.assert_allclose(values, exact_values, rtol=2e-6, atol=2e-6)
    for gradient, before in zip(gradients, kept, strict=True):
        np.testing.assert_array_equal(gradient, before)


@needs_compiler
def test_the_average_of_weights_is_exact_and_in_place(library, threads):
    averages, weights = drawn(16, *WEIGHTS), drawn(17, *WEIGHTS)
    expected = [a + (w.astype(np.float64) - a) * 0.25 for a, w in zip(averages, weights, strict=True)]
    call(library, "average_update", [np.array([0.25], np.float32), *averages, *weights], (1,))
    for found, exact in zip(averages, expected, strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-6)


@needs_compiler
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 5), (2, 130, 33), (3, 1, 40000), (0, 4, 8)], ids=str)
def test_scaled_branches_are_exact(shape, library, threads):
    shortcut, branch, scales, gradient = drawn(7, shape, shape, shape[:1], shape)
    scales[1:2] = 0
    (found,) = call(library, "scaled_branch", [shortcut, branch, scales], shape)
    np.testing.assert_allclose(found, shortcut + branch * scales[:, None, None], rtol=0, atol=1e-6)
    (found,) = call(library, "scaled_branch_gradient", [gradient, scales], shape)
    np.testing.assert_array_equal(found, gradient * scales[:, None, None])


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scale_and_shift_are_exact(shape, library, threads):
    rows, scale, shift, gradient = drawn(9, shape, shape[1:], shape[1:], shape)
    (found,) = call(library, "affine", [rows, scale, shift], shape)
    np.testing.assert_allclose(found, rows * scale + shift, rtol=0, atol=1e-6)
    outputs = call(library, "affine_gradient", [rows, scale, gradient], shape, shape[1:], shape[1:])
    np.testing.assert_array_equal(outputs[0], gradient * scale)
    of_rows = gradient.astype(np.float64)
    for values, exact in zip(outputs[1:], ((of_rows * rows).sum(0), of_rows.sum(0)), strict=True):
        np.testing.assert_allclose(values, exact, rtol=0, atol=1e-6 * (shape[0] + 1))


@needs_compiler
@pytest.mark.parametrize("shape", [*SHAPES, (300, 150)], ids=str)
def test_cross_entropy_is_exact(shape, library, threads):
    logits, gradient = drawn(8, shape, shape[:1])
    logits *= 30
    labels = np.random.default_rng(8).integers(0, shape[1], shape[0]).astype(np.int32)
    labels[2:4] = 255  # ignored
    ignored = np.array([255], np.int32)
    of_rows = logits.astype(np.float64)
    shifted = of_rows - of_rows.max(1, keepdims=True)
    log_sums = np.log(np.exp(shifted).sum(1, keepdims=True))
    known = labels != 255
    own = np.eye(shape[1])[np.where(known, labels, 0)]
    (found,) = call(library, "cross_entropy", [logits, labels, ignored], shape[:1])
    np.testing.assert_allclose(found, ((log_sums - shifted) * own).sum(1) * known, rtol=1e-6, atol=1e-6)
    (found,) = call(library, "cross_entropy_gradient", [logits, labels, ignored, gradient], shape)
    exact = (np.exp(shifted - log_sums) - own) * (gradient * known)[:, None]
    np.testing.assert_allclose(found, exact, rtol=0, atol=2e-6)


@needs_compiler
def test_cross_entropy_of_special_values(library):
    logits = np.array([[np.nan, 0, 0], [np.inf, 0, 0], [-np.inf, 0, 0], [1, 2, 3]], np.float32)
    labels, ignored = np.array([1, 1, 1, 7], np.int32), np.array([255], np.int32)
    with np.errstate(invalid="ignore"):
        (found,) = call(library, "cross_entropy", [logits, labels, ignored], (4,))
        (slope,) = call(library, "cross_entropy_gradient", [logits, labels, ignored, np.ones(4, np.float32)], (4, 3))
    np.testing.assert_array_equal(np.isnan(found), [True, True, False, True])  # the last label is of no class
    assert found[2] == pytest.approx(np.log(2))
    np.testing.assert_allclose(slope[2], [0, -0.5, 0.5], atol=1e-6)
    assert np.isnan(slope[:2]).any(1).all()


def attention_case(
    batch, heads, dim, rows, length, key_rows, windows, queries, keys, kinds, bias_heads=None, adds=True, seed=3
):
    """Inputs of the attention kernels: every query is one of one window, keys repeat, the last queries are padding."""
    generator = np.random.default_rng(seed)
    channels = heads * dim
    q, kv, of_q, of_kv, gradient = drawn(
        seed,
        (batch, rows, channels),
        (batch, key_rows, 2 * channels),
        (channels if adds else 1,),
        (2 * channels if adds else 1,),
        (batch, length, channels),
    )
    bias = np.zeros(1, np.float32)
    if kinds:
        (bias,) = drawn(seed + 1, (kinds, bias_heads or heads, queries, keys))
    order = np.concatenate([generator.permutation(length), np.full(windows * queries - length, length)])
    query_index = order.reshape(windows, queries).astype(np.int32)
    key_index = generator.integers(0, key_rows, (windows, keys)).astype(np.int32)
    kind = generator.integers(0, max(kinds, 1), windows).astype(np.int32)
    scale = np.full(heads, dim**-0.5, np.float32)
    return [q, kv, of_q, of_kv, bias, kind, query_index, key_index, scale], gradient


def exact_attention(inputs, gradient):
    """The result and the gradients by q, k and v together, and bias, in float64, window by window."""
    q, kv, of_q, of_kv, bias, kind, query_index, key_index, scale = inputs
    q, kv, bias = (array.astype(np.float64) for array in (q, kv, bias))
    batch, length, channels = gradient.shape
    if len(of_q) > 1:
        q, kv = q + of_q, kv + of_kv
    k, v = kv[..., :channels], kv[..., channels:]
    heads = len(scale)
    dim = channels // heads
    out = np.zeros(gradient.shape)
    to_q, to_k, to_v, to_bias = (np.zeros(array.shape) for array in (q, k, v, bias))
    for image in range(batch):
        for window, (queries, keys) in enumerate(zip(query_index, key_index, strict=True)):
            queries = queries[queries < length]
            for head in range(heads):
                part = slice(head * dim, (head + 1) * dim)
                of_q, of_k, of_v = q[image, queries, part], k[image, keys, part], v[image, keys, part]
                scores = scale[head] * of_q @ of_k.T
                at = (kind[window], head if bias.ndim == 4 and bias.shape[1] > 1 else 0)
                if bias.ndim == 4:
                    scores = scores + bias[at][: len(queries)]
                weights = np.exp(scores - scores.max(1, keepdims=True))
                weights /= weights.sum(1, keepdims=True)
                out[image, queries, part] = weights @ of_v
                of_out = gradient[image, queries, part].astype(np.float64)
                of_weights = of_out @ of_v.T
                of_scores = weights * (of_weights - (weights * of_weights).sum(1, keepdims=True))
                np.add.at(to_v[image, :, part], keys, weights.T @ of_out)
                np.add.at(to_k[image, :, part], keys, scale[head] * of_scores.T @ of_q)
                to_q[image, queries, part] += scale[head] * of_scores @ of_k
                if bias.ndim == 4:
                    to_bias[at][: len(queries)] += of_scores
    return out, (to_q, np.concatenate([to_k, to_v], -1), to_bias)


# Images, heads, their dimension; rows of queries, of the result, of keys; windows, their queries and keys; kinds of
# bias, and its heads where they are not all; whether the projections have biases.
ATTENTION_CASES = {
    "focal": (2, 3, 32, 98, 98, 120, 2, 49, 230, 2),
    "padding": (3, 2, 16, 26, 25, 26, 3, 9, 9, 0),
    "odd": (1, 1, 5, 11, 11, 7, 1, 11, 3, 1, None, False),
    "wide": (1, 2, 36, 4, 4, 9, 4, 1, 17, 3),
    "mask": (2, 2, 8, 8, 8, 8, 2, 4, 4, 2, 1),
}


@needs_compiler
@pytest.mark.parametrize("case", ATTENTION_CASES)
def test_attention_is_exact(case, library, threads):
    inputs, gradient = attention_case(*ATTENTION_CASES[case])
    expected, gradients = exact_attention(inputs, gradient)
    (found,) = call(library, "window_attention", inputs, gradient.shape)
    assert_within(found, expected, 2e-6)
    bias, scale = inputs[4], inputs[8]
    learns_bias = bias.ndim == 4 and bias.shape[1] == len(scale)
    shapes = [array.shape for array in inputs[:2]] + [bias.shape if learns_bias else (1,)]
    outputs = call(library, "window_attention_gradient", [*inputs, gradient], *shapes)
    for values, exact in zip(outputs[: 2 + learns_bias], gradients, strict=False):
        assert_within(values, exact, 5e-6)


@needs_compiler
@pytest.mark.parametrize("case", ["padding", "mask"])  # which have as many rows of queries as of keys
def test_attention_of_a_matrix_to_itself_is_attention(case, library, threads):
    inputs, gradient = attention_case(*ATTENTION_CASES[case])
    shapes = [array.shape for array in inputs[:2]]
    to_q, to_kv, _ = call(library, "window_attention_gradient", [*inputs, gradient], *shapes, (1,))
    both, of_both = np.concatenate(inputs[:2], -1), np.concatenate(inputs[2:4])
    same = [both, both, of_both, of_both, *inputs[4:]]
    (expected,) = call(library, "window_attention", inputs, gradient.shape)
    (found,) = call(library, "window_attention", same, gradient.shape)
    np.testing.assert_array_equal(found, expected)
    to_both, _ = call(library, "self_attention_gradient", [*same, gradient], both.shape, (1,))
    np.testing.assert_array_equal(to_both, np.concatenate([to_q, to_kv], -1))


@needs_compiler
def test_attention_of_special_values(library):
    inputs, gradient = attention_case(*ATTENTION_CASES["focal"])
    (plain,) = call(library, "window_attention", inputs, gradient.shape)
    query = inputs[6][0, 0]
    inputs[0][0, query] = np.nan
    inputs[4][:, :, 1, :200] = -np.inf  # masked for good
    inputs[4][:, :, 2, :] -= 1e4  # a constant changes nothing
    (found,) = call(library, "window_attention", inputs, gradient.shape)
    assert np.isnan(found[0, query]).all()
    rest = np.setdiff1d(np.arange(98), inputs[6][:, :3])
    np.testing.assert_array_equal(found[:, rest], plain[:, rest])
    inputs[0][0, query] = 0
    (found,) = call(library, "window_attention", inputs, gradient.shape)
    assert_within(found, exact_attention(inputs, gradient)[0], 2e-4)  # 1e4 has float32's steps of 1e-3


@needs_compiler
@pytest.mark.parametrize(("rows", "heads", "pairs"), [(13, 3, (5, 7, 9)), (1, 1, (1, 1, 1)), (900, 2, (3, 49, 150))])
def test_position_biases_are_exact(rows, heads, pairs, library, threads):
    table, gradient = drawn(18, (rows, heads), (pairs[0], heads, *pairs[1:]))
    index = np.random.default_rng(18).integers(0, rows, pairs).astype(np.int32)
    (found,) = call(library, "position_bias", [table, index], gradient.shape)
    np.testing.assert_array_equal(found, table[index].transpose(0, 3, 1, 2))
    exact = np.zeros(table.shape)
    np.add.at(exact, index, gradient.transpose(0, 2, 3, 1))
    (found,) = call(library, "position_bias_gradient", [table, index, gradient], table.shape)
    assert_within(found, exact, 1e-6)


@needs_compiler
@pytest.mark.parametrize(
    ("shape", "parts", "area"), [((2, 20, 19), 5, 4), ((1, 3, 1), 1, 2), ((3, 50, 150), 9, 7), ((0, 4, 8), 2, 2)]
)
def test_pooled_windows_are_exact(shape, parts, area, library, threads):
    """Some tokens are in several windows, as padding is, and some in none."""
    tokens, weight, bias = drawn(19, shape, (1, area), (1,))
    (gradient,) = drawn(20, (shape[0], shape[1] + parts, shape[2]))
    index = np.random.default_rng(19).integers(0, shape[1], (parts, area)).astype(np.int32)
    (found,) = call(library, "window_pool", [tokens, weight, bias, index], gradient.shape)
    np.testing.assert_array_equal(found[:, : shape[1]], tokens)
    of_windows = tokens.astype(np.float64)[:, index]  # [B, parts, area, C]
    exact = np.einsum("bpac,a->bpc", of_windows, weight[0]) + bias
    np.testing.assert_allclose(found[:, shape[1] :], exact, rtol=0, atol=1e-5)
    given = gradient[:, shape[1] :].astype(np.float64)
    to_tokens = gradient[:, : shape[1]].astype(np.float64)
    np.add.at(to_tokens, (slice(None), index), given[:, :, None] * weight[0, :, None])
    exact = (to_tokens, np.einsum("bpac,bpc->a", of_windows, given)[None], given.sum(keepdims=True).reshape(1))
    outputs = call(
        library, "window_pool_gradient", [tokens, weight, index, gradient], *[array.shape for array in exact]
    )
    for values, expected in zip(outputs, exact, strict=True):
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=2e-4)


@needs_compiler
@pytest.mark.parametrize(
    ("batch", "height", "width", "channels", "side"), [(2, 5, 7, 19, 3), (1, 1, 1, 4, 5), (3, 9, 2, 64, 3)]
)
def test_depthwise_convolution_is_exact(batch, height, width, channels, side, library, threads):
    shape, of_weights = (batch, height * width, channels), (channels, 1, side, side)
    tokens, weights, bias, gradient = drawn(6, shape, of_weights, (channels,), shape)
    size = np.array([height, width], np.int32)
    reach = side // 2
    padded = np.pad(
        tokens.astype(np.float64).reshape(batch, height, width, channels), ((0, 0), *2 * [(reach, reach)], (0, 0))
    )
    given = gradient.astype(np.float64).reshape(batch, height, width, channels)
    out, to_padded, to_weights = np.zeros(given.shape), np.zeros(padded.shape), np.zeros(of_weights)
    for i in range(side):
        for j in range(side):
            part = np.s_[:, i : i + height, j : j + width]
            out += padded[part] * weights[:, 0, i, j]
            to_padded[part] += given * weights[:, 0, i, j]
            to_weights[:, 0, i, j] = (given * padded[part]).sum((0, 1, 2))
    (found,) = call(library, "depthwise_convolution", [tokens, weights, bias, size], shape)
    assert_within(found, out.reshape(shape) + bias, 1e-6)
    outputs = call(
        library, "depthwise_convolution_gradient", [tokens, weights, size, gradient], shape, of_weights, (channels,)
    )
    to_tokens = to_padded[:, reach : reach + height, reach : reach + width].reshape(shape)
    for values, exact in zip(outputs, (to_tokens, to_weights, given.sum((0, 1, 2))), strict=True):
        assert_within(values, exact, 3e-6)


@needs_compiler
def test_threads_change_no_bit(library):
    inputs, gradient = attention_case(*ATTENTION_CASES["focal"])
    rows, bias, of_rows, of_pairs = drawn(4, (700, 96), (96,), (700, 96), (5, 3, 60, 90))
    windows = np.arange(100, dtype=np.int32).reshape(25, 4)
    pairs = (np.arange(5 * 60 * 90, dtype=np.int32) % 700).reshape(5, 60, 90)
    found = []
    for count in (1, 2, 3):
        ctypes.CDLL(str(library)).focal_twins_set_threads(count)
        found.append([
            *call(
                library, "window_attention_gradient", [*inputs, gradient],
                *[array.shape for array in (*inputs[:2], inputs[4])],
            ),
            *call(library, "bias_gelu_gradient", [rows, bias, of_rows], rows.shape, bias.shape, rows.shape),
            *call(
                library, "window_pool_gradient", [rows[None, :675], bias[None, :4], windows, of_rows[None]],
                (1, 675, 96), (1, 4), (1,),
            ),
            *call(library, "position_bias_gradient", [rows[:, :3], pairs, of_pairs], (700, 3)),
        ])  # fmt: skip
    ctypes.CDLL(str(library)).focal_twins_set_threads(1)
    for others in found[1:]:
        for values, other in zip(found[0], others, strict=True):
            np.testing.assert_array_equal(values, other)


@needs_compiler
def test_other_types_are_refused(library):
    x = np.zeros((2, 4), np.float16)
    assert status(library, "bias_gelu", [x, x[0]], [x.copy()]) == 1
    x = np.zeros((2, 4), np.float32)
    assert status(library, "bias_gelu", [x], [x.copy()]) == 1


# --- how they are built ----------------------------------------------------------------------------------------------


@needs_compiler
def test_a_library_is_built_once(library, monkeypatch):
    def refuse(*_):
        raise AssertionError("compiled again")

    with monkeypatch.context() as patch:
        patch.setattr(kernels, "_compile", refuse)
        assert kernels.build(library.parent) == library


@needs_compiler
def test_sources_options_compiler_and_processor_are_in_the_name(tmp_path, monkeypatch):
    compiler = next(filter(None, map(shutil.which, kernels.COMPILERS)))
    names = [kernels._digest(compiler)]
    shutil.copytree(kernels.SOURCES, tmp_path / "sources")
    for attribute, value in (
        ("SOURCES", tmp_path / "sources"), ("OPTIONS", ("-O0",)), ("processor", lambda: ("another",)),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            if attribute == "SOURCES":
                (value / "vectors.h").write_text("// edited\n")
            patch.setattr(kernels, attribute, value)
            names.append(kernels._digest(compiler))
    (tmp_path / "c++").write_text('#!/bin/sh\necho "another 1.0"\n')
    (tmp_path / "c++").chmod(0o755)
    names.append(kernels._digest(str(tmp_path / "c++")))
    assert len(set(names)) == len(names)
    assert kernels._digest(compiler) == names[0]


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        (None, "no C++ compiler"),
        ("#!/bin/sh\necho 'x.cpp: error: unknown option' >&2\nexit 1\n", "c++ fails: x.cpp: error: unknown option"),
        ("#!/bin/sh\nexit 0\n", "No such file"),
    ],
    ids=["none", "fails", "writes_nothing"],
)
def test_without_a_library_one_line_says_why(compiler, reason, tmp_path, monkeypatch, capsys):
    programs = tmp_path / "bin"
    programs.mkdir()
    if compiler:
        (programs / "c++").write_text(compiler)
        (programs / "c++").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kernels._library.cache_clear()
    try:
        assert kernels.load_kernels(1) is None
        assert kernels.load_kernels(1) is None
    finally:
        kernels._library.cache_clear()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kernels: ")
    assert reason in line
    assert "runtime.kernels" in line
    assert not list((tmp_path / "cache").rglob("*.so"))


@needs_compiler
def test_of_several_processes_one_compiles(tmp_path):
    """The compiler of this test notes its calls, and makes a file slowly."""
    program = tmp_path / "c++"
    program.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit\necho called >> calls\nsleep 0.5\n'
        'while [ "$1" != -o ]; do shift; done\necho library > "$2"\n'
    )
    program.chmod(0o755)
    code = (
        "import sys; from pathlib import Path; from focal_twins.kernels.library import build;"
        "print(build(Path('cache'), sys.argv[1]).read_text())"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(program)], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
            env={"PYTHONPATH": SOURCES, "PATH": "/usr/bin:/bin"},
        )
        for _ in range(3)
    ]  # fmt: skip
    assert [process.communicate()[0].strip() for process in started] == ["library"] * 3
    assert (tmp_path / "calls").read_text() == "called\n"


@needs_compiler
def test_no_kernel_leaves_its_memory(tmp_path):
    """All kernels on odd shapes, under the sanitizers of addresses and of undefined behaviour."""
    program = tmp_path / "sanitized"
    compiler = next(filter(None, map(shutil.which, kernels.COMPILERS)))
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    probe = subprocess.run(
        [compiler, *sanitizers, "-x", "c++", "-", "-o", program], input="int main() {}", capture_output=True, text=True
    )
    if probe.returncode or subprocess.run([program], capture_output=True).returncode:
        pytest.skip("the compiler has no sanitizers")
    options = [option for option in kernels.OPTIONS if option not in ("-O3", "-shared")]
    sources = [*kernels.SOURCES.glob("*.cpp"), Path(__file__).with_name("sanitized.cpp")]
    subprocess.run([compiler, *options, "-O1", *sanitizers, "-o", program, *sources], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
