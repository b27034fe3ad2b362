"""Augments images by RandAugment (arXiv 1909.13719) and AutoAugment (arXiv 1805.09501).

Policies are written as the usual strings, such as rand-m9-mstd0.5-inc1, and mean what they mean in timm
(auto_augment.py), by which the original recipes are defined. A policy first draws its operations and then applies them:
`draw` is a pure function of the generator, and `apply` of the image. Operations work on [H, W, 3] uint8 arrays. Each is
the fastest of NumPy, MindSpore's C++ operators and Pillow that stays within one grey level of Pillow.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from mindspore.dataset import vision
from PIL import Image, ImageEnhance, ImageOps

from focal_twins.data.axis_shift import shear, translate

DENOMINATOR = 10  # magnitudes are tenths of an operation's range
GREYS = np.uint8(255)


class PolicyError(ValueError):
    """Says that a policy string means nothing; the message names the part."""


class Geometry(NamedTuple):
    """Holds the filter and the fill colour of operations that move pixels."""

    resample: Image.Resampling
    fill: tuple[int, int, int]  # colour of pixels that come in from outside the image


class Step(NamedTuple):
    """Holds one drawn operation."""

    name: str
    argument: float | None  # degrees, factor, share of the side, threshold...; None where there is none
    resample: Image.Resampling


# Functions of (level, generator) that turn a magnitude into an operation's argument. A random sign is negative in half
# of the cases.


def signed(greatest: float) -> Callable:
    """Return a function that gives the level's share of the greatest value (whole at level 10) with a random sign."""
    return lambda level, generator: _random_sign(level / DENOMINATOR * greatest, generator)


def _random_sign(value, generator):
    return -value if generator.random() < 0.5 else value


def enhancement(level, generator):
    """Return the enhancement factor of a level: from 0.1 (a tenth of the original) at level 0 to 1.9 at level 10."""
    return level / DENOMINATOR * 1.8 + 0.1


def increasing_enhancement(level, generator):
    """Return an enhancement factor that moves away from 1 with the level, up or down at random; at least 0.1."""
    return max(0.1, 1 + _random_sign(level / DENOMINATOR * 0.9, generator))


def scaled(greatest: int, limit: float = math.inf) -> Callable:
    """Return a function that gives whole numbers up to the greatest at level 10, never above the limit."""
    return lambda level, generator: min(limit, int(level / DENOMINATOR * greatest))


def posterize_original_bits(level, generator):
    """Return the number of bits to keep: 4 at level 0, all 8 at level 10."""
    return int(level / DENOMINATOR * 4) + 4


def posterize_increasing_bits(level, generator):
    """Return the number of bits to keep: 4 at level 0, none at level 10."""
    return 4 - int(level / DENOMINATOR * 4)


def increasing_solarize_threshold(level, generator):
    """Return the threshold: from 256 (nothing is inverted) at level 0 to 0 (everything is) at level 10."""
    return 256 - min(256, int(level / DENOMINATOR * 256))


# Operations take pixels [H, W, 3] uint8, the argument and the geometry, and return pixels.


def with_pillow(operation: Callable[[Image.Image, float, Geometry], Image.Image]) -> Callable:
    """Turn an operation on Pillow images into one on arrays."""
    return lambda pixels, argument, geometry: np.asarray(operation(Image.fromarray(pixels), argument, geometry))


def invert(pixels, argument, geometry):
    return ~pixels


def posterize(pixels, bits, geometry):
    """Keep the highest bits of every value; a negative number of bits means none."""
    kept = min(max(bits, 0), 8)
    return pixels & np.uint8(256 - 2 ** (8 - kept))


def solarize(pixels, threshold, geometry):
    """Invert the values from the threshold on."""
    return pixels ^ (GREYS * (pixels >= threshold))


def solarize_add(pixels, addend, geometry):
    """Add to the values below 128, up to white."""
    return pixels + np.minimum(np.uint8(addend) * (pixels < 128), ~pixels)


def auto_contrast(pixels, argument, geometry):
    return vision.AutoContrast()(pixels)


def brightness(pixels, factor, geometry):
    return vision.AdjustBrightness(factor)(pixels)


def contrast(pixels, factor, geometry):
    return vision.AdjustContrast(factor)(pixels)


def sharpness(pixels, factor, geometry):
    return vision.AdjustSharpness(factor)(pixels)


