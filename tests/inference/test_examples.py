"""examples/onnx_predict.py, which needs nothing of this project, against scripts/predict.py."""

import json

import numpy as np
import pytest
from PIL import Image

from focal_twins.config.load import load_config
from focal_twins.distributed.ranks import Dist
from focal_twins.inference.export import export_checkpoint
from tests.conftest import DIGITS_CONFIG, TOY_MODEL
from tests.examples import run_example
from tests.trained import DIGIT_NAMES, write_digits_checkpoint

COLOUR = ["model.in_chans=3", "data.mean=[0.4,0.5,0.6]", "data.std=[0.2,0.25,0.3]", "eval.crop_ratio=0.875"]


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


@pytest.mark.parametrize(
    "overrides",
    [
        [*COLOUR, "data.exif=apply", "data.alpha=[255,250,240]"],
        pytest.param(["augment.interpolation=bilinear"], marks=pytest.mark.exhaustive),
    ],
    ids=["colour", "grey"],
)
def test_probabilities_are_those_of_the_script(photos, overrides, run_script, tmp_path):
    config = load_config(DIGITS_CONFIG, [*TOY_MODEL, f"data.path={tmp_path}", *overrides])
    checkpoint = write_digits_checkpoint(config, tmp_path / "best.ckpt")
    model = export_checkpoint(config, Dist(), str(checkpoint), "auto", "ONNX", tmp_path / "x")
    names = sorted(map(str, photos.iterdir()))
    code, out, err = run_script("scripts/predict.py", "--model", model, "--format", "json", *names)
    assert (code, err) == (0, "")
    for line, entry in zip(run_example("onnx_predict.py", model, *names), json.loads(out), strict=True):
        assert line[0] == entry["image"]
        assert line[1::3] == ["digit"] * 5
        told = dict(zip((f"digit {number}" for number in line[2::3]), map(float, line[3::3]), strict=True))
        assert set(told) <= set(DIGIT_NAMES)
        for best in entry["predictions"]:
            assert told[best["class"]] == pytest.approx(best["probability"], abs=1e-5)
    seen = [entry["predictions"][0]["probability"] for entry in json.loads(out)]
    assert np.ptp(seen) > 0.01  # the images differ to the network
