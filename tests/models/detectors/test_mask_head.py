"""The targets of masks, which are cut out of packed bitmaps, and the head that draws masks."""

import math

import numpy as np
import pytest
from mindspore import Tensor

from focal_twins.models.detectors.mask_head import ClassLogits, Doubling, MaskHead, MaskTargets, pack_bitmaps

CANVAS = (96, 160)


def cut_out(bitmap, box):
    """RoIAlign of one bitmap by its definition, sample by sample, in float64: the means [28, 28] of the bins."""
    height, width = bitmap.shape
    x1, y1, x2, y2 = np.clip(box, 0, [width, height] * 2).astype(np.float64) - 0.5
    columns, rows = max(math.ceil((x2 - x1) / 28), 1), max(math.ceil((y2 - y1) / 28), 1)
    x = np.clip(x1 + (np.arange(28 * columns) + 0.5) / columns * (x2 - x1) / 28, 0, width - 1)
    y = np.clip(y1 + (np.arange(28 * rows) + 0.5) / rows * (y2 - y1) / 28, 0, height - 1)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    upper = bitmap[top][:, left] * (1 - (x - left)) + bitmap[top][:, right] * (x - left)
    lower = bitmap[bottom][:, left] * (1 - (x - left)) + bitmap[bottom][:, right] * (x - left)
    values = upper * (1 - (y - top))[:, None] + lower * (y - top)[:, None]
    return values.reshape(28, rows, 28, columns).mean((1, 3))


def blobs(count, size, seed=0):
    """Bitmaps [count, h, w] of random outlines, of all sizes."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    waves = generator.uniform(0.03, 0.3, (count, 2, 1, 1)), generator.uniform(0, 6, (count, 2, 1, 1))
    return (np.sin(waves[0][:, 0] * x + waves[1][:, 0]) + np.sin(waves[0][:, 1] * y + waves[1][:, 1]) > 0).astype(
        np.uint8
    )


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_targets_are_regions_of_the_bitmap(chunk):
    """Boxes below a pixel a bin and of the whole canvas; bitmaps in any order; unpacked so many at a time."""
    extent = (80, 150)
    frame = (96, 160)
    masks = blobs(3, extent)
    boxes = np.array(
        [[0, 0, 150, 80], [3.3, 7.7, 14.2, 19.1], [20, 10, 140.5, 75.2], [100, 2, 109, 79], [-9, 50, 149.9, 80]],
        np.float32,
    )
    numbers = np.array([2, 0, 1, 1, 0], np.int32)
    targets = MaskTargets()
    targets.chunk_pixels = chunk * CANVAS[0] * CANVAS[1]
    packed = pack_bitmaps(masks, CANVAS, 4)
    assert packed.shape == (4, 96, 20)
    frames = np.tile(np.float32(frame), (5, 1))
    found = targets(*map(Tensor, (packed, boxes, numbers, frames))).asnumpy()
    whole = np.zeros((3, *frame))
    whole[:, : extent[0], : extent[1]] = masks
    for box, number, target in zip(boxes, numbers, found, strict=True):
        means = cut_out(whole[number], box)
        clear = np.abs(means - 0.5) > 1e-5
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(target[clear], (means >= 0.5)[clear])
    assert 0.2 < found.mean() < 0.8


def test_a_mean_of_a_half_belongs_to_the_object():
    """Every other column: each sample lies between a pixel of the object and one beside it."""
    masks = np.zeros((1, *CANVAS), np.uint8)
    masks[0, :, ::2] = 1
    packed, frames = pack_bitmaps(masks, CANVAS, 1), np.float32([CANVAS])
    box = np.float32([[2.5, 2, 30.5, 30]])  # samples at columns 2.5, 3.5, ...
    found = MaskTargets()(*map(Tensor, (packed, box, np.int32([0]), frames))).asnumpy()
    assert (found == 1).all()


def test_the_pixels_of_the_frame_go_on_beyond_its_edge():
    """An image of 64 x 128 ends there, although the canvas goes on: an object at its lower right corner fills it."""
    packed = pack_bitmaps(np.ones((1, 64, 128), np.uint8), CANVAS, 1)
    box, cut = np.float32([[127.2, 63.2, 128, 64]]), MaskTargets()
    within, beyond = (
        cut(*map(Tensor, (packed, box, np.int32([0]), np.float32([frame])))).asnumpy() for frame in ((64, 128), CANVAS)
    )
    assert within.all()
    assert not beyond[0, -1, -1]  # between one pixel of the object and three of the canvas


def test_bits_of_a_bitmap():
    masks = blobs(2, (50, 70))
    packed = pack_bitmaps(masks, CANVAS, 3)
    bits = np.unpackbits(packed, axis=2)
    np.testing.assert_array_equal(bits[:2, :50, :70], masks)
    assert bits.sum() == masks.sum()
    assert not pack_bitmaps(masks[:0], CANVAS, 3).any()


def test_logits_of_one_class_are_those_of_the_convolution():
    layer, generator = ClassLogits(8, 5), np.random.default_rng(0)
    x = generator.standard_normal((3, 6, 8)).astype(np.float32)
    labels = np.array([4, 0, 2], np.int32)
    every = x @ layer.weight.asnumpy().reshape(5, 8).T + layer.bias.asnumpy()
    found = layer(Tensor(x), Tensor(labels)).asnumpy()
    np.testing.assert_allclose(found, every[np.arange(3), :, labels], atol=1e-5)


def test_a_head_places_each_token_where_its_four_pixels_are():
    """Without its convolutions the head draws at each place what the token below it says."""
    head = MaskHead(4, 2, convs=0)
    x = np.random.default_rng(0).random((1, 196, 4)).astype(np.float32)
    masks = head(Tensor(x), Tensor([1])).asnumpy()[0]
    weight, bias = head.upsample.weight.asnumpy(), head.upsample.bias.asnumpy()
    last = head.conv_logits.weight.asnumpy()[1].reshape(4)
    for y, column in ((0, 0), (5, 8), (27, 26)):
        token = x[0, (y // 2) * 14 + column // 2]
        value = (
            np.maximum(token @ weight[:, :, y % 2, column % 2] + bias, 0) @ last + head.conv_logits.bias.asnumpy()[1]
        )
        assert abs(masks[y, column] - value) < 1e-5
    assert Doubling(4, 6)(Tensor(x)).shape == (1, 196, 4, 6)
