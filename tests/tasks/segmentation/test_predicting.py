"""scripts/predict.py with segmentors: from a checkpoint as an evaluation predicts, from exported files by windows."""

import csv
import io
import json
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from mindspore import Tensor
from PIL import Image

import focal_twins
from focal_twins.cli import run
from focal_twins.commands.predict import main
from focal_twins.config.load import load_config
from focal_twins.data.label_folders import LabelledFolders
from focal_twins.distributed.ranks import Dist
from focal_twins.errors import UserError
from focal_twins.files.weights import CLASSES as NAMES_KEY
from focal_twins.files.weights import CONFIG as CONFIG_KEY
from focal_twins.files.weights import official_names, write_checkpoint
from focal_twins.inference.evaluate import evaluate_checkpoint
from focal_twins.inference.export import export_checkpoint
from focal_twins.models.registry import ArgumentError
from focal_twins.models.resize import bilinear_matrix
from focal_twins.pages.palette import palette
from focal_twins.tasks.export_difference import difference_of
from focal_twins.tasks.prediction_files import places_of
from focal_twins.tasks.segmentation.inference_rule import joined_labels
from focal_twins.tasks.segmentation.metrics import confusion_matrix
from focal_twins.tasks.segmentation.predictor import SegmentPredictor
from focal_twins.tasks.segmentation.preparation import ImagePreparation
from tests.examples import run_example
from tests.reference import images
from tests.tasks.segmentation.small_run import CLASSES, SIZES, make_data, write_config
from tests.trained import with_formula_weights


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predicting")
    return load_config(write_config(folder, make_data(folder / "data")))


@pytest.fixture(scope="module")
def checkpoint(config, tmp_path_factory):
    """A checkpoint of a network whose predictions differ from place to place."""
    path = tmp_path_factory.mktemp("checkpoint") / "best.ckpt"
    model = with_formula_weights(config.build_model("CPU"))
    values = {name: Tensor(parameter.asnumpy()) for name, parameter in official_names(model).items()}
    write_checkpoint(path, values, {CONFIG_KEY: config.to_yaml(), NAMES_KEY: json.dumps(CLASSES)})
    return path


@pytest.fixture(scope="module")
def scenes(config):
    return LabelledFolders.of(config, "val")


@pytest.fixture
def call(run_script):
    """call(*arguments) -> (exit code, stdout, stderr)"""
    return partial(run_script, "scripts/predict.py")


@pytest.fixture(scope="module")
def predicted(config, checkpoint, scenes, tmp_path_factory):
    """What the script writes of all validation images, from the checkpoint: its output, and the folder."""
    folder = tmp_path_factory.mktemp("predicted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", io.StringIO())
        patch.setattr(sys, "argv", ["predict.py", "--checkpoint", str(checkpoint), "--output", str(folder)])
        sys.argv += ["--format", "json", "--batch_size", "2", str(scenes.path)]
        assert run(main, "predict.py") == 0
        return json.loads(sys.stdout.getvalue()), folder


def label_of(folder, name):
    image = Image.open(folder / "labels" / name)
    return image, np.asarray(image).astype(np.int32)


def test_the_label_images_are_what_an_evaluation_counts(config, checkpoint, scenes, predicted, tmp_path):
    result = evaluate_checkpoint(config, Dist(), str(checkpoint), json_path=str(tmp_path / "report.json"))
    confusion = np.zeros((3, 4), np.int64)
    for index, name in enumerate(scenes.names):
        image, labels = label_of(predicted[1], name)
        assert image.mode == "P"
        assert image.getpalette()[:9] == palette(3).ravel().tolist()
        confusion += confusion_matrix(scenes.label(index), labels, 3, 255)
    np.testing.assert_array_equal(confusion, result.counts.confusion)
    assert (confusion.sum(axis=0)[:3] > 0).sum() > 1  # not one class everywhere


def test_python_predicts_the_same_labels(checkpoint, scenes, predicted):
    predictor = focal_twins.load(checkpoint)
    names = scenes.names[:2]
    for prediction, name in zip(predictor([Image.open(scenes.path / name) for name in names]), names, strict=True):
        np.testing.assert_array_equal(prediction.labels, label_of(predicted[1], name)[1])
    assert (predictor.task, predictor.classes) == ("segmentation", CLASSES)


def test_shares_and_pictures(scenes, predicted):
    told, folder = predicted
    assert [entry["image"] for entry in told] == [str(scenes.path / name) for name in scenes.names]
    assert json.loads((folder / "shares.json").read_text()) == told
    for entry, name in zip(told, scenes.names, strict=True):
        _, labels = label_of(folder, name)
        assert (entry["height"], entry["width"]) == labels.shape == SIZES[scenes.names.index(name) % 3]
        counts = np.bincount(labels.ravel(), minlength=3)
        assert {line["class"]: line["pixels"] for line in entry["classes"]} == {
            CLASSES[index]: int(count) for index, count in enumerate(counts) if count
        }
        shares = [line["share"] for line in entry["classes"]]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1)
        assert Image.open(entry["overlay"]).size == labels.shape[::-1]
    legend = (folder / "legend.html").read_text()
    assert all(line["color"] in legend and line["class"] in legend for entry in told for line in entry["classes"])


