"""Resizing, of whole images and of the part that is kept."""

import resource

import numpy as np
import pytest
from mindspore.dataset import vision
from mindspore.dataset.vision import Inter
from PIL import Image

from focal_twins.data import resizing
from focal_twins.data.decoding import as_image, pixels
from focal_twins.data.resizing import resize, resize_and_crop
from focal_twins.data.transforms import EvalTransform


def test_resizing_is_pillows_two_passes():
    """Bicubic: exactly, the horizontal pass first, also at odd sizes. Bilinear and grey: Pillow itself."""
    generator = np.random.default_rng(0)
    for _ in range(100):
        height, width, new_height, new_width = (int(side) for side in np.exp(generator.uniform(0, np.log(400), 4)))
        array = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        horizontal = Image.fromarray(array).resize((new_width, height), Image.Resampling.BICUBIC)
        expected = np.asarray(horizontal.resize((new_width, new_height), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(resize(array, (new_height, new_width), Image.Resampling.BICUBIC), expected)
    for pixels_of_image in (array, array[:, :, :1]):
        expected = as_image(pixels_of_image).resize((20, 10), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(resize(pixels_of_image, (10, 20), Image.Resampling.BILINEAR), pixels(expected))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_the_part_that_is_kept_equals_the_whole_to_the_bit(monkeypatch, channels, resample):
    """Enlarged and reduced, at the borders and within, with one axis as it was, in black and white (which clips)."""
    monkeypatch.setattr(resizing, "WHOLE_TIMES", 0)  # compute parts always
    generator = np.random.default_rng(0)
    for case in range(150):
        old = tuple(int(side) for side in np.exp(generator.uniform(0, np.log(500), 2)))
        new = tuple(int(side) for side in np.exp(generator.uniform(0, np.log(500), 2)))
        new = (old[0] if case % 5 == 0 else new[0], old[1] if case % 5 == 1 else new[1])
        size = tuple(int(generator.integers(1, side + 1)) for side in new)
        corner = tuple(int(generator.integers(0, side - part + 1)) for side, part in zip(new, size, strict=True))
        array = generator.integers(0, 256, (*old, channels), dtype=np.uint8)
        array = array if case % 2 else np.where(array > 127, 255, 0).astype(np.uint8)
        whole = resize(array, new, resample)
        (top, left), (height, width) = corner, size
        part = resize_and_crop(array, new, corner, size, resample)
        np.testing.assert_array_equal(part, whole[top : top + height, left : left + width])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(1, 700), (700, 1), (3, 900), (900, 40)])
def test_evaluation_of_a_narrow_image_equals_resizing_it_as_a_whole(shape, channels):
    array = np.random.default_rng(0).integers(0, 256, (*shape, channels), dtype=np.uint8)
    transform = EvalTransform((32, 32), 0.875, "bicubic")
    resized, (top, left) = transform.placement(*shape)
    assert resized[0] * resized[1] > resizing.WHOLE_TIMES * 32 * 32
    expected = resize(array, resized, Image.Resampling.BICUBIC)[top : top + 32, left : left + 32]
    np.testing.assert_array_equal(transform(array), expected)


@pytest.mark.parametrize("shape", [(1, 1_000_000), (1_000_000, 1)])
def test_a_very_long_image_takes_no_memory_to_evaluate(shape):
    """As a whole, the resized image would have 200 GB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shown = EvalTransform((224, 224), 0.875, "bicubic")(np.full((*shape, 3), 77, np.uint8))
    assert shown.shape == (224, 224, 3)
    assert (shown == 77).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_an_image_of_one_pixel_can_be_enlarged_beyond_what_mindspore_does():
    with pytest.raises(RuntimeError):
        vision.Resize((1001, 1001), Inter.PILCUBIC)(np.zeros((1, 1, 3), np.uint8))
    array = np.random.default_rng(0).integers(0, 256, (1, 2, 3), dtype=np.uint8)
    shown = resize(array, (1001, 1200), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(shown, pixels(as_image(array).resize((1200, 1001), Image.Resampling.BICUBIC)))
