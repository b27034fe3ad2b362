"""What happens to one image."""

import mindspore.dataset.vision as vision
import numpy as np
import pytest
from mindspore.dataset.vision import Inter
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_image

from focal_twins.config.classification import ClassificationAugment
from focal_twins.data.resizing import resize
from focal_twins.data.transforms import (
    EvalTransform,
    TrainTransform,
    draw_color_jitter,
    jitter_colors,
    random_resized_crop_box,
)
from focal_twins.random_streams import Stream, generator


@pytest.fixture(scope="module")
def photograph():
    return np.asarray(Image.fromarray(load_sample_image("china.jpg")).resize((500, 375)))


def test_evaluation_resizes_the_short_side_and_crops_the_centre(photograph):
    """224 / 0.875 = 256, by MindSpore's PILCUBIC, then the central 224 x 224."""
    resized = vision.Resize(256, Inter.PILCUBIC)(photograph)
    assert resized.shape[:2] == (256, 341)
    top, left = round((256 - 224) / 2), round((341 - 224) / 2)
    expected = resized[top : top + 224, left : left + 224]
    np.testing.assert_array_equal(EvalTransform((224, 224), 0.875, "bicubic")(photograph), expected)


@pytest.mark.parametrize("size", [(224, 224), (96, 160), (8, 8)])
@pytest.mark.parametrize("source", [(500, 375), (375, 500), (8, 8), (1, 300)])
@pytest.mark.parametrize("crop_ratio", [1.0, 0.875, 0.9])
def test_evaluation_gives_the_size_asked_for(size, source, crop_ratio):
    pixels = EvalTransform(size, crop_ratio, "bicubic")(np.asarray(Image.new("RGB", source, (10, 20, 30))))
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
        return TrainTransform((32, 32), ClassificationAugment(), seed)(photograph, epoch, position)

    first = sample(0, 3, 17)
    np.testing.assert_array_equal(first, sample(0, 3, 17))
    for other in (sample(1, 3, 17), sample(0, 4, 17), sample(0, 3, 18)):
        assert not np.array_equal(first, other)
    draws = {generator(s, Stream.AUGMENTATION, e, p).random() for s in range(5) for e in range(5) for p in range(5)}
    assert len(draws) == 125


def test_flips_happen_as_often_as_asked():
    ramp = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8, 1)  # grows by 4 to the right and by 32 downwards
    augment = ClassificationAugment(scale=[1.0, 1.0], ratio=[1.0, 1.0], hflip=0.3, vflip=0.6)
    transform = TrainTransform((8, 8), augment, 0)
    corners = np.array([transform(ramp, 0, position)[0, 0, 0] for position in range(20000)])
    shares = [(corners == corner).mean() for corner in (0, 28, 224, 252)]
    np.testing.assert_allclose(shares, [0.7 * 0.4, 0.3 * 0.4, 0.7 * 0.6, 0.3 * 0.6], atol=0.012)
    never = TrainTransform((8, 8), ClassificationAugment(scale=[1.0, 1.0], ratio=[1.0, 1.0], hflip=0.0), 0)
    assert all((never(ramp, 0, position) == ramp).all() for position in range(100))


def test_color_jitter_draws_factors_and_orders_uniformly():
    generator = np.random.default_rng(0)
    drawn = [draw_color_jitter(generator, 0.4) for _ in range(20000)]
    factors = np.array([[factor for _, factor in sorted(steps)] for steps in drawn])
    np.testing.assert_allclose(
        np.quantile(factors, [0, 0.25, 0.5, 0.75, 1], axis=0)[:, 0], [0.6, 0.8, 1, 1.2, 1.4], atol=0.01
    )
    orders = [tuple(name for name, _ in steps) for steps in drawn]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    np.testing.assert_allclose(counts, 20000 / 6, rtol=0.06)
    assert min(factor for factor in (draw_color_jitter(generator, 3.0)[0][1] for _ in range(1000))) >= 0


def test_color_jitter_is_pillows_and_gives_way_to_a_policy(photograph):
    drawn = [("Contrast", 1.3), ("Brightness", 0.7), ("Color", 0.6)]
    image = Image.fromarray(photograph)
    for enhancement, factor in (
        (ImageEnhance.Contrast, 1.3),
        (ImageEnhance.Brightness, 0.7),
        (ImageEnhance.Color, 0.6),
    ):
        image = enhancement(image).enhance(factor)
    np.testing.assert_array_equal(jitter_colors(photograph, drawn), np.asarray(image))

    def sample(**augment):
        return TrainTransform((32, 32), ClassificationAugment(**augment), 0)(photograph, 0, 1)

    assert not np.array_equal(sample(color_jitter=0.4), sample())
    np.testing.assert_array_equal(sample(color_jitter=0.4, auto_augment="v0"), sample(auto_augment="v0"))


def test_the_cooldown_leaves_out_what_it_says(photograph):
    augment = {"auto_augment": "rand-m9-n4-p1", "hflip": 0.0}

    def sample(epoch, **others):
        transform = TrainTransform((32, 32), ClassificationAugment(**augment | others), 0, cooldown_epoch=3)
        return transform(photograph, epoch, 1)

    np.testing.assert_array_equal(sample(2, cooldown="none"), sample(2))
    np.testing.assert_array_equal(
        sample(3), TrainTransform((32, 32), ClassificationAugment(**augment), 0)(photograph, 3, 1)
    )
    np.testing.assert_array_equal(sample(3, cooldown="crop"), sample(3, auto_augment=None))
    np.testing.assert_array_equal(sample(3, cooldown="none"), EvalTransform((32, 32), 1.0, "bicubic")(photograph))


def test_interpolation_can_be_random(photograph):
    augment = ClassificationAugment(scale=[1, 1], ratio=[4 / 3, 4 / 3], hflip=0, interpolation="random")
    transform = TrainTransform((32, 32), augment, 0)
    bilinear, bicubic = (resize(photograph, (32, 32), r) for r in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC))
    kinds = [np.array_equal(sample, bicubic) for sample in (transform(photograph, 0, i) for i in range(400))]
    assert abs(np.mean(kinds) - 0.5) < 0.1
    assert all(np.array_equal(transform(photograph, 0, i), bicubic if kinds[i] else bilinear) for i in range(400))
