"""Weights in and out of files."""

import re
from concurrent.futures import ThreadPoolExecutor

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn
from safetensors.numpy import save_file

from focal_twins.files import pth
from focal_twins.files.class_rows import choose_rows
from focal_twins.files.weights import (
    LoadReport,
    WeightsError,
    has_average,
    load_weights,
    official_names,
    read_checkpoint,
    save_weights,
    write_checkpoint,
)
from focal_twins.models import create_model
from focal_twins.models.layers import Dense
from tests.reference import FOLDER, figures, formula_value, images

SMALL = {
    "img_size": 32, "num_classes": 5, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2,
    "focal_stages": [0, 1], "focal_levels": [2, 2], "focal_topK": 8, "use_conv_embed": True, "use_pre_norm": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return create_model("focalv2", **SMALL).set_train(False)


def arrays(model) -> dict[str, np.ndarray]:
    return {name: parameter.asnumpy() for name, parameter in official_names(model).items()}


def test_names_are_the_originals(model):
    names = set(official_names(model))
    for name in (
        "patch_embed.proj.weight", "patch_embed.norm.bias", "layers.0.blocks.0.norm1.weight",
        "layers.0.blocks.0.attn.qkv.weight", "layers.0.blocks.0.attn.coord2rpb_all.1.2.bias",
        "layers.0.blocks.0.pool_layers.0.weight", "layers.0.blocks.0.attn.topk_cloest_indice_1",
        "layers.0.downsample.pre_norm.weight", "layers.1.blocks.0.mlp.fc2.weight", "norm.weight", "head.bias",
    ):  # fmt: skip
        assert name in names


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", "mindspore names"])
def test_files_load_by_either_naming(model, tmp_path, suffix):
    weights = arrays(model)
    path = tmp_path / f"w{suffix if suffix.startswith('.') else '.ckpt'}"
    if suffix == ".safetensors":
        save_file(weights, path)
    elif suffix == ".ckpt":
        ms.save_checkpoint([{"name": n, "data": Tensor(w)} for n, w in weights.items()], str(path))
    else:
        ms.save_checkpoint(model, str(path))
    other = create_model("focalv2", **SMALL).set_train(False)
    x = Tensor(images((2, 3, 32, 32)))
    assert np.abs(other(x).asnumpy() - model(x).asnumpy()).max() > 1e-6
    assert load_weights(other, path) == LoadReport()
    np.testing.assert_array_equal(other(x).asnumpy(), model(x).asnumpy())


def test_what_does_not_fit_is_listed(model):
    weights = arrays(model)
    del weights["head.bias"]
    weights["layers.0.downsample.proj.weight"] = np.zeros((7, 32), np.float32)
    weights["extra.weight"] = np.zeros(1, np.float32)
    other = create_model("focalv2", **SMALL)
    before = arrays(other)
    with pytest.raises(WeightsError) as error:
        load_weights(other, weights)
    for part in (
        "1 of another shape: layers.0.downsample.proj.weight (7, 32), here (32, 16, 3, 3)",
        "1 missing: head.bias",
        "1 unexpected: extra.weight",
    ):
        assert part in str(error.value)
    np.testing.assert_array_equal(arrays(other)["norm.weight"], before["norm.weight"])
    told = []
    report = load_weights(other, weights, strict=False, announce=told.append, label="x.ckpt")
    assert set(report.missing) == {"head.bias", "layers.0.downsample.proj.weight"}
    assert set(report.unexpected) == {"extra.weight", "layers.0.downsample.proj.weight"}
    assert told == [f"x.ckpt: {line}" for line in report.lines()]
    assert all(name in "".join(told) for name in report.missing + report.unexpected)
    np.testing.assert_array_equal(arrays(other)["layers.0.blocks.0.mlp.fc1.weight"],
                                  weights["layers.0.blocks.0.mlp.fc1.weight"])  # fmt: skip


def test_key_tables_are_adopted_and_saved(model):
    """Other keys at the same distance give other logits; a file's tables travel with its weights."""
    name = "layers.0.blocks.0.attn.topk_cloest_indice_0"
    weights = arrays(model)
    table = weights[name].copy()
    # The 8 nearest of a window's centre (row, column) are 9 less one: which of the four at distance sqrt(2) is a tie.
    centre = 1 * 8 + 1
    assert set(table[0]) < {centre + 8 * row + column for row in (-1, 0, 1) for column in (-1, 0, 1)}
    (left_out,) = {centre + 8 * row + column for row in (-1, 0, 1) for column in (-1, 0, 1)} - set(table[0])
    table[0, list(table[0]).index(0)] = left_out
    weights[name] = table.astype(np.int64)
    weights["layers.0.blocks.0.attn.topk_cloest_coords_0"] = np.zeros((4, 4), np.float32)  # derived: passed over
    weights["layers.0.blocks.0.attn.window_coords"] = np.zeros((2, 2, 2), np.float32)
    other = create_model("focalv2", **SMALL).set_train(False)
    assert load_weights(other, weights) == LoadReport()
    np.testing.assert_array_equal(arrays(other)[name], table)
    x = Tensor(images((2, 3, 32, 32)))
    assert np.abs(other(x).asnumpy() - model(x).asnumpy()).max() > 1e-7

    for wrong in (table + 1000, np.roll(table, 1, axis=0), table[:3]):  # another map's
        third = create_model("focalv2", **SMALL)
        report = load_weights(third, weights | {name: wrong}, announce=str)
        assert report == LoadReport(rebuilt=[name])
        np.testing.assert_array_equal(arrays(third)[name], arrays(model)[name])
        with pytest.raises(WeightsError, match="of another image size"):
            load_weights(third, weights | {name: wrong}, adapt=())


def test_files_without_key_tables_keep_the_models_own(model):
    weights = {name: value for name, value in arrays(model).items() if "topk_cloest" not in name}
    assert load_weights(create_model("focalv2", **SMALL), weights) == LoadReport()


def test_unusable_files_are_one_line(model, tmp_path):
    good = tmp_path / "good.ckpt"
    ms.save_checkpoint(model, str(good), crc_check=True)
    damaged = tmp_path / "damaged.ckpt"
    content = bytearray(good.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(good.read_bytes()[:1000])
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    (tmp_path / "x.onnx").write_bytes(b"no")
    for name, expected in (
        ("damaged.ckpt", "not a readable MindSpore checkpoint"),
        ("cut.ckpt", "not a readable MindSpore checkpoint"),
        ("broken.safetensors", "not a readable safetensors file"),
        ("x.onnx", "unknown format '.onnx'"),
        ("none.ckpt", "no such file"),
    ):
        with pytest.raises(WeightsError, match=expected) as error:
            read_checkpoint(tmp_path / name)
        assert name in str(error.value)
        assert "\n" not in str(error.value)
    assert not has_average(read_checkpoint(good))
    with pytest.raises(WeightsError, match=r"a folder, not a file$"):
        read_checkpoint(tmp_path)
    best = tmp_path / "checkpoints" / "best.ckpt"
    best.parent.mkdir()
    best.touch()
    with pytest.raises(WeightsError, match=re.escape(f"a folder, not a file; of this run, {best} is a file")):
        read_checkpoint(tmp_path)


# --- PyTorch's files ------------------------------------------------------------------------------------------------

NANO = {
    "img_size": 112, "num_classes": 10, "embed_dim": 32, "depths": [1, 1, 2], "num_heads": [1, 2, 4],
    "focal_stages": [0, 1, 2], "focal_levels": [2, 2, 2], "focal_windows": [7, 5, 3], "expand_sizes": [3, 3, 3],
}  # fmt: skip
NANO_V2 = NANO | {"focal_topK": 128, "use_conv_embed": True}


@pytest.mark.parametrize(
    ("file", "family", "arguments", "tolerance"),
    [
        ("focal_nano_112_bare_state_dict", "focal", NANO, 1e-5),
        ("focalv2_nano_112_legacy_format", "focalv2", NANO_V2, 1e-5),
        ("focalv2_nano_112_half", "focalv2", NANO_V2, 2e-3),
    ],
)
def test_official_files_give_the_originals_logits(file, family, arguments, tolerance):
    model = create_model(family, **arguments).set_train(False)
    assert load_weights(model, FOLDER / "pth" / f"{file}.pth") == LoadReport()
    expected = figures("trajectory")[f"{family}_nano_112"]["initial_logits"]
    np.testing.assert_allclose(model(Tensor(images((2, 3, 112, 112)))).asnumpy(), expected, atol=tolerance)


@pytest.mark.parametrize(("family", "arguments"), [("focal", NANO | {"use_shift": True}), ("focalv2", NANO_V2)])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".ckpt"])
def test_round_trip_is_bit_identical(family, arguments, suffix, tmp_path):
    first, second = (create_model(family, **arguments) for _ in range(2))
    path = tmp_path / f"x{suffix}"
    save_weights(first, path)
    assert load_weights(second, path) == LoadReport()
    written, loaded = arrays(first), arrays(second)
    assert written.keys() == loaded.keys()
    for name, value in written.items():
        np.testing.assert_array_equal(loaded[name], value)