# MindSpore's saturation is up to two levels off, because it rounds twice, and its equalization is another function.
saturation = with_pillow(lambda image, factor, _: ImageEnhance.Color(image).enhance(factor))
equalize = with_pillow(lambda image, *_: ImageOps.equalize(image))
rotate = with_pillow(lambda image, degrees, g: image.rotate(degrees, g.resample, fillcolor=g.fill))


def shear_x(pixels, factor, geometry):
    return shear(pixels, factor, 1, *geometry)


def shear_y(pixels, factor, geometry):
    return shear(pixels, factor, 0, *geometry)


def translate_x(pixels, share, geometry):
    return translate(pixels, share * pixels.shape[1], 1, *geometry)


def translate_y(pixels, share, geometry):
    return translate(pixels, share * pixels.shape[0], 0, *geometry)


class Operation(NamedTuple):
    """Says how a magnitude becomes an argument (None: there is none), and how the operation is applied."""

    argument: Callable[[float, np.random.Generator], float] | None
    apply: Callable[[np.ndarray, Any, Geometry], np.ndarray]


OPERATIONS = {
    "AutoContrast": Operation(None, auto_contrast),
    "Equalize": Operation(None, equalize),
    "Invert": Operation(None, invert),
    "Rotate": Operation(signed(30.0), rotate),
    "Posterize": Operation(scaled(4), posterize),
    "PosterizeIncreasing": Operation(posterize_increasing_bits, posterize),
    "PosterizeOriginal": Operation(posterize_original_bits, posterize),
    "Solarize": Operation(scaled(256, 256), solarize),
    "SolarizeIncreasing": Operation(increasing_solarize_threshold, solarize),
    "SolarizeAdd": Operation(scaled(110, 128), solarize_add),
    "Color": Operation(enhancement, saturation),
    "ColorIncreasing": Operation(increasing_enhancement, saturation),
    "Contrast": Operation(enhancement, contrast),
    "ContrastIncreasing": Operation(increasing_enhancement, contrast),
    "Brightness": Operation(enhancement, brightness),
    "BrightnessIncreasing": Operation(increasing_enhancement, brightness),
    "Sharpness": Operation(enhancement, sharpness),
    "SharpnessIncreasing": Operation(increasing_enhancement, sharpness),
    "ShearX": Operation(signed(0.3), shear_x),
    "ShearY": Operation(signed(0.3), shear_y),
    "TranslateXRel": Operation(signed(0.45), translate_x),
    "TranslateYRel": Operation(signed(0.45), translate_y),
}

# The operations that RandAugment chooses from. With inc1, those that have an "Increasing" form take it: their effect
# grows with the magnitude.
RANDOM = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast",
    "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel",
)  # fmt: skip
RANDOM_INCREASING = tuple(f"{name}Increasing" if f"{name}Increasing" in OPERATIONS else name for name in RANDOM)
# The set of "tweights", with relative frequencies: mostly geometry.
RANDOM_WEIGHTED = {
    "Rotate": 3, "ShearX": 2, "ShearY": 2, "TranslateXRel": 1, "TranslateYRel": 1, "ColorIncreasing": 0.25,
    "SharpnessIncreasing": 0.25, "AutoContrast": 0.25, "SolarizeIncreasing": 0.05, "SolarizeAdd": 0.05,
    "ContrastIncreasing": 0.05, "BrightnessIncreasing": 0.05, "Equalize": 0.05, "PosterizeIncreasing": 0.05,
    "Invert": 0.05,
}  # fmt: skip

