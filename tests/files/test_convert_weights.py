"""scripts/convert_weights.py, as its users call it."""

import json
import shutil

import numpy as np
import pytest
from mindspore import Tensor

from focal_twins.config.load import load_config
from focal_twins.files import pth
from focal_twins.files.weights import CLASSES, CONFIG, load_weights, official_names, read_checkpoint, save_weights
from focal_twins.models import create_model
from tests.conftest import DIGITS_CONFIG, ROOT, TOY_MODEL
from tests.reference import FOLDER, figures, images
from tests.trained import DIGIT_NAMES, with_formula_weights, write_digits_checkpoint

PTH = FOLDER / "pth"
NANO = ["img_size=112", "num_classes=10", "embed_dim=32", "depths=[1,1,2]", "num_heads=[1,2,4]", "focal_stages=[0,1,2]",
        "focal_levels=[2,2,2]", "focal_windows=[7,5,3]", "expand_sizes=[3,3,3]"]  # fmt: skip
ARGUMENTS = {"img_size": 112, "num_classes": 10, "embed_dim": 32, "depths": [1, 1, 2], "num_heads": [1, 2, 4],
             "focal_stages": [0, 1, 2], "focal_levels": [2, 2, 2], "focal_windows": [7, 5, 3],
             "expand_sizes": [3, 3, 3]}  # fmt: skip


@pytest.fixture
def convert(run_script, tmp_path):
    def call(source, output, *arguments, model="focal"):
        named = ["--model", model] if model else []
        flags = ["--input", PTH / source, *named, "--output", tmp_path / output]
        return run_script("scripts.convert_weights", *flags, *arguments)

    return call


def test_there_and_back(convert, tmp_path):
    """The official file becomes a checkpoint with the original's logits, and that a file with the same tensors."""
    code, out, err = convert("focal_nano_112_bare_state_dict.pth", "x.ckpt", *NANO)
    assert (code, err) == (0, "")
    assert f"(raw weights) to {tmp_path / 'x.ckpt'}: focal, " in out
    model = create_model("focal", **ARGUMENTS).set_train(False)
    load_weights(model, tmp_path / "x.ckpt")
    expected = figures("trajectory")["focal_nano_112"]["initial_logits"]
    np.testing.assert_allclose(model(Tensor(images((2, 3, 112, 112)))).asnumpy(), expected, atol=1e-5)

    assert convert(tmp_path / "x.ckpt", "y.pth", "--to-pth", *NANO)[0] == 0
    original, back = (
        pth.state_dicts(path)[0] for path in (PTH / "focal_nano_112_bare_state_dict.pth", tmp_path / "y.pth")
    )
    assert original.keys() == back.keys()
    for name, value in original.items():
        np.testing.assert_array_equal(back[name], value)


def test_legacy_v2_to_safetensors(convert, tmp_path):
    code, _, _ = convert("focalv2_nano_112_legacy_format.pth", "x.safetensors", *NANO, "focal_topK=128",
                           "use_conv_embed=true", model="focalv2")  # fmt: skip
    assert code == 0
    model = create_model("focalv2", **ARGUMENTS, focal_topK=128, use_conv_embed=True).set_train(False)
    load_weights(model, tmp_path / "x.safetensors")
    expected = figures("trajectory")["focalv2_nano_112"]["initial_logits"]
    np.testing.assert_allclose(model(Tensor(images((2, 3, 112, 112)))).asnumpy(), expected, atol=1e-5)


def test_other_sizes_are_told(convert, tmp_path):
    code, out, _ = convert("focal_nano_112_bare_state_dict.pth", "x.ckpt", *NANO, "img_size=224", "num_classes=3")
    assert code == 0
    assert "initialised (the file has none in these stages): layers.2.blocks.0.attn.relative_position_bias" in out
    assert "initialised (the head, for another number of classes): head.weight, head.bias" in out
    model = create_model("focal", **ARGUMENTS | {"img_size": 224, "num_classes": 3})
    load_weights(model, tmp_path / "x.ckpt", adapt=())


def test_a_checkpoint_of_a_few_tensors_needs_partial(convert, tmp_path):
    source = "focalv2_nano_112_training_checkpoint_cut.pth"
    arguments = [*NANO, "focal_topK=128", "use_conv_embed=true"]
    code, out, err = convert(source, "x.ckpt", *arguments, model="focalv2")
    assert (code, err.count("\n")) == (1, 1)
    assert "missing: " in err
    assert list(tmp_path.iterdir()) == []
    code, out, err = convert(source, "x.ckpt", *arguments, "--partial", model="focalv2")
    assert (code, err) == (0, "")
    given = pth.state_dicts(PTH / source)[0]
    model = create_model("focalv2", **ARGUMENTS, focal_topK=128, use_conv_embed=True)
    missing = {name for name, p in official_names(model).items() if p.requires_grad} - given.keys()
    listed = next(line for line in out.splitlines() if "missing in the file" in line)
    assert set(listed.split("): ")[1].split(", ")) == missing


