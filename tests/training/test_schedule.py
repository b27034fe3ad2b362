"""Learning rates against the original's figures, the recipe's formula and each schedule's own."""

import math

import pytest

from focal_twins.config.load import ConfigError, OptimizerConfig, ScheduleConfig, load_config
from focal_twins.training.schedule import RunLength, learning_rate, run_length
from tests.reference import figures

SMALL = "focalv2_small_useconv_patch4_window7_224"


def rates(epochs, updates_per_epoch, base_lr=1.0, **schedule):
    """The rate of every update of a run, unscaled."""
    optimizer = OptimizerConfig(base_lr=base_lr, lr_batch_size=None)
    warmup = {} if "warmup_updates" in schedule else {"warmup_epochs": 0}
    warmup |= {} if "warmup_ratio" in schedule else {"warmup_lr": 0.1}
    section = ScheduleConfig(**{"min_lr": 0.0} | warmup | schedule)
    return [
        learning_rate(section, optimizer, epochs * updates_per_epoch, update, updates_per_epoch, 64)
        for update in range(epochs * updates_per_epoch)
    ]


def test_cosine_without_prefix_equals_the_original():
    optimizer = OptimizerConfig(base_lr=5e-4, lr_batch_size=None)
    schedule = ScheduleConfig(name="cosine", warmup_prefix=False, warmup_epochs=20.0, warmup_lr=5e-7, min_lr=5e-6)
    (reference,) = figures("schedule").values()
    for update, rate in reference.items():
        own = learning_rate(schedule, optimizer, 300 * 10, int(update), 10, 512)
        assert own == pytest.approx(rate, rel=1e-9), update


@pytest.mark.parametrize("global_batch", [512, 1024])
def test_report_recipe_at_every_update(global_batch):
    config = load_config(SMALL)
    per_epoch = 7
    for update in range(320 * per_epoch):
        e = update / per_epoch
        if e < 20:
            rate = 1e-5 + (5e-4 - 1e-5) * e / 20
        elif e < 300:
            rate = max(5e-6, 2.5e-4 * (1 + math.cos(math.pi * (e - 20) / 300)))
        else:
            rate = 5e-6
        own = learning_rate(config.schedule, config.optimizer, 320 * per_epoch, update, per_epoch, global_batch)
        assert own == pytest.approx(rate * global_batch / 512, rel=1e-12), update


def test_shipped_models_are_timed_as_their_recipes():
    assert load_config(SMALL).schedule.warmup_prefix
    assert not load_config("focal_tiny_patch4_window7_224").schedule.warmup_prefix
    assert not load_config("twins_svt_small").schedule.warmup_prefix


COSINE = [0.2 + 0.8 * (1 + math.cos(math.pi * x)) / 2 for x in (0, 0.25, 0.5, 0.75)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"name": "cosine", "min_lr": 0.2}, COSINE),
        ({"name": "linear", "min_lr": 0.2}, [1.0, 0.8, 0.6, 0.4]),
        ({"name": "poly", "min_lr": 0.2, "power": 2.0}, [1.0, 0.65, 0.4, 0.25]),
        ({"name": "constant", "min_lr": 0.2}, [1.0] * 4),
        ({"name": "step", "decay_epochs": 1, "decay_rate": 0.5}, [1.0, 1.0, 0.5, 0.5]),
        ({"name": "multistep", "milestones": [0.5, 1.5], "decay_rate": 0.5}, [1.0, 0.5, 0.5, 0.25]),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_shape_between_warmup_and_cooldown(schedule, expected):
    """Of two updates an epoch: with prefix, warm-up and cool-down take nothing from the shape but its time."""
    assert rates(2, 2, **schedule) == pytest.approx(expected)
    whole = rates(4, 2, **schedule, warmup_epochs=1, cooldown_epochs=1, cooldown_lr=0.01)
    assert whole == pytest.approx([0.1, 0.55, *expected, 0.01, 0.01])
    # Without, warm-up lies over the start of the shape.
    whole = rates(3, 2, **schedule, warmup_prefix=False, warmup_epochs=1, cooldown_epochs=1, cooldown_lr=0.01)
    assert whole == pytest.approx([0.1, 0.55, *expected[2:], 0.01, 0.01])


def test_clipped_cosine_runs_through_the_cooldown():
    cosine = [(1 + math.cos(math.pi * x / 8)) / 2 for x in range(8)]
    options = {"name": "clipped_cosine", "min_lr": 0.3, "cooldown_epochs": 1, "cooldown_lr": 0.01}
    assert rates(4, 2, **options) == pytest.approx([*(max(0.3, rate) for rate in cosine[:6]), 0.01, 0.01])
    assert rates(5, 2, **options, warmup_epochs=1)[2:] == pytest.approx(rates(4, 2, **options))


def test_durations_are_whole_updates():
    """A fraction of an epoch is rounded; products such as 0.7 * 10 = 7.000000000000001 do not matter."""
    warm = rates(1, 10, name="constant", warmup_epochs=0.7)
    assert warm == pytest.approx([0.1 + 0.9 * update / 7 for update in range(7)] + [1.0] * 3)
    assert rates(1, 10, name="constant", warmup_epochs=0.01) == [1.0] * 10
    assert rates(1, 10, name="step", decay_epochs=0.7).index(0.1) == 7
    assert rates(1, 10, name="multistep", milestones=[0.7]).index(0.1) == 7
    assert rates(1, 10, name="constant", cooldown_epochs=0.7, cooldown_lr=0.5).index(0.5) == 3
    assert len(rates(3, 1, warmup_epochs=1.5, cooldown_epochs=1.5)) == 3  # rounded to more than there is: no error


