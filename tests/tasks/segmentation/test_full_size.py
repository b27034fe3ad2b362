"""Labels at an image's own size: whole, by windows, from several scales and mirror images, equal to the original's."""

import zlib

import numpy as np
import pytest

from focal_twins.tasks.segmentation import full_size
from focal_twins.tasks.segmentation.full_size import (
    Piece,
    View,
    full_size_labels,
    labels_of_scores,
    probabilities,
    sliding_view,
    whole_view,
    window_starts,
    windows,
)
from tests.reference import FOLDER

SIZE, IMAGE_SIZE = (96, 130), (75, 101)
WINDOW, STRIDE = (64, 64), (42, 42)


@pytest.fixture(scope="module")
def expected():
    return dict(np.load(FOLDER / "dense" / "seg_inference.npz"))


def weight(name, shape):
    """A parameter of the original's toy network, by the formula of the figures."""
    drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) > 1:
        return np.float32(drawn * 1.4 / np.sqrt(np.prod(shape[1:])))
    if name.endswith("running_var"):
        return np.float32(1 + 0.5 * np.abs(drawn))
    return np.float32(drawn * 0.1) + np.float32(name.endswith("bn.weight"))


def convolution(x, kernel, stride, padding):
    """x [h, w, in] with a kernel [out, in, k, k]."""
    side = kernel.shape[2]
    x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    patches = np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(0, 1))[::stride, ::stride]
    return np.einsum("hwikl,oikl->hwo", patches, kernel, optimize=True)


def toy_logits(image):
    """Logits [h, w, 5] of an image [3, H, W]: a 4x4 convolution, then the head of 3x3 convolution, norm and classes."""
    head = "decode_head.convs.0"
    x = convolution(image.transpose(1, 2, 0), weight("backbone.conv.weight", (8, 3, 4, 4)), 4, 0)
    x = convolution(x + weight("backbone.conv.bias", (8,)), weight(f"{head}.conv.weight", (8, 8, 3, 3)), 1, 1)
    mean, variance = (weight(f"{head}.bn.running_{kind}", (8,)) for kind in ("mean", "var"))
    x = (x - mean) / np.sqrt(variance + 1e-5) * weight(f"{head}.bn.weight", (8,)) + weight(f"{head}.bn.bias", (8,))
    x = np.maximum(x, 0) @ weight("decode_head.conv_seg.weight", (5, 8, 1, 1))[:, :, 0, 0].T
    return np.float32(x + weight("decode_head.conv_seg.bias", (5,)))


def image(seed=101, size=SIZE):
    return np.random.default_rng(seed).standard_normal((1, 3, *size))[0].astype(np.float32)


def full(view):
    """All logits [classes, height, width] of a view."""
    height, width = view.size
    return view.tile(slice(0, height), slice(0, width)).transpose(2, 0, 1)


def assert_near(actual, reference, tolerance=1e-5):
    np.testing.assert_allclose(actual, reference, rtol=0, atol=tolerance * np.abs(reference).max())


def test_a_whole_image_equals_the_originals(expected):
    view = whole_view(toy_logits(image()), SIZE, IMAGE_SIZE)
    assert_near(full(view), expected["whole"][0])
    np.testing.assert_array_equal(full_size_labels([view]), expected["whole_labels"])


def test_a_mirrored_image_equals_the_originals(expected):
    """The original's network gets the image as it is and is told that it is mirrored."""
    view = whole_view(toy_logits(image()), SIZE, IMAGE_SIZE, mirrored=True)
    softmax = probabilities(full(view).transpose(1, 2, 0)).transpose(2, 0, 1)
    assert_near(softmax, expected["whole_softmax_flipped"][0])


def test_sliding_windows_equal_the_originals(expected):
    pixels = image()
    logits = [toy_logits(pixels[:, y : y + 64, x : x + 64]) for y, x in windows(SIZE, WINDOW, STRIDE)]
    view = sliding_view(logits, SIZE, SIZE, WINDOW, STRIDE)
    assert_near(full(view), expected["slide"][0])


def test_several_scales_and_mirror_images_equal_the_originals(expected):
    sizes = [(48, 65), (48, 65), (96, 130), (96, 130), (144, 195), (144, 195)]
    views = [
        whole_view(toy_logits(image(102 + number, size)), size, IMAGE_SIZE, mirrored=number % 2 == 1)
        for number, size in enumerate(sizes)
    ]
    np.testing.assert_array_equal(full_size_labels(views), expected["augmented_labels"])


def test_tiles_do_not_change_labels(monkeypatch):
    generator = np.random.default_rng(0)
    views = [
        whole_view(generator.standard_normal((8, 9, 4)).astype(np.float32), (32, 36), (57, 41), mirrored=mirrored)
        for mirrored in (False, True)
    ]
    whole = labels_of_scores(sum(probabilities(full(view).transpose(1, 2, 0)) for view in views))
    monkeypatch.setattr(full_size, "TILE_COLUMNS", 7)
    monkeypatch.setattr(full_size, "TILE_VALUES", 100)
    np.testing.assert_array_equal(full_size_labels(views), whole)


def test_padding_is_cut_before_the_image_gets_its_own_size():
    """Logits that differ only in the padding give the same view."""
    logits = np.random.default_rng(0).standard_normal((8, 8, 3)).astype(np.float32)
    view = whole_view(logits, (32, 32), (40, 30), valid_size=(16, 20))
    spoiled = logits.copy()
    spoiled[5:], spoiled[:, 6:] = 1e3, 1e3  # a row of pixels lies between two rows of the map
    np.testing.assert_array_equal(full(whole_view(spoiled, (32, 32), (40, 30), valid_size=(16, 20))), full(view))
    assert view.size == (40, 30)


@pytest.mark.parametrize(
    ("side", "window", "stride", "starts"),
    [(130, 64, 42, [0, 42, 66]), (96, 64, 42, [0, 32]), (64, 64, 42, [0]), (40, 64, 42, [0]), (106, 64, 42, [0, 42])],
)
def test_windows_end_with_the_side(side, window, stride, starts):
    assert window_starts(side, window, stride) == starts


def test_windows_beyond_a_short_side_count_only_what_is_inside():
    """One window of 64 over an image of 40 x 100: where logits are constant, so is the view."""
    logits = [np.ones((16, 16, 2), np.float32)] * 2
    view = sliding_view(logits, (40, 100), (80, 200), WINDOW, STRIDE)
    assert_near(full(view), np.ones((2, 80, 200)), 1e-6)


def test_scores_that_are_not_finite_are_no_prediction():
    scores = np.array([[0, 1, 0], [np.nan, 0, 0], [np.inf, 0, 0], [-np.inf, 0, -1], [2, 2, 2]], np.float32)
    np.testing.assert_array_equal(labels_of_scores(scores), [1, 3, 3, 1, 0])


def test_a_piece_is_its_two_products():
    generator = np.random.default_rng(1)
    logits, rows, columns = generator.random((3, 4, 2)), generator.random((6, 3)), generator.random((5, 4))
    view = View((Piece(logits, rows, columns), Piece(logits, rows, columns)))
    np.testing.assert_allclose(full(view), 2 * np.einsum("Hh,Ww,hwk->kHW", rows, columns, logits))