class Scaled(nn.Cell):
    """A network with a parameter that has no dimension, as the heads of detectors have."""

    def __init__(self, value):
        super().__init__()
        self.scale = Parameter(Tensor(value, ms.float32), name="scale")


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_parameters_without_dimensions_keep_their_shape(suffix, tmp_path):
    path, second = tmp_path / f"x{suffix}", Scaled(3.0)
    save_weights(Scaled(2.0), path)
    for _ in range(2):  # it was the loaded network that could not be loaded from
        load_weights(second, path)
        assert second.scale.shape == () and second.scale.asnumpy() == 2
        save_weights(second, path)


@pytest.mark.parametrize(
    ("file", "family", "arguments"),
    [
        ("focal_nano_112_bare_state_dict", "focal", NANO),
        ("focalv2_nano_112_legacy_format", "focalv2", NANO_V2),
    ],
)
def test_pth_files_have_every_buffer_of_the_original(file, family, arguments, tmp_path):
    """So that load_state_dict(strict=True) takes them, and v2's displacements are those of its key tables."""
    original = pth.state_dicts(FOLDER / "pth" / f"{file}.pth")[0]
    model = create_model(family, **arguments)
    load_weights(model, original)
    save_weights(model, tmp_path / "x.pth")
    written = pth.state_dicts(tmp_path / "x.pth")[0]
    assert written.keys() == original.keys()
    for name, value in original.items():
        assert written[name].dtype == value.dtype, name
        np.testing.assert_array_equal(written[name], value)


