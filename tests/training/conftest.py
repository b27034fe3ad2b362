"""Fixtures of the tests of whole runs."""

from types import SimpleNamespace

import pytest

from focal_twins.config.load import load_config
from focal_twins.distributed.ranks import start
from focal_twins.training.trainer import Trainer
from tests.conftest import DIGITS_CONFIG, TOY_MODEL
from tests.training.states import EVERYTHING


def build_trainer(digits, output, *overrides):
    """A run of three epochs, of 14 updates each, on a network that compiles fast."""
    common = [f"data.path={digits}", f"runtime.output={output}", "train.epochs=3", "train.batch_size=96",
              "schedule.warmup_epochs=1", "data.workers=1"]  # fmt: skip
    config = load_config(DIGITS_CONFIG, [*TOY_MODEL, *common, *overrides])
    return Trainer(config, start(config))


@pytest.fixture
def trainer(digits, tmp_path, shared_graphs):
    """trainer("name", overrides...) builds a run of three epochs on a network that compiles fast."""
    return lambda name, *overrides: build_trainer(digits, tmp_path / name, shared_graphs, *overrides)


@pytest.fixture(scope="session")
def uninterrupted(digits, shared_graphs, tmp_path_factory):
    """A finished run with everything on, to hold against runs that were interrupted.

    With `drawn`, the scales of stochastic depth that it drew.
    """
    run = build_trainer(digits, tmp_path_factory.mktemp("uninterrupted") / "run", shared_graphs, *EVERYTHING)
    draw, drawn = run.model.draw_drop_path, []
    run.model.draw_drop_path = lambda *arguments: drawn.append(draw(*arguments)) or drawn[-1]
    run.run()
    return SimpleNamespace(run=run, drawn=[scales.asnumpy() for scales in drawn])
