"""Exported detectors: what their files find is what the checkpoint finds, in evaluation and in prediction."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from mindspore import Tensor
from PIL import Image

import focal_twins
from focal_twins.config.load import load_config
from focal_twins.data.pipeline import EvalBatches, UnreadableImages
from focal_twins.distributed.ranks import Dist
from focal_twins.errors import UserError
from focal_twins.files.weights import CLASSES as NAMES_KEY
from focal_twins.files.weights import CONFIG as CONFIG_KEY
from focal_twins.files.weights import official_names, write_checkpoint
from focal_twins.inference.evaluate import evaluate_checkpoint
from focal_twins.inference.export import export_checkpoint
from focal_twins.tasks.find_task import create_task
from tests.conftest import others_exhaustive
from tests.examples import run_example
from tests.tasks.detection.small_detection import CLASSES, MASK_RCNN, SETS_AND_POINTS, make_data, write_config
from tests.trained import with_formula_weights


def checkpoint_of(folder, model=None):
    """A configuration, and a checkpoint of a network that finds something, at random."""
    config = load_config(write_config(folder, make_data(folder / "data"), model))
    network = with_formula_weights(config.build_model("CPU"))
    values = {name: Tensor(parameter.asnumpy()) for name, parameter in official_names(network).items()}
    path = folder / "best.ckpt"
    write_checkpoint(path, values, {CONFIG_KEY: config.to_yaml(), NAMES_KEY: json.dumps(CLASSES)})
    return config, path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return checkpoint_of(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def onnx_file(trained, tmp_path_factory):
    """A file with suppression inside."""
    config, path = trained
    target = tmp_path_factory.mktemp("onnx") / "x"
    return export_checkpoint(config, Dist(), path, "auto", "ONNX", target, 1, "detections")


def test_the_file_is_described_and_verified(trained, onnx_file):
    described = json.loads(onnx_file.with_name("x.onnx.json").read_text())
    assert described["output"] == {"name": "detections", "shape": [1, 100, 6], "dtype": "float32"}
    assert described["further_outputs"] == []
    assert described["verified"] == {"images": "validation images", "equal_share": 1.0}
    preprocessing = described["preprocessing"]
    assert (preprocessing["canvases"], preprocessing["output"]) == ([[64, 96]], "detections")
    assert (preprocessing["score_threshold"], preprocessing["nms_iou"]) == (0.001, 0.5)
    session = onnxruntime.InferenceSession(onnx_file)
    rows = session.run(["detections"], {"images": np.zeros((1, 3, 64, 96), np.float32)})[0]
    assert (np.diff(rows[0, :, 4]) <= 0).all() and set(np.unique(rows[0, :, 5])) <= {0, 1}


def test_files_are_verified_on_images_as_evaluation_makes_them(trained, tmp_path):
    """Bit for bit, on the network's own canvas: what lies beyond an image is 0 after normalisation."""
    config, _ = trained
    task = create_task(config)
    model = config.build_model("CPU")
    sampled, source = task.sample_inputs(model, 5)
    data = task.open("val")
    samples = create_task(task.for_one_size(config)).eval_samples(model, data, UnreadableImages(tmp_path / "none.txt"))
    (batch,) = EvalBatches(data, samples, batch_size=5)
    assert source == "validation images"
    assert (batch[1] != np.array(model.img_size)).any(axis=1).sum() >= 2
    np.testing.assert_array_equal(sampled, batch[0])


def test_checkpoint_and_file_predict_the_same(trained, onnx_file, run_script, tmp_path):
    """Of an image that fills the canvas; a file does not know where others end."""
    config, path = trained
    images = Path(config.data.path) / "val"
    found = []
    for model in (path, onnx_file):
        options = ["--checkpoint", model, "--format", "csv", "--threshold", "0.3", "--output", tmp_path / model.name]
        code, out, err = run_script("scripts/predict.py", *options, images)
        assert (code, err) == (0, "")
        rows = csv.DictReader(io.StringIO(out))
        found.append([row for row in rows if row["image"] == str(images / "image02.png")])
        assert len(list((tmp_path / model.name / "overlays").iterdir())) == 5
    assert found[0] and len(found[0]) == len(found[1])
    by_python = focal_twins.load(path, threshold=0.3)(Image.open(images / "image02.png")).found
    assert [float(row["score"]) for row in found[0]] == pytest.approx(by_python.scores.tolist(), abs=1e-5)
    assert [row["class"] for row in found[0]] == [CLASSES[label] for label in by_python.labels]
    for row, other in zip(*found, strict=True):
        assert row["class"] == other["class"]
        assert float(row["score"]) == pytest.approx(float(other["score"]), abs=1e-3)
        for side in ("x1", "y1", "x2", "y2"):
            assert float(row[side]) == pytest.approx(float(other[side]), abs=0.5)


