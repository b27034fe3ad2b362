"""The quickstarts: accuracy on the held-out digits, that of the network fine-tuned, mIoU and AP on scenes of digits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from focal_twins.config.load import load_config
from focal_twins.data.digit_scene_files import CLASSES
from tests.conftest import DIGITS_CONFIG, ROOT
from tests.training.states import metrics


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


@pytest.mark.exhaustive
def test_quickstart_configuration_reaches_its_accuracy(quickstart, run_script):
    code, out, _ = run_script("eval.py", *quickstart)
    assert code == 0
    assert "(ema weights)" in out
    assert float(out.split("top-1 ")[1].split("%")[0]) >= 98.5


@pytest.mark.exhaustive
def test_quickstart_network_fine_tunes_to_five_digits_of_another_size(quickstart, tmp_path):
    digits5 = tmp_path / "digits5"
    python("scripts/prepare_digits.py", "--classes", 0, 1, 2, 3, 4, "--output", digits5)
    output = train_from(quickstart, "focalv2_digits5_64", digits5, tmp_path)
    summary = json.loads((output / "summary.json").read_text())
    assert summary["best"] >= 98


@pytest.mark.exhaustive
def test_segmentation_quickstart_trains_from_the_digit_classifier(quickstart, digit_scenes, tmp_path):
    trains_from_the_digit_classifier(quickstart, "upernet_digits", "miou", digit_scenes, tmp_path)


@pytest.mark.exhaustive
def test_detection_quickstart_trains_from_the_digit_classifier(quickstart, digit_scenes, tmp_path):
    trains_from_the_digit_classifier(quickstart, "retinanet_digits", "box_ap50", digit_scenes, tmp_path)


def trains_from_the_digit_classifier(quickstart, config, figure, scenes, folder) -> None:
    """A few updates and an evaluation of the network itself, on a few scenes."""
    output = train_from(quickstart, config, scenes, folder, "train.epochs=1", "schedule.warmup_epochs=0")
    figures = [line for line in metrics(output) if figure in line]
    assert [line["weights"] for line in figures] == ["raw", "ema"]
    assert all(0 <= line[figure] <= 100 for line in figures)
    assert (output / "checkpoints" / "best.ckpt").exists()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """All scenes of digits."""
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    python("scripts/prepare_digit_scenes.py", "--output", folder)
    return folder


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("config", "least"),
    [
        ("upernet_digits", {"miou": 67}),
        ("retinanet_digits", {"box_ap50": 90}),
        ("mask_rcnn_digits", {"box_ap50": 90, "mask_ap50": 90}),
        ("reppoints_v2_digits", {"box_ap50": 85}),
        ("sparse_rcnn_digits", {"box_ap50": 65}),
    ],
)
def test_quickstart_on_scenes_reaches_its_figures(config, least, quickstart, scenes, tmp_path):
    lines = metrics(train_from(quickstart, config, scenes, tmp_path))
    for figure, value in least.items():
        assert max(line[figure] for line in lines if figure in line) >= value


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


ON_SCENES = [path.stem for path in sorted(DIGITS_CONFIG.parent.glob("*.yaml")) if path != DIGITS_CONFIG]


@pytest.mark.parametrize("name", ON_SCENES)
def test_quickstarts_on_scenes_have_the_classifiers_backbone(name):
    """All but what sizes decide, and stochastic depth, so that all of its weights fit."""
    classifier, dense = load_config(DIGITS_CONFIG), load_config(DIGITS_CONFIG.with_name(f"{name}.yaml"))
    own = {"num_classes": 10, "img_size": 48, "drop_path_rate": 0.1}
    assert dense.backbone.name == classifier.model.name
    arguments = {key: value for key, value in dense.backbone.arguments.items() if key != "out_indices"}
    assert arguments | own == classifier.model.arguments
    assert (dense.data.mean, dense.data.std) == (classifier.data.mean, classifier.data.std)
    assert dense.augment.hflip == 0


def test_segmentation_quickstart_has_the_classes_of_the_scenes():
    config = load_config(DIGITS_CONFIG.with_name("upernet_digits.yaml"))
    assert tuple(config.data.classes) == CLASSES


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