# --- other image sizes, windows, classes ------------------------------------------------------------------------------


RING = "relative_position_bias_table_to_neighbors"


def filled(family, **arguments):
    model = create_model(family, **arguments).set_train(False)
    named = official_names(model).items()
    load_weights(model, {name: formula_value(name, p.shape) for name, p in named if p.requires_grad})
    return model


def test_another_image_size_is_adapted_and_told():
    """From 112 px, where the window covers the last map of 7, to 224 px, where it has neighbours."""
    small = filled("focal", **NANO, ape=True)
    large = create_model("focal", **NANO | {"img_size": 224}, ape=True).set_train(False)
    told = []
    report = load_weights(large, arrays(small), announce=told.append)
    ring = "attn.relative_position_bias_table_to_neighbors"
    assert report == LoadReport(
        resized=["absolute_pos_embed"], new=[f"layers.2.blocks.{block}.{ring}" for block in (0, 1)]
    )
    assert len(told) == 2
    assert np.isfinite(large(Tensor(images((1, 3, 224, 224)))).asnumpy()).all()
    assert load_weights(small, arrays(large), announce=str).left_out == report.new
    with pytest.raises(WeightsError, match="not of this model"):
        load_weights(large, arrays(small), adapt=("head",))


def test_another_window_is_adapted():
    small = filled("focal", **NANO)
    large = create_model("focal", **NANO | {"img_size": 192, "window_size": 12}).set_train(False)
    report = load_weights(large, arrays(small), announce=str)
    tables = {name for name in arrays(large) if "position_bias" in name or "pool_layers.0.weight" in name}
    assert set(report.resized) == tables
    assert report == LoadReport(resized=report.resized)
    assert np.isfinite(large(Tensor(images((1, 3, 192, 192)))).asnumpy()).all()


