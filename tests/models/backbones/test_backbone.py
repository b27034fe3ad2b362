"""Backbones of dense prediction: maps equal to the originals', at any size, with the same parameters.

Operator by operator but for one graph of each family: the figures are of eight networks at two dozen sizes.
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from focal_twins.files.weights import official_names
from focal_twins.models import ArgumentError, create_model
from focal_twins.models.backbones.backbone import FeatureMap, share_parameters
from focal_twins.models.device_options import device_options, set_device_options
from focal_twins.models.layers import DropPath
from tests.kernels.compiler import EITHER
from tests.models.test_training_options import FAMILIES
from tests.reference import FOLDER, figures, formula_value, images

NANO = {
    "embed_dim": 32, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8], "focal_levels": [2, 2, 2, 2],
    "pretrain_size": 224, "drop_path_rate": 0.0,
}  # fmt: skip
CONV = {"use_conv_embed": True}
FOCAL_CASES = {
    "nano": ("focal", NANO, (200, 264)),
    "nano_conv": ("focal", NANO | CONV, (200, 264)),
    "nano_small": ("focal", NANO, (97, 130)),
    "nano_conv_small": ("focal", NANO | CONV, (97, 130)),
    "nano_expand4": ("focal", NANO | {"pretrain_size": 448}, (200, 264)),
    "tiny": ("focal_tiny_patch4_window7_224", {"pretrain_size": 224}, (200, 264)),
    "tiny_conv": ("focal_tiny_useconv_patch4_window7_224", {"pretrain_size": 224}, (200, 264)),
}
TWINS = {
    "embed_dims": [16, 32, 64, 128], "num_heads": [1, 2, 4, 8], "depths": [2, 2, 2, 2], "sr_ratios": [8, 4, 2, 1],
}  # fmt: skip
SVT, PCPVT = TWINS | {"wss": [7, 7, 7, 7]}, TWINS | {"mlp_ratios": [8, 8, 4, 4]}
TWINS_CASES = {
    f"{kind}_{height}x{width}": (arguments, (height, width))
    for kind, arguments in (
        ("svt_detection", SVT), ("svt_segmentation", SVT | {"mask_padding": True}), ("pcpvt_detection", PCPVT),
    )
    for height, width in ((96, 160), (128, 224), (224, 128), (224, 224))
}  # fmt: skip


@pytest.fixture
def pynative():
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)


def filled(model, scale=0.5):
    """A model with weights by formula, in evaluation mode."""
    for name, parameter in official_names(model).items():
        if parameter.requires_grad:
            parameter.set_data(Tensor(formula_value(name, parameter.shape, scale)))
    return model.set_train(False)


def as_maps(model, outputs):
    """Tokens [B, H * W, C] of every output to [B, C, H, W]."""
    shapes = [(feature.channels, *feature.size) for feature in model.feature_maps]
    tokens = (output.asnumpy().transpose(0, 2, 1) for output in outputs)
    return [value.reshape(-1, *shape) for value, shape in zip(tokens, shapes, strict=True)]


def assert_equal(model, maps, expected, arrays, name, sample):
    assert len(maps) == len(expected)
    for i, (value, figure) in enumerate(zip(maps, expected, strict=True)):
        assert list(value.shape) == figure["shape"]
        stored = arrays[f"{name}_{i}"]
        assert np.abs(value[:1][sample] - stored).max() < 1e-4 * np.abs(stored).max(), i
        assert abs(np.abs(value.astype(np.float64)).sum() / figure["abs_sum"] - 1) < 1e-5


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case == "tiny_conv" else ()) for case in FOCAL_CASES]
)
@pytest.mark.parametrize("kernels", EITHER)
def test_focal_maps_equal_the_originals(case, kernels, pynative):
    name, arguments, size = FOCAL_CASES[case]
    expected = figures("dense/focal_backbone")["cases"][case]
    # Built at the size of pre-training, and taken from there: the way that users go.
    model = create_model(name, features_only=True, img_size=224, **arguments)
    model = filled(set_device_options(model, kernels=kernels).at(size))
    assert sum(parameter.size for parameter in model.trainable_params()) == expected["parameters"]
    x = Tensor(images((expected["outputs"][0]["shape"][0], 3, *size)))
    arrays = np.load(FOLDER / "dense/focal_backbone.npz")
    assert_equal(model, as_maps(model, model(x)), expected["outputs"], arrays, case, np.s_[:, ::8, ::2, ::2])
    if "grad_norms" not in expected:
        return

    def total(x):
        return sum((tokens * weight).sum() for tokens, weight in zip(model(x), weights, strict=True))

    weights = []
    for i, feature in enumerate(model.feature_maps):
        maps = np.random.default_rng(90 + i).standard_normal((len(x), feature.channels, *feature.size))
        weights.append(Tensor(maps.reshape(*maps.shape[:2], -1).transpose(0, 2, 1).astype(np.float32)))
    names = {id(parameter): name for name, parameter in official_names(model).items()}
    gradients = ms.grad(total, None, model.trainable_params())(x)
    norms = {
        names[id(parameter)]: np.linalg.norm(gradient.asnumpy().astype(np.float64))
        for parameter, gradient in zip(model.trainable_params(), gradients, strict=True)
    }
    assert norms.keys() == expected["grad_norms"].keys()
    for parameter, norm in norms.items():
        assert abs(norm / expected["grad_norms"][parameter] - 1) < 1e-3, parameter


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if "96x160" in case or "segmentation_224x128" in case else pytest.mark.slow)
        for case in TWINS_CASES
    ],
)
@pytest.mark.parametrize("kernels", EITHER)
def test_twins_maps_equal_the_originals(case, kernels, pynative):
    arguments, size = TWINS_CASES[case]
    model = create_model("twins", features_only=True, **arguments)
    model = filled(set_device_options(model, kernels=kernels).at(size), scale=1.0)
    expected = figures("dense/twins_backbone")["cases"][case]
    arrays = np.load(FOLDER / "dense/twins_backbone.npz")
    maps = as_maps(model, model(Tensor(images((1, 3, *size)))))
    assert_equal(model, maps, expected, arrays, case, np.s_[:, ::4, ::2, ::2])


def test_padding_is_masked_where_asked_for(pynative):
    """On both axes: with one axis padded the original's mask is void."""
    shallow = SVT | {"depths": [1, 1, 1, 1], "img_size": 64}
    plain, masked = (create_model("twins", features_only=True, **shallow, mask_padding=mask) for mask in (False, True))
    share_parameters(masked, plain)
    for size, is_equal in (((64, 64), False), ((112, 64), True)):
        x = Tensor(images((1, 3, *size)))
        found = [model.at(size).set_train(False)(x)[0].asnumpy() for model in (plain, masked)]
        assert np.array_equal(*found) == is_equal


