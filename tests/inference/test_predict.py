"""scripts/predict.py as a user calls it: good, damaged and other files, by every kind of model file."""

import csv
import io
import json
import os
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image

import focal_twins
from focal_twins.cli import run
from focal_twins.commands.predict import main
from focal_twins.config.load import load_config
from focal_twins.data.open_images import open_images
from focal_twins.data.pipeline import EvalBatches, UnreadableImages
from focal_twins.data.transforms import EvalTransform, Preprocessing
from focal_twins.distributed.ranks import Dist
from focal_twins.errors import UserError
from focal_twins.files.names import escape_name, unescape_name
from focal_twins.files.weights import save_weights
from focal_twins.inference.export import export_checkpoint
from focal_twins.inference.trained import load_for_inference
from focal_twins.models import ArgumentError
from focal_twins.tasks.classification.predictor import Classifier, predict, softmax
from focal_twins.tasks.find_task import create_task
from tests.conftest import DIGITS_CONFIG, TOY_MODEL
from tests.trained import DIGIT_NAMES, write_digits_checkpoint

NAMES = DIGIT_NAMES


@pytest.fixture(scope="module")
def config(digits):
    return load_config(DIGITS_CONFIG, [*TOY_MODEL, f"data.path={digits}"])


@pytest.fixture(scope="module")
def checkpoint(config, tmp_path_factory):
    return write_digits_checkpoint(config, tmp_path_factory.mktemp("checkpoint") / "best.ckpt")


@pytest.fixture(scope="module")
def expected(config, checkpoint, digits):
    """Probabilities [360, 10] of the validation digits with the averaged weights, by evaluation's own pipeline."""
    trained = load_for_inference(config, checkpoint, "auto", "CPU")
    model = trained.network
    assert trained.weights == "ema"
    images = open_images(digits, "val")
    samples = create_task(config).eval_samples(model, images, UnreadableImages(digits / "unreadable.txt"))
    batches = EvalBatches(images, samples, batch_size=120)
    logits = np.concatenate([model(Tensor(batch[0])).asnumpy() for batch in batches])
    return {str(digits / "val" / name): softmax(row) for name, row in zip(images.names, logits, strict=True)}


@pytest.fixture
def call(capsys, monkeypatch):
    """call(*arguments) -> (exit code, stdout, stderr)"""

    def call_script(*arguments, stdin=""):
        monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(os.fsencode(stdin))))
        capsys.readouterr()
        code = run(main, "predict.py")
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call_script


def assert_predicts(told, probabilities, count, tolerance=1e-6):
    """[(index, class, probability)] are the `count` most probable classes, in order."""
    order = np.argsort(-probabilities, kind="stable")[:count]
    assert [index for index, _, _ in told] == order.tolist()
    assert [name for _, name, _ in told] == [NAMES[index] for index in order]
    np.testing.assert_allclose([p for _, _, p in told], probabilities[order], atol=tolerance)


def test_json_of_a_folder_is_what_evaluation_computes(call, checkpoint, digits, expected):
    code, out, err = call("--checkpoint", checkpoint, "--format", "json", "--top", 3, digits / "val")
    assert (code, err) == (0, "")
    content = json.loads(out)
    assert [entry["image"] for entry in content] == list(expected)  # every image, in order
    for entry in content:
        told = [(best["index"], best["class"], best["probability"]) for best in entry["predictions"]]
        assert_predicts(told, expected[entry["image"]], 3)


def test_python_predicts_what_evaluation_computes(checkpoint, expected):
    """Bit for bit, of files, of Pillow images and of arrays, one and several; settings of MindSpore stay."""
    names = list(expected)[3:60:19]
    ms.set_seed(5)
    predictor = focal_twins.load(checkpoint)
    assert (ms.get_context("mode"), ms.get_seed()) == (ms.PYNATIVE_MODE, 5)
    assert (predictor.task, predictor.classes, predictor.network.training) == ("classification", NAMES, False)
    opened = [Image.open(name) for name in names]
    for sources in (names, [Path(name) for name in names], opened, [np.asarray(image) for image in opened]):
        for prediction, name in zip(predictor(sources), names, strict=True):
            np.testing.assert_allclose(prediction.probabilities, expected[name], atol=1e-6)
    assert predictor(opened[0]).top(1) == predictor(names[0]).top(1)
    assert predictor([]) == []
    assert not np.allclose(focal_twins.load(checkpoint, weights="raw")(names[0]).probabilities, expected[names[0]])
    with pytest.raises(UserError, match=r"image nowhere\.png: cannot be read"):
        predictor(["nowhere.png"])
    with pytest.raises(TypeError, match=r"got \(4, 4\) float64"):
        predictor(np.zeros((4, 4)))
    with pytest.raises(ArgumentError, match="2 names for the 10 classes"):
        focal_twins.load(checkpoint, classes=("a", "b"))


