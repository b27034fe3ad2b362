"""Weights in and out of files."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from safetensors.numpy import save_file

from src.models import create_model
from src.weights import WeightsError, has_average, load_weights, official_names, read_checkpoint
from tests.reference import images

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
    assert load_weights(other, path) == ([], [])
    np.testing.assert_array_equal(other(x).asnumpy(), model(x).asnumpy())


def test_what_does_not_fit_is_listed(model):
    weights = arrays(model)
    del weights["head.bias"]
    weights["head.weight"] = np.zeros((7, 32), np.float32)
    weights["extra.weight"] = np.zeros(1, np.float32)
    other = create_model("focalv2", **SMALL)
    before = arrays(other)
    with pytest.raises(WeightsError) as error:
        load_weights(other, weights)
    for part in ("head.weight (7, 32), here (5, 32)", "1 missing: head.bias", "1 unexpected: extra.weight"):
        assert part in str(error.value)
    np.testing.assert_array_equal(arrays(other)["norm.weight"], before["norm.weight"])
    missing, unexpected = load_weights(other, weights, strict=False)
    assert set(missing) == {"head.bias", "head.weight"}
    assert set(unexpected) == {"extra.weight", "head.weight"}
    np.testing.assert_array_equal(arrays(other)["layers.0.blocks.0.mlp.fc1.weight"],
                                  weights["layers.0.blocks.0.mlp.fc1.weight"])  # fmt: skip


def test_key_tables_are_adopted_and_saved(model):
    """Other tables give other logits; a file's tables travel with its weights; derived buffers are passed over."""
    name = "layers.0.blocks.0.attn.topk_cloest_indice_0"
    weights = arrays(model)
    table = weights[name].copy()
    table[:, -1] = (table[:, -1] + 13) % 64
    weights[name] = table.astype(np.int64)
    weights["layers.0.blocks.0.attn.topk_cloest_coords_0"] = np.zeros((4, 4), np.float32)
    weights["layers.0.blocks.0.attn.window_coords"] = np.zeros((2, 2, 2), np.float32)
    other = create_model("focalv2", **SMALL).set_train(False)
    assert load_weights(other, weights) == ([], [])
    np.testing.assert_array_equal(arrays(other)[name], table)
    x = Tensor(images((2, 3, 32, 32)))
    assert np.abs(other(x).asnumpy() - model(x).asnumpy()).max() > 1e-7

    weights[name] = table + 1000
    with pytest.raises(WeightsError, match="outside the 8x8 tokens"):
        load_weights(other, weights)


def test_files_without_key_tables_keep_the_models_own(model):
    weights = {name: value for name, value in arrays(model).items() if "topk_cloest" not in name}
    assert load_weights(create_model("focalv2", **SMALL), weights) == ([], [])


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
    (tmp_path / "x.bin").write_bytes(b"no")
    for name, expected in (
        ("damaged.ckpt", "not a readable MindSpore checkpoint"),
        ("cut.ckpt", "not a readable MindSpore checkpoint"),
        ("broken.safetensors", "not a readable safetensors file"),
        ("x.bin", "unknown format '.bin'"),
        ("none.ckpt", "no such file"),
    ):
        with pytest.raises(WeightsError, match=expected) as error:
            read_checkpoint(tmp_path / name)
        assert name in str(error.value)
        assert "\n" not in str(error.value)
    assert not has_average(read_checkpoint(good))
