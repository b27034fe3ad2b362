"""What resizes, crops and distorts images with their labels: equal to the originals' code, and what is drawn."""

import importlib
import json

import numpy as np
import pytest

from focal_twins.data import dense_transforms as dense
from focal_twins.data.transforms import normalise
from tests.conftest import ROOT

FOLDER = ROOT / "tests" / "reference" / "dense"
ORIGINAL = np.load(FOLDER / "segmentation_pipeline.npz")
RECORDED = json.loads((FOLDER / "segmentation_pipeline.json").read_text())
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def rgb(name: str) -> np.ndarray:
    """An image of the originals, which have blue first."""
    return np.ascontiguousarray(ORIGINAL[name][:, :, ::-1])


def test_sizes_are_the_originals():
    for size, bounds, expected in RECORDED["rescale_size"]:
        assert dense.rescaled_size(tuple(size), bounds) == tuple(expected)


def test_an_aspect_beyond_all_bounds_keeps_a_pixel():
    assert dense.rescaled_size((1, 10000), (512, 128)) == (1, 512)


def test_bounds_are_rounded_down_as_the_originals_are():
    assert dense.scaled_bounds([2048, 512], (3, 4), 0.7501) == (1536, 384)
    assert dense.scaled_bounds(None, (375, 500), 1.5) == (562, 750)


def test_resizing_is_the_originals():
    size = dense.rescaled_size((37, 53), (90, 60))
    np.testing.assert_array_equal(dense.resize_pixels(rgb("image_bgr"), size), rgb("resized"))
    np.testing.assert_array_equal(dense.resize_label(ORIGINAL["label"], size), ORIGINAL["label_resized"])
    wide = ORIGINAL["label"].astype(np.int32)
    np.testing.assert_array_equal(dense.resize_label(wide, size), ORIGINAL["label_resized"])


def test_normalisation_and_padding_are_the_originals():
    """The original pads after it has normalised: see SegmentationTrainSamples.batch."""
    expected = ORIGINAL["normalised_padded"]
    images = normalise(rgb("resized")[None], MEAN, STD)[0].transpose(1, 2, 0)
    np.testing.assert_allclose(images, expected[:60, :86], atol=1e-6)
    assert not expected[60:].any() and not expected[:, 86:].any()


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("brightness_plus20_5", dense.Distortion(brightness=20.5)),
        ("contrast_1_3", dense.Distortion(contrast=1.3)),
        ("contrast_0_6", dense.Distortion(contrast=0.6, contrast_last=True)),
        ("saturation_1_37", dense.Distortion(saturation=1.37)),
        ("hue_minus13", dense.Distortion(hue=-13)),
    ],
)
def test_each_distortion_is_the_originals(name, drawn):
    np.testing.assert_array_equal(dense.distort(rgb("image_bgr"), drawn), rgb(name))


def test_distortions_follow_each_other_in_the_originals_order():
    """Brightness, contrast, saturation, hue; or contrast at the end."""
    image = rgb("image_bgr")
    steps = {"brightness": -25.25, "contrast": 1.4, "saturation": 0.6, "hue": 11}

    def one_by_one(names):
        result = image
        for name in names:
            result = dense.distort(result, dense.Distortion(**{name: steps[name]}))
        return result

    np.testing.assert_array_equal(dense.distort(image, dense.Distortion(**steps)), one_by_one(steps))
    last = dense.distort(image, dense.Distortion(**steps, contrast_last=True))
    np.testing.assert_array_equal(last, one_by_one(["brightness", "saturation", "hue", "contrast"]))
    assert (last != one_by_one(steps)).any()


def test_grey_images_have_brightness_and_contrast_alone():
    grey = ORIGINAL["image_bgr"][:, :, :1]
    drawn = dense.Distortion(brightness=3.5, saturation=0.5, hue=4)
    np.testing.assert_array_equal(dense.distort(grey, drawn), np.clip(grey + 3.5, 0, 255).astype(np.uint8))
    assert dense.resize_pixels(grey, (20, 30)).shape == (20, 30, 1)
    colours = dense.resize_pixels(np.repeat(grey, 3, axis=2), (20, 30))
    np.testing.assert_array_equal(dense.resize_pixels(grey, (20, 30)), colours[:, :, :1])


