"""What happens to one image."""

import mindspore.dataset.vision as vision
import numpy as np
import pytest
from mindspore.dataset.vision import Inter
from PIL import Image
from sklearn.datasets import load_sample_image

from src.schema import AugmentConfig
from src.data.transforms import (
    EvalTransform,
    TrainTransform,
    UnreadableImage,
    decode,
    random_resized_crop_box,
    sample_generator,
)


@pytest.fixture(scope="module")
def photograph():
    return Image.fromarray(load_sample_image("china.jpg")).resize((500, 375))


def test_evaluation_resizes_the_short_side_and_crops_the_centre(photograph):
    """224 / 0.875 = 256, by MindSpore's PILCUBIC, then the central 224 x 224."""
    resized = vision.Resize(256, Inter.PILCUBIC)(np.asarray(photograph))
    assert resized.shape[:2] == (256, 341)
    top, left = round((256 - 224) / 2), round((341 - 224) / 2)
    expected = resized[top : top + 224, left : left + 224]
    np.testing.assert_array_equal(EvalTransform((224, 224), 0.875, "bicubic")(photograph), expected)


@pytest.mark.parametrize("size", [(224, 224), (96, 160), (8, 8)])
@pytest.mark.parametrize("source", [(500, 375), (375, 500), (8, 8), (1, 300)])
@pytest.mark.parametrize("crop_ratio", [1.0, 0.875, 0.9])
def test_evaluation_gives_the_size_asked_for(size, source, crop_ratio):
    pixels = EvalTransform(size, crop_ratio, "bicubic")(Image.new("RGB", source, (10, 20, 30)))
    assert pixels.shape == (*size, 3)
    assert (pixels == [10, 20, 30]).all()  # nothing was padded


def test_crops_have_the_area_and_aspect_asked_for():
    generator = np.random.default_rng(0)
    areas, aspects, lefts = [], [], []
    for _ in range(20000):
        left, top, right, bottom = random_resized_crop_box(generator, 500, 500, [0.1, 0.6], [0.75, 4 / 3])
        assert 0 <= left < right <= 500
        assert 0 <= top < bottom <= 500
        areas.append((right - left) * (bottom - top) / 500**2)
        aspects.append(np.log((right - left) / (bottom - top)))
        lefts.append(left / max(500 - (right - left), 1))
    # Uniform distributions: means and quartiles.
    np.testing.assert_allclose(np.quantile(areas, [0.25, 0.5, 0.75]), [0.225, 0.35, 0.475], atol=0.01)
    np.testing.assert_allclose(np.quantile(aspects, [0, 0.5, 1]), [np.log(0.75), 0, np.log(4 / 3)], atol=0.02)
    np.testing.assert_allclose(np.mean(lefts), 0.5, atol=0.01)


def test_a_crop_that_cannot_fit_is_the_largest_central_one():
    box = random_resized_crop_box(np.random.default_rng(0), 1000, 10, [1.0, 1.0], [0.75, 4 / 3])
    assert box == (493, 0, 506, 10)


def test_randomness_is_keyed_by_seed_epoch_and_position(photograph):
    def sample(seed, epoch, position):
        return TrainTransform((32, 32), AugmentConfig(), seed)(photograph, epoch, position)

    first = sample(0, 3, 17)
    np.testing.assert_array_equal(first, sample(0, 3, 17))
    for other in (sample(1, 3, 17), sample(0, 4, 17), sample(0, 3, 18)):
        assert not np.array_equal(first, other)
    draws = {sample_generator(s, e, p).random() for s in range(5) for e in range(5) for p in range(5)}
    assert len(draws) == 125


def test_flips_happen_as_often_as_asked():
    ramp = Image.fromarray(np.tile(np.arange(0, 256, 32, dtype=np.uint8), (8, 1)))
    augment = AugmentConfig(scale=[1.0, 1.0], ratio=[1.0, 1.0], hflip=0.3)
    transform = TrainTransform((8, 8), augment, 0)
    flipped = [transform(ramp, 0, position)[0, 0, 0] > 128 for position in range(5000)]
    assert abs(np.mean(flipped) - 0.3) < 0.02
    never = TrainTransform((8, 8), augment.model_copy(update={"hflip": 0.0}), 0)
    assert all(never(ramp, 0, position)[0, 0, 0] == 0 for position in range(100))


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_damaged_files_are_unreadable(content):
    with pytest.raises(UnreadableImage):
        decode(np.frombuffer(content, np.uint8), 3)
