"""Images, boxes and masks are resized, cropped and mirrored together, as the originals do it."""

import json

import numpy as np
import pytest

from focal_twins.config.detection import DetectionAugment
from focal_twins.data import box_transforms as box
from focal_twins.data.coco import rasterise
from focal_twins.data.dense_transforms import rescaled_size
from tests.conftest import ROOT

FOLDER = ROOT / "tests" / "reference" / "dense"
ORIGINAL = np.load(FOLDER / "detection_pipeline.npz")
RECORDED = json.loads((FOLDER / "detection_pipeline.json").read_text())
PIXELS = np.load(FOLDER / "segmentation_pipeline.npz")
SIZE, RESIZED = (37, 53), (60, 86)
CROP = box.Crop(*RECORDED["crop_offset_yx"], 40, 50)


def unpacked(name: str, size: tuple[int, int]) -> np.ndarray:
    """The originals' two masks of a size."""
    return np.unpackbits(ORIGINAL[name], count=2 * size[0] * size[1]).reshape(2, *size)


def augmentation(mirrored=False, enlarged=None, crop=None, size=RESIZED) -> box.Augmentation:
    return box.Augmentation(SIZE, mirrored, enlarged, crop, size)


def test_resizing_is_the_originals():
    """Each axis has its own factor, because both sides are rounded."""
    assert rescaled_size(SIZE, (90, 60)) == RESIZED
    drawn = augmentation()
    boxes, kept = drawn.boxes(ORIGINAL["boxes"])
    np.testing.assert_array_equal(boxes, ORIGINAL["resized_boxes"])
    assert kept.all()
    np.testing.assert_array_equal(drawn.masks(unpacked("masks", SIZE)), unpacked("resized_masks", RESIZED))
    np.testing.assert_array_equal(drawn.pixels(PIXELS["image_bgr"]), PIXELS["resized"])


def test_mirroring_is_the_originals():
    drawn = box.Augmentation(RESIZED, True, None, None, RESIZED)
    np.testing.assert_array_equal(drawn.boxes(ORIGINAL["resized_boxes"])[0], ORIGINAL["flipped_boxes"])
    np.testing.assert_array_equal(drawn.masks(unpacked("resized_masks", RESIZED)), unpacked("flipped_masks", RESIZED))
    np.testing.assert_array_equal(drawn.pixels(PIXELS["resized"]), PIXELS["resized"][:, ::-1])


def test_cropping_is_the_originals():
    drawn = augmentation(enlarged=RESIZED, crop=CROP, size=(40, 50))
    boxes, kept = drawn.boxes(ORIGINAL["boxes"])
    np.testing.assert_array_equal(boxes, ORIGINAL["cropped_boxes"])
    assert kept.tolist() == [True, True]
    np.testing.assert_array_equal(drawn.masks(unpacked("masks", SIZE)), unpacked("cropped_masks", (40, 50)))
    np.testing.assert_array_equal(drawn.pixels(PIXELS["image_bgr"]), PIXELS["resized"][10:50, 24:74])


def test_polygons_become_the_originals_masks():
    masks = [rasterise(polygons, SIZE) for polygons in RECORDED["polygons"]]
    np.testing.assert_array_equal(masks, unpacked("masks", SIZE))


def test_objects_outside_of_a_crop_are_dropped_and_none_may_be_left():
    boxes = np.array([[0, 0, 10, 10], [30, 12, 52, 40], [10, 5, 12, 20]], np.float32)
    drawn = box.Augmentation((40, 60), False, (40, 60), box.Crop(8, 10, 20, 30), (40, 60))
    cropped, kept = drawn.boxes(boxes)
    assert kept.tolist() == [False, True, True]
    assert cropped.tolist() == [[40, 8, 60, 40], [0, 0, 4, 24]]
    assert drawn.boxes(boxes[:1])[0].shape == (0, 4)
    assert drawn.masks(np.zeros((0, 40, 60), np.uint8)).shape == (0, 40, 60)


