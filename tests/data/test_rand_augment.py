"""RandAugment and AutoAugment: operations against Pillow, draws against their definition."""

import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_image

from focal_twins.data.rand_augment import (
    OPERATIONS,
    RANDOM_INCREASING,
    RANDOM_WEIGHTED,
    Geometry,
    PolicyError,
    parse_policy,
    sub_policies,
)

DRAWS = 20000
FILL = (124, 116, 104)
BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR


def affine(matrix):
    return lambda image: image.transform(image.size, Image.Transform.AFFINE, matrix, BICUBIC, fillcolor=FILL)


def solarized_with(added):
    return [min(255, level + added) if level < 128 else level for level in range(256)]


# Operation, argument, and the same in Pillow's own words.
CASES = [
    ("AutoContrast", None, ImageOps.autocontrast),
    ("Equalize", None, ImageOps.equalize),
    ("Invert", None, ImageOps.invert),
    ("Rotate", -23.4, lambda image: image.rotate(-23.4, BICUBIC, fillcolor=FILL)),
    ("PosterizeIncreasing", 0, lambda image: image.point(lambda value: 0)),  # Pillow 13 refuses to keep nothing
    *[("PosterizeIncreasing", bits, lambda image, bits=bits: ImageOps.posterize(image, bits)) for bits in (1, 3, 4, 8)],
    *[("Solarize", t, lambda image, t=t: ImageOps.solarize(image, t)) for t in (0, 26, 128, 256)],
    *[("SolarizeAdd", add, lambda image, add=add: image.point(solarized_with(add) * 3)) for add in (0, 99, 128)],
    *[
        (name, factor, lambda image, kind=name, factor=factor: getattr(ImageEnhance, kind)(image).enhance(factor))
        for name in ("Color", "Contrast", "Brightness", "Sharpness")
        for factor in (0.1, 0.19, 0.5, 1.0, 1.3, 1.81, 1.9)
    ],
    *[("ShearX", f, affine((1, f, 0, 0, 1, 0))) for f in (0.27, -0.3, 0.0, 1.7)],
    *[("ShearY", f, affine((1, 0, 0, f, 1, 0))) for f in (0.27, -0.3)],
    *[("TranslateXRel", s, affine((1, 0, s * 224, 0, 1, 0))) for s in (0.405, -0.1, 0.25, 0.0, -0.45, 1.2)],
    *[("TranslateYRel", s, affine((1, 0, 0, 0, 1, s * 192))) for s in (0.405, -0.1)],
]  # fmt: skip


@pytest.fixture(scope="module")
def photographs():
    """Real photographs, one of low contrast; 224 wide and 192 high."""
    images = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    images = [image.resize((224, 192), BICUBIC) for image in images]
    return [*images, ImageEnhance.Contrast(images[0]).enhance(0.3)]


@pytest.mark.parametrize(
    ("name", "argument", "pillow"), CASES, ids=[f"{name} {argument}" for name, argument, _ in CASES]
)
def test_operations_are_pillows_within_one_grey_level(photographs, name, argument, pillow):
    for image in photographs:
        original = np.asarray(image).copy()
        result = OPERATIONS[name].apply(np.asarray(image), argument, Geometry(BICUBIC, FILL))
        assert result.dtype == np.uint8
        difference = np.abs(result.astype(int) - np.asarray(pillow(image)))
        assert difference.max() <= 1
        np.testing.assert_array_equal(np.asarray(image), original)


@pytest.mark.parametrize("name", ["ShearX", "ShearY", "TranslateXRel", "TranslateYRel"])
def test_bilinear_geometry_is_pillows_too(photographs, name):
    matrices = {
        "ShearX": (1, 0.2, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, 0.2, 1, 0),
        "TranslateXRel": (1, 0, 0.2 * 224, 0, 1, 0),
        "TranslateYRel": (1, 0, 0, 0, 1, 0.2 * 192),
    }
    image = photographs[0]
    expected = image.transform(image.size, Image.Transform.AFFINE, matrices[name], BILINEAR, fillcolor=FILL)
    result = OPERATIONS[name].apply(np.asarray(image), 0.2, Geometry(BILINEAR, FILL))
    assert np.abs(result.astype(int) - np.asarray(expected)).max() <= 1


