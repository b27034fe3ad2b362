"""The quickstarts: accuracy on the held-out digits, that of the network fine-tuned, and mIoU on scenes of digits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.prepare_digit_scenes import CLASSES
from src.config.load import load_config
from tests.conftest import DIGITS_CONFIG, ROOT


def python(*command) -> None:
    """Run a script in a process of its own."""
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True, capture_output=True)


@pytest.fixture(scope="module")
def quickstart(digits, tmp_path_factory) -> list[str]:
    """The options of a quickstart that has been trained to the end; the last names its folder."""
    output = tmp_path_factory.mktemp("quickstart")
    options = ["--config", str(DIGITS_CONFIG), f"data.path={digits}", f"runtime.output={output}"]
    python("train.py", *options)
    return options


@pytest.mark.slow
def test_quickstart_configuration_reaches_its_accuracy(quickstart, run_script):
    code, out, _ = run_script("eval.py", *quickstart)
    assert code == 0
    assert "(ema weights)" in out
    assert float(out.split("top-1 ")[1].split("%")[0]) >= 98.5


@pytest.mark.slow
def test_quickstart_network_fine_tunes_to_five_digits_of_another_size(quickstart, tmp_path):
    digits5 = tmp_path / "digits5"
    python("scripts/prepare_digits.py", "--classes", 0, 1, 2, 3, 4, "--output", digits5)
    output = train_from(quickstart, "focalv2_digits5_64", digits5, tmp_path)
    summary = json.loads((output / "summary.json").read_text())
    assert summary["best"] >= 98


@pytest.mark.slow
def test_segmentation_quickstart_trains_from_the_digit_classifier(quickstart, digit_scenes, tmp_path):
    """Three updates and an evaluation of the network itself, on a few scenes."""
    output = train_from(
        quickstart, "upernet_digits", digit_scenes, tmp_path, "train.epochs=1", "schedule.warmup_epochs=0"
    )
    figures = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["weights"] for line in figures if "miou" in line] == ["raw", "ema"]
    assert all(0 <= line["miou"] <= 100 for line in figures if "miou" in line)
    assert (output / "checkpoints" / "best.ckpt").exists()


@pytest.mark.exhaustive
def test_segmentation_quickstart_reaches_its_miou(quickstart, tmp_path):
    scenes = tmp_path / "scenes"
    python("scripts/prepare_digit_scenes.py", "--output", scenes)
    output = train_from(quickstart, "upernet_digits", scenes, tmp_path)
    assert json.loads((output / "summary.json").read_text())["best"] >= 75


def train_from(quickstart, config, data, folder, *overrides) -> Path:
    """Train a configuration from the classifier's best checkpoint; returns the run's folder."""
    source = quickstart[-1].removeprefix("runtime.output=")
    options = [
        f"data.path={data}",
        f"train.pretrained={source}/checkpoints/best.ckpt",
        f"runtime.output={folder}/run",
        *overrides,
    ]
    python("train.py", "--config", config, *options)
    return folder / "run"


def test_segmentation_quickstart_has_the_classifiers_backbone():
    """All but what sizes decide, and stochastic depth, so that all of its weights fit."""
    classifier, segmentor = (
        load_config(DIGITS_CONFIG.with_name(f"{name}_digits.yaml")) for name in ("focalv2", "upernet")
    )
    own = {"num_classes": 10, "img_size": 48, "drop_path_rate": 0.1}
    assert segmentor.backbone.name == classifier.model.name
    assert segmentor.backbone.arguments | own == classifier.model.arguments
    assert (segmentor.data.mean, segmentor.data.std) == (classifier.data.mean, classifier.data.std)
    assert segmentor.augment.hflip == 0
    assert tuple(segmentor.data.classes) == CLASSES


def test_the_summary_names_the_report_and_a_prediction(tmp_path):
    """As quickstart.sh leaves the folder; the prediction is a wrong one, which is to be seen."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "summary.json").write_text(json.dumps({"epochs": 2, "seconds": 3.4}))
    for weights in ("raw", "ema"):
        content = {"top1": 98.0, "top5": 100.0, "count": 360, "checkpoint": "best.ckpt"}
        (run / f"eval_{weights}.json").write_text(json.dumps(content))
    best = {"index": 1, "class": "1", "probability": 0.98765}
    (run / "prediction.json").write_text(json.dumps([{"image": "data/digits/val/7/0007.png", "predictions": [best]}]))
    done = subprocess.run(
        [sys.executable, "scripts/run_summary.py", run], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert f"\n  report         {run / 'report.html'}\n" in done.stdout
    assert done.stdout.endswith("\n  prediction     data/digits/val/7/0007.png: 1 (98.77%), truth 7\n")


def test_quickstart_configuration_is_a_focal_network():
    """Three stages, two levels in each, several windows in the first two, and no flips."""
    config = load_config(DIGITS_CONFIG)
    model = config.build_model("CPU")
    attentions = [stage.blocks[0].attn for stage in model.layers]
    assert [attention.num_windows for attention in attentions] == [16, 4, 1]
    assert [attention.levels for attention in attentions] == [2, 2, 2]
    assert config.augment.hflip == config.augment.vflip == 0
