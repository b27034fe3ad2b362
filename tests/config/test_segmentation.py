"""Sections of segmentation: which values fit each other, and what is said where they do not."""

from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from focal_twins.config.load import ConfigError, load_config
from focal_twins.config.segmentation import (
    SegmentationAugment,
    SegmentationData,
    SegmentationEval,
    SegmentationLoss,
    check_segmentation,
)


def check(num_classes=150, in_chans=3, evaluation=None, **data):
    """Check sections around a network of so many classes, on a backbone of so many channels."""
    check_segmentation(
        SimpleNamespace(
            backbone=SimpleNamespace(resolved=lambda: {"in_chans": in_chans, "img_size": [64, 96]}),
            model=SimpleNamespace(resolved=lambda: {"num_classes": num_classes}),
            data=SegmentationData(**data),
            augment=SegmentationAugment(),
            eval=SegmentationEval(**(evaluation or {})),
            error=lambda key, problem: ConfigError(f"{key}: {problem}"),
        )
    )


def test_defaults_are_the_originals_recipe_for_ade20k():
    check()
    check(num_classes=255)
    check(reduce_zero_label=True)
    augment = SegmentationAugment()
    assert (augment.resize, augment.ratio_range, augment.cat_max_ratio) == ([2048, 512], [0.5, 2], 0.75)
    assert (augment.hflip, augment.photometric, augment.brightness, augment.contrast) == (0.5, True, 32, [0.5, 1.5])
    assert (augment.saturation, augment.hue) == ([0.5, 1.5], 18)
    assert SegmentationLoss().mean == "all"
    assert SegmentationEval().resize == [2048, 512]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"in_chans": 2, "mean": [0.5, 0.5], "std": [0.5, 0.5]},
            r"backbone.in_chans: images are read as grey \(1\) or RGB",
        ),
        ({"in_chans": 1}, "data.mean: has 3 values for 1 channels"),
        ({"num_classes": 3, "classes": ["a", "b"]}, "data.classes: names 2 classes, and the model has 3"),
        ({"num_classes": 3, "ignore_index": 0, "reduce_zero_label": True}, "data.ignore_index: 0 is also one of the 3"),
        ({"num_classes": 255, "reduce_zero_label": True}, "255 is also one of the 255 classes, which are 1 to 255 in"),
        ({"evaluation": {"mode": "slide", "stride": [64, 97]}}, r"eval.stride: \[64, 97\] leaves gaps .* \[64, 96\]"),
        ({"evaluation": {"mode": "whole", "stride": [8, 8]}}, "eval.stride: is for eval.mode slide alone"),
        ({"evaluation": {"mode": "canvas"}}, "eval.canvas_step: is needed by eval.mode canvas"),
        ({"num_classes": 300}, "data.ignore_index: 255 is one of the 300 classes; name a value beyond"),
    ],
    ids=["channels", "mean", "classes", "reduced", "last class", "gaps", "stride", "canvas", "many classes"],
)
def test_sections_that_do_not_fit_are_refused(given, expected):
    with pytest.raises(ConfigError, match=expected):
        check(**given)


@pytest.mark.parametrize(
    ("schema", "given"),
    [
        (SegmentationAugment, {"ratio_range": [2.0, 0.5]}),
        (SegmentationAugment, {"contrast": [0.5]}),
        (SegmentationAugment, {"resize": [0, 512]}),
        (SegmentationAugment, {"cat_max_ratio": 0.0}),
        (SegmentationEval, {"scales": []}),
        (SegmentationData, {"ignore_index": 65536}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "".join(value),
)
def test_values_out_of_range_are_refused(schema, given):
    with pytest.raises(ValidationError):
        schema(**given)


def test_sections_of_losses_are_the_tasks_own():
    with pytest.raises(ConfigError, match="command line: loss: has no meaning in the task detection"):
        load_config("retinanet_digits", ["loss.mean=all"])
    with pytest.raises(ConfigError, match=r"command line: loss\.mean: unknown key; known: class_weights"):
        load_config("focalv2_digits", ["loss.mean=all"])