# AutoAugment's sub-policies: pairs of (operation, probability, magnitude), of which an image gets one pair.
# "original" is table 9 of the paper; "v0" that of TensorFlow's TPU code.
AUTO_POLICIES = {
    "original": """
        PosterizeOriginal 0.4 8  Rotate 0.6 9            | Solarize 0.6 5  AutoContrast 0.6 5
        Equalize 0.8 8  Equalize 0.6 3                   | PosterizeOriginal 0.6 7  PosterizeOriginal 0.6 6
        Equalize 0.4 7  Solarize 0.2 4                   | Equalize 0.4 4  Rotate 0.8 8
        Solarize 0.6 3  Equalize 0.6 7                   | PosterizeOriginal 0.8 5  Equalize 1.0 2
        Rotate 0.2 3  Solarize 0.6 8                     | Equalize 0.6 8  PosterizeOriginal 0.4 6
        Rotate 0.8 8  Color 0.4 0                        | Rotate 0.4 9  Equalize 0.6 2
        Equalize 0.0 7  Equalize 0.8 8                   | Invert 0.6 4  Equalize 1.0 8
        Color 0.6 4  Contrast 1.0 8                      | Rotate 0.8 8  Color 1.0 2
        Color 0.8 8  Solarize 0.8 7                      | Sharpness 0.4 7  Invert 0.6 8
        ShearX 0.6 5  Equalize 1.0 9                     | Color 0.4 0  Equalize 0.6 3
        Equalize 0.4 7  Solarize 0.2 4                   | Solarize 0.6 5  AutoContrast 0.6 5
        Invert 0.6 4  Equalize 1.0 8                     | Color 0.6 4  Contrast 1.0 8
        Equalize 0.8 8  Equalize 0.6 3
    """,
    "v0": """
        Equalize 0.8 1  ShearY 0.8 4                     | Color 0.4 9  Equalize 0.6 3
        Color 0.4 1  Rotate 0.6 8                        | Solarize 0.8 3  Equalize 0.4 7
        Solarize 0.4 2  Solarize 0.6 2                   | Color 0.2 0  Equalize 0.8 8
        Equalize 0.4 8  SolarizeAdd 0.8 3                | ShearX 0.2 9  Rotate 0.6 8
        Color 0.6 1  Equalize 1.0 2                      | Invert 0.4 9  Rotate 0.6 0
        Equalize 1.0 9  ShearY 0.6 3                     | Color 0.4 7  Equalize 0.6 0
        Posterize 0.4 6  AutoContrast 0.4 7              | Solarize 0.6 8  Color 0.6 9
        Solarize 0.2 4  Rotate 0.8 9                     | Rotate 1.0 7  TranslateYRel 0.8 9
        ShearX 0.0 0  Solarize 0.8 4                     | ShearY 0.8 0  Color 0.6 4
        Color 1.0 0  Rotate 0.6 2                        | Equalize 0.8 4  Equalize 0.0 8
        Equalize 1.0 4  AutoContrast 0.6 2               | ShearY 0.4 7  SolarizeAdd 0.6 7
        Posterize 0.8 2  Solarize 0.6 10                 | Solarize 0.6 8  Equalize 0.6 1
        Color 0.8 6  Rotate 0.4 5
    """,
}


def sub_policies(name: str) -> tuple[tuple[tuple[str, float, float], ...], ...]:
    """Parse the sub-policies of an AutoAugment policy into tuples of (operation, probability, magnitude)."""
    pairs = [pair.split() for line in AUTO_POLICIES[name].strip().splitlines() for pair in line.split("|")]
    return tuple(
        tuple((words[i], float(words[i + 1]), float(words[i + 2])) for i in range(0, len(words), 3)) for words in pairs
    )


