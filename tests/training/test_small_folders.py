"""A run on one small folder: a share for validation, classes of different sizes, and the keys that are meant for it."""

import json

import numpy as np
import pytest
from PIL import Image

from focal_twins.config.load import load_config
from focal_twins.distributed.ranks import Dist, start
from focal_twins.inference.evaluate import evaluate_checkpoint
from focal_twins.reporting.run_report import write_report
from focal_twins.training.trainer import Trainer
from tests.conftest import DIGITS_CONFIG, TOY_MODEL

COUNTS = {"a": 24, "b": 12, "c": 4}


@pytest.fixture
def folder(tmp_path):
    """Noise around a grey level for each class; no folder val."""
    generator = np.random.default_rng(0)
    for label, (name, count) in enumerate(COUNTS.items()):
        (tmp_path / "images" / "train" / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(60 * label, 60 * label + 120, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / "train" / name / f"{number}.png")
    return tmp_path / "images"


def test_a_run_from_one_folder(folder, tmp_path, capsys):
    keys = ["data.val_fraction=0.25", "loss.class_weights=balanced", "amp.level=auto", "ema.best_by=either",
            "schedule.warmup_epochs=null", "schedule.warmup_fraction=0.5", "model.num_classes=3", "train.epochs=2",
            "train.batch_size=8", "eval.batch_size=10", "runtime.mode=pynative", "data.workers=1"]  # fmt: skip
    output = tmp_path / "run"
    config = load_config(DIGITS_CONFIG, [*TOY_MODEL, *keys, f"data.path={folder}", f"runtime.output={output}"])
    trainer = Trainer(config, start(config))
    weights = trainer.step.losses.class_weights.asnumpy()
    assert weights * [18, 9, 3] == pytest.approx([10, 10, 10])  # of the images that are left to train on
    summary = trainer.run()
    assert "10 of 40 images are held back" in capsys.readouterr().out
    listed = (output / "validation_images.txt").read_text().splitlines()
    assert [name.split("/")[0] for name in listed] == ["a"] * 6 + ["b"] * 3 + ["c"]

    evaluation = json.loads((output / "evaluation.json").read_text())
    assert evaluation["count"] == 10
    assert [entry["count"] for entry in evaluation["classes"]] == [6, 3, 1]
    # The run's own configuration finds the same images, and the checkpoint its better weights.
    result = evaluate_checkpoint(load_config(output / "config.yaml"), Dist(), None)
    assert result.images.names == listed
    assert result.figures["top1"] == summary["best"]
    (report,) = output.glob("eval_best_*.json")
    assert report.name == f"eval_best_{summary['weights'].lower()}_train_held_back.json"
    assert json.loads(report.read_text())["macro"] == evaluation["macro"]
    page = write_report(output).read_text()
    assert "F1, %" in page and "image not found" not in page
