"""Learning rates against the original's figures and the recipe's formula."""

import math

import pytest

from src.config import OptimizerConfig, ScheduleConfig, load_config
from src.training.schedule import learning_rate, official_cosine
from tests.reference import figures

SMALL = "focalv2_small_useconv_patch4_window7_224"


def test_official_cosine_equals_the_original():
    schedule = ScheduleConfig(warmup_epochs=20.0, warmup_lr=5e-7, min_lr=5e-6)
    (rates,) = figures("schedule").values()
    for update, rate in rates.items():
        own = official_cosine(int(update), 10, 300, 5e-4, schedule)
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
        own = learning_rate(config.schedule, config.optimizer, config.train.epochs, update, per_epoch, global_batch)
        assert own == pytest.approx(rate * global_batch / 512, rel=1e-12), update


def test_scaling_can_be_off():
    optimizer = OptimizerConfig(base_lr=1e-3, lr_batch_size=None)
    assert learning_rate(ScheduleConfig(warmup_epochs=0.0), optimizer, 10, 0, 5, 64) == 1e-3
