"""A run of an earlier version (commit 635950b): two of three epochs on the digits, and its newest checkpoint."""

import json
import os
import shutil

import pytest

from focal_twins.config.load import load_config
from focal_twins.distributed.ranks import Dist, start
from focal_twins.inference.evaluate import evaluate_checkpoint
from focal_twins.inference.trained import open_checkpoint
from focal_twins.reporting.run_files import read_run
from focal_twins.reporting.run_report import report_page
from focal_twins.training.trainer import Trainer
from tests.conftest import ROOT

EARLIER = ROOT / "tests" / "reference" / "earlier_run"


@pytest.fixture
def earlier(tmp_path):
    """A copy of the run, with the names that its checkpoint had."""
    folder = tmp_path / "earlier"
    shutil.copytree(EARLIER, folder)
    for name in ("best.ckpt", "epoch_0002.ckpt"):
        os.link(folder / "checkpoints" / "last.ckpt", folder / "checkpoints" / name)
    return folder


def test_its_checkpoint_evaluates_as_it_did(earlier, digits):
    config = load_config(earlier / "config.yaml", [f"data.path={digits}", f"runtime.output={earlier}"])
    assert config.task == "classification"
    stored = json.loads((earlier / "evaluation.json").read_text())
    result = evaluate_checkpoint(config, Dist(), None)
    assert (result.metrics.top1_correct, result.metrics.count) == (stored["top1_correct"], stored["count"])
    trained = open_checkpoint(str(earlier / "checkpoints" / "best.ckpt"))
    assert (trained.weights, len(trained.classes)) == ("ema", 10)


def test_it_goes_on_to_its_end(earlier, digits, capsys):
    options = [f"data.path={digits}", f"runtime.output={earlier}", "train.resume=auto", "train.stop_after_epoch=null"]
    config = load_config(earlier / "config.yaml", options)
    run = Trainer(config, start(config))
    before = json.loads((EARLIER / "summary.json").read_text())
    progress = run.state.progress
    assert (progress.best, progress.best_epoch) == (before["best_top1"], before["best_epoch"])
    summary = run.run()
    assert (summary["epochs"], summary["metric"]) == (3, "top1")
    assert summary["best"] >= before["best_top1"]
    assert "changed since" not in capsys.readouterr().out
    lines = [json.loads(line) for line in (earlier / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "top1" in line] == [1, 1, 2, 2, 3, 3]


def test_its_files_make_a_report(earlier):
    run = read_run(earlier)
    assert run.best["top1"] == json.loads((earlier / "summary.json").read_text())["best_top1"]
    page = report_page(run)
    assert "Best top-1" in page
    assert "Most confused" in page
