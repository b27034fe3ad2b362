"""Every part of a run turns a file into the same pixels: training, evaluation, prediction, reports and packing."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from focal_twins.config.load import ConfigError, load_config
from focal_twins.data.decoding import Reading, decode
from focal_twins.data.open_images import open_images
from focal_twins.data.pack_mindrecord import make_mindrecord
from focal_twins.data.pipeline import UnreadableImages
from focal_twins.data.transforms import Preprocessing
from focal_twins.tasks.classification.confusion import thumbnail
from focal_twins.tasks.classification.predictor import Classifier, predict
from focal_twins.tasks.find_task import create_task
from tests.conftest import DIGITS_CONFIG, TOY_MODEL

MODEL = SimpleNamespace(img_size=(16, 16))
PLAIN = ["augment.scale=[1,1]", "augment.ratio=[0.1,10]", "augment.hflip=0.0", "augment.auto_augment=null"]
CHOICES = ["data.exif=apply", "data.alpha=[255,0,0]", "data.max_pixels=400"]


@pytest.fixture
def folder(tmp_path):
    """Classes of three images: one turned by EXIF and half transparent, one of 16 bits, one that is too large."""
    generator = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("train/a", "train/b", "val/a", "val/b"):
        path = tmp_path / "images" / name
        path.mkdir(parents=True)
        turned = generator.integers(0, 256, (16, 24, 4), dtype=np.uint8)
        Image.fromarray(turned).save(path / "0.png", exif=exif)
        Image.fromarray(generator.integers(0, 2**16, (16, 16), dtype=np.uint16)).save(path / "1.png")
        Image.fromarray(generator.integers(0, 256, (21, 20), dtype=np.uint8)).save(path / "2.png")
    return tmp_path / "images"


def task_of(folder, *overrides):
    return create_task(load_config(DIGITS_CONFIG, [*TOY_MODEL, *PLAIN, f"data.path={folder}", *overrides]))


@pytest.mark.parametrize("choices", [[], CHOICES])
def test_training_evaluation_and_prediction_see_the_same(folder, tmp_path, choices):
    task = task_of(folder, *choices)
    reading = Reading("apply", (255, 0, 0), 400) if choices else Reading()
    images = open_images(folder, "val")
    record = UnreadableImages(tmp_path / "unreadable.txt")
    evaluated = task.eval_samples(MODEL, images, record)
    described = json.loads(json.dumps(task.preprocessing(MODEL, None)))
    preprocessing = Preprocessing.from_dict(described)
    trained = task.train_samples(MODEL, images, record, 1)
    for index in (0, 1):
        content = images.content(index)
        expected = preprocessing.transform(decode(content, 1, reading))
        np.testing.assert_array_equal(evaluated.sample((np.int64(index), 0), index)[0], expected)
        np.testing.assert_array_equal(preprocessing.pixels(content), expected)
        array, _ = trained.sample((np.int64(index), 0), 0, 0)
        np.testing.assert_array_equal(array, trained.transform(decode(content, 1, reading), 0, 0))
    assert not record.read()
    path = folder / "val" / "a" / "2.png"
    weight = evaluated.sample((np.int64(2), 0), 2)[2]
    assert weight == (0 if choices else 1)
    classifier = Classifier(lambda batch: batch.reshape(len(batch), -1)[:, :2], preprocessing, None, None)
    (prediction,) = predict(classifier, [str(path)], 1, 1)
    reason = "20 x 21 pixels are more than data.max_pixels=400"
    assert (prediction.problem, record.read()) == ((reason, {str(path): reason}) if choices else (None, {}))
    assert described["reading"]["alpha"] == ([255, 0, 0] if choices else "drop")
    del described["reading"]  # as in files exported by earlier versions
    assert Preprocessing.from_dict(described).reading == Reading()


def test_reports_show_what_was_seen(folder):
    content = (folder / "val" / "a" / "0.png").read_bytes()
    reading = Reading("apply", (255, 0, 0))
    shown = thumbnail(content, "0.png", reading)
    assert shown != thumbnail(content, "0.png", Reading())
    buffer = io.BytesIO()
    Image.fromarray(decode(np.frombuffer(content, np.uint8), 3, reading)).save(buffer, "PNG")
    assert shown == thumbnail(buffer.getvalue(), "0.png", Reading())


def test_packing_says_why_it_leaves_an_image_out(folder, tmp_path, capsys):
    Image.fromarray(np.zeros((8, 8), np.float32)).save(folder / "val" / "b" / "3.tif")
    index = make_mindrecord(folder, "val", tmp_path / "packed", 100, 1, max_pixels=400)
    assert open_images(index.parent, "val").names == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]
    out = capsys.readouterr().out
    assert "a/2.png: left out (20 x 21 pixels are more than data.max_pixels=400)" in out
    assert "b/3.tif: left out (floating-point numbers have no agreed range of brightness" in out
    assert "3 unreadable images left out" in out
    assert open_images(make_mindrecord(folder, "val", tmp_path / "packed", 100, 1).parent, "val").size == 6


@pytest.mark.parametrize(
    "wrong", ["data.exif=turn", "data.alpha=white", "data.alpha=[1,2]", "data.alpha=[0,0,256]", "data.max_pixels=0"]
)
def test_choices_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ConfigError, match=wrong.split("=")[0].replace(".", r"\.")) as error:
        load_config(DIGITS_CONFIG, [wrong])
    assert "\n" not in str(error.value)