def test_what_is_drawn_has_the_originals_distribution():
    generator = np.random.default_rng(0)
    drawn = [dense.draw_distortion(generator, 32.0, [0.5, 1.5], [0.25, 0.75], 18) for _ in range(4000)]
    for name, least, greatest in [("brightness", -32, 32), ("contrast", 0.5, 1.5), ("saturation", 0.25, 0.75)]:
        values = np.array([value for each in drawn if (value := getattr(each, name)) is not None])
        assert abs(len(values) / 4000 - 0.5) < 0.04
        assert least <= values.min() < least + 0.02 * (greatest - least)
        assert greatest >= values.max() > greatest - 0.02 * (greatest - least)
    assert {each.hue for each in drawn} == {None, *range(-18, 18)}
    assert abs(np.mean([each.contrast_last for each in drawn]) - 0.5) < 0.04
    assert dense.draw_distortion(generator, 0.0, [1.0, 1.0], [1.0, 1.0], 0).hue in (None, 0)


def test_crops_reach_every_place_of_the_image():
    label = np.zeros((6, 5), np.uint8)
    generator = np.random.default_rng(0)
    corners = {dense.draw_crop(generator, label, (4, 4), 1.0, 255) for _ in range(200)}
    assert corners == {(top, left) for top in range(3) for left in range(2)}
    assert dense.draw_crop(generator, label, (9, 5), 1.0, 255) == (0, 0)


def test_a_crop_of_one_class_is_drawn_again():
    """A third of the columns hold a second class; ignored pixels count for neither."""
    label = np.zeros((8, 90), np.uint8)
    label[:, 60:] = 1
    label[4:] = 255
    shares = []
    for number in range(200):
        top, left = dense.draw_crop(np.random.default_rng(number), label, (8, 20), 0.75, 255)
        assert top == 0
        shares.append(dense.largest_share(label[:, left : left + 20], 255))
    # A crop meets the limit with probability 9 / 71, and one of ten draws with 1 - (62 / 71) ** 10 = 0.74.
    assert 0.6 < np.mean(np.array(shares) < 0.75) < 0.9
    once = [dense.draw_crop(np.random.default_rng(number), label, (8, 20), 1.0, 255)[1] for number in range(200)]
    assert np.mean([dense.largest_share(label[:, left : left + 20], 255) < 0.75 for left in once]) < 0.25


def test_the_largest_share_is_of_labelled_pixels():
    assert dense.largest_share(np.array([[0, 0, 0, 1, 255, 255]], np.uint8), 255) == 0.75
    assert dense.largest_share(np.array([[300, 7, 7, 7]], np.int32), 7) == 1.0
    assert dense.largest_share(np.array([[255]], np.uint8), 255) == 1.0


@pytest.mark.parametrize("limit", [0.75, 1.0])
def test_a_crop_without_labelled_pixels_moves_to_one(limit):
    label = np.full((200, 300), 255, np.uint8)
    label[150, 280] = 3
    for number in range(5):
        top, left = dense.draw_crop(np.random.default_rng(number), label, (20, 30), limit, 255)
        assert (label[top : top + 20, left : left + 30] == 3).any()
    empty = np.full((20, 30), 255, np.uint8)
    assert dense.draw_crop(np.random.default_rng(0), empty, (20, 30), limit, 255) == (0, 0)


@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4, 1), (5, 4)])
def test_mirroring_is_from_left_to_right(shape):
    array = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    np.testing.assert_array_equal(dense.mirror(array[1:]), array[1:, ::-1])


def test_padding_is_right_and_below():
    padded = dense.pad(np.ones((2, 3), np.uint8), (4, 4), 255)
    assert padded.tolist() == [[1, 1, 1, 255], [1, 1, 1, 255], [255] * 4, [255] * 4]


def test_the_rule_beside_exported_files_gives_the_same_pixels(monkeypatch):
    """examples/bilinear.py follows BILINEAR_RULE without OpenCV: bit for bit, larger and smaller, at odd sizes."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    resized_pixels = importlib.import_module("bilinear").resized_pixels
    generator = np.random.default_rng(0)
    for case in range(100):
        old = tuple(int(side) for side in np.exp(generator.uniform(0, np.log(200), 2)))
        new = tuple(int(side) for side in np.exp(generator.uniform(0, np.log(200), 2)))
        new = tuple(max(side // 2, 1) for side in old) if case % 10 == 0 else new
        pixels = generator.integers(0, 256, (*old, 1 + 2 * (case % 2)), dtype=np.uint8)
        np.testing.assert_array_equal(resized_pixels(pixels, new), dense.resize_pixels(pixels, new))