def test_scaling_can_be_off():
    optimizer = OptimizerConfig(base_lr=1e-3, lr_batch_size=None)
    assert learning_rate(ScheduleConfig(warmup_epochs=0.0), optimizer, 50, 0, 5, 64) == 1e-3


DETECTION = {"name": "multistep", "decay_rate": 0.1, "warmup_updates": 500, "warmup_ratio": 0.001}
DENSE = {  # updates of the run, rate, schedule
    "detection_1x": (12 * 7330, 1e-4, DETECTION | {"milestones": [8.0, 11.0]}),
    "detection_3x": (36 * 7330, 1e-4, DETECTION | {"milestones": [27.0, 33.0]}),
    "sparse_rcnn_3x": (36 * 7330, 2.5e-5, DETECTION | {"milestones": [27.0, 33.0]}),
    "semantic_fpn": (80_000, 1e-4, {"name": "poly", "power": 0.9, "min_lr": 1e-6, "warmup_updates": 0}),
    "upernet": (160_000, 6e-5, {"name": "poly", "min_lr": 0.0, "warmup_updates": 1500, "warmup_ratio": 1e-6}),
}


@pytest.mark.parametrize("recipe", DENSE)
def test_dense_recipes_equal_mmcv(recipe):
    """At the start of iterations of 7330 an epoch; the warm-up is a factor of a shape that runs from the first on."""
    updates, base_lr, schedule = DENSE[recipe]
    section = ScheduleConfig(**schedule, warmup_prefix=False)
    optimizer = OptimizerConfig(base_lr=base_lr, lr_batch_size=None)
    reference = figures("dense_schedules")[recipe]
    assert len(reference) >= 6
    for update, rate in reference.items():
        own = learning_rate(section, optimizer, updates, int(update), 7330, 16)
        assert own == pytest.approx(rate, rel=1e-9), update


def test_warmup_in_updates():
    """Two ways to say the same; a factor of the shape where a ratio is given, before the shape's time or over it."""
    linear = {"name": "linear", "min_lr": 0.2}
    assert rates(3, 4, **linear, warmup_updates=4) == rates(3, 4, **linear, warmup_epochs=1)
    over = rates(3, 4, **linear, warmup_prefix=False, warmup_updates=4, warmup_ratio=0.2)
    factors = [0.2, 0.4, 0.6, 0.8] + [1.0] * 8
    assert over == pytest.approx([rate * factor for rate, factor in zip(rates(3, 4, **linear), factors, strict=True)])
    before = rates(3, 4, **linear, warmup_updates=4, warmup_ratio=0.2)
    assert before == pytest.approx([0.2, 0.4, 0.6, 0.8, *rates(2, 4, **linear)])
    assert rates(1, 4, **linear, warmup_updates=4, warmup_ratio=0.2) == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_warmup_as_a_share_of_the_run():
    """However long the run is, in epochs or in updates."""
    linear = {"name": "linear", "min_lr": 0.2}
    for epochs in (4, 8):
        share = rates(epochs, 5, **linear, warmup_epochs=None, warmup_fraction=0.25)
        assert share == rates(epochs, 5, **linear, warmup_epochs=epochs / 4)
    keys = ["schedule.warmup_epochs=null", "schedule.warmup_fraction=0.3"]
    assert length(7, *keys) == RunLength(70, 10)
    assert length(7, *keys, "train.epochs=null", "train.updates=20") == RunLength(20, 3)
    with pytest.raises(ConfigError, match=r"warmup_fraction: 9 warm-up and 2 cool-down epochs do not fit"):
        length(7, keys[0], "schedule.warmup_fraction=0.9", "schedule.cooldown_epochs=2")
    with pytest.raises(ConfigError, match=r"warmup_fraction: takes the place of schedule\.warmup_epochs, which is 1"):
        length(7, keys[1])
    with pytest.raises(ConfigError, match=r"fraction: takes the place of schedule\.warmup_updates, which is 4"):
        length(7, *keys, "schedule.warmup_updates=4")
    both = r"is null, and so is schedule\.warmup_updates and schedule\.warmup_fraction; one of them is needed"
    with pytest.raises(ConfigError, match=both):
        length(7, keys[0])


def length(updates_per_epoch, *overrides):
    base = ["schedule.warmup_epochs=1", "train.epochs=10"]
    return run_length(load_config("focalv2_digits", [*base, *overrides]), updates_per_epoch)


def test_length_of_a_run():
    assert length(7) == RunLength(70, 10)
    by_updates = ["train.epochs=null", "train.updates=70"]
    assert length(7, *by_updates) == RunLength(70, 10)
    assert length(8, *by_updates) == RunLength(70, 9)  # the last epoch is begun
    assert length(70, *by_updates) == RunLength(70, 1)
    # In other units than the run: what fits is known only here.
    with pytest.raises(ConfigError, match=r"schedule\.warmup_epochs: 71 updates of warm-up .* the run's 70"):
        length(71, *by_updates)
    in_updates = ["schedule.warmup_epochs=null", "schedule.warmup_updates=21"]
    assert length(3, *in_updates) == RunLength(30, 10)
    with pytest.raises(ConfigError, match=r"schedule\.warmup_updates: 21 updates of warm-up .* the run's 20"):
        length(2, *in_updates)
