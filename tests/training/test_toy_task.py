"""A task that is nothing like classification, through everything that a task goes through."""

import json

import mindspore as ms
import numpy as np
import pytest
import yaml
from mindspore import Tensor

from focal_twins.config.load import ConfigError, load_config
from focal_twins.distributed.ranks import Dist, start
from focal_twins.errors import UserError
from focal_twins.files.weights import read_checkpoint, select_weights
from focal_twins.inference.evaluate import evaluate_checkpoint
from focal_twins.inference.export import export_checkpoint
from focal_twins.inference.trained import open_model
from focal_twins.reporting.comparison import Comparison
from focal_twins.reporting.run_files import read_run
from focal_twins.reporting.run_report import report_page
from focal_twins.training.trainer import Trainer
from tests import toy_task
from tests.training.states import assert_same_state, metrics, tensors


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """toy("name", overrides...) builds a run of the toy task, operator by operator."""
    toy_task.register(monkeypatch)
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(toy_task.CONFIG))

    def build(name, *overrides):
        config = load_config(path, [f"runtime.output={tmp_path / name}", *overrides])
        return Trainer(config, start(config))

    yield build
    ms.set_context(mode=ms.PYNATIVE_MODE)


def weights(run):
    return run.model.dense.weight.asnumpy().copy()


def test_it_learns_and_leaves_the_files_of_a_run(toy):
    run = toy("run", "train.epochs=20")
    summary = run.run()
    assert summary["metric"] == "fit"
    assert summary["best"] > 95
    folder = run.config.output
    content = json.loads((folder / "evaluation.json").read_text())
    assert (content["fit"], content["epoch"]) == (summary["best"], summary["best_epoch"])
    np.testing.assert_allclose(content["matrix"], toy_task.MATRIX)
    update, evaluated = (line for line in metrics(folder) if line["update"] == 6 and line["epoch"] == 1 and (
        "weights" not in line or line["weights"] == "raw"))  # fmt: skip
    assert update["loss"] == pytest.approx(update["square"] + update["absolute"], rel=1e-6)
    assert {"fit", "error"} < evaluated.keys()


def test_a_run_that_fails_leaves_no_gradient_open(toy, monkeypatch):
    """MindSpore would take the next gradient for a gradient of it (training/open_gradients.py)."""
    run = toy("failing")

    def fails(*inputs):
        raise ValueError("a loss that fails")

    monkeypatch.setattr(run.step.losses, "construct", fails)
    with pytest.raises(ValueError, match="a loss that fails"):
        run.run()
    slope = ms.grad(lambda x: (x * x)[1].sum())(Tensor(np.ones((2, 3), np.float32)))
    np.testing.assert_array_equal(slope.asnumpy(), [[0, 0, 0], [2, 2, 2]])


def test_accumulated_batches_are_the_large_batch(toy):
    """The loss divides by what is known in all batches of an update: means of means would be others."""
    whole, parts = toy("whole"), toy("parts", "train.batch_size=4", "train.accumulation_steps=4")
    whole.run()
    parts.run()
    np.testing.assert_allclose(weights(parts), weights(whole), rtol=1e-4, atol=1e-6)
    assert [line["loss"] for line in metrics(parts.config.output) if "grad_norm" in line] == pytest.approx(
        [line["loss"] for line in metrics(whole.config.output) if "grad_norm" in line], rel=1e-4
    )


def test_resuming_within_an_epoch_gives_the_same_bits(toy):
    straight = toy("straight")
    straight.run()
    toy("cut", "train.stop_after_update=8").run()
    resumed = toy("cut", "train.resume=auto")
    resumed.run()
    assert_same_state(straight.checkpoints.last, resumed.checkpoints.last)


def test_the_length_in_updates_ends_a_run_within_an_epoch(toy):
    """Six updates an epoch; the last epoch is a short one, evaluated and saved as any other."""
    summary = toy("run", "train.epochs=null", "train.updates=9").run()
    assert (summary["updates"], summary["epochs"]) == (9, 2)
    assert summary["best_epoch"] == 2
    again = toy("run", "train.epochs=null", "train.updates=9", "train.resume=auto")
    assert again.run()["updates"] == 9


def test_early_stopping_ends_a_run_that_improves_no_more(toy, capsys):
    """After so many evaluations, the same ones in a run that was cut between them; it goes on if more are allowed."""
    unsteady = ("train.epochs=9", "optimizer.base_lr=10.0")
    stopping = (*unsteady, "train.early_stopping=2")
    straight = toy("straight", *stopping)
    summary = straight.run()
    assert 1 < summary["best_epoch"] == summary["epochs"] - 2 < 7
    assert "no better fit in 2 evaluations: training ends early (train.early_stopping)" in capsys.readouterr().out

    toy("cut", *stopping, f"train.stop_after_epoch={summary['best_epoch'] + 1}").run()
    cut = toy("cut", *stopping, "train.resume=auto")
    assert cut.run()["epochs"] == summary["epochs"]
    assert_same_state(straight.checkpoints.last, cut.checkpoints.last)

    assert toy("straight", *stopping, "train.resume=auto").run()["epochs"] == summary["epochs"]
    assert "(2 evaluations brought no better figure: train.early_stopping)" in capsys.readouterr().out

    best = summary["best_epoch"]  # an evaluation only because a run was told to stop does not count
    stopped = toy("stopped", *unsteady, f"eval.interval={best}", f"train.stop_after_epoch={best + 1}")
    stopped.run()
    assert (stopped.state.progress.best_epoch, stopped.state.progress.worse) == (best, 0)

    assert toy("straight", *unsteady, "train.resume=auto").run()["epochs"] == 9