def test_a_checkpoint_trained_here_knows_its_model(convert, tmp_path):
    """It stays one that needs no configuration; with other classes it loses its own."""
    config = load_config(DIGITS_CONFIG, TOY_MODEL)
    write_digits_checkpoint(config, tmp_path / "own.ckpt")
    code, out, err = convert(tmp_path / "own.ckpt", "raw.ckpt", "--weights", "raw", model=None)
    assert (code, err) == (0, "")
    assert "(raw weights)" in out
    before, after = read_checkpoint(tmp_path / "own.ckpt"), read_checkpoint(tmp_path / "raw.ckpt")
    assert json.loads(after[CLASSES]) == list(DIGIT_NAMES)
    assert after.keys() == {name for name in before if not name.startswith("ema.")}
    for name in after.keys() - {CONFIG, CLASSES}:
        np.testing.assert_array_equal(after[name], before[name])

    assert convert(tmp_path / "raw.ckpt", "few.ckpt", "num_classes=3", "model.img_size=32", model=None)[0] == 0
    content = read_checkpoint(tmp_path / "few.ckpt")
    assert CLASSES not in content
    assert "num_classes: 3" in content[CONFIG]
    assert content["head.weight"].shape[0] == 3


def test_networks_on_a_backbone_come_by_their_configuration(convert, tmp_path):
    small = ["model.channels=8", "model.auxiliary_weight=0.0", "model.pool_scales=[1]"]
    source = with_formula_weights(load_config("upernet_digits", small).build_model("CPU"))
    save_weights(source, tmp_path / "dense.pth")
    code, _, err = convert(tmp_path / "dense.pth", "dense.ckpt", model=None)
    assert (code, err.count("\n")) == (1, 1)
    assert "holds weights without their configuration; name the network with --model NAME or --config NAME" in err
    assert convert(tmp_path / "dense.pth", "dense.ckpt", "--config", "upernet_digits", *small, model=None)[0] == 0
    code, out, _ = convert(tmp_path / "dense.ckpt", "back.pth", model=None)
    assert (code, "upernet, " in out) == (0, True)
    first, second = (pth.state_dicts(tmp_path / name)[0] for name in ("dense.pth", "back.pth"))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_bad_input_is_one_line_and_leaves_no_file(convert, tmp_path):
    shutil.copy(PTH / "focal_nano_112_bare_state_dict.pth", tmp_path / "wrong.txt")
    shutil.copy(PTH / "focal_nano_112_bare_state_dict.pth", tmp_path / "same.pth")
    present = set(tmp_path.iterdir())
    for source, output, arguments, expected in (
        ("hostile_pickle.pth", "x.ckpt", NANO, "it wants to run posix.system('touch UNSAFE_PICKLE_WAS_EXECUTED')"),
        ("truncated.pth", "x.ckpt", NANO, "damaged or cut short"),
        ("none.pth", "x.ckpt", NANO, "no such file"),
        (tmp_path / "wrong.txt", "x.ckpt", NANO, "unknown format '.txt'"),
        ("focal_nano_112_bare_state_dict.pth", "x.ckpt", [], "of another shape"),
        (tmp_path / "same.pth", "same.pth", NANO, "is the input"),
        (tmp_path, "x.ckpt", NANO, "a folder, not a file"),
        ("focal_nano_112_bare_state_dict.pth", "x.ckpt", ["extra"], "'extra' is not of the form key=value"),
        ("focal_nano_112_bare_state_dict.pth", "x.txt", NANO, "unknown format '.txt'"),
        ("focal_nano_112_bare_state_dict.pth", "x.ckpt", [*NANO, "--to-pth"], "must end in .pth"),
        ("focal_nano_112_bare_state_dict.pth", "x.ckpt", ["embed_dims=3"], "did you mean embed_dim?"),
        ("focal_nano_112_bare_state_dict.pth", "x.ckpt", [*NANO, "--weights", "ema"], "holds no averaged"),
    ):
        code, _, err = convert(source, output, *arguments)
        assert (code, err.count("\n")) == (1, 1), err
        assert expected in err
        assert set(tmp_path.iterdir()) == present
    assert not (ROOT / "UNSAFE_PICKLE_WAS_EXECUTED").exists()
