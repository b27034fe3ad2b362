"""The scripts of the reports, as their users run them."""

import json
import re

import pytest

from focal_twins.config.load import load_config
from tests.conftest import DIGITS_CONFIG, TOY_MODEL
from tests.processes import ALLOWED, BIN, run
from tests.trained import write_digits_checkpoint

PYTHON = str(BIN / "python")


def script(name, *arguments, **environment):
    return run(["bash", f"scripts/{name}", *map(str, arguments)], PYTHON=PYTHON, **environment)


@pytest.fixture(scope="module")
def toy(shared_graphs):
    """Options of a run that compiles fast; runs in batches of 24 compile once for all."""
    return [*TOY_MODEL, "data.workers=1", "schedule.warmup_epochs=0", shared_graphs]


@pytest.fixture(scope="module")
def checkpoint(digits, tmp_path_factory):
    """A checkpoint of digits."""
    config = load_config(DIGITS_CONFIG, [*TOY_MODEL, f"data.path={digits}"])
    path = tmp_path_factory.mktemp("checkpoint") / "last.ckpt"
    return write_digits_checkpoint(config, path, tuple("0123456789"))


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.exhaustive), 2])
def test_performance_prints_and_writes_what_the_reports_do(ranks, toy, digits, tmp_path):
    name = "run_performance_1p.sh" if ranks == 1 else "run_performance_8p.sh"
    done = script(name, f"--data_path={digits}", f"--cfg={DIGITS_CONFIG}", f"--output={tmp_path}", "--batch_size=24",
                  *toy, RANKS=str(ranks))  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed = dict(re.findall(r"^(Final Performance images/sec|Final Train Accuracy|E2E Training Duration sec) : (.+)$",
                              done.stdout, re.MULTILINE))  # fmt: skip
    assert len(printed) == 3
    case = f"focalv2_bs24_{ranks}p_perf"
    fields = dict(line.split(" = ") for line in (tmp_path / f"{case}.log").read_text().splitlines())
    assert fields["RankSize"] == str(ranks)
    assert fields["BatchSize"] == "24"
    assert fields["ActualFPS"] == printed["Final Performance images/sec"]
    assert fields["TrainAccuracy"] == printed["Final Train Accuracy"]
    assert float(fields["TrainingTime"]) == pytest.approx(24 * ranks * 1000 / float(fields["ActualFPS"]), rel=1e-2)
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    updates = {line["update"]: line for line in metrics if "loss_scale" in line}
    assert max(updates) == 20
    assert float(fields["ActualFPS"]) == pytest.approx(updates[20]["images_per_second"], abs=0.01)
    assert (tmp_path / f"train_{case}_loss.txt").read_text().splitlines()[-1] == fields["ActualLoss"]


def test_training_on_several_devices(toy, digits, tmp_path):
    output = tmp_path / "run"
    done = script("run_train_8p.sh", "--cfg", DIGITS_CONFIG, "--data-path", digits, "--batch-size", 24, "--stop_step=3",
                  f"runtime.output={output}", *toy, RANKS="2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "CPU x 2" in done.stdout
    assert "updates of 48 images" in done.stdout
    assert json.loads((output / "summary.json").read_text())["updates"] == 3


def test_evaluation_export_and_fine_tuning(toy, digits, checkpoint, tmp_path):
    done = script("run_eval.sh", "--cfg", DIGITS_CONFIG, "--data-path", digits, "--checkpoint", checkpoint, *TOY_MODEL)
    assert "(360 images" in done.stdout, done.stderr
    mindir = tmp_path / "model.mindir"
    done = script("run_export.sh", "--cfg", DIGITS_CONFIG, "--checkpoint", checkpoint, "--output", mindir, *TOY_MODEL,
                  f"data.path={digits}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert mindir.exists()
    done = script("run_finetune_1p.sh", f"--data_path={digits}", f"--finetune_model={checkpoint}",
                  f"--cfg={DIGITS_CONFIG}", *toy, "train.batch_size=24", "train.stop_after_update=3",
                  f"runtime.output={tmp_path / 'tuned'}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "10 classes" in done.stdout


@pytest.mark.parametrize(
    ("name", "arguments", "named"),
    [
        ("run_performance_1p.sh", [], "--data_path=FOLDER is needed"),
        ("run_finetune_1p.sh", ["--data_path=somewhere"], "--finetune_model=FILE is needed"),
        ("run_train_1p.sh", ["--bogus=1"], "unknown option --bogus; there are: --cfg"),
        ("run_eval.sh", ["--checkpoint"], "--checkpoint needs a value"),
        ("run_train_1p.sh", ["--cfg", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_wrong_use_is_one_line(name, arguments, named):
    done = script(name, *arguments)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert named in done.stderr


@pytest.mark.parametrize("name", ["run_train_8p.sh", "run_performance_8p.sh"])
def test_what_mpirun_would_refuse_is_said_before(name, digits, tmp_path):
    unset = dict.fromkeys(ALLOWED, "")
    output = [f"--output={tmp_path}"] if "performance" in name else []
    done = script(name, "--cfg", DIGITS_CONFIG, "--data-path", digits, *output, RANKS="99", **unset)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{name}: error: mpirun would not start 99 processes here; allow it by: export")