def test_the_example_without_this_project_finds_the_same(trained, onnx_file, run_script):
    """examples/onnx_detect.py: of images that fill the canvas in one direction, and of one made smaller to fit."""
    images = sorted((Path(trained[0].data.path) / "val").iterdir())[:3]
    code, out, err = run_script(
        "scripts/predict.py", "--model", onnx_file, "--format", "csv", "--threshold", "0.001", *images
    )
    assert (code, err) == (0, "")
    expected = list(csv.DictReader(io.StringIO(out)))
    found = run_example("onnx_detect.py", onnx_file, *images)
    assert len(expected) == len(found) > 10
    for (name, label, *values), row in zip(found, expected, strict=True):
        assert (name, label) == (row["image"], row["class"])
        assert float(values[0]) == pytest.approx(float(row["score"]), abs=1e-5)
        assert [float(side) for side in values[1:]] == pytest.approx(
            [float(row[side]) for side in ("x1", "y1", "x2", "y2")], abs=0.01
        )


def test_a_file_of_candidates_is_evaluated(trained, onnx_file, tmp_path, capsys):
    """On one canvas, on which images that do not fit are made smaller; a file of detections is refused."""
    config, path = trained
    target = export_checkpoint(config, Dist(), path, output=tmp_path / "y")
    result = evaluate_checkpoint(config, Dist(), str(target), json_path=str(tmp_path / "file.json"))
    assert "an exported file is evaluated on its one canvas" in capsys.readouterr().out
    content = json.loads((tmp_path / "file.json").read_text())
    assert (content["count"], content["objects"], content["box_ap"]) == (5, 10, result.figures["box_ap"])
    assert content["detections"] > 10
    with pytest.raises(UserError, match="gives detections; evaluation needs candidates"):
        evaluate_checkpoint(config, Dist(), str(onnx_file))
    with pytest.raises(UserError, match="--dynamic-batch: a detector is exported for one number of images"):
        export_checkpoint(config, Dist(), path, batch_size=None)


def test_two_stages_are_exported_with_masks(tmp_path, run_script):
    config, path = checkpoint_of(tmp_path, MASK_RCNN)
    target = export_checkpoint(config, Dist(), path, "auto", "ONNX", tmp_path / "x", 1, "detections")
    described = json.loads(target.with_name("x.onnx.json").read_text())
    assert described["further_outputs"] == [{"name": "masks", "shape": [1, 100, 28, 28], "dtype": "float32"}]
    assert described["verified"]["equal_share"] >= 0.99
    image = tmp_path / "data" / "val" / "image00.png"
    code, out, err = run_script(
        "scripts/predict.py", "--model", target, "--format", "json", "--threshold", "0.01", image
    )
    assert (code, err) == (0, "")
    entries = json.loads(out)
    assert entries and all(entry["segmentation"]["size"] == [48, 80] for entry in entries)


@pytest.mark.parametrize("name", others_exhaustive(SETS_AND_POINTS, ("sparse_rcnn",)))
def test_sets_and_points_are_exported(name, tmp_path):
    """With the weights that a network starts with: a proposal's box needs positive sides."""
    section = {"name": name, "num_classes": len(CLASSES)} | SETS_AND_POINTS[name]
    config = load_config(write_config(tmp_path, make_data(tmp_path / "data"), section))
    values = {key: Tensor(p.asnumpy()) for key, p in official_names(config.build_model("CPU")).items()}
    write_checkpoint(tmp_path / "x.ckpt", values, {CONFIG_KEY: config.to_yaml(), NAMES_KEY: json.dumps(CLASSES)})
    target = export_checkpoint(config, Dist(), tmp_path / "x.ckpt", "auto", "ONNX", tmp_path / "x")
    described = json.loads(target.with_name("x.onnx.json").read_text())
    assert described["verified"]["equal_share"] >= 0.98