def test_key_tables_of_another_image_size_are_rebuilt():
    """Of a rectangle, too, whose tables have the same shape upright and lying."""
    upright = filled("focalv2", **NANO_V2 | {"img_size": [224, 112]})
    lying = create_model("focalv2", **NANO_V2 | {"img_size": [112, 224]}).set_train(False)
    report = load_weights(lying, arrays(upright), announce=str)
    assert report == LoadReport(rebuilt=report.rebuilt)
    # Where all tokens of a level are keys, any table is right.
    assert report.rebuilt == [f"layers.{stage}.blocks.0.attn.topk_cloest_indice_0" for stage in (0, 1)]
    own = create_model("focalv2", **NANO_V2 | {"img_size": [112, 224]})
    for name in report.rebuilt:
        np.testing.assert_array_equal(arrays(lying)[name], arrays(own)[name])


def test_another_number_of_classes_leaves_the_rest(model):
    other = create_model("focalv2", **SMALL | {"num_classes": 7})
    before = arrays(other)
    told = []
    report = load_weights(other, arrays(model), announce=told.append, label="x.pth")
    assert report == LoadReport(reset=["head.weight", "head.bias"])
    assert told == ["x.pth: initialised (the head, for another number of classes): head.weight, head.bias"]
    after = arrays(other)
    np.testing.assert_array_equal(after["head.weight"], before["head.weight"])
    np.testing.assert_array_equal(after["norm.weight"], arrays(model)["norm.weight"])
    with pytest.raises(WeightsError, match=r"head.weight \(5, 32\), here \(7, 32\)"):
        load_weights(other, arrays(model), adapt=("size",))


@pytest.mark.parametrize(
    ("choice", "here", "kept", "said"),
    [
        ("auto", "abcde", "abcde", None),
        ("auto", "abcdx", "", "initialised (the head, for other classes: 1 (e) only in the file, 1 (x) only here"),
        ("by_name", "xcbay", " cba ", "taken by the names of 3 of 5 classes (the head, initialised: 2 (x, y))"),
        ("by_name", "cx", "c ", "taken by the names of 1 of 2 classes (the head, initialised: 1 (x))"),
        ("keep", "vwxyz", "abcde", None),
        ("new", "abcde", "", "initialised (the head, as train.pretrained_head=new asks)"),
    ],
)
def test_a_head_of_the_same_size_goes_by_its_classes(model, choice, here, kept, said):
    other = create_model("focalv2", **SMALL | {"num_classes": len(here)})
    before, file, told = arrays(other), arrays(model), []
    rows = choose_rows(choice, tuple("abcde"), tuple(here))
    report = load_weights(other, file, announce=told.append, rows=rows)
    assert [line for line in told if not said or line.startswith(f"weights: {said}")] == told
    assert len(told) == (said is not None)
    for name in ("head.weight", "head.bias"):
        for row, source in enumerate(kept.ljust(len(here))):
            expected = before[name][row] if source == " " else file[name]["abcde".index(source)]
            np.testing.assert_array_equal(arrays(other)[name][row], expected)
    np.testing.assert_array_equal(arrays(other)["norm.weight"], file["norm.weight"])
    assert report.loaded == len(file) - (0 if kept else 2)


def test_a_head_that_cannot_be_kept_is_an_error(model):
    other = create_model("focalv2", **SMALL | {"num_classes": 3})
    with pytest.raises(WeightsError, match=r"its head cannot be kept \(train\.pretrained_head=keep\)"):
        load_weights(other, arrays(model), rows=choose_rows("keep", tuple("abcde"), tuple("abc")))


@pytest.mark.parametrize(("channels", "others"), [(3, 1), (1, 3)])
@pytest.mark.parametrize(
    ("family", "arguments", "name"),
    [
        ("focalv2", SMALL, "patch_embed.proj.weight"),
        ("twins_svt_small", {"img_size": 32, "depths": [1, 1, 1, 1]}, "patch_embeds.0.proj.weight"),
    ],
)
def test_another_number_of_image_channels_is_adapted_or_explained(channels, others, family, arguments, name):
    """A grey image gives what its copy in three channels gives."""
    first, second = (create_model(family, **arguments | {"in_chans": n}).set_train(False) for n in (channels, others))
    told = []
    report = load_weights(second, arrays(first), announce=told.append)
    assert report == LoadReport(recoloured=[name])
    assert told == [f"weights: adapted to the model's number of image channels: {name}"]
    grey = images((1, 1, 32, 32))
    logits = [model(Tensor(grey.repeat(n, axis=1))).asnumpy() for model, n in ((first, channels), (second, others))]
    np.testing.assert_allclose(*logits, atol=1e-5)
    with pytest.raises(WeightsError, match=rf"for images of {channels} channels: model.in_chans={channels}\)") as error:
        load_weights(second, arrays(first), adapt=("size",))
    assert "\n" not in str(error.value)