# --- every family ----------------------------------------------------------------------------------------------------


def small(family, features_only=True, **options):
    """A backbone of two stages."""
    arguments = {key: value for key, value in FAMILIES[family].items() if key != "num_classes"}
    return create_model(family, features_only=features_only, **arguments | options)


@pytest.mark.parametrize("family", FAMILIES)
def test_graph_mode_gives_the_same_maps(family, pynative):
    model = filled(small(family)).at((48, 32))
    x = Tensor(images((2, 3, 48, 32)))
    expected = [tokens.asnumpy() for tokens in model(x)]
    ms.set_context(mode=ms.GRAPH_MODE)
    found = model(x)
    assert isinstance(found, tuple)
    for value, by_operators in zip(found, expected, strict=True):
        np.testing.assert_allclose(value.asnumpy(), by_operators, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_say_what_they_are(family, pynative):
    model = small(family, img_size=[48, 32])
    assert model.feature_maps == (FeatureMap(16, 4, (12, 8)), FeatureMap(32, 8, (6, 4)))
    outputs = model.set_train(False)(Tensor(images((2, 3, 48, 32))))
    assert [output.shape for output in outputs] == [(2, 96, 16), (2, 24, 32)]
    assert np.array_equal(outputs[1].asnumpy(), model.features(Tensor(images((2, 3, 48, 32))))[1].asnumpy())


@pytest.mark.parametrize("family", FAMILIES)
def test_out_indices_choose_the_maps_and_their_norms(family, pynative):
    every, last = filled(small(family)), filled(small(family, out_indices=[1]))
    assert last.feature_maps == every.feature_maps[1:]
    x = Tensor(images((1, 3, 32, 32)))
    (found,) = last(x)
    np.testing.assert_array_equal(found.asnumpy(), every(x)[1].asnumpy())
    if family != "twins":  # whose original has the norms of all stages
        missing = official_names(every).keys() - official_names(last).keys()
        assert missing == {"norm0.weight", "norm0.bias"}


@pytest.mark.parametrize(
    "arguments",
    [{"out_indices": [2]}, {"out_indices": [1, 0]}, {"out_indices": []}, {"out_indices": [0, 0]}, {"num_classes": 5},
     {"out_indices": [0], "features_only": False}],
    ids=str,
)  # fmt: skip
def test_what_a_backbone_cannot_give_is_refused_by_name(arguments):
    with pytest.raises(ArgumentError) as error:
        small("focal", **arguments)
    assert error.value.argument == next(iter(arguments))


SIZES = {"focal": [(37, 50), (32, 32), (64, 24)], "focalv2": [(48, 32), (64, 64)], "twins": [(45, 62), (32, 48)]}


@pytest.mark.parametrize("family", FAMILIES)
def test_another_size_has_the_same_parameters(family, pynative):
    """The objects: what an update or a file changes in one, it changes in all."""
    model = filled(small(family, **{} if family == "twins" else {"ape": True}))
    tables = {name for name in official_names(model) if model.is_key_table(name)}
    for size in SIZES[family]:
        other = model.at(size)
        assert official_names(other).keys() == official_names(model).keys()
        for name, parameter in official_names(other).items():
            assert (parameter is official_names(model)[name]) == (size == model.img_size or name not in tables)
        outputs = other(Tensor(images((1, 3, *size))))
        for output, feature in zip(outputs, other.feature_maps, strict=True):
            assert output.shape == (1, np.prod(feature.size), feature.channels)
            assert np.isfinite(output.asnumpy()).all()
        before = outputs[0].asnumpy()
        for parameter in model.trainable_params():
            parameter.set_data(Tensor(parameter.asnumpy() * 1.5))
        assert np.abs(other(Tensor(images((1, 3, *size))))[0].asnumpy() - before).max() > 1e-3
    assert model.at(model.img_size) is model


def test_another_size_is_what_is_built_at_it(pynative):
    """Beside the parameters: device options, frozen stages, and the mode."""
    model = filled(small("focal", drop_path_rate=0.3, use_shift=True))
    model.freeze(1)
    set_device_options(model, gelu="erf", norm_gradient="operator")
    other, built = model.at((64, 48)), small("focal", drop_path_rate=0.3, use_shift=True, img_size=[64, 48])
    share_parameters(built, model)
    x = Tensor(images((1, 3, 64, 48)))
    for value, expected in zip(other(x), built.set_train(False)(x), strict=True):
        np.testing.assert_allclose(value.asnumpy(), expected.asnumpy(), atol=1e-5)
    assert device_options(other) == device_options(model)
    assert device_options(other) != device_options(built)
    assert other.drop_path_rates == model.drop_path_rates != built.drop_path_rates
    assert [p.name for p in other.trainable_params()] == [p.name for p in model.trainable_params()]
    rates = [[cell.rate for _, cell in each.cells_and_names() if isinstance(cell, DropPath)] for each in (other, model)]
    assert rates[0] == rates[1]
    assert not other.training
    assert model.set_train().at((48, 64)).training


def test_names_of_shared_parameters_are_those_of_the_network(pynative):
    """Whatever stands on a backbone can be built around the same parameters at another size."""

    class Network(nn.Cell):
        def __init__(self, backbone):
            super().__init__()
            self.backbone = backbone

    network = Network(small("focal"))
    names = [parameter.name for parameter in network.get_parameters()]
    assert all(name.startswith("backbone.") for name in names)
    other = Network(network.backbone.at((64, 48)))
    assert [parameter.name for parameter in other.get_parameters()] == names
    assert [parameter.name for parameter in network.get_parameters()] == names
    network.backbone.freeze(1)
    assert not network.backbone.patch_embed.proj.weight.requires_grad
    assert network.backbone.norm0.gamma.requires_grad


def test_pretraining_decides_windows_and_rings():
    """At 112 px the window covers the last map of 7, and has no ring; at 224 px it has, whatever the map at hand."""
    nano = NANO | {"depths": [1, 1, 1], "num_heads": [1, 2, 4], "focal_levels": [2, 2, 2]}
    ring = "layers.2.blocks.0.attn.relative_position_bias_table_to_neighbors"
    for pretrain_size, has_ring in ((112, False), (224, True), (None, True)):
        model = create_model("focal", features_only=True, **nano | {"img_size": 224, "pretrain_size": pretrain_size})
        assert (ring in official_names(model)) == has_ring
        for size in (112, (64, 400)):
            assert (ring in official_names(model.at(size))) == has_ring
            assert model.at(size).layers[2].blocks[0].window_size == 7
    with pytest.raises(ArgumentError, match="pretrain_size"):
        create_model("focal", use_conv_embed=True, **nano | {"pretrain_size": 222})


@pytest.mark.parametrize(
    ("size", "nearest"), [((800, 1333), r"\[896, 1344\]"), (512, "448"), ([300, 448], r"\[224, 448\]")]
)
def test_v2_names_the_nearest_size(size, nearest):
    model = create_model("focalv2_tiny_useconv_patch4_window7_224", features_only=True, depths=[1, 1, 1, 1])
    with pytest.raises(ArgumentError, match=f"img_size: .* the nearest that does is {nearest}$") as error:
        model.at(size)
    assert "\n" not in str(error.value)
    assert model.at((448, 224)).feature_maps[3].size == (14, 7)


def test_a_classifier_at_another_size(pynative):
    model = filled(small("focal", features_only=False, num_classes=3))
    assert model.feature_maps == ()
    assert model.at((48, 32))(Tensor(images((2, 3, 48, 32)))).shape == (2, 3)
    with pytest.raises(ArgumentError, match="img_size"):  # the original's classifier cuts off, and v1 pads no patches
        small("focal", features_only=False, num_classes=3, use_conv_embed=True).at(35)


@pytest.mark.parametrize("family", FAMILIES)
def test_device_options_reach_every_layer(family):
    model = small(family)
    for option, value in (("conv_implementation", "conv2d"), ("norm_gradient", "operator"), ("gelu", "erf")):
        assert device_options(model)[option] != value
        assert set_device_options(model, **{option: value}) is model
        assert device_options(model)[option] == value
    with pytest.raises(ArgumentError, match="gelu: must be polynomial or erf, got 'tanh'"):
        set_device_options(model, gelu="tanh")
