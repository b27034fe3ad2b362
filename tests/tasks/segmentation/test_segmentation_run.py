"""Whole runs of segmentation: training, resuming, evaluating and exporting, operator by operator."""

import json

import mindspore as ms
import numpy as np
import pytest

from focal_twins.distributed.ranks import Dist
from focal_twins.inference.evaluate import evaluate_checkpoint
from focal_twins.inference.export import export_checkpoint
from focal_twins.inference.trained import open_model
from focal_twins.reporting.run_files import read_run
from focal_twins.reporting.run_report import report_page
from focal_twins.tasks.find_task import task_of_run
from tests.tasks.segmentation.small_run import CLASSES, build, make_data, write_config
from tests.training.states import assert_same_state, metrics, tensors

EVERYTHING = ["loss.mean=valid", "model.dropout=0.3", "backbone.drop_path_rate=0.3"]


@pytest.fixture(scope="module")
def config_path(tmp_path_factory):
    """The configuration file of the runs, beside their folders."""
    folder = tmp_path_factory.mktemp("segmentation")
    return write_config(folder, make_data(folder / "data"))


@pytest.fixture(scope="module")
def uninterrupted(config_path):
    run = build(config_path, "uninterrupted", *EVERYTHING)
    run.run()
    yield run
    ms.set_context(mode=ms.PYNATIVE_MODE)


def test_a_run_leaves_its_figures_and_its_evaluation(uninterrupted):
    folder = uninterrupted.config.output
    lines = metrics(folder)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 8
    for line in lines:
        if "loss" in line:
            assert line["loss"] == pytest.approx(line["decode"] + line["auxiliary"], rel=1e-5)
    best = max((line for line in lines if line.get("weights") == "ema"), key=lambda line: line["miou"])
    content = json.loads((folder / "evaluation.json").read_text())
    assert [content[key] for key in ("miou", "macc", "aacc", "epoch")] == [
        best[key] for key in ("miou", "macc", "aacc", "epoch")
    ]
    confusion = np.array(content["confusion"])
    assert confusion.shape == (3, 3)
    assert confusion.sum() == content["pixels"] == sum(31 * 40 for _ in range(2)) + 2 * 35 * 33 + 47 * 32
    assert [entry["name"] for entry in content["classes"]] == list(CLASSES)
    page = report_page(read_run(folder))
    for part in ("Best mIoU", "IoU, %", "auxiliary", *CLASSES):
        assert part in page, part
    assert "top-1" not in page


def test_a_run_cut_within_an_epoch_and_resumed_has_the_same_bits(config_path, uninterrupted):
    build(config_path, "cut", *EVERYTHING, "train.stop_after_update=6").run()
    resumed = build(config_path, "cut", *EVERYTHING, "train.resume=auto")
    assert resumed.state.progress.images == 8
    resumed.run()
    # The run that stopped had evaluated where it did.
    lines = [line for line in metrics(resumed.config.output) if line["epochs_done"] != 1.5 or "loss" in line]
    assert lines == metrics(uninterrupted.config.output)
    assert any("running_var" in name for name in tensors(resumed.checkpoints.last))
    assert_same_state(resumed.checkpoints.last, uninterrupted.checkpoints.last)


def test_a_checkpoint_is_evaluated_as_in_training_and_otherwise(uninterrupted, capsys, tmp_path):
    run, best = uninterrupted, uninterrupted.state.progress.best
    report = tmp_path / "report.json"
    result = evaluate_checkpoint(run.config, Dist(), None, json_path=str(report))
    assert result.figures["miou"] == best
    printed = capsys.readouterr().out
    assert "(ema weights): mIoU" in printed and "lowest IoU: " in printed
    in_training = json.loads((run.config.output / "evaluation.json").read_text())
    assert json.loads(report.read_text())["confusion"] == in_training["confusion"]


def test_an_exported_model_gives_the_logits_of_the_checkpoint(uninterrupted):
    path = export_checkpoint(uninterrupted.config, Dist(), None, file_format="MINDIR", batch_size=2)
    described = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert (described["input"]["shape"], described["output"]["shape"]) == ([2, 3, 32, 32], [2, 3, 8, 8])
    assert described["classes"] == list(CLASSES)
    assert described["verified"]["images"] == "validation images"
    model = open_model(str(path))
    assert model.task is task_of_run({"task": "segmentation"})
