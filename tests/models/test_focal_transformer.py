"""Focal Transformer v2 against the original's figures."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from src.models import ArgumentError, create_model, list_models
from src.models.focal_transformer import WindowPool
from src.weights import load_weights, official_names
from tests.reference import figures, formula_value, formula_weights, images

LOGITS = figures("logits")
TABLES = "focalv2_neighbours_224_window7_top128"
TINY = "focalv2_tiny_useconv_patch4_window7_224"
SMALL = {
    "img_size": 32,
    "num_classes": 5,
    "embed_dim": 16,
    "depths": [2, 1],
    "num_heads": [2, 4],
    "window_size": 2,
    "focal_stages": [0, 1],
    "focal_levels": [2, 2],
    "focal_topK": 8,
}


def relative_error(values, reference) -> float:
    return float(np.abs(np.asarray(values) - reference).max() / np.abs(reference).max())


@pytest.mark.parametrize("name", [name for name in list_models() if name.startswith("focalv2")])
def test_logits_equal_the_original(name):
    reference = LOGITS[name]
    model = create_model(name).set_train(False)
    assert load_weights(model, formula_weights(model, TABLES)) == ([], [])
    assert sum(parameter.size for parameter in model.trainable_params()) == reference["params"]
    logits = model(Tensor(images(reference["input"]))).asnumpy()
    largest = np.abs(logits).max()
    assert np.abs(logits[:, :16] - np.array(reference["logits_first16"])).max() < 1e-4 * largest
    assert relative_error(np.linalg.norm(logits, axis=1), np.array(reference["logits_l2"])) < 1e-4


def test_loss_and_gradients_equal_the_original():
    reference = LOGITS[TINY]
    model = create_model(TINY).set_train(False)
    load_weights(model, formula_weights(model, TABLES))
    parameters = model.trainable_params()

    def loss(x, labels):
        return ops.cross_entropy(model(x), labels)

    step = ms.value_and_grad(loss, None, parameters)
    value, gradients = step(Tensor(images(reference["input"])), Tensor([3, 7], ms.int32))
    assert abs(float(value.asnumpy()) / reference["loss_targets_3_7"] - 1) < 1e-4
    names = {id(parameter): name for name, parameter in official_names(model).items()}
    norms = {
        names[id(p)]: np.linalg.norm(g.asnumpy().astype(np.float64)) for p, g in zip(parameters, gradients, strict=True)
    }
    assert norms.keys() == reference["grad_l2"].keys()
    for name, norm in norms.items():
        assert abs(norm / reference["grad_l2"][name] - 1) < 1e-3, name


@pytest.mark.parametrize(
    "options",
    [
        {"use_shift": True},
        {"use_layerscale": True, "layerscale_value": 0.5},
        {"ape": True},
        {"patch_norm": False},
        {"use_pre_norm": True},
        {"qkv_bias": False},
        {"qk_scale": 0.3},
        {"focal_topK": 4},
        {"focal_levels": [1, 2]},
        {"focal_pool": "mean"},
        {"mlp_ratio": 2.0},
    ],
    ids=str,
)
def test_option_changes_the_result(options):
    """Against the same network without the option, with the same weights wherever both have them."""
    plain = create_model("focalv2", **SMALL).set_train(False)
    load_weights(
        plain, {name: formula_value(name, p.shape) for name, p in official_names(plain).items() if p.requires_grad}
    )
    model = create_model("focalv2", **SMALL | options).set_train(False)
    shared = {name: p.asnumpy() for name, p in official_names(plain).items() if p.requires_grad}
    load_weights(model, shared, strict=False)
    x = Tensor(images((2, 3, 32, 32)))
    logits = model(x).asnumpy()
    assert logits.shape == (2, 5)
    assert np.isfinite(logits).all()
    assert np.abs(plain(x).asnumpy() - logits).max() > 1e-4


@pytest.mark.parametrize(
    "options", [{"focal_windows": [1, 1]}, {"expand_sizes": [0, 0]}, {"expand_layer": "odd"}], ids=str
)
def test_option_without_effect_is_accepted(options):
    plain = create_model("focalv2", **SMALL).set_train(False)
    model = create_model("focalv2", **SMALL | options).set_train(False)
    load_weights(model, {name: p.asnumpy() for name, p in official_names(plain).items()})
    x = Tensor(images((1, 3, 32, 32)))
    np.testing.assert_array_equal(model(x).asnumpy(), plain(x).asnumpy())


def test_rectangular_input():
    model = create_model("focalv2", **SMALL | {"img_size": [32, 64]}).set_train(False)
    assert model(Tensor(images((2, 3, 32, 64)))).shape == (2, 5)


@pytest.mark.parametrize("pool", ["mean", "max", "fc", "conv"])
def test_window_pool_equals_numpy(pool):
    layer = WindowPool(pool, dim=3, window_area=4)
    windows = images((2, 5, 4, 3))
    expected = {"mean": windows.mean(2), "max": windows.max(2)}
    if pool == "fc":
        expected["fc"] = np.einsum("bwnc,n->bwc", windows, layer.weight.asnumpy()[0]) + layer.bias.asnumpy()
    elif pool == "conv":  # depthwise: one kernel per channel
        kernels = layer.weight.asnumpy().reshape(3, 4)
        expected["conv"] = np.einsum("bwnc,cn->bwc", windows, kernels) + layer.bias.asnumpy()
    np.testing.assert_allclose(layer(Tensor(windows)).asnumpy(), expected[pool], atol=1e-6)


def test_recomputing_activations_changes_nothing():
    losses, norms = [], []
    for recompute in (False, True):
        model = create_model("focalv2", **SMALL, use_checkpoint=recompute)
        weights = {name: formula_value(name, p.shape) for name, p in official_names(model).items() if p.requires_grad}
        load_weights(model, weights)

        def loss(x, labels, model=model):
            return ops.cross_entropy(model(x), labels)

        step = ms.value_and_grad(loss, None, model.trainable_params())
        value, gradients = step(Tensor(images((2, 3, 32, 32))), Tensor([1, 2], ms.int32))
        losses.append(float(value.asnumpy()))
        norms.append([float(np.linalg.norm(gradient.asnumpy())) for gradient in gradients])
    assert losses[0] == losses[1]
    np.testing.assert_allclose(*norms, rtol=1e-5)


def test_shifted_block_equals_rolling_its_input():
    """With shift, a block is the same block on a rolled map, rolled back (the original ignores the mask)."""
    model = create_model("focalv2", **SMALL, use_shift=True).set_train(False)
    block = model.layers[0].blocks[1]
    assert block.shift_size == 1
    x = images((1, 64, 16))
    shifted = block.attend(Tensor(x), None).asnumpy().reshape(8, 8, 16)
    block.shift_size = 0
    rolled = np.roll(x.reshape(8, 8, 16), (-1, -1), (0, 1)).reshape(1, 64, 16)
    plain = np.roll(block.attend(Tensor(rolled), None).asnumpy().reshape(8, 8, 16), (1, 1), (0, 1))
    np.testing.assert_allclose(shifted, plain, atol=1e-6)


def test_convolution_implementations_agree():
    unfold = create_model("focalv2", **SMALL, use_conv_embed=True).set_train(False)
    conv2d = create_model("focalv2", **SMALL, use_conv_embed=True, conv_implementation="conv2d").set_train(False)
    load_weights(conv2d, {name: p.asnumpy() for name, p in official_names(unfold).items()})
    x = Tensor(images((2, 3, 32, 32)))
    np.testing.assert_allclose(unfold(x).asnumpy(), conv2d(x).asnumpy(), atol=1e-5)


def test_drop_path_scales_whole_branches():
    """A branch of scale 0 contributes nothing: with all of them dropped, a stage passes its input through."""
    model = create_model("focalv2", **SMALL, drop_path_rate=0.5)
    stage = model.layers[1].set_train()
    x = Tensor(images((2, 16, 32)))
    drawn = model.draw_drop_path(np.random.default_rng(0), 2)
    assert drawn.shape == (6, 2)
    assert set(np.unique(drawn.asnumpy()[:2])) == {1.0}  # the first block's rate is 0
    np.testing.assert_array_equal(stage(x, Tensor(np.zeros((6, 2), np.float32))).asnumpy(), x.asnumpy())
    assert np.abs(stage(x, Tensor(np.ones((6, 2), np.float32))).asnumpy() - x.asnumpy()).max() > 1e-3
    with pytest.raises(ValueError, match="draw_drop_path"):
        model.layers[1].blocks[0].drop_path1(x, None)


def test_pynative_equals_graph_mode():
    model = create_model("focalv2", **SMALL).set_train(False)
    x = Tensor(images((2, 3, 32, 32)))
    graph = model(x).asnumpy()
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        np.testing.assert_allclose(model(x).asnumpy(), graph, atol=1e-5)
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"focal_levels": [3, 2]}, "focal_levels"),
        ({"focal_pool": "none"}, "focal_pool"),
        ({"focal_stages": [0]}, "focal_stages"),
        ({"img_size": 36}, "img_size"),
        ({"num_heads": [3, 4]}, "num_heads"),
        ({"num_heads": [2]}, "num_heads"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"embed_dims": 16}, "embed_dims"),
        ({"depths": [], "num_heads": [], "focal_levels": []}, "depths"),
        ({"depths": [0, 1]}, "depths"),
        ({"img_size": [32, 32, 32]}, "img_size"),
        ({"mlp_ratio": 0.0}, "mlp_ratio"),
        ({"patch_size": 2, "use_conv_embed": True}, "patch_size"),
    ],
    ids=str,
)
def test_impossible_arguments_are_refused_by_name(arguments, argument):
    with pytest.raises(ArgumentError) as error:
        create_model("focalv2", **SMALL | arguments)
    assert error.value.argument == argument


def test_unknown_model_gives_the_nearest_name():
    with pytest.raises(ValueError, match=f"did you mean {TINY}"):
        create_model(TINY.replace("tiny", "tny"))
