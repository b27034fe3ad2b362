"""Mixup and cutmix against their definition, and against a plain loop."""

import math

import numpy as np
import pytest

from focal_twins.config.classification import ClassificationAugment
from focal_twins.data.mixup import (
    Mixing,
    draw_box,
    draw_minmax_box,
    draw_mixing,
    is_mixing_enabled,
    mix_images,
    mix_targets,
    soft_targets,
)

DRAWS = 20000


def test_smoothed_targets():
    targets = soft_targets(np.array([2, 0]), 4, 0.1)
    np.testing.assert_allclose(targets, [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]])


def draw(count, batch=2, size=(224, 192), **augment):
    generator = np.random.default_rng(0)
    return [draw_mixing(generator, ClassificationAugment(**augment), batch, *size) for _ in range(count)]


def test_draws_of_the_original_recipe():
    """mixup 0.8 and cutmix 1.0, half of the batches each: Beta(0.8, 0.8), and boxes of uniform area before clipping."""
    drawn = draw(DRAWS, mixup=0.8, cutmix=1.0)
    cut = np.array([mixing.cut[0] for mixing in drawn])
    assert abs(cut.mean() - 0.5) < 0.012
    mixed = np.array([mixing.share[0] for mixing in drawn if not mixing.cut[0]])
    reference = np.random.default_rng(1).beta(0.8, 0.8, 10**6)
    quantiles = [0.05, 0.25, 0.5, 0.75, 0.95]
    np.testing.assert_allclose(np.quantile(mixed, quantiles), np.quantile(reference, quantiles), atol=0.02)
    assert all(mixing.share[0] == mixing.share[1] for mixing in drawn)
    for mixing in drawn:
        if mixing.cut[0]:
            top, bottom, left, right = mixing.boxes[0]
            assert mixing.share[0] == 1 - (bottom - top) * (right - left) / (224 * 192)


def test_boxes_are_clipped_squares_about_a_uniform_centre():
    generator = np.random.default_rng(0)
    share = 0.75  # half of the sides
    boxes = np.array([draw_box(generator, 224, 192, share) for _ in range(DRAWS)])
    top, bottom, left, right = boxes.T
    assert boxes.min() == 0
    assert bottom.max() == 224
    assert right.max() == 192
    assert (bottom - top).max() == 112
    assert (right - left).max() == 96
    # The centre is uniform: the top is cut off where it is in the first quarter, for half the box is as high.
    assert abs((top == 0).mean() - 57 / 224) < 0.012
    assert abs((right == 192).mean() - 48 / 192) < 0.012
    uncut = (top > 0) & (bottom < 224)
    np.testing.assert_allclose(np.quantile(((top + bottom) / 2)[uncut], [0, 0.5, 1]), [57, 112, 167], atol=2)


def test_minmax_boxes_lie_inside():
    generator = np.random.default_rng(0)
    boxes = np.array([draw_minmax_box(generator, 200, 100, [0.2, 0.8]) for _ in range(DRAWS)])
    top, bottom, left, right = boxes.T
    for start, end, side in ((top, bottom, 200), (left, right, 100)):
        shares = (end - start) / side
        np.testing.assert_allclose(np.quantile(shares, [0, 0.25, 0.5, 0.75, 1]), [0.2, 0.35, 0.5, 0.65, 0.8], atol=0.02)
        assert start.min() == 0
        assert end.max() == side
        places = start / (side - (end - start))
        assert abs(places.mean() - 0.5) < 0.01
    (mixing,) = draw(1, cutmix_minmax=[0.2, 0.8])
    assert mixing.cut.all()


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_modes_share_their_draws_as_they_say(mode):
    drawn = draw(200, batch=7, mixup=1.0, cutmix=1.0, mixup_mode=mode)
    for mixing in drawn:
        assert mixing.share.shape == mixing.cut.shape == (7,)
        assert mixing.boxes.shape == (7, 4)
    same_as_partner = np.mean([mixing.share[0] == mixing.share[6] for mixing in drawn])
    same_as_next = np.mean([mixing.share[0] == mixing.share[1] for mixing in drawn])
    assert (same_as_partner > 0.99) == (mode != "elem")
    assert (same_as_next > 0.99) == (mode == "batch")


def test_probabilities():
    drawn = draw(DRAWS, mixup=1.0, cutmix=1.0, mixup_prob=0.3, switch_prob=0.8, mixup_mode="elem")
    share = np.concatenate([mixing.share for mixing in drawn])
    cut = np.concatenate([mixing.cut for mixing in drawn])
    mixed = cut | (share < 1)
    assert abs(mixed.mean() - 0.3) < 0.01
    assert abs(cut[mixed].mean() - 0.8) < 0.015
    assert all(mixing.cut.all() for mixing in draw(100, cutmix=1.0))  # cutmix alone needs no coin
    assert not any(mixing.cut.any() for mixing in draw(100, mixup=1.0))


def test_nothing_on_mixes_nothing():
    assert not is_mixing_enabled(ClassificationAugment())
    assert not is_mixing_enabled(ClassificationAugment(mixup=0.8, mixup_prob=0.0))
    assert is_mixing_enabled(ClassificationAugment(cutmix=1.0))
    (mixing,) = draw(1)
    images = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    expected = images.copy()
    mix_images(images, mixing)
    np.testing.assert_array_equal(images, expected)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("batch", [1, 6, 7])
def test_mixing_equals_a_plain_loop(mode, batch):
    generator = np.random.default_rng(0)
    augment = ClassificationAugment(mixup=0.8, cutmix=1.0, mixup_prob=0.8, mixup_mode=mode)
    labels = generator.integers(0, 5, batch)
    for _ in range(30):
        mixing = draw_mixing(generator, augment, batch, 10, 12)
        originals = generator.standard_normal((batch, 3, 10, 12)).astype(np.float32)
        images = originals.copy()
        mix_images(images, mixing)
        targets = mix_targets(soft_targets(labels, 5, 0.1), mixing)
        for i in range(batch):
            partner = originals[batch - 1 - i]
            share = float(mixing.share[i])
            if mixing.cut[i]:
                expected = originals[i].copy()
                for y in range(10):
                    for x in range(12):
                        top, bottom, left, right = mixing.boxes[i]
                        if top <= y < bottom and left <= x < right:
                            expected[:, y, x] = partner[:, y, x]
            else:
                expected = share * originals[i] + (1 - share) * partner
            np.testing.assert_allclose(images[i], expected, atol=1e-6)
            target = np.full(5, 0.02)
            target[labels[i]] += 0.9 * share
            target[labels[batch - 1 - i]] += 0.9 * (1 - share)
            np.testing.assert_allclose(targets[i], target, atol=1e-6)
            assert math.isclose(targets[i].sum(), 1, rel_tol=1e-5)


def test_a_box_of_nothing_changes_nothing():
    images = np.arange(32, dtype=np.float32).reshape(2, 1, 4, 4)
    expected = images.copy()
    mix_images(images, Mixing(np.array([0.9, 0.9]), np.array([[2, 2, 0, 4]] * 2), np.array([True, True])))
    np.testing.assert_array_equal(images, expected)