def test_text_csv_and_unreadable_files(call, checkpoint, scenes, predicted, tmp_path):
    """The label images of predictions are an input of training: the same names, and a palette."""
    name = scenes.path / scenes.names[1]
    (tmp_path / "cut.png").write_bytes(name.read_bytes()[:40])
    code, out, err = call("--checkpoint", checkpoint, "--format", "csv", "--top", 1, name, tmp_path / "cut.png")
    best = predicted[0][1]["classes"][0]
    (row,) = csv.DictReader(io.StringIO(out))
    assert (code, row["image"], row["class"], row["pixels"]) == (0, str(name), best["class"], str(best["pixels"]))
    assert f"unreadable image {tmp_path / 'cut.png'}" in err
    assert "1 of 2 images could not be read" in err
    overlay = tmp_path / "seen"
    code, out, _ = call("--checkpoint", checkpoint, "--output", overlay, "--overlay=png", "--opacity=0", name)
    assert out.startswith(f"{name}: {best['class']} {best['share']:.2%}")
    assert (overlay / "labels" / name.name).is_file()
    seen, original = (np.asarray(Image.open(path)) for path in (overlay / "overlays" / name.name, name))
    assert (seen == original).all(axis=2).mean() > 0.3  # but for the edges of regions


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--opacity", "2", "--output", "x"], "--opacity: must be between 0 and 1, got 2.0"),
        (["--overlay", "png"], "need --output FOLDER"),
        (["--classes", "{names}"], "names 2 classes, and the model has 3"),
    ],
)
def test_bad_input_is_one_line(call, checkpoint, scenes, tmp_path, flags, message):
    (tmp_path / "names.txt").write_text("one\ntwo")
    flags = [flag.format(names=tmp_path / "names.txt") for flag in flags]
    code, out, err = call("--checkpoint", checkpoint, *flags, scenes.path / scenes.names[0])
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


DESCRIBED = {
    "channels": 3, "reading": {}, "resize": None, "scales": [1.0], "mean": [0.5] * 3, "std": [0.5] * 3,
    "num_classes": 3, "mode": "whole", "window": [32, 32], "stride": [16, 16], "canvas_step": None,
    "flip": False, "output": None,
}  # fmt: skip
NO_OPTIONS = SimpleNamespace(top=None, classes=None, output=None, overlay=None, opacity=None)


def predictor_of(answer, **changed):
    return SegmentPredictor(answer, ImagePreparation.from_dict(DESCRIBED | changed), None, None, NO_OPTIONS)


def test_a_size_that_the_network_cannot_have_is_named(scenes):
    def answer(images):
        raise ArgumentError("img_size", "sides must be multiples of 7")

    name = str(scenes.path / scenes.names[0])
    with pytest.raises(UserError, match=r"scene0.* whole: the network cannot take an image of 40 x 32 .* of 7.*slide"):
        next(predictor_of(answer).predict([name], 1, 1))
    with pytest.raises(UserError, match=r"lacks preprocessing\.stride"):
        ImagePreparation.from_dict({key: value for key, value in DESCRIBED.items() if key != "stride"})


def test_networks_know_what_of_a_canvas_is_the_image(scenes):
    """The logits are of the class that each image's brightest channel says; images of one size go together."""
    calls = []

    def answer(images, part):
        calls.append((images.shape, part))
        return images[:, :, ::2, ::2]

    names = [str(scenes.path / name) for name in (scenes.names[0], scenes.names[3], scenes.names[1])]
    predictor = predictor_of(answer, mode="canvas", canvas_step=16)
    predictions = list(predictor.predict(names, 3, 2))
    assert calls == [((3, 3, 32, 48), (32, 40)), ((3, 3, 48, 48), (36, 33))]
    assert [prediction.image for prediction in predictions] == names
    for prediction, index in zip(predictions, (0, 3, 1), strict=True):
        label = scenes.label(index)
        assert prediction.labels.shape == label.shape
        assert (prediction.labels == label)[label != 255].mean() > 0.9


def resized(logits, size):
    """Logits [B, classes, h, w] at another size."""
    rows, columns = (bilinear_matrix(side, wanted) for side, wanted in zip(logits.shape[2:], size, strict=True))
    return rows @ logits @ columns.T


@pytest.fixture(scope="module")
def files(config, checkpoint, tmp_path_factory):
    """ONNX files of each kind of output, for any batch."""
    folder = tmp_path_factory.mktemp("exported")
    return {
        output: export_checkpoint(config, Dist(), checkpoint, "auto", "ONNX", folder / output, None, output)
        for output in ("logits", "full_size", "labels")
    }


