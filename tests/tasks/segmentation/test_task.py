"""What the task checks and chooses before a network runs."""

from types import SimpleNamespace

import pytest

from focal_twins.config.load import ConfigError, load_config
from focal_twins.data.dataset import DataError
from focal_twins.distributed.ranks import Dist
from focal_twins.tasks.find_task import create_task
from tests.tasks.segmentation.small_run import CLASSES, make_scenes, write_config

NETWORK = SimpleNamespace(num_classes=len(CLASSES), img_size=(32, 32))


@pytest.fixture
def task(tmp_path):
    """task(overrides...) builds the task of the small configuration, with one validation scene."""
    make_scenes(tmp_path, "validation", 1)
    return lambda *overrides: create_task(load_config(write_config(tmp_path, tmp_path), overrides))


def test_names_of_classes_are_the_configurations_or_else_the_models(task):
    assert task().open("val", ("a", "b", "c")).classes == CLASSES
    assert task("data.classes=null").open("val").classes == ("class 0", "class 1", "class 2")
    data = task("data.classes=null").open("val", ("a", "b", "c"))
    assert data.classes == ("a", "b", "c")
    task().evaluator(NETWORK, data, Dist(), ("a", "b", "c"))
    with pytest.raises(DataError, match=r"x, only in data.classes: a, b, c; only in the model: sky, sea, sand;"):
        task().evaluator(NETWORK, data, Dist(), CLASSES, "checkpoint x")


@pytest.mark.parametrize(
    ("overrides", "device", "mode"),
    [([], "CPU", "whole"), ([], "Ascend", "slide"), (["eval.mode=canvas", "eval.canvas_step=64"], "Ascend", "canvas")],
)
def test_the_mode_follows_the_device_where_it_is_left_open(task, overrides, device, mode):
    chosen = task(*overrides)
    assert chosen.evaluator(NETWORK, chosen.open("val"), Dist(device_target=device)).mode == mode


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["eval.mode=canvas"], "eval.canvas_step: is needed by eval.mode canvas"),
        (["eval.canvas_step=32"], "eval.canvas_step: is for eval.mode canvas alone"),
        (["eval.mode=whole", "eval.stride=[8,8]"], "eval.stride: is for eval.mode slide alone"),
    ],
)
def test_keys_of_another_mode_are_refused(task, overrides, message):
    with pytest.raises(ConfigError, match=message):
        task(*overrides)


def test_batches_that_are_too_small_are_told(task):
    told = SimpleNamespace(batch_caveat=lambda batch_size, ranks: f"{batch_size} images on {ranks}")
    assert task().batch_caveat(told, 2) == "4 images on 2"
