"""scripts/visualize_attention.py: its pictures and its page, in good and in bad weather."""

import base64
import io
import re
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from focal_twins.config.load import load_config
from focal_twins.data.transforms import EvalTransform
from focal_twins.explaining.attention_maps import KeyGroup, token_at
from focal_twins.explaining.attention_pictures import GRID, WINDOW, Frame, heat, members, outlined, region, spread
from tests.conftest import DIGITS_CONFIG, SMALL_MODEL
from tests.explaining.test_attention_maps import MODELS
from tests.trained import DIGIT_NAMES, with_formula_weights, write_digits_checkpoint


@pytest.fixture(scope="module")
def checkpoint(digits, tmp_path_factory):
    config = load_config(DIGITS_CONFIG, [*SMALL_MODEL, f"data.path={digits}"])
    return write_digits_checkpoint(config, tmp_path_factory.mktemp("checkpoint") / "best.ckpt")


@pytest.fixture(scope="module")
def digit(digits):
    return next((digits / "val" / "3").iterdir())


@pytest.fixture
def call(run_script):
    """call(*arguments) -> (exit code, stdout, stderr)"""
    return partial(run_script, "scripts/visualize_attention.py")


class Page(HTMLParser):
    """Tags, image sources and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.links, self.text = set(), [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        for name, value in attributes:
            assert not name.startswith("on")
            if name in ("src", "href"):
                (self.sources if name == "src" else self.links).append(value)

    def handle_data(self, data):
        self.text += data


def test_pictures_and_page(call, checkpoint, digit, tmp_path):
    code, out, err = call("--checkpoint", checkpoint, digit, "--output", tmp_path / "seen", "--window", "1,2")
    assert (code, err) == (0, "")
    shares = [float(share) for share in re.findall(r"([\d.]+)% of the attention", out)]
    assert sum(shares) == pytest.approx(100, abs=0.11)
    assert len(shares) == 2  # granularities
    names = ["image", "grad_cam", "keys_0", "attention_0", "keys_1", "attention_1", "attention"]
    assert {path.name for path in (tmp_path / "seen").iterdir()} == {
        "index.html", "overview.png", *(f"{name}.png" for name in names)
    }  # fmt: skip
    for name in names:
        assert Image.open(tmp_path / "seen" / f"{name}.png").width == 448
    text = (tmp_path / "seen" / "index.html").read_text()
    page = Page(text)
    # Nothing comes from elsewhere, and nothing runs.
    assert not page.tags & {"script", "iframe", "object", "embed"}
    assert page.links == ["data:,", "#prediction", "#pictures"]
    assert "url(" not in text
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    embedded = [base64.b64decode(source.split(",")[1]) for source in page.sources]
    assert embedded == [(tmp_path / "seen" / f"{name}.png").read_bytes() for name in names]
    predicted = out.split(": ")[1].split(" ")[:2]
    assert " ".join(predicted) in DIGIT_NAMES
    assert f"Grad-CAM: what speaks for {' '.join(predicted)}" in page.text
    assert "8 x 8 tokens of 4 x 4 pixels" in page.text
    assert text.count("<em>Look ") == text.count("<figure>") >= 5  # every picture says what to look at


def test_point_head_layer_and_class(call, checkpoint, digit, tmp_path):
    command = ["--checkpoint", checkpoint, digit, "--output", tmp_path / "seen"]
    code, out, _ = call(
        *command, "--point", "3.3,0.7", "--head", "1", "--layer", "1.0", "--cam", "0.0", "--class", "digit 7"
    )
    assert code == 0
    text = Page((tmp_path / "seen" / "index.html").read_text()).text
    assert "head 1" in text
    assert "one query (red)" in text
    assert "what speaks for digit 7" in text
    assert "At the output of layer 0.0, a map of 8 x 8" in text
    assert "layer 1.0, tokens near the window" in out
    by_number = call(*command, "--class", "7")
    assert by_number[0] == 0
    assert "what speaks for digit 7" in (tmp_path / "seen" / "index.html").read_text()


@pytest.mark.parametrize("name", [name for name in MODELS if name != "focalv2"])
def test_every_family_has_pictures(name, call, tmp_path):
    from focal_twins.files.weights import save_weights
    from focal_twins.models import create_model

    family, arguments = MODELS[name]
    model = with_formula_weights(create_model(family, **arguments))
    save_weights(model, tmp_path / "weights.safetensors")
    text = f"model: {{name: {family}, {', '.join(f'{k}: {v}' for k, v in arguments.items())}}}\n"
    (tmp_path / "c.yaml").write_text(text + "data: {mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}\n")
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    command = [
        "--checkpoint",
        tmp_path / "weights.safetensors",
        "--config",
        tmp_path / "c.yaml",
        tmp_path / "photo.png",
    ]
    for layer in ("0.0", "0.1", "1.0"):
        code, out, err = call(*command, "--output", tmp_path / layer, "--layer", layer)
        assert (code, err) == (0, "")
        shares = [float(share) for share in re.findall(r"([\d.]+)% of the attention", out)]
        assert sum(shares) == pytest.approx(100, abs=0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "7.0"], "layer 7.0: no such block; the last of each stage are 0.0, 1.0"),
        (["--layer", "one"], "invalid place value: 'one'"),
        (["--window", "4,0"], "--window 4,0: layer 0.0 has rows 0 to 3 and columns 0 to 3 of windows"),
        (["--window", "0,0", "--point", "1,1"], "not allowed with argument"),
        (["--point", "8,3"], "--point 8,3: outside of what the model sees of the image, x from 0 to 8 and y from 0"),
        (["--head", "9"], "--head 9: layer 0.0 has heads 0 to 0"),
        (["--class", "cat"], "--class cat: neither a class of the model nor a number below 10"),
        (["--cam", "0.5"], "layer 0.5: no such block"),
    ],
)
def test_bad_input_is_one_line(call, checkpoint, digit, tmp_path, arguments, message):
    code, _, err = call("--checkpoint", checkpoint, digit, "--output", tmp_path / "seen", *arguments)
    assert code == 1
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "seen").exists()


def test_files_that_cannot_be_used(call, checkpoint, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    for name, reason in (("text.png", "not an image"), ("none.png", "No such file")):
        code, _, err = call("--checkpoint", checkpoint, tmp_path / name, "--output", tmp_path / "seen")
        assert (code, err.count("\n")) == (1, 1)
        assert f"image {tmp_path / name}: cannot be read" in err
        assert reason in err
    assert "give a checkpoint" in call("--checkpoint", "m.onnx", "x.png", "--output", tmp_path / "seen")[2]


# --- where things lie -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(60, 90), (91, 64), (40, 40)])
def test_points_of_an_image_lie_where_the_transform_puts_them(size):
    """A white square on black is found where `position` says, and the box that is seen is the crop's."""
    transform = EvalTransform((32, 32), 0.875, "bilinear")
    height, width = size
    for x, y in ((width // 2, height // 2), (width // 2 + 9, height // 2 - 8), (width // 2 - 7, height // 2 + 10)):
        pixels = np.zeros((*size, 1), np.uint8)
        pixels[y - 3 : y + 3, x - 3 : x + 3] = 255
        result = transform(pixels)[..., 0].astype(float)
        rows, columns = np.mgrid[:32, :32] + 0.5
        centre = (result * columns).sum() / result.sum(), (result * rows).sum() / result.sum()
        assert transform.position((x, y), size) == pytest.approx(centre, abs=0.3)
    left, top, right, bottom = transform.visible_box(size)
    assert transform.position((left + 0.1, top + 0.1), size) is not None
    assert transform.position((left - 0.1, top + 0.1), size) is None
    assert transform.position((right - 0.1, bottom - 0.1), size) is not None
    assert transform.position((right - 0.1, bottom + 0.1), size) is None


def test_tokens_lie_where_their_pixels_are():
    assert token_at((0, 0), (32, 64), (4, 8)) == 0
    assert token_at((63.9, 31.9), (32, 64), (4, 8)) == 31
    assert token_at((17, 9), (32, 64), (4, 8)) == 10


def test_a_frame_shows_the_pixels_of_its_tokens():
    """Every token of an 8 x 8 map is one grey level: what the frame shows of it is that level."""
    levels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    pixels = np.repeat(np.repeat(levels, 8, 0), 8, 1)[..., None]
    tokens = np.array([2 * 8 + 4, 3 * 8 + 5])
    frame = Frame.of(pixels, (8, 8), tokens)
    assert (frame.rows, frame.columns) == (slice(1, 5), slice(3, 7))
    assert frame.is_part((8, 8))
    shown = np.asarray(frame.image.convert("L"))
    assert shown.shape == (448, 448)
    middles = shown[56::112, 56::112]
    np.testing.assert_allclose(middles.astype(int), frame.cut(levels), atol=2)
    whole = Frame.of(pixels, (8, 8), np.array([0, 63]))  # more than half: all of it
    assert not whole.is_part((8, 8))


def test_borders_are_drawn_between_keys_and_nowhere_else():
    labels = np.array([[0, 0, 1], [0, 0, 1], [-1, -1, -1]])
    image = outlined(Image.new("RGB", (90, 90)), labels, GRID, 1)
    drawn = np.asarray(image).any(-1)
    assert drawn[5:55, 60].all()  # between the keys
    assert drawn[60, 2:88].all()  # below them
    assert drawn[:60, 0].all()  # the picture's edge is one of theirs
    assert not drawn[10:50, 10:50].any()  # within a key
    assert not drawn[65:, 5:].any()  # where no key is
    assert (
        np.asarray(outlined(Image.new("RGB", (30, 30)), members(np.array([4]), (3, 3)), WINDOW, 2)).any(-1)[15]
    ).any()


def test_keys_are_bright_and_the_rest_is_dim():
    class View:
        map_size, window, queries = (4, 4), np.array([5, 6, 9, 10]), np.array([5, 6, 9, 10])

    group = KeyGroup("pooled", [np.array([0, 1, 4, 5]), np.array([], int)], np.ones((1, 4, 2)) / 2)
    pixels = np.full((32, 32, 3), 100, np.uint8)
    shown = np.asarray(region(Frame.of(pixels, (4, 4)), group, View).convert("L"), int)
    assert shown[56, 56] > 100 > 60 > shown[-56, -56]
    assert group.density((4, 4)).tolist() == [[0.125, 0.125, 0, 0], [0.125, 0.125, 0, 0], [0] * 4, [0] * 4]
    assert group.share() == 1


def test_colours_grow_brighter():
    luminance = heat(np.linspace(0, 1, 101)) @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(luminance) > 0).all()
    assert spread(np.array([[1.0, 2.0]]), (6, 2)).tolist() == [[1, 1, 1, 2, 2, 2]] * 2


def test_png_files_are_images(call, checkpoint, digit, tmp_path):
    call("--checkpoint", checkpoint, digit, "--output", tmp_path)
    sheet = Image.open(io.BytesIO((tmp_path / "overview.png").read_bytes()))
    assert sheet.width == 2 * (448 + 12) + 12
    assert sheet.height > 4 * 448  # four rows of two