def test_exported_files_give_each_kind_of_output(config, files, capsys):
    x = images((3, 3, 32, 32))
    model = with_formula_weights(config.build_model("CPU"))
    logits = np.moveaxis(model(Tensor(x)).asnumpy().reshape(3, 8, 8, 3), -1, 1)
    full = resized(logits, (32, 32))
    sessions = {output: onnxruntime.InferenceSession(path) for output, path in files.items()}
    for output, expected in (("logits", logits), ("full_size", full)):
        got = sessions[output].run(["logits"], {"images": x})[0]
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)
    labels = sessions["labels"].run(["labels"], {"images": x})[0]
    assert (labels == full.argmax(axis=1)).mean() > 0.999
    described = json.loads(files["labels"].with_name("labels.onnx.json").read_text())
    assert described["output"] == {"name": "labels", "shape": [None, 32, 32], "dtype": "int32"}
    assert described["verified"]["equal_share"] > 0.999
    assert (described["preprocessing"]["mode"], described["preprocessing"]["window"]) == ("slide", [32, 32])


def test_exported_files_predict_by_windows(call, checkpoint, files, scenes, tmp_path):
    names = [scenes.path / name for name in scenes.names[:3]]
    call("--checkpoint", checkpoint, "--set", "eval.mode=slide", "--output", tmp_path / "checkpoint", *names)
    for output, path in files.items():
        code, _, err = call("--model", path, "--output", tmp_path / output, "--overlay", "none", *names)
        assert (code, err) == (0, "")
        for name in scenes.names[:3]:
            expected, got = (label_of(tmp_path / folder, name)[1] for folder in ("checkpoint", output))
            # Labels of overlapping windows are not averaged, and are resized as they are.
            assert (got == expected).mean() > (0.8 if output == "labels" else 0.999), (output, name)


def test_exported_files_are_evaluated_by_windows(config, checkpoint, files, tmp_path):
    """As the checkpoint is by windows; a file that gives labels is refused, for it has no probabilities."""
    sliding = replace(config, eval=config.eval.model_copy(update={"mode": "slide"}))
    expected, got = (
        evaluate_checkpoint(settings, Dist(), str(path), json_path=str(tmp_path / f"{path.name}.json"))
        for settings, path in ((sliding, checkpoint), (config, files["logits"]))
    )
    assert got.figures["aacc"] == pytest.approx(expected.figures["aacc"], abs=0.1)
    assert got.counts.confusion.sum() == expected.counts.confusion.sum()
    with pytest.raises(UserError, match="gives labels; evaluation needs logits: export with --outputs logits"):
        evaluate_checkpoint(config, Dist(), str(files["labels"]))


@pytest.mark.parametrize("output", ["logits", "full_size"])
def test_the_example_without_this_project_gives_the_same_labels(call, files, scenes, tmp_path, output):
    """examples/onnx_segment.py: of images larger than a window, which overlap, and than neither side."""
    large = tmp_path / "large.png"
    Image.open(scenes.path / scenes.names[0]).resize((77, 51)).save(large)
    for image in (large, scenes.path / scenes.names[1]):
        code, out, err = call("--model", files[output], "--output", tmp_path / "own", "--format", "json", image)
        assert (code, err) == (0, "")
        (line,) = run_example("onnx_segment.py", files[output], image, tmp_path / "labels.png")
        told = dict(zip(line[::2], map(float, line[1::2]), strict=True))
        (entry,) = json.loads(out)
        assert told == pytest.approx({each["class"]: each["share"] for each in entry["classes"]}, abs=1e-4)
        expected, got = (np.asarray(Image.open(path)) for path in (entry["labels"], tmp_path / "labels.png"))
        assert (got == expected).mean() > 0.9999


def test_windows_of_labels_share_their_overlap():
    labels = np.arange(9 * 10).reshape(9, 10)
    windows = [labels[y : y + 6, x : x + 6] for y in (0, 3) for x in (0, 4)]
    np.testing.assert_array_equal(joined_labels(np.stack(windows), (9, 10), (6, 6), (3, 4)), labels)
    marked = np.stack([np.full((6, 6), number) for number in range(4)])
    assert joined_labels(marked, (9, 10), (6, 6), (3, 4))[:, 0].tolist() == [0] * 4 + [2] * 5
    assert joined_labels(marked, (9, 10), (6, 6), (3, 4))[0].tolist() == [0] * 5 + [1] * 5


def test_a_file_with_other_labels_is_refused():
    labels = np.zeros((1, 100, 100), np.int32)
    other = labels.copy()
    other[0, 0, :5] = 1
    assert difference_of([(other, labels)]).is_small
    other[0, 1, :6] = 1
    assert not difference_of([(other, labels)]).is_small
    assert str(difference_of([(other, labels)])) == "99.8900% of the labels are equal"


def test_every_image_has_a_place_of_its_own():
    assert places_of(["/a/b/x.jpg", "/a/c/x.jpg", "/a/c/y.jpg", "/a/c/y.png"]) == ["b/x", "c/x", "c/y.jpg", "c/y.png"]
    assert places_of(["/a/x.jpg"]) == ["x"]
    assert places_of(["/a/x.jpg", "/a/x.jpg"]) == ["x", "x"]
