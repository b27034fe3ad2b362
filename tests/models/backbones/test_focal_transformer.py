"""Options and refusals of both Focal Transformers. Numbers: test_parity.py and test_loop_reference.py."""

import numpy as np
import pytest
from mindspore import Tensor

from focal_twins.files.weights import load_weights, official_names
from focal_twins.models import ArgumentError, create_model, list_models, resolve_arguments
from focal_twins.models.backbones.focal_transformer import WindowPool
from focal_twins.models.device_options import set_device_options
from tests.reference import images

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


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("focalv2_tiny_useconv_patch4_window7_224", 448),
        ("focalv2_tiny_useconv_patch4_window7_224", [224, 448]),
        ("focal_tiny_patch4_window7_224", 384),
        ("focal_tiny_patch4_window7_224", [160, 250]),
        ("focal_tiny_useconv_patch4_window7_224", [96, 224]),
        ("twins_svt_small", 384),
        ("twins_svt_small", [96, 160]),
        ("twins_pcpvt_small", [224, 96]),
    ],
)
def test_other_resolutions(name, size):
    """The first stages are enough: they have the largest maps."""
    depths = {"depths": [1, 1, 1, 1], "num_classes": 3}
    model = create_model(name, img_size=size, **depths).set_train(False)
    height, width = model.img_size
    logits = model(Tensor(images((1, 3, height, width)))).asnumpy()
    assert logits.shape == (1, 3)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("name", list_models())
def test_published_models_can_be_configured_at_other_sizes(name):
    for size in (224, 448, 896):
        resolve_arguments(name, {"img_size": size})
    if name.startswith("focalv2"):
        with pytest.raises(ArgumentError, match="the nearest that does is"):
            resolve_arguments(name, {"img_size": 384})
    else:
        resolve_arguments(name, {"img_size": [384, 224]})


@pytest.mark.parametrize("pool", ["mean", "max", "fc", "conv"])
def test_window_pool_equals_numpy(pool):
    index = np.random.default_rng(1).permutation(20).reshape(5, 4)
    layer = WindowPool(pool, 3, index)
    tokens = images((2, 20, 3))
    parts = tokens[:, index]  # [2, 5, 4, 3]
    expected = {"mean": parts.mean(2), "max": parts.max(2)}
    if pool == "fc":
        expected["fc"] = np.einsum("bwnc,n->bwc", parts, layer.weight.asnumpy()[0]) + layer.bias.asnumpy()
    elif pool == "conv":  # depthwise: one kernel per channel
        kernels = layer.weight.asnumpy().reshape(3, 4)
        expected["conv"] = np.einsum("bwnc,cn->bwc", parts, kernels) + layer.bias.asnumpy()
    np.testing.assert_allclose(layer.pooled(Tensor(tokens)).asnumpy(), expected[pool], atol=1e-6)
    np.testing.assert_allclose(layer(Tensor(tokens)).asnumpy(), np.hstack([tokens, expected[pool]]), atol=1e-6)


@pytest.mark.parametrize("family", ["focal", "focalv2", "twins"])
def test_images_of_another_size_are_refused(family):
    sizes = {"embed_dims": [16], "num_heads": [1], "mlp_ratios": [1.0], "depths": [1], "sr_ratios": [2]}
    if family != "twins":
        sizes = {"embed_dim": 16, "num_heads": [1], "depths": [1], "focal_levels": [1], "window_size": 4}
    model = create_model(family, img_size=[32, 48], num_classes=2, **sizes).set_train(False)
    assert model(Tensor(images((1, 3, 32, 48)))).shape == (1, 2)
    for shape in ((1, 3, 48, 32), (1, 3, 35, 51), (1, 1, 32, 48)):
        with pytest.raises(ValueError, match="height 32 and width 48"):
            model(Tensor(images(shape)))


def test_convolution_implementations_agree():
    unfold = create_model("focalv2", **SMALL, use_conv_embed=True).set_train(False)
    conv2d = create_model("focalv2", **SMALL, use_conv_embed=True).set_train(False)
    set_device_options(conv2d, conv_implementation="conv2d")
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
    with pytest.raises(ValueError, match="a block that trains with drop_path_rate > 0 needs drop_path"):
        model.layers[1].blocks[0].drop_path1(x, x, None)


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
        ({"focal_stages": [0, 1, 9]}, "focal_stages"),
        ({"mlp_ratio": 0.01}, "mlp_ratio"),
    ],
    ids=str,
)
def test_impossible_arguments_are_refused_by_name(arguments, argument):
    with pytest.raises(ArgumentError) as error:
        create_model("focalv2", **SMALL | arguments)
    assert error.value.argument == argument


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"focal_windows": [2, 1]}, "focal_windows"),
        ({"focal_windows": [1]}, "focal_windows"),
        ({"expand_sizes": [3, 1]}, "expand_sizes"),
        ({"expand_sizes": [-1, 1]}, "expand_sizes"),
        ({"use_shift": True, "img_size": 36}, "use_shift"),
        ({"focal_levels": [4, 2]}, "focal_levels"),
        ({"focal_levels": [-1, 2]}, "focal_levels"),
        ({"img_size": 3}, "img_size"),
        ({"img_size": 34, "use_conv_embed": True}, None),
        ({"img_size": 35, "use_conv_embed": True}, "img_size"),
        ({"focal_topK": 8}, "focal_topK"),
    ],
    ids=str,
)
def test_what_v1_cannot_do_is_refused_by_name(arguments, argument):
    small = {key: value for key, value in SMALL.items() if key != "focal_topK"} | {"expand_sizes": [1, 1]}
    if argument is None:
        resolve_arguments("focal", small | arguments)
        return
    with pytest.raises(ArgumentError) as error:
        create_model("focal", **small | arguments)
    assert error.value.argument == argument


def test_unknown_model_gives_the_nearest_name():
    with pytest.raises(ValueError, match=f"did you mean {TINY}"):
        create_model(TINY.replace("tiny", "tny"))