def test_every_operation_was_held_against_pillow():
    applied = {OPERATIONS[name].apply for name, _, _ in CASES}
    assert {operation.apply for operation in OPERATIONS.values()} == applied


@pytest.mark.parametrize(
    ("name", "level", "values"),
    [
        ("Rotate", 9, {27.0, -27.0}),
        ("PosterizeIncreasing", 9, {1}),
        ("PosterizeIncreasing", 0, {4}),
        ("Posterize", 9, {3}),
        ("PosterizeOriginal", 8, {7}),
        ("Solarize", 3, {76}),
        ("SolarizeIncreasing", 9, {26}),
        ("SolarizeIncreasing", 0, {256}),
        ("SolarizeAdd", 9, {99}),
        ("SolarizeAdd", 20, {128}),
        ("ColorIncreasing", 9, {1.81, 0.19}),
        ("BrightnessIncreasing", 20, {2.8, 0.1}),
        ("Contrast", 8, {1.54}),
        ("Sharpness", 0, {0.1}),
        ("ShearX", 5, {0.15, -0.15}),
        ("TranslateYRel", 10, {0.45, -0.45}),
    ],
)
def test_magnitudes_mean_what_the_definition_says(name, level, values):
    generator = np.random.default_rng(0)
    drawn = [OPERATIONS[name].argument(level, generator) for _ in range(DRAWS)]
    shares = {round(value, 9): count / DRAWS for value, count in Counter(drawn).items()}
    assert set(shares) == values
    assert all(abs(share - 1 / len(values)) < 0.015 for share in shares.values())


def level_of(step):
    """The magnitude behind a rotation, shear or translation."""
    return abs(step.argument) * 10 / {"Rotate": 30, "ShearX": 0.3, "ShearY": 0.3}.get(step.name, 0.45)


GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")


def test_draws_of_the_original_recipe():
    """rand-m9-mstd0.5-inc1: two of fifteen with replacement, each half of the time, magnitudes N(9, 0.5) up to 10."""
    policy = parse_policy("rand-m9-mstd0.5-inc1", (BILINEAR, BICUBIC))
    generator = np.random.default_rng(0)
    draws = [policy.draw(generator) for _ in range(DRAWS)]
    lengths = Counter(map(len, draws))
    np.testing.assert_allclose([lengths[n] / DRAWS for n in range(3)], [0.25, 0.5, 0.25], atol=0.012)
    names = Counter(step.name for steps in draws for step in steps)
    assert set(names) == set(RANDOM_INCREASING)
    np.testing.assert_allclose([names[name] / DRAWS for name in RANDOM_INCREASING], 1 / 15, atol=0.008)
    twice = np.mean([len(steps) == 2 and steps[0].name == steps[1].name for steps in draws])
    assert abs(twice - 0.25 / 15) < 0.004
    levels = np.array([level_of(step) for steps in draws for step in steps if step.name in GEOMETRIC])
    # Quantiles of the clipped normal distribution: the 2.3% above 10 are at 10.
    np.testing.assert_allclose(np.quantile(levels, [0.159, 0.5, 0.841]), [8.5, 9, 9.5], atol=0.04)
    assert levels.max() <= 10 + 1e-9
    assert abs((levels > 9.9999).mean() - 0.0228) < 0.006
    signs = [step.argument > 0 for steps in draws for step in steps if step.name in GEOMETRIC]
    assert abs(np.mean(signs) - 0.5) < 0.02
    assert abs(np.mean([step.resample == BICUBIC for steps in draws for step in steps]) - 0.5) < 0.02


def test_draws_with_weights_are_without_replacement():
    policy = parse_policy("rand-m9-n3-p0.8-tweights")
    generator = np.random.default_rng(0)
    draws = [policy.draw(generator) for _ in range(DRAWS)]
    assert all(len({step.name for step in steps}) == len(steps) for steps in draws)
    assert abs(np.mean([len(steps) for steps in draws]) - 3 * 0.8) < 0.02
    first = Counter(steps[0].name for steps in draws if len(steps) == 3)
    total = sum(RANDOM_WEIGHTED.values())
    shares = [first[name] / sum(first.values()) for name in RANDOM_WEIGHTED]
    np.testing.assert_allclose(shares, [weight / total for weight in RANDOM_WEIGHTED.values()], atol=0.015)