@dataclass(frozen=True)
class Policy:
    """Draws operations for an image and applies them; RandAugment and AutoAugment are its two kinds.

    Attributes:
        std: standard deviation of the magnitude about its mean; infinite: uniform from 0 to the magnitude.
        limit: magnitudes are clipped to [0, limit].
        resample: filters of which geometric operations draw one.
        fill: colour of pixels that come in from outside the image.
    """

    std: float = 0.0
    limit: float = DENOMINATOR
    resample: tuple[Image.Resampling, ...] = (Image.Resampling.BICUBIC,)
    fill: tuple[int, int, int] = (128, 128, 128)

    def step(self, generator: np.random.Generator, name: str, probability: float, magnitude: float) -> list[Step]:
        """Draw the argument of an operation; return it as a list of one step, or an empty list if the coin says no."""
        if generator.random() >= probability:
            return []
        if math.isinf(self.std):
            magnitude = generator.uniform(0, magnitude)
        elif self.std > 0:
            magnitude = generator.normal(magnitude, self.std)
        argument = OPERATIONS[name].argument
        level = min(max(magnitude, 0.0), self.limit)
        value = None if argument is None else argument(level, generator)
        filters = self.resample
        return [Step(name, value, filters[generator.integers(len(filters))] if len(filters) > 1 else filters[0])]

    def draw(self, generator: np.random.Generator) -> list[Step]:
        """Draw the operations for one image."""
        raise NotImplementedError

    def apply(self, pixels: np.ndarray, steps: list[Step]) -> np.ndarray:
        """Apply the drawn operations to pixels [H, W, C] uint8. Grey images (C = 1) are treated as colourless ones."""
        if not steps:
            return pixels
        channels = pixels.shape[-1]
        if channels == 1:
            pixels = np.repeat(pixels, 3, axis=-1)
        for step in steps:
            pixels = OPERATIONS[step.name].apply(pixels, step.argument, Geometry(step.resample, self.fill))
        return pixels[..., :channels]

    def __call__(self, pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return self.apply(pixels, self.draw(generator))


@dataclass(frozen=True)
class RandAugment(Policy):
    """Applies `layers` operations in a row, each drawn from the whole set and applied with a probability.

    Without weights an operation may come twice; with weights (as in timm) it may not.
    """

    operations: tuple[str, ...] = RANDOM
    weights: tuple[float, ...] | None = None
    layers: int = 2
    probability: float = 0.5
    magnitude: float = 10.0

    def draw(self, generator):
        if self.weights is None:
            chosen = generator.integers(len(self.operations), size=self.layers)
        else:
            shares = np.array(self.weights) / sum(self.weights)
            chosen = generator.choice(len(self.operations), size=self.layers, replace=False, p=shares)
        steps = [self.step(generator, self.operations[i], self.probability, self.magnitude) for i in chosen]
        return [step for drawn in steps for step in drawn]


@dataclass(frozen=True)
class AutoAugment(Policy):
    """Draws one of the sub-policies and applies its operations in a row, each with its own probability."""

    policies: tuple[tuple[tuple[str, float, float], ...], ...] = ()

    def draw(self, generator):
        chosen = self.policies[generator.integers(len(self.policies))]
        return [step for operation in chosen for step in self.step(generator, *operation)]


def parse_policy(text: str, resample=(Image.Resampling.BICUBIC,), fill=(128, 128, 128)) -> Policy:
    """Parse a policy string such as rand-m9-mstd0.5-inc1.

    `rand` may be followed by m (magnitude, default 10), n (operations per image, 2), p (probability of each, 0.5), mstd
    (standard deviation of the magnitude, 0; above 100: uniform from 0 to m), mmax (its limit, 10), inc (1: operations
    that grow with the magnitude) and tweights (mostly geometry); `original` and `v0` by mstd.

    Raises:
        PolicyError: an unknown policy or part.
    """
    kind, *parts = text.split("-")
    geometry: dict[str, Any] = {"resample": tuple(resample), "fill": tuple(fill)}
    if kind in AUTO_POLICIES:
        values = _parse_parts(text, parts, {"mstd": float})
        return AutoAugment(std=values.get("mstd", 0.0), policies=sub_policies(kind), **geometry)
    if kind != "rand":
        raise PolicyError(f"{text!r}: unknown policy {kind!r}; known: rand-..., {', '.join(AUTO_POLICIES)}")
    weighted = "tweights" in parts
    types = {"m": float, "n": int, "p": float, "mstd": float, "mmax": float, "inc": int}
    values = _parse_parts(text, [part for part in parts if part != "tweights"], types)
    if not 0 <= values.get("p", 0.5) <= 1:
        raise PolicyError(f"{text!r}: p is a probability, from 0 to 1")
    for key in ("n", "mmax"):
        if values.get(key) == 0:
            raise PolicyError(f"{text!r}: {key} must be above 0; null is no policy")
    operations = RANDOM_INCREASING if values.get("inc") else RANDOM
    if weighted and values.get("n", 2) > len(RANDOM_WEIGHTED):
        raise PolicyError(f"{text!r}: tweights has {len(RANDOM_WEIGHTED)} operations, which come once each")
    std = values.get("mstd", 0.0)
    return RandAugment(
        std=math.inf if std > 100 else std,
        limit=values.get("mmax", DENOMINATOR),
        operations=tuple(RANDOM_WEIGHTED) if weighted else operations,
        weights=tuple(RANDOM_WEIGHTED.values()) if weighted else None,
        layers=int(values.get("n", 2)),
        probability=values.get("p", 0.5),
        magnitude=values.get("m", 10.0),
        **geometry,
    )


def _parse_parts(text: str, parts: list[str], types: dict[str, type]) -> dict[str, float]:
    """Parse the parts of a policy string: ["m9"] becomes {"m": 9.0}."""
    values = {}
    for part in parts:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?|inf)", part)
        known = ", ".join([*types, "tweights"] if "m" in types else types)
        if match is None or match[1] not in types:
            raise PolicyError(f"{text!r}: unknown part {part!r}; known, each followed by a number: {known}")
        if match[1] in values:
            raise PolicyError(f"{text!r}: {match[1]} appears twice")
        try:
            values[match[1]] = types[match[1]](match[2])
        except ValueError as error:
            raise PolicyError(f"{text!r}: {match[1]} must be a whole number, got {match[2]}") from error
    return values
