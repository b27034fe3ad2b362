"""The shipped files of detectors on COCO: what they say of themselves, and the originals' recipes."""

import pytest

from focal_twins.config.load import CONFIG_ROOT, load_config
from focal_twins.training.schedule import learning_rate
from tests.published_rows import assert_says_what_it_is
from tests.reference import figures

FILES = sorted(CONFIG_ROOT.glob("detection/*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_say_what_they_are(path):
    """The command, the published figure or that there is none, and that nothing was trained here."""
    assert_says_what_it_is(path, "Published box")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_images_find_a_canvas_lying_and_standing(path):
    config = load_config(path)
    assert config.data.canvases is not None
    assert {(width, height) for height, width in config.data.canvases} == {*map(tuple, config.data.canvases)}
    assert config.backbone.resolved()["img_size"] in [list(canvas) for canvas in config.data.canvases]
    assert (config.eval.short_side, config.eval.long_side) == (800, 1333)


@pytest.mark.parametrize("schedule", ["1x", "3x"])
def test_rates_equal_the_originals(schedule):
    """mmcv's hooks, at 7,330 iterations an epoch of 16 images."""
    config = load_config(f"retinanet_focal_tiny_{schedule}_coco")
    assert config.train.epochs is not None
    for update, rate in figures("dense_schedules")[f"detection_{schedule}"].items():
        own = learning_rate(
            config.schedule,
            config.optimizer,
            config.train.epochs * 7330,
            int(update),
            7330,
            8 * config.train.batch_size,
        )
        assert own == pytest.approx(rate, rel=1e-9), update


@pytest.mark.parametrize(
    ("name", "decay", "spared"),
    [
        ("retinanet_focal_tiny_1x_coco", 0.05, ["absolute_pos_embed", "relative_position_bias_table", "norm"]),
        ("retinanet_twins_svt_small_1x_coco", 1e-4, []),
        ("retinanet_twins_svt_small_3x_coco", 0.05, ["pos_block", "norm"]),
    ],
)
def test_decay_is_the_originals(name, decay, spared):
    optimizer = load_config(name).optimizer
    assert (optimizer.weight_decay, optimizer.no_weight_decay, optimizer.clip_norm) == (decay, spared, None)


def test_the_first_schedule_with_twins_neither_scales_nor_crops():
    augment = load_config("retinanet_twins_pcpvt_base_1x_coco").augment
    assert (augment.short_sides, augment.crop, augment.hflip) == ([800], False, 0.5)
    assert len(load_config("retinanet_twins_pcpvt_base_3x_coco").augment.short_sides) == 11
