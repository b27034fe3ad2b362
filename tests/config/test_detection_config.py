"""Sections of detection: which values fit each other, and what is said where they do not."""

import pytest
import yaml

from focal_twins.config.detection import DetectionAugment, DetectionEval, canvases_of
from focal_twins.config.load import ConfigError, load_config

LYING, STANDING = [800, 1344], [1344, 800]


@pytest.fixture
def load(tmp_path):
    """load("section.key=value", ...) loads a configuration of COCO's usual sizes with these overrides."""
    content = {
        "task": "detection",
        "model": {"name": "upernet", "num_classes": 80},
        "backbone": {"name": "focal_tiny_patch4_window7_224", "pretrain_size": 224, "img_size": LYING},
        "data": {"canvases": [LYING, STANDING]},
    }
    path = tmp_path / "detector.yaml"
    path.write_text(yaml.safe_dump(content))
    return lambda *overrides: load_config(path, list(overrides))


def test_defaults_are_swins_recipe_for_coco(load):
    load()
    augment = DetectionAugment()
    assert augment.short_sides == [*range(480, 801, 32)]
    assert (augment.long_side, augment.hflip, augment.crop) == (1333, 0.5, True)
    assert (augment.crop_short_sides, augment.crop_range) == ([400, 500, 600], [384, 600])
    assert (DetectionEval().short_side, DetectionEval().long_side) == (800, 1333)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("backbone.in_chans=1", "data.mean: has 3 values for 1 channels"),
        ("data.classes=[a, b]", "data.classes: names 2 classes, and the model has 80"),
        ("data.classes=[a, a]", "data.classes: names 'a' twice"),
        ("data.canvases=[[768, 1344]]", r"no canvas holds images of 800 x 1333 \(augment.short_sides, augment.long_s"),
        ("eval.long_side=1400", r"images of 800 x 1400 .*; the nearest is 800 x 1344; add one of 800 x 1408, or make"),
        ("data.canvases=[[800, 1333]]", r"data.canvases: 800 x 1333: .* multiples of 32, .* try \[800, 1344\]"),
        ("data.canvases=[]", "data.canvases: List should have at least 1 item"),
        ("data.val_fraction=1.5", "data.val_fraction: Input should be less than 1"),
        ("data.train_subset=1.5", "data.train_subset: Input should be less than 1"),
        ("data.val_annotations=null", "data.val_annotations: is null, and so is data.val_fraction"),
        ("augment.crop_range=[600, 384]", "augment.crop_range: must be two values in ascending order"),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_the_key(load, override, expected):
    with pytest.raises(ConfigError, match=expected) as raised:
        load(override)
    assert "\n" not in str(raised.value)


def test_a_canvas_needs_a_size_that_the_backbone_can_have(load):
    overrides = ["backbone.name=focalv2_tiny_useconv_patch4_window7_224", "backbone.img_size=[896, 1344]"]
    load(*overrides, "data.canvases=[[896, 1344], [1344, 896]]")
    with pytest.raises(ConfigError, match=r"data.canvases: 800 x 1344: .*"):
        load(*overrides)


def test_the_canvas_is_the_networks_size_by_default(load):
    assert canvases_of(load()) == [(800, 1344), (1344, 800)]
    assert canvases_of(load("data.canvases=null")) == [(800, 1344)]
    with pytest.raises(ConfigError, match=r"backbone.img_size: no canvas holds images of 800 x 1333"):
        load("data.canvases=null", "backbone.img_size=224")


def test_a_share_for_validation_takes_the_place_of_a_file(load, tmp_path):
    config = load("data.val_fraction=0.2")
    assert (config.data.val_fraction, config.data.val_annotations) == (0.2, None)
    saved = tmp_path / "config.yaml"
    saved.write_text(config.to_yaml())
    assert load_config(saved, []).data == config.data
    with pytest.raises(ConfigError, match=r"data.val_fraction: takes the place of data.val_annotations"):
        load("data.val_fraction=0.2", "data.val_annotations=other.json")