@pytest.mark.parametrize(
    ("text", "low", "middle", "high"), [("rand-m8-mstdinf", 0, 4, 8), ("rand-m8-mstd101-p1", 0, 4, 8)]
)
def test_magnitudes_can_be_uniform(text, low, middle, high):
    policy = parse_policy(text)
    generator = np.random.default_rng(0)
    steps = [step for _ in range(DRAWS) for step in policy.draw(generator)]
    levels = [level_of(step) for step in steps if step.name in GEOMETRIC]
    np.testing.assert_allclose(np.quantile(levels, [0, 0.5, 1]), [low, middle, high], atol=0.15)


@pytest.mark.parametrize("name", ["original", "v0"])
def test_draws_of_autoaugment(name):
    """Each of 25 pairs as often as another; within it, each operation with its own probability and magnitude."""
    pairs = sub_policies(name)
    assert len(pairs) == 25
    assert all(len(pair) == 2 and all(operation in OPERATIONS for operation, _, _ in pair) for pair in pairs)
    policy = parse_policy(name)
    generator = np.random.default_rng(0)
    names = Counter(step.name for _ in range(DRAWS) for step in policy.draw(generator))
    expected = Counter()
    for pair in pairs:
        for operation, probability, _ in pair:
            expected[operation] += probability / 25
    for operation, share in expected.items():
        assert abs(names[operation] / DRAWS - share) < 0.015, operation
    arguments = {abs(s.argument) for _ in range(2000) for s in policy.draw(generator) if s.name == "Rotate"}
    magnitudes = {magnitude for pair in pairs for operation, _, magnitude in pair if operation == "Rotate"}
    assert arguments == {magnitude * 3 for magnitude in magnitudes}


def test_figures_of_the_policies():
    """Some entries against the publications, and one of the last."""
    original, v0 = sub_policies("original"), sub_policies("v0")
    assert original[0] == (("PosterizeOriginal", 0.4, 8.0), ("Rotate", 0.6, 9.0))
    assert original[-1] == (("Equalize", 0.8, 8.0), ("Equalize", 0.6, 3.0))
    assert v0[15] == (("Rotate", 1.0, 7.0), ("TranslateYRel", 0.8, 9.0))
    assert v0[-1] == (("Color", 0.8, 6.0), ("Rotate", 0.4, 5.0))


def test_strings_are_parsed():
    policy = parse_policy("rand-m7-n3-p0.25-mstd1.5-mmax12-inc1", fill=FILL)
    assert (policy.magnitude, policy.layers, policy.probability, policy.std, policy.limit) == (7, 3, 0.25, 1.5, 12)
    assert policy.operations == RANDOM_INCREASING
    default = parse_policy("rand")
    assert (default.magnitude, default.layers, default.probability, default.std, default.limit) == (10, 2, 0.5, 0, 10)
    assert "Posterize" in default.operations
    assert parse_policy("original-mstd0.5").std == 0.5
    assert math.isinf(parse_policy("rand-mstd101").std)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("randaugment", "unknown policy 'randaugment'; known: rand-..., original, v0"),
        ("rand-m9-x3", "unknown part 'x3'"),
        ("rand-m", "unknown part 'm'"),
        ("rand-m9-m8", "m appears twice"),
        ("rand-n2.5", "n must be a whole number, got 2.5"),
        ("rand-p2", "p is a probability"),
        ("rand-n16-tweights", "tweights has 15 operations"),
        ("original-m9", "unknown part 'm9'; known, each followed by a number: mstd"),
    ],
)
def test_meaningless_strings_are_refused(text, expected):
    with pytest.raises(PolicyError, match=expected) as error:
        parse_policy(text)
    assert text in str(error.value)


def test_grey_images_are_treated_as_colourless_ones(photographs):
    grey = np.asarray(photographs[0].convert("L"))
    policy = parse_policy("rand-m9-n4-p1-mstd0.5-inc1", fill=(100, 100, 100))
    for seed in range(20):
        one = policy(grey[:, :, None], np.random.default_rng(seed))
        three = policy(np.repeat(grey[:, :, None], 3, axis=2), np.random.default_rng(seed))
        assert one.shape == (192, 224, 1)
        np.testing.assert_array_equal(one[:, :, 0], three[:, :, 0])