def test_csv_and_file_names_from_standard_input(call, checkpoint, expected):
    names = list(expected)[5:40:7]
    code, out, err = call(
        "--checkpoint", checkpoint, "--format=csv", "--top=2", "--batch_size=3", "-", stdin="\n".join(names) + "\n\n"
    )
    assert (code, err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["image"] for row in rows[::2]] == names
    assert [row["rank"] for row in rows] == ["1", "2"] * len(names)
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        told = [(int(row["index"]), row["class"], float(row["probability"])) for row in (first, second)]
        assert_predicts(told, expected[first["image"]], 2, 1e-5)


def test_text_and_either_weights(call, checkpoint, expected):
    name = next(iter(expected))
    code, out, _ = call("--checkpoint", checkpoint, "--top", 1, name)
    best = int(np.argmax(expected[name]))
    assert (code, out) == (0, f"{name}: digit {best} {expected[name][best]:.2%}\n")
    assert call("--checkpoint", checkpoint, "--top", 1, "--weights", "raw", name)[1] != out
    code, out, err = call("--checkpoint", checkpoint, "--output", "predictions", name)
    assert (code, out) == (1, "")
    assert "--output: is nothing that the prediction of classification has" in err


@pytest.mark.parametrize(
    ("file_format", "batch_size"),
    [
        ("MINDIR", None),
        ("ONNX", 2),
        pytest.param("MINDIR", 2, marks=pytest.mark.exhaustive),
        pytest.param("ONNX", None, marks=pytest.mark.exhaustive),
    ],
)
def test_exported_files_say_the_same(call, config, checkpoint, expected, tmp_path, file_format, batch_size):
    path = export_checkpoint(config, Dist(), checkpoint, "auto", file_format, tmp_path / "x", batch_size)
    names = list(expected)[:5]
    code, out, err = call("--model", path, "--format", "json", "--top", 10, *names)
    assert (code, err) == (0, "")
    for entry, name in zip(json.loads(out), names, strict=True):
        told = [(best["index"], best["class"], best["probability"]) for best in entry["predictions"]]
        assert_predicts(told, expected[name], 10, 1e-5)
    assert "leave out the flags" in call("--model", path, "--weights", "raw", names[0])[2]
    with pytest.raises(ArgumentError, match="2 names for the 10 classes"):
        focal_twins.load(path, classes=("a", "b"))


def test_unreadable_files_are_listed_and_left_out(call, checkpoint, expected, tmp_path):
    name = next(iter(expected))
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    good = Path(name).read_bytes()
    (folder / "below" / "good.png").write_bytes(good)
    (folder / "cut.png").write_bytes(good[:40])
    (folder / "notes.txt").write_text("no image, by its name")
    (folder / ".hidden.png").write_text("hidden")
    (folder / "text.jpg").write_text("no image, by its content")
    code, out, err = call("--checkpoint", checkpoint, "--format", "json", "--top", 1, folder, folder / "none.png")
    assert code == 0
    (entry,) = json.loads(out)
    assert entry["image"] == str(folder / "below" / "good.png")
    assert entry["predictions"][0]["probability"] == pytest.approx(expected[name].max(), abs=1e-6)
    left_out, *listed = err.splitlines()
    assert [line.split(" (")[0] for line in listed] == [
        f"unreadable image {folder / 'cut.png'}",
        f"unreadable image {folder / 'text.jpg'}",
        f"unreadable image {folder / 'none.png'}",
        "3 of 4 images could not be read",
    ]
    assert left_out == (
        f"folder {folder}: left out 1 hidden or of the system (.hidden.png); "
        "1 without the ending of an image (notes.txt)"
    )
    code, out, err = call("--checkpoint", checkpoint, "--format", "json", folder / "cut.png")
    assert (code, json.loads(out)) == (1, [])
    assert err.endswith("predict.py: error: none of the images could be read\n")


