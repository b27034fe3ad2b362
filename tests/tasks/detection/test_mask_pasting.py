"""Masks pasted into images against OpenCV's bilinear sampling, and their packed form against COCO's."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_masks

from focal_twins.tasks.detection import mask_pasting
from focal_twins.tasks.detection.mask_pasting import packed_masks, paste_mask

SIZE = (50, 70)
BOXES = {
    "inside": (10.3, 7.8, 41.9, 33.1),
    "beyond every edge": (-20.5, -8.0, 95.0, 61.0),
    "below and left": (-30.0, 30.5, 12.0, 80.0),
    "within a pixel": (20.2, 20.3, 20.8, 20.9),
    "a pixel wide": (20.0, 5.0, 21.0, 45.0),
}


def smooth(seed):
    """Probabilities of which half are above a half."""
    blurred = cv2.GaussianBlur(np.random.default_rng(seed).random((28, 28)), (0, 0), 3)
    return np.clip(0.5 + 8 * (blurred - np.median(blurred)), 0, 1).astype(np.float32)


def sampled(mask, box):
    """What grid_sample with align_corners=False gives at the centre of each pixel of the image."""
    x1, y1, x2, y2 = box
    columns = ((np.arange(SIZE[1]) + 0.5 - x1) / (x2 - x1) * 28 - 0.5).astype(np.float32)
    rows = ((np.arange(SIZE[0]) + 0.5 - y1) / (y2 - y1) * 28 - 0.5).astype(np.float32)
    grid = np.meshgrid(columns, rows)
    padded = np.pad(mask, 1)  # zeros outside: OpenCV would not interpolate towards its constant border exactly
    return cv2.remap(padded, grid[0] + 1, grid[1] + 1, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)


@pytest.mark.parametrize("case", BOXES)
def test_pixels_are_those_of_a_bilinear_sample_from_a_half_on(case):
    mask = smooth(len(case))
    values, pasted = sampled(mask, BOXES[case]), paste_mask(mask, np.array(BOXES[case]), SIZE)
    assert pasted.shape == SIZE and pasted.dtype == np.uint8
    clear = np.abs(values - 0.5) > 0.02  # OpenCV interpolates by 32nds of a cell
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(pasted[clear], values[clear] > 0.5)
    if case not in ("within a pixel", "a pixel wide"):
        assert 0.005 < pasted.mean() < 0.99


def test_strips_do_not_matter(monkeypatch):
    mask, box = smooth(1), np.array(BOXES["beyond every edge"])
    whole = paste_mask(mask, box, SIZE)
    monkeypatch.setattr(mask_pasting, "STRIP", 3 * SIZE[0])
    np.testing.assert_array_equal(paste_mask(mask, box, SIZE), whole)


def test_packed_masks_unpack_to_the_pasted_ones():
    masks, boxes = np.stack([smooth(seed) for seed in range(5)]), np.array(list(BOXES.values()), np.float32)
    for packed, mask, box in zip(packed_masks(masks, boxes, SIZE), masks, boxes, strict=True):
        unpacked = coco_masks.decode({"size": list(SIZE), "counts": packed})
        np.testing.assert_array_equal(unpacked, paste_mask(mask, box, SIZE))


def test_boxes_without_area_or_outside_of_the_image_have_no_pixel():
    for box in ((5, 5, 5, 20), (5, 20, 15, 10), (90, 10, 120, 40), (-40, -40, -10, -10)):
        assert not paste_mask(np.ones((28, 28), np.float32), np.array(box), SIZE).any()
