"""Fixtures of the tests of whole runs."""

import pytest

from src.config.load import load_config
from src.distributed.ranks import start
from src.training.trainer import Trainer
from tests.conftest import DIGITS_CONFIG, TOY_MODEL


@pytest.fixture
def trainer(digits, tmp_path):
    """trainer("name", overrides...) builds a run of three epochs on a network that compiles fast."""

    def build(name, *overrides):
        common = [f"data.path={digits}", f"runtime.output={tmp_path / name}", "train.epochs=3", "train.batch_size=96",
                  "schedule.warmup_epochs=1", "data.workers=1"]  # fmt: skip
        config = load_config(DIGITS_CONFIG, [*TOY_MODEL, *common, *overrides])
        return Trainer(config, start(config))

    return build
