"""RoIAlign against torchvision's, and what must hold of it for any box."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from focal_twins.models.detectors.rois import RoIAlign, roi_levels
from tests.reference import FOLDER

SIZES = ((128, 160), (64, 80), (32, 40), (16, 20))
STRIDES = (4, 8, 16, 32)
ARRAYS = dict(np.load(FOLDER / "dense/roi_align.npz"))
BEYOND = (9, 10)  # boxes of 640 x 15 and 12 x 512 pixels: their bins would read 48 cells and more


def tokens(maps):
    """Maps [B, C, H, W] of all levels as tokens [B, L, C]."""
    return np.concatenate([m.reshape(*m.shape[:2], -1).transpose(0, 2, 1) for m in maps], 1)


def pyramid():
    generator = np.random.default_rng(43)
    return tokens([generator.standard_normal((2, 3, *size)).astype(np.float32) for size in SIZES])


def boxes_of_images():
    """The reference's boxes as [2, n, 4], and where each of them is among the results."""
    rois = ARRAYS["rois"]
    count = int(max(np.bincount(rois[:, 0].astype(int))))
    boxes, places = np.zeros((2, count, 4), np.float32), []
    for image in range(2):
        own = np.flatnonzero(rois[:, 0] == image)
        boxes[image, : len(own)] = rois[own, 1:]
        places += [(number, image * count + i) for i, number in enumerate(own)]
    return boxes, np.array([place for _, place in sorted(places)])


def test_levels():
    np.testing.assert_array_equal(roi_levels(Tensor(ARRAYS["rois"][:, 1:]), 4).asnumpy(), ARRAYS["roi_levels"])
    sides = np.array([0, 111.9, 112, 223.9, 224, 447, 448, 5000], np.float32)
    squares = np.stack([sides * 0, sides * 0, sides, sides], 1)
    np.testing.assert_array_equal(roi_levels(Tensor(squares), 4).asnumpy(), [0, 0, 1, 1, 2, 2, 3, 3])
    assert roi_levels(Tensor(squares), 2).asnumpy().max() == 1


@pytest.mark.parametrize(
    ("output_size", "ratio", "bin_rows"), [(7, 2, 32), (7, 0, 32), (14, 0, 32), (7, 0, 64)], ids=str
)
def test_regions_equal_torchvision(output_size, ratio, bin_rows):
    boxes, places = boxes_of_images()
    align = RoIAlign(SIZES, STRIDES, output_size, ratio, bin_rows)
    found = align(Tensor(pyramid()), Tensor(boxes)).asnumpy()[places]
    expected = ARRAYS[f"roi_align_{output_size}_{ratio}"].reshape(len(places), 3, -1).transpose(0, 2, 1)
    exact = np.ones(len(places), bool)
    if (output_size, ratio, bin_rows) == (7, 0, 32):
        exact[list(BEYOND)] = False
        assert np.abs(found - expected)[~exact].max() > 0.1
    assert np.abs(found - expected)[exact].max() < 1e-4


def test_long_boxes_have_fewer_samples_and_lose_no_weight():
    """The mean of evenly spread samples of a slope is its value in the middle of the bin, whatever their number."""
    x, y = np.meshgrid(np.arange(160), np.arange(128))
    slopes = np.stack([x, y])[None].astype(np.float32)
    align = RoIAlign(SIZES[:1], STRIDES[:1], 7, 0, 32)
    boxes = np.array([[[8, 40, 628, 55], [300, 8, 312, 500], [8, 8, 600, 490], [40, 40, 41, 41]]], np.float32)
    found = align(Tensor(tokens([slopes])), Tensor(boxes)).asnumpy().reshape(4, 7, 7, 2)
    for box, region in zip(boxes[0] / 4 - 0.5, found, strict=True):
        middles = (np.arange(7) + 0.5) / 7
        np.testing.assert_allclose(region[0, :, 0], box[0] + middles * (box[2] - box[0]), rtol=1e-4)
        np.testing.assert_allclose(region[:, 0, 1], box[1] + middles * (box[3] - box[1]), rtol=1e-4)


@pytest.mark.parametrize("ratio", [0, 2])
def test_gradients_are_the_transpose(ratio):
    """Regions are linear in the maps: <gradient, other maps> is <factors, other regions>. Boxes have no gradient."""
    boxes, _ = boxes_of_images()
    align, generator = RoIAlign(SIZES, STRIDES, 7, ratio), np.random.default_rng(0)
    other = generator.standard_normal(pyramid().shape).astype(np.float32)
    of_other = align(Tensor(other), Tensor(boxes)).asnumpy()
    factors = generator.standard_normal(of_other.shape).astype(np.float32)
    gradient = ms.grad(lambda maps, boxes: (align(maps, boxes) * Tensor(factors)).sum(), (0, 1))
    to_maps, to_boxes = gradient(Tensor(pyramid()), Tensor(boxes))
    expected = (factors.astype(np.float64) * of_other).sum()
    assert abs((to_maps.asnumpy().astype(np.float64) * other).sum() - expected) < 1e-4 * np.abs(factors).sum() ** 0.5
    assert not to_boxes.asnumpy().any()


def test_half_precision_moves_no_samples():
    """Tokens are float16, places are not: at the far end of the map, float16 would be off by half a pixel."""
    boxes, _ = boxes_of_images()
    align = RoIAlign(SIZES, STRIDES, 7, 0)
    exact = align(Tensor(pyramid().astype(np.float16).astype(np.float32)), Tensor(boxes)).asnumpy()
    found = align(Tensor(pyramid().astype(np.float16)), Tensor(boxes))
    assert found.dtype == ms.float16
    np.testing.assert_allclose(found.asnumpy(), exact, atol=5e-3)