@pytest.mark.parametrize(
    ("best_by", "epochs", "chosen", "remark"),
    [
        ("raw", 3, "raw", "the averaged weights (EMA) were better: fit"),
        ("ema", 2, "ema", "the raw weights were better: fit"),
        ("either", 2, "raw", None),
        ("either", 3, "ema", None),
    ],
)
def test_the_best_epoch_is_best_by_the_weights_that_are_asked_for(toy, best_by, epochs, chosen, remark, capsys):
    """The average lags behind the raw weights for two epochs, and is better from then on."""
    options = (f"train.epochs={epochs}", "optimizer.base_lr=0.3", "ema.decay=0.9", f"ema.best_by={best_by}")
    run = toy("run", *options)
    summary = run.run()
    out = capsys.readouterr().out
    best = max(
        (line for line in metrics(run.config.output) if best_by in ("either", line.get("weights"))),
        key=lambda line: line.get("fit", 0),
    )
    assert (summary["best"], summary["best_epoch"], best["weights"]) == (best["fit"], best["epoch"], chosen)
    assert summary["weights"].lower() == chosen
    evaluation = json.loads((run.config.output / "evaluation.json").read_text())
    assert (evaluation["weights"], evaluation["fit"]) == (chosen, best["fit"])
    assert (read_run(run.config.output).best or {}).items() >= best.items()
    # Who takes the checkpoint without saying which weights takes these, and has their figure.
    assert select_weights(read_checkpoint(run.checkpoints.best))[1] == chosen
    assert evaluate_checkpoint(run.config, Dist(), None).figures["fit"] == pytest.approx(best["fit"])
    assert (remark in out) if remark else ("were better" not in out)
    if (best_by, epochs) == ("either", 3):  # a run that was cut while the raw weights were better
        toy("cut", *options, "train.stop_after_epoch=2").run()
        resumed = toy("cut", *options, "train.resume=auto")
        assert resumed.run()["best"] == summary["best"]
        assert_same_state(run.checkpoints.last, resumed.checkpoints.last)


def test_an_average_that_is_not_kept_chooses_nothing(toy):
    with pytest.raises(ConfigError, match=r"ema\.best_by: either has no effect without ema\.enabled"):
        toy("run", "ema.enabled=false", "ema.best_by=either")


def test_nothing_on_disk_changes_before_a_run_is_checked(toy, tmp_path):
    with pytest.raises(ConfigError, match=r"augment.noise: must be at least 0"):
        toy("run", "augment.noise=-1.0")
    with pytest.raises(UserError, match="do not fill one update"):
        toy("run", "train.batch_size=1000")
    toy("run")
    assert not (tmp_path / "run").exists()


def test_reports_and_comparisons_know_its_figures(toy):
    runs = [toy(name, f"runtime.seed={seed}") for seed, name in enumerate(("a", "b"))]
    for run in runs:
        run.run()
    page = report_page(read_run(runs[0].config.output))
    for part in ("Best fit", "fit, %", "targets known", "Parts of the training loss", "square", "absolute"):
        assert part in page, part
    assert "top-1" not in page
    text = Comparison.of([str(run.config.output) for run in runs]).text()
    assert "best fit, %" in text


def test_evaluation_and_export_of_a_checkpoint(toy, capsys):
    run = toy("run")
    best = run.run()["best"]
    result = evaluate_checkpoint(run.config, Dist(), None)
    assert result.figures["fit"] == pytest.approx(best)
    assert "targets were known" in capsys.readouterr().out
    path = export_checkpoint(run.config, Dist(), None, file_format="MINDIR", batch_size=3)
    described = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert (described["input"]["shape"], described["output"]["name"]) == ([3, 8], "y")
    model = open_model(str(path))
    points = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    average = tensors(run.checkpoints.best)["ema.dense.weight"]
    np.testing.assert_allclose(model.answer(points), points @ average.T, rtol=1e-4, atol=1e-5)
    assert model.task is toy_task.Toy


def test_a_section_of_another_task_is_refused(toy, tmp_path):
    for content, message in (
        ({"task": "toys"}, "task: unknown task 'toys'; did you mean toy"),
        ({"backbone": {"name": "twins"}}, "backbone: has no meaning in the task toy"),
        ({"augment": {"mixup": 0.8}}, "augment.mixup: unknown key"),
    ):
        (tmp_path / "bad.yaml").write_text(yaml.safe_dump(toy_task.CONFIG | content))
        with pytest.raises(ConfigError, match=message):
            load_config(tmp_path / "bad.yaml")
