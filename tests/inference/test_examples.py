"""What is done with exported classifiers elsewhere: run by a small program, converted to other precisions."""

import asyncio
import importlib
import json

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto
from PIL import Image

from focal_twins.config.load import load_config
from focal_twins.distributed.ranks import Dist
from focal_twins.inference.export import export_checkpoint
from tests.conftest import DIGITS_CONFIG, ROOT, TOY_MODEL
from tests.examples import run_example
from tests.trained import write_digits_checkpoint

COLOUR = (
    "model.in_chans=3", "data.mean=[0.4,0.5,0.6]", "data.std=[0.2,0.25,0.3]", "eval.crop_ratio=0.875",
    "data.exif=apply", "data.alpha=[255,250,240]",
)  # fmt: skip


def waves(height: int, width: int, channels: int) -> np.ndarray:
    """Pixels [H, W, C] float64 from 0 to 1 that look different everywhere and in every channel."""
    y, x, c = np.ogrid[:height, :width, :channels]
    return 0.5 + 0.25 * np.sin(y / 5 + 2 * c) + 0.25 * np.cos(x / 7 - c)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images of odd sizes, each of which something has to be done with."""
    folder = tmp_path_factory.mktemp("photos")
    save = {
        "turned.jpg": ((37, 121), 3, lambda image: {"exif": exif(image, 6)}),
        "tall.jpg": ((301, 9), 3, lambda _: {}),
        "wide.png": ((16, 77), 3, lambda _: {}),
        "grey.png": ((53, 17), 1, lambda _: {}),
        "above.png": ((41, 43), 4, lambda _: {}),
    }
    for name, (size, channels, options) in save.items():
        pixels = (255 * waves(*size, channels)).astype(np.uint8)
        image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
        image.save(folder / name, **options(image))
    Image.fromarray((65535 * waves(25, 31, 1)[:, :, 0]).astype(np.uint16)).save(folder / "deep.png")
    return folder


def exif(image: Image.Image, orientation: int) -> Image.Exif:
    found = image.getexif()
    found[274] = orientation
    return found


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """exported(*overrides): an ONNX file of a network with them, made once."""
    files = {}

    def export(*overrides):
        if overrides not in files:
            folder = tmp_path_factory.mktemp("exported")
            config = load_config(DIGITS_CONFIG, [*TOY_MODEL, f"data.path={folder}", *overrides])
            checkpoint = write_digits_checkpoint(config, folder / "best.ckpt")
            files[overrides] = export_checkpoint(config, Dist(), str(checkpoint), "auto", "ONNX", folder / "x")
        return files[overrides]

    return export


@pytest.fixture
def predicted(run_script):
    """predicted(model, names): probabilities by image and class, by scripts/predict.py."""

    def predict(model, names):
        code, out, err = run_script("scripts/predict.py", "--model", model, "--format", "json", "--top", 10, *names)
        assert (code, err) == (0, "")
        return {
            entry["image"]: {best["class"]: best["probability"] for best in entry["predictions"]}
            for entry in json.loads(out)
        }

    return predict


@pytest.mark.parametrize(
    "overrides",
    [COLOUR, pytest.param(("augment.interpolation=bilinear",), marks=pytest.mark.exhaustive)],
    ids=["colour", "grey"],
)
def test_the_example_gives_the_probabilities_of_the_script(photos, overrides, exported, predicted):
    model, names = exported(*overrides), sorted(map(str, photos.iterdir()))
    expected = predicted(model, names)
    for line, name in zip(run_example("onnx_predict.py", model, *names), names, strict=True):
        assert (line[0], line[1::3]) == (name, ["digit"] * 5)
        for number, probability in zip(line[2::3], line[3::3], strict=True):
            assert float(probability) == pytest.approx(expected[name][f"digit {number}"], abs=1e-5)
    assert np.ptp([max(classes.values()) for classes in expected.values()]) > 0.01  # the network tells them apart


def test_the_server_classifies_what_is_posted(photos, exported, predicted, monkeypatch):
    model, image = exported(*COLOUR), photos / "wide.png"
    monkeypatch.setenv("MODEL", str(model))
    monkeypatch.syspath_prepend(ROOT / "examples")

    async def ask():
        transport = httpx.ASGITransport(app=importlib.import_module("serve").app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return [await client.post("/predict", content=body) for body in (image.read_bytes(), b"no image")]

    good, bad = asyncio.run(ask())
    assert good.status_code == 200
    told = {entry["class"]: entry["probability"] for entry in good.json()}
    assert told == pytest.approx(predicted(model, [image])[str(image)], abs=1e-5)
    assert list(told.values()) == sorted(told.values(), reverse=True)
    assert (bad.status_code, bad.json()) == (422, {"detail": "the body is not an image that can be read"})


@pytest.mark.parametrize(("precision", "kind", "tolerance"), [("float16", "FLOAT16", 0.01), ("int8", "INT8", 0.2)])
def test_files_of_other_precisions_predict_nearly_the_same(
    photos, exported, predicted, run_script, tmp_path, precision, kind, tolerance
):
    model, names = exported(*COLOUR), sorted(map(str, photos.iterdir()))
    target = tmp_path / f"y_{precision}.onnx"
    flags = ["--model", model, "--precision", precision, "--calibration", photos, "--output", target]
    code, out, err = run_script("scripts/quantize_onnx.py", *flags)
    assert (code, err) == (0, "")
    assert "of the outputs of both: largest difference" in out
    described = json.loads((tmp_path / f"{target.name}.json").read_text())
    assert (described["precision"], described["file"]) == (precision, target.name)
    assert 0 < described["verified"]["relative_difference"] < tolerance
    kinds = {TensorProto.DataType.Name(entry.data_type) for entry in onnx.load(target).graph.initializer}
    assert kind in kinds
    expected, got = predicted(model, names), predicted(target, names)
    for name in names:
        assert got[name] == pytest.approx(expected[name], abs=tolerance)
    code, _, err = run_script("scripts/quantize_onnx.py", "--model", target, *flags[2:])
    assert (code, err.count("\n")) == (1, 1)
    assert f"is of {precision} already" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "x.mindir"], "model x.mindir: only ONNX files are converted; export with --format ONNX"),
        (["--model", "x.onnx", "--images", "0"], "--images: must be at least 1"),
        (["--model", "x.onnx", "--calibration", "no"], "--calibration no: cannot be listed"),
    ],
)
def test_what_cannot_be_converted_is_one_line(photos, run_script, flags, message):
    shared = ["--precision", "int8", "--calibration", photos]
    code, out, err = run_script("scripts/quantize_onnx.py", *shared, *flags)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert message in err
