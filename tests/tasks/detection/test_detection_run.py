"""Whole runs of detection: training, resuming and evaluating, operator by operator."""

import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from focal_twins.distributed.ranks import Dist
from focal_twins.inference.evaluate import evaluate_checkpoint
from focal_twins.models import create_model
from focal_twins.reporting.run_files import read_run
from focal_twins.reporting.run_report import report_page
from focal_twins.tasks.detection.loss import DetectionLosses
from tests.tasks.detection.small_detection import (
    CLASSES,
    CONFIG,
    MASK_RCNN,
    batch_of,
    build,
    make_data,
    outcome_of_run,
    write_config,
)
from tests.training.states import assert_same_state, metrics


@pytest.fixture(scope="module")
def config_path(tmp_path_factory):
    """The configuration file of the runs, beside their folders."""
    folder = tmp_path_factory.mktemp("detection")
    return write_config(folder, make_data(folder / "data"))


@pytest.fixture(scope="module")
def uninterrupted(config_path):
    run = build(config_path, "uninterrupted")
    run.run()
    yield run
    ms.set_context(mode=ms.PYNATIVE_MODE)


def test_a_run_leaves_its_figures_and_its_evaluation(uninterrupted):
    folder = uninterrupted.config.output
    lines = metrics(folder)
    assert sum("loss" in line for line in lines) == 12
    for line in lines:
        if "loss" in line:
            assert line["loss"] == pytest.approx(line["classification"] + line["boxes"], rel=1e-5)
    best = max((line for line in lines if line.get("weights") == "ema"), key=lambda line: line["box_ap"])
    content = json.loads((folder / "evaluation.json").read_text())
    assert [content[key] for key in ("box_ap", "box_ap50", "box_ar_100", "epoch")] == [
        best[key] for key in ("box_ap", "box_ap50", "box_ar_100", "epoch")
    ]
    assert (content["count"], content["objects"]) == (5, 10)
    assert [entry["name"] for entry in content["classes"]] == list(CLASSES)
    page = report_page(read_run(folder))
    for part in ("Best box AP", "AP75", *CLASSES):
        assert part in page, part
    assert "top-1" not in page and "mask AP" not in page


def test_a_run_cut_within_an_epoch_and_resumed_has_the_same_bits(config_path, uninterrupted):
    build(config_path, "cut", "train.stop_after_update=8").run()
    resumed = build(config_path, "cut", "train.resume=auto")
    assert resumed.state.progress.images == 4
    resumed.run()
    stopped_at = pytest.approx(8 / 6, abs=1e-5)  # where the run that stopped had evaluated
    lines = [line for line in metrics(resumed.config.output) if line["epochs_done"] != stopped_at or "loss" in line]
    assert lines == metrics(uninterrupted.config.output)
    assert_same_state(resumed.checkpoints.last, uninterrupted.checkpoints.last)


def test_a_checkpoint_is_evaluated_as_in_training_and_otherwise(uninterrupted, capsys, tmp_path):
    run, best, report = uninterrupted, uninterrupted.state.progress.best, tmp_path / "report.json"
    result = evaluate_checkpoint(run.config, Dist(), None, json_path=str(report))
    assert result.figures["box_ap"] == best
    assert "(ema weights): box AP" in capsys.readouterr().out
    assert (
        json.loads(report.read_text())["box_ap50"]
        == json.loads((run.config.output / "evaluation.json").read_text())["box_ap50"]
    )
    found = json.loads(report.with_name("report_results.json").read_text())
    assert {detection["category_id"] for detection in found} <= {3, 7}


def test_masks_are_trained_and_evaluated(tmp_path):
    run = build(
        write_config(tmp_path, make_data(tmp_path / "data"), MASK_RCNN),
        "masks",
        "train.epochs=1",
        "train.stop_after_update=2",
    )
    run.run()
    line = next(line for line in metrics(run.config.output) if "mask_ap" in line)
    assert {"box_ap", "mask_ap50", "mask_ar_100"} <= line.keys()
    assert "mask AP" in report_page(read_run(run.config.output))


@pytest.mark.parametrize("section", [None, MASK_RCNN], ids=["retinanet", "mask_rcnn"])
def test_accumulated_batches_are_one_large_batch(section):
    expected, losses = outcome_of_run(section=section)
    found, accumulated = outcome_of_run(accumulation_steps=2, section=section)
    np.testing.assert_allclose(accumulated, losses, rtol=1e-5)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_each_canvas_has_the_loss_of_its_own_anchors():
    """ATSS decodes boxes in its loss: of a standing batch by the anchors of the standing canvas."""
    lying, standing = (64, 96), (96, 64)
    section = CONFIG["model"] | {"name": "atss", "neck_channels": 32, "channels": 32}
    backbone = create_model(features_only=True, **CONFIG["backbone"] | {"drop_path_rate": 0.0})
    model = create_model(backbone=backbone, **section).set_train()
    models = {lying: model, standing: model.at(standing)}
    arrays = batch_of(0, models[standing])
    batch = [Tensor(array) for array in arrays]
    expected = DetectionLosses({standing: models[standing]}, {standing: models[standing]})(*batch, None)
    found = DetectionLosses(models, models)(*batch, None)
    for part, of_canvas in zip(found, expected, strict=True):
        np.testing.assert_array_equal(part.asnumpy(), of_canvas.asnumpy())
    swapped = DetectionLosses({standing: models[standing]}, {standing: model})(*batch, None)
    assert not np.allclose(swapped[0].asnumpy(), expected[0].asnumpy(), rtol=1e-3)