def test_names_of_any_bytes_come_back(call, checkpoint, expected, tmp_path):
    """From a folder or from `find -print0`; escaped in lines, exact in JSON."""
    good = Path(next(iter(expected))).read_bytes()
    names = [str(tmp_path / os.fsdecode(name)) for name in (b"a\tb\nc.JpG", b"caf\xe9.png", b"sub/caf\xc3\xa9.png")]
    (tmp_path / "sub").mkdir()
    for name in names:
        Path(name).write_bytes(good)
    command = ["--checkpoint", checkpoint, "--top=1"]
    code, out, err = call(*command, "--format=json", tmp_path)
    assert (code, err) == (0, "")
    assert [entry["image"] for entry in json.loads(out)] == names
    escaped = [escape_name(name) for name in names]
    out = call(*command, "-", stdin="".join(f"{name}\0" for name in names))[1]
    assert [line.split(": ")[0] for line in out.splitlines()] == escaped
    rows = csv.DictReader(io.StringIO(call(*command, "--format=csv", "-", stdin=names[1])[1]))
    assert [unescape_name(row["image"]) for row in rows] == [names[1]]
    bad = tmp_path / os.fsdecode(b"bad\xff.png")
    os.mkfifo(bad)
    err = call(*command, names[0], bad)[2]
    assert f"unreadable image {escape_name(bad)} (not a regular file)" in err


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])  # the first as the original code writes them
def test_weights_alone_need_a_configuration(call, config, checkpoint, expected, tmp_path, suffix):
    weights = tmp_path / f"weights{suffix}"
    save_weights(load_for_inference(config, checkpoint, "ema", "CPU").network, weights)
    name = next(iter(expected))
    command = ["--checkpoint", weights, "--format", "json", "--top", 1, name]
    code, _, err = call(*command)
    assert (code, err.count("\n")) == (1, 1)
    assert "holds weights without their configuration; name it with --config NAME" in err
    command += ["--config", "focalv2_digits", *(f"--set={override}" for override in TOY_MODEL)]
    code, out, _ = call(*command)
    best = json.loads(out)[0]["predictions"][0]
    assert (code, best["class"], best["probability"]) == (0, None, pytest.approx(expected[name].max(), abs=1e-6))
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    out = call(*command, "--classes", tmp_path / "names.txt")[1]
    assert json.loads(out)[0]["predictions"][0]["class"] == NAMES[best["index"]]
    (tmp_path / "names.txt").write_text("two\nnames")
    assert "has 2 names, the model 10 classes" in call(*command, "--classes", tmp_path / "names.txt")[2]


REFUSALS = {
    "no model": (["x.png"], "required: --checkpoint"),
    "no such model": (["--checkpoint", "no.ckpt", "x.png"], "checkpoint no.ckpt: no such file"),
    "no such export": (["--model", "no.onnx", "x.png"], "model no.onnx: no such file"),
    "no names on standard input": (["--checkpoint", "no.ckpt", "-"], "no images in -"),
    "no classes": (["--checkpoint", "no.ckpt", "--top=0", "x.png"], "--top: must be at least 1, got 0"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_bad_input_is_one_line(call, arguments, message):
    code, out, err = call(*arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("predict.py: error: ")
    assert message in err


def test_threads_read_in_order_and_alike(tmp_path):
    """Photographs of many sizes, three channels: MindSpore's resizing is used from several threads at once."""
    generator = np.random.default_rng(0)
    names = []
    for index in range(40):
        height, width = generator.integers(40, 200, 2)
        pixels = generator.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
        image = Image.fromarray(pixels).resize((int(width), int(height)))
        names.append(str(tmp_path / f"{index}.jpg"))
        image.save(names[-1])
    preprocessing = Preprocessing(EvalTransform((32, 32), 0.875, "bicubic"), [0.5] * 3, [0.25] * 3)
    seen = []

    def logits(images):
        seen.extend(images)
        return images.mean((2, 3))

    classifier = Classifier(logits, preprocessing, None, None)
    results = list(predict(classifier, names, batch_size=16, workers=8))
    assert [result.image for result in results] == names
    alone = [preprocessing.normalise(preprocessing.pixels(np.fromfile(name, np.uint8))[None])[0] for name in names]
    np.testing.assert_array_equal(np.stack(seen[:40]), np.stack(alone))
    assert len(seen) == 48  # the last batch filled up
    np.testing.assert_allclose(results[-1].probabilities, softmax(alone[-1].mean((1, 2))))