def test_frozen_weights_are_weights():
    first, second = (create_model("focal", **NANO) for _ in range(2))
    for parameter in second.get_parameters():
        parameter.requires_grad = False
    load_weights(second, arrays(first))
    np.testing.assert_array_equal(arrays(second)["head.weight"], arrays(first)["head.weight"])
    with pytest.raises(WeightsError, match=r"1 missing: head\.weight"):
        load_weights(second, {name: value for name, value in arrays(first).items() if name != "head.weight"})


def test_weights_of_another_family_are_refused_even_in_part(model):
    with pytest.raises(WeightsError, match="of another model, nothing in it fits"):
        load_weights(create_model("twins_svt_small"), arrays(model), strict=False)


def test_only_the_head_may_change_with_the_classes(model):
    weights = arrays(model)
    weights["norm.weight"] = np.ones(7, np.float32)
    with pytest.raises(WeightsError, match=r"norm\.weight"):
        load_weights(create_model("focalv2", **SMALL), weights)


# --- one backbone, several networks ----------------------------------------------------------------------------------

FEATURES = {key: value for key, value in NANO.items() if key != "num_classes"}


class Segmentor(nn.Cell):
    """What stands on a backbone, by the names of the published dense checkpoints."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.decode_head = Dense(backbone.feature_maps[-1].channels, 4)


@pytest.fixture
def classifier():
    return filled("focal", **NANO)


@pytest.fixture
def segmentor():
    return Segmentor(create_model("focal", features_only=True, **FEATURES))


NORMS = [f"norm{i}.{local}" for i in range(3) for local in ("weight", "bias")]
HEAD = ["norm.weight", "norm.bias", "head.weight", "head.bias"]


def test_a_classifiers_file_starts_a_backbone(classifier):
    backbone = create_model("focal", features_only=True, **FEATURES)
    told = []
    report = load_weights(backbone, arrays(classifier), announce=told.append, label="x.pth")
    assert report == LoadReport(begun=NORMS, not_here=HEAD)
    for name in arrays(backbone).keys() - set(NORMS):
        np.testing.assert_array_equal(arrays(backbone)[name], arrays(classifier)[name])
    total = len(arrays(backbone))
    assert told == [
        f"x.pth: taken for the backbone: {total - 6} of the model's {total} parameters",
        "x.pth: initialised (behind the backbone; the file is another network's): norm0, norm1, norm2",
        "x.pth: left out (behind the backbone of the file's network): norm, head",
    ]
    assert (report.loaded, report.total) == (total - 6, total)


@pytest.mark.parametrize("suffix", [".pth", ".ckpt"])
def test_a_classifiers_file_starts_the_backbone_of_a_network(classifier, segmentor, suffix, tmp_path):
    """By whichever names, with the ring's tables of another image size among them."""
    save_weights(classifier, tmp_path / f"x{suffix}")
    larger = Segmentor(create_model("focal", features_only=True, **FEATURES | {"img_size": 224}))
    told = []
    for network, new in ((segmentor, []), (larger, [f"backbone.layers.2.blocks.{i}.attn.{RING}" for i in (0, 1)])):
        report = load_weights(network, tmp_path / f"x{suffix}", announce=told.append)
        assert report == LoadReport(
            new=new,
            moved=("", "backbone."),
            begun=[*(f"backbone.{name}" for name in NORMS), "decode_head.weight", "decode_head.bias"],
            not_here=[f"backbone.{name}" for name in HEAD],
        )
        name = "layers.0.blocks.0.mlp.fc1.weight"
        np.testing.assert_array_equal(arrays(network)[f"backbone.{name}"], arrays(classifier)[name])
    assert "NAME in the file as backbone.NAME" in told[0]