def test_slivers_that_float32_makes_empty_are_dropped():
    """The first is a sliver before it is mirrored, the second before it is resized."""
    left, right = np.nextafter(np.float32([0, 60]), np.float32(30))
    boxes = np.array([[0, 5, left, 20], [right, 5, 60, 20], [10, 5, 30, 20]], np.float32)
    mirrored, kept = box.Augmentation((40, 60), True, None, None, (40, 60)).boxes(boxes)
    assert (mirrored.tolist(), kept.tolist()) == ([[0, 5, 60 - right, 20], [30, 5, 50, 20]], [False, True, True])
    for width in range(20, 200):
        resized, kept = box.Augmentation((40, 60), False, None, None, (40, width)).boxes(boxes)
        assert (resized[:, 2] > resized[:, 0]).all() and len(resized) == kept.sum()


@pytest.mark.parametrize("seed", range(40))
def test_an_image_that_shows_its_objects_keeps_showing_them(seed):
    """Whatever is drawn: the bright pixels are within the box, and reach its edges."""
    pixels = np.zeros((120, 200, 3), np.uint8)
    pixels[30:70, 90:150] = 255
    masks = (pixels[None, :, :, 0] > 0).astype(np.uint8)
    augment = DetectionAugment(
        short_sides=[96, 144], long_side=240, crop_short_sides=[100, 120], crop_range=[90, 150], hflip=0.5
    )
    drawn = box.draw_augmentation(np.random.default_rng(seed), (120, 200), augment)
    after, mask = drawn.pixels(pixels), drawn.masks(masks)[0]
    (bounds,) = drawn.boxes(np.array([[90, 30, 150, 70]], np.float32))[0]
    assert after.shape[:2] == mask.shape == drawn.size
    for shown in (after[:, :, 0] > 127, mask > 0):
        rows, columns = (np.flatnonzero(shown.any(axis)) for axis in (1, 0))
        found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(found, bounds, atol=2.5)


def test_what_is_drawn_is_swins_policy():
    """Half the images are mirrored; half are cropped, to sides of 384 to 600, or their own where these are less."""
    generator, augment = np.random.default_rng(0), DetectionAugment()
    drawn = [box.draw_augmentation(generator, (480, 640), augment) for _ in range(2000)]
    assert np.mean([one.mirrored for one in drawn]) == pytest.approx(0.5, abs=0.04)
    cropped = [one for one in drawn if one.crop is not None]
    assert len(cropped) / 2000 == pytest.approx(0.5, abs=0.04)
    assert {one.enlarged for one in cropped} == {(400, 533), (500, 667), (600, 800)}
    heights = [one.crop.height for one in cropped if one.enlarged == (500, 667)]
    widths = [one.crop.width for one in cropped if one.enlarged == (500, 667)]
    assert (min(heights), max(heights), min(widths), max(widths)) == pytest.approx((384, 500, 384, 600), abs=6)
    for one in cropped:
        height, width = one.enlarged
        assert 0 <= one.crop.top <= height - one.crop.height
        assert 0 <= one.crop.left <= width - one.crop.width
        assert min(one.size) in augment.short_sides or max(one.size) == 1333
    plain = [one.size for one in drawn if one.crop is None]
    assert set(plain) == {rescaled_size((480, 640), (short_side, 1333)) for short_side in augment.short_sides}
    long = [box.draw_augmentation(generator, (100, 400), augment).crop for _ in range(100)]  # resized to 333 x 1333
    assert {crop.height for crop in long if crop is not None} == {333}


def test_without_crops_and_mirroring_one_size_is_always_the_same():
    augment = DetectionAugment(short_sides=[800], crop=False, hflip=0.0)
    drawn = {box.draw_augmentation(np.random.default_rng(seed), (427, 640), augment) for seed in range(20)}
    assert drawn == {box.Augmentation((427, 640), False, None, None, (800, 1199))}


def test_an_image_stands_on_the_first_canvas_that_holds_it():
    canvases = [(800, 1344), (1344, 800)]
    assert box.canvas_of((800, 1333), canvases) == (800, 1344)
    assert box.canvas_of((600, 600), canvases) == (800, 1344)
    assert box.canvas_of((801, 700), canvases) == (1344, 800)
    assert box.canvas_of((801, 801), canvases) is None