def test_a_networks_file_starts_a_bare_backbone_and_a_classifier(segmentor, classifier):
    backbone = create_model("focal", features_only=True, **FEATURES)
    decode_head = ["decode_head.weight", "decode_head.bias"]
    report = load_weights(backbone, arrays(segmentor), announce=str)
    assert report == LoadReport(moved=("backbone.", ""), not_here=decode_head)
    for name, value in arrays(backbone).items():
        np.testing.assert_array_equal(value, arrays(segmentor)[f"backbone.{name}"])
    report = load_weights(classifier, arrays(segmentor), announce=str)
    assert report.begun == HEAD
    assert set(report.not_here) == {*NORMS, *decode_head}


def test_a_networks_own_file_must_be_whole(segmentor):
    weights = arrays(segmentor)
    assert load_weights(segmentor, weights) == LoadReport()
    del weights["decode_head.bias"]
    with pytest.raises(WeightsError, match=r"1 missing: decode_head\.bias$"):
        load_weights(segmentor, weights)


def test_only_where_another_head_is_allowed(classifier, segmentor):
    for model in (segmentor, segmentor.backbone):
        with pytest.raises(WeightsError, match="missing"):
            load_weights(model, arrays(classifier), adapt=("size",))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".ckpt"])
@pytest.mark.parametrize("prefix", ["module.", "model.", "backbone.", "module.model."])
def test_prefixes_of_wrappers_are_left_out(classifier, prefix, suffix, tmp_path):
    """In every format alike, also where nothing may be adapted, as in evaluation."""
    weights, path = {prefix + name: value for name, value in arrays(classifier).items()}, tmp_path / f"x{suffix}"
    if suffix == ".pth":
        pth.save(path, weights)
    elif suffix == ".ckpt":
        write_checkpoint(path, weights)
    else:
        save_file(weights, path)
    for adapt in ((), ("size", "head")):
        other, told = create_model("focal", **NANO), []
        load_weights(other, path, adapt=adapt, announce=told.append)
        for name, value in arrays(classifier).items():
            np.testing.assert_array_equal(arrays(other)[name], value)
        assert all("NAME as NAME" in line for line in told)


def test_a_prefix_that_would_have_helped_is_named(classifier, segmentor):
    with pytest.raises(WeightsError, match=r"begin with 'backbone\.' in the file.*\(train\.pretrained\)") as error:
        load_weights(classifier, arrays(segmentor), adapt=("size",))
    assert "\n" not in str(error.value)


def test_what_dense_files_carry_along_is_passed_over(segmentor):
    """Twins' official ones have the classifier's norm and head beside their own."""
    for model, prefix in ((segmentor, "backbone."), (segmentor.backbone, "")):
        weights = arrays(segmentor) if prefix else {n.removeprefix("backbone."): v for n, v in arrays(model).items()}
        extra = {f"{prefix}norm.weight": np.ones(128, np.float32), f"{prefix}head.bias": np.ones(10, np.float32)}
        assert load_weights(model, weights | extra, adapt=(), announce=str) == LoadReport(not_here=list(extra))
        with pytest.raises(WeightsError, match="1 unexpected: neck"):
            load_weights(model, weights | {"neck.weight": np.ones(1, np.float32)}, adapt=())


def test_weights_of_another_backbone_are_refused(segmentor):
    weights = arrays(create_model("twins_svt_small", depths=[1, 1, 1, 1]))
    for strict in (True, False):
        with pytest.raises(WeightsError, match="not of this model" if strict else "nothing in it fits"):
            load_weights(segmentor, weights, strict=strict)


def test_a_model_without_a_backbone_has_its_own_names_alone():
    first, second = Dense(3, 2), Dense(3, 2)
    assert load_weights(second, arrays(first)) == LoadReport()
    with pytest.raises(WeightsError, match="1 missing: bias"):
        load_weights(second, {"weight": arrays(first)["weight"]})


def test_two_writers_in_a_folder_do_not_meet(model, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            list(pool.map(lambda name: save_weights(model, tmp_path / name), ("a.ckpt", "b.ckpt")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt", "b.ckpt"]
    for path in tmp_path.iterdir():
        load_weights(create_model("focalv2", **SMALL), path)


def test_files_get_the_access_of_new_files(model, tmp_path):
    (tmp_path / "plain").touch()
    for suffix in (".ckpt", ".safetensors", ".pth"):
        save_weights(model, tmp_path / f"x{suffix}")
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1
