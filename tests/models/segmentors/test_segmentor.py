"""Networks of segmentation as the rest of the project uses them: sizes, training, configurations, files."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from focal_twins.config.load import CONFIG_ROOT, ConfigError, load_config
from focal_twins.config.schema import OptimizerConfig
from focal_twins.files.weights import LoadReport, WeightsError, load_weights, official_names, save_weights
from focal_twins.models import ArgumentError, create_model, list_models
from focal_twins.models.batch_norm import batch_norms, synchronise_batch_norms
from focal_twins.models.device_options import device_options, set_device_options
from focal_twins.training.optimizer import create_optimizer
from tests.models.test_training_options import FAMILIES
from tests.published_rows import assert_says_what_it_is
from tests.reference import formula_value, images

HEADS = {
    "upernet": {"channels": 8, "auxiliary_channels": 4, "pool_scales": [1, 2]},
    "semantic_fpn": {"neck_channels": 8, "channels": 4},
}
X = Tensor(images((2, 3, 32, 32)))


def small(name="upernet", family="focal", backbone=None, **options):
    """A network on a backbone of two stages, with weights by formula."""
    arguments = {key: value for key, value in FAMILIES[family].items() if key != "num_classes"}
    on = create_model(family, features_only=True, **arguments | (backbone or {}))
    return create_model(name, backbone=on, **{"num_classes": 5} | HEADS[name] | options)


def filled(model):
    for name, parameter in official_names(model).items():
        if "topk_cloest" not in name:
            parameter.set_data(Tensor(formula_value(name, parameter.shape, 1.0)))
    return model


def arrays(model):
    return {name: parameter.asnumpy() for name, parameter in official_names(model).items()}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_on_every_backbone(name, family):
    model = filled(small(name, family)).set_train(False)
    logits = model(X)
    assert model.map_size == (8, 8) == model.head_map_sizes[0]
    assert logits.shape == (2, 64, 5)
    assert np.isfinite(logits.asnumpy()).all()
    np.testing.assert_array_equal(model.head_logits(X)[0].asnumpy(), logits.asnumpy())
    model.set_train()
    scales = model.draw_channel_scales(np.random.default_rng(0), 2)
    outputs = model(X, model.draw_drop_path(np.random.default_rng(0), 2), scales)
    shapes = [(2, height * width, 5) for height, width in model.head_map_sizes]
    assert [output.shape for output in outputs] == shapes
    assert len(model.head_names) == len(model.head_weights) == len(outputs) == {"upernet": 2, "semantic_fpn": 1}[name]


@pytest.mark.parametrize("name", HEADS)
def test_another_size_has_the_same_parameters(name):
    model = filled(small(name))
    model.freeze(1)
    set_device_options(model, conv_implementation="conv2d")
    synchronise_batch_norms(model, 2)
    other = model.at((45, 64))
    assert model.at(32) is model
    assert other.map_size == (12, 16)
    assert all(p is official_names(model)[key] for key, p in official_names(other).items())
    assert official_names(other).keys() == official_names(model).keys()
    assert [p.name for p in other.trainable_params()] == [p.name for p in model.trainable_params()]
    assert device_options(other) == device_options(model)
    assert {layer.ranks for layer in batch_norms(other)} == {2}
    assert other.set_train(False)(Tensor(images((1, 3, 45, 64)))).shape == (1, 192, 5)
    with pytest.raises(ArgumentError, match="img_size"):
        small(name, "focalv2").at(50)


class Heads(nn.Cell):
    """The heads of a network alone: on a backbone they would take three times as long to compile."""

    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.model = model
        self.gradients = ms.grad(self.loss, None, self.trainable_params())

    def trainable_params(self, recurse=True):
        return [p for p in self.model.trainable_params() if not p.name.startswith("backbone.")]

    def loss(self, first, second, scales):
        maps = (first, second)
        logits = self.model.decode_head.conv_seg(self.model.decode_features(maps), scales[:, :8])
        helped = self.model.auxiliary_logits(maps, scales)[0]
        return (logits * logits).mean() + (helped * helped).mean()

    def construct(self, first, second, scales):
        return self.gradients(first, second, scales)


def test_a_graph_has_the_gradients_of_operators(graph_mode):
    """Taps at the small size, own gradients, dropped channels and batch statistics together."""
    heads = Heads(filled(small(dropout=0.5)).set_train()).set_train()
    scales = heads.model.draw_channel_scales(np.random.default_rng(3), 2)
    maps = [
        Tensor(np.random.default_rng(i).standard_normal((2, np.prod(m.size), m.channels)).astype(np.float32))
        for i, m in enumerate(heads.model.backbone.feature_maps)
    ]
    compiled = heads(*maps, scales)
    moved = arrays(heads.model)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    filled(heads.model)  # the running statistics have moved
    for parameter, value, expected in zip(heads.trainable_params(), compiled, heads(*maps, scales), strict=True):
        scale = np.abs(expected.asnumpy()).max()
        np.testing.assert_allclose(value.asnumpy(), expected.asnumpy(), atol=1e-3 * scale, err_msg=parameter.name)
    for name, value in arrays(heads.model).items():
        np.testing.assert_allclose(moved[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


# --- dropout of channels --------------------------------------------------------------------------------------------


def test_channels_are_dropped_before_each_classifier():
    """A dropped channel has no part in the logits, and the others' part is larger; each head has its own channels."""
    model = filled(small(dropout=0.25)).set_train()
    assert model.dropout_channels == 8 + 4
    scales = model.draw_channel_scales(np.random.default_rng(0), 500).asnumpy()
    assert scales.shape == (500, 12)
    np.testing.assert_allclose(np.unique(scales), [0, 4 / 3], rtol=1e-6)
    assert abs(scales.mean() - 1) < 0.03
    again = model.draw_channel_scales(np.random.default_rng(0), 500).asnumpy()
    np.testing.assert_array_equal(again, scales)

    ones = np.ones((2, 12), np.float32)
    whole = [logits.asnumpy() for logits in model(X, None, Tensor(ones))]
    only = ones.copy()
    only[0] = 0  # of the first image, all channels of both heads
    only[1, 8:] = 2
    dropped = [logits.asnumpy() for logits in model(X, None, Tensor(only))]
    for head, logits in zip((model.decode_head, model.auxiliary_head), dropped, strict=True):
        bias = head.conv_seg.bias.asnumpy()
        np.testing.assert_allclose(logits[0], np.broadcast_to(bias, logits[0].shape), atol=1e-6)
    np.testing.assert_allclose(dropped[0][1], whole[0][1], atol=1e-5)
    bias = model.auxiliary_head.conv_seg.bias.asnumpy()
    np.testing.assert_allclose(dropped[1][1] - bias, 2 * (whole[1][1] - bias), atol=1e-5)
    assert np.abs(model(X)[0].asnumpy() - model(X)[0].asnumpy()).max() > 1e-4  # without scales it draws its own
    assert small(dropout=0.0).draw_channel_scales(np.random.default_rng(0), 2) is None


def test_one_image_on_one_device_is_told():
    model = filled(small()).set_train()
    assert model.batch_caveat(2, 1) is None
    assert model.batch_caveat(1, 2) is None
    assert small(pool_scales=[2, 3]).batch_caveat(1, 1) is None
    assert small("semantic_fpn").batch_caveat(1, 1) is None
    caveat = model.batch_caveat(1, 1)
    assert caveat is not None
    assert "train.batch_size" in caveat
    scales = model.draw_channel_scales(np.random.default_rng(0), 1)
    assert all(np.isfinite(logits.asnumpy()).all() for logits in model(X[:1], None, scales))


def test_without_an_auxiliary_head():
    model = small(auxiliary_weight=0.0)
    assert model.head_names == ("decode",)
    assert not [name for name in official_names(model) if name.startswith("auxiliary_head")]


@pytest.mark.parametrize("name", HEADS)
def test_classifiers_start_at_the_share_of_the_background(name):
    """Every head predicts it before the first update, at any size; the others' share is theirs alike."""
    model = small(name, background_share=0.8)
    for network in (model, model.at(64)):
        for head in ("decode_head", "auxiliary_head")[: len(model.head_names)]:
            bias = getattr(network, head).conv_seg.bias.asnumpy()
            np.testing.assert_allclose(np.exp(bias), [0.8, 0.05, 0.05, 0.05, 0.05], rtol=1e-6)
    assert not small(name).decode_head.conv_seg.bias.asnumpy().any()


def test_rates_decay_from_the_heads_to_the_patch_embedding():
    model = small("semantic_fpn")
    names = [parameter.name for parameter in model.trainable_params()]
    scales = dict(zip(names, create_optimizer(model, OptimizerConfig(layer_decay=0.5)).rate_scales, strict=True))
    blocks = sum(model.depths)
    assert scales["decode_head.conv_seg.weight"] == scales["neck.lateral_convs.0.conv.weight"] == 1
    assert scales["backbone.norm0.gamma"] == 1
    assert scales["backbone.patch_embed.proj.weight"] == 0.5 ** (blocks + 1)


# --- what cannot work -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "key"),
    [
        ("upernet", {"pool_scales": []}, "pool_scales"),
        ("upernet", {"dropout": 1.0}, "dropout"),
        ("upernet", {"background_share": 1.0}, "background_share"),
        ("upernet", {"auxiliary_weight": -1.0}, "auxiliary_weight"),
        ("upernet", {"neck_channels": 3}, "neck_channels"),
        ("semantic_fpn", {"channels": 0}, "channels"),
        ("semantic_fpn", {"num_classes": 0}, "num_classes"),
        ("semantic_fpn", {"features_only": True}, "features_only"),
    ],
)
def test_arguments_that_cannot_work_are_named(name, arguments, key):
    on = create_model("focal", features_only=True, **{k: v for k, v in FAMILIES["focal"].items() if k != "num_classes"})
    with pytest.raises(ArgumentError) as error:
        create_model(name, backbone=on, **arguments)
    assert error.value.argument == key


def test_backbones_that_cannot_work_are_refused():
    arguments = {key: value for key, value in FAMILIES["focal"].items() if key != "num_classes"}
    for backbone in (
        None,
        create_model("focal", **arguments),
        create_model("focal", features_only=True, out_indices=[1], **arguments),
    ):
        with pytest.raises(ArgumentError, match=r"^backbone: "):
            create_model("upernet", backbone=backbone)
    with pytest.raises(ArgumentError, match="stands on none"):
        create_model("focal", backbone=create_model("focal", features_only=True, **arguments), **arguments)
    assert not {"upernet", "semantic_fpn"} & {*list_models()}


# --- configurations -------------------------------------------------------------------------------------------------

CONFIG = """
task: segmentation
model: {name: upernet, num_classes: 5, channels: 8, auxiliary_channels: 4}
backbone: {name: focal, img_size: 32, embed_dim: 16, depths: [2, 1], num_heads: [2, 4], window_size: 2,
           focal_stages: [0, 1], focal_levels: [2, 2], focal_windows: [3, 1], expand_sizes: [1, 1]}
"""


def test_a_configuration_builds_backbone_and_network(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(CONFIG)
    config = load_config(path)
    assert config.to_dict()["backbone"]["out_indices"] == [0, 1]
    assert "num_classes" not in config.to_dict()["backbone"]
    model = config.build_model("Ascend")
    assert model.num_classes == 5
    assert device_options(model)["conv_implementation"] == "conv2d"
    (tmp_path / "y.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "y.yaml").to_dict() == config.to_dict()
    for override, problem in (
        ("model.name=focal", "model.name: focal is no network on a backbone here"),
        ("backbone.name=upernet", "backbone.name: upernet stands on a backbone"),
        ("backbone.num_classes=3", "backbone.num_classes: unknown key"),
        ("backbone.out_indices=[2]", "backbone.out_indices: must number stages"),
        ("backbone.drop_rate=0.1", "backbone.drop_rate: a backbone has no dropout"),
        ("model.dropout=2.0", "model.dropout: must be in"),
        ("model.img_size=32", "model.img_size: unknown key"),
        ("task=classification", "model.name: upernet stands on a backbone"),
    ):
        key, value = override.split("=")
        flags = {key: value} if key == "task" else {}
        with pytest.raises(ConfigError, match=problem) as error:
            load_config(path, [] if flags else [override], flags)
        assert "\n" not in str(error.value)


PARAMETERS = {  # of the originals' heads on the official blocks
    "upernet_focal_tiny_ade20k": 60.53, "upernet_focal_tiny_useconv_ade20k": 62.48,
    "upernet_focal_small_ade20k": 82.80, "upernet_focal_small_useconv_ade20k": 84.74,
    "upernet_focal_base_ade20k": 123.33, "upernet_focal_base_useconv_ade20k": 126.78,
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n == "upernet_focal_tiny_ade20k" else pytest.mark.exhaustive) for n in PARAMETERS],
)
def test_parameters_equal_the_originals(name):
    model = load_config(name).build_model("CPU")
    assert round(sum(parameter.size for parameter in model.trainable_params()) / 1e6, 2) == PARAMETERS[name]


@pytest.mark.parametrize("path", sorted(CONFIG_ROOT.glob("segmentation/*.yaml")), ids=lambda path: path.stem)
def test_files_say_what_they_are(path):
    """The command, the published figure or that there is none, and that nothing was trained here."""
    assert_says_what_it_is(path, "Published mIoU: ")


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("suffix", [".pth", ".ckpt"])
def test_files_come_back_bit_for_bit(name, suffix, tmp_path):
    first, second = filled(small(name)), small(name)
    save_weights(first, tmp_path / f"x{suffix}")
    assert load_weights(second, tmp_path / f"x{suffix}") == LoadReport()
    for key, value in arrays(first).items():
        np.testing.assert_array_equal(arrays(second)[key], value, err_msg=key)


def test_a_published_checkpoint_loads_with_what_pytorch_adds():
    """Counts of batches, and the index buffers of the blocks."""
    weights = arrays(filled(small()))
    counts = [name.replace("running_mean", "num_batches_tracked") for name in weights if name.endswith("running_mean")]
    weights |= dict.fromkeys(counts, np.array(7))
    weights["backbone.layers.0.blocks.0.attn.relative_position_index"] = np.zeros((4, 4))
    assert load_weights(small(), weights, announce=str) == LoadReport()


def test_a_classifiers_checkpoint_starts_the_backbone():
    classifier = filled(create_model("focal", **FAMILIES["focal"]))
    model, told = small(), []
    report = load_weights(model, arrays(classifier), announce=told.append, label="x.pth")
    assert report.moved == ("", "backbone.")
    assert {name.split(".")[1] for name in report.not_here} == {"norm", "head"}
    assert not report.missing + report.unexpected
    begun = {name.split(".")[0] for name in report.begun}
    assert begun == {"backbone", "decode_head", "auxiliary_head"}  # of the backbone the norms of the outputs
    name = "layers.1.blocks.0.mlp.fc1.weight"
    np.testing.assert_array_equal(arrays(model)[f"backbone.{name}"], arrays(classifier)[name])
    assert told[0].startswith("x.pth: taken for the backbone: ")


def test_another_number_of_classes_leaves_the_classifiers_alone():
    model, told = small(num_classes=7), []
    before = arrays(model)
    report = load_weights(model, arrays(filled(small())), announce=told.append)
    reset = [f"{head}_head.conv_seg.{local}" for head in ("decode", "auxiliary") for local in ("weight", "bias")]
    assert sorted(report.reset) == sorted(reset)
    assert report == LoadReport(reset=report.reset)
    np.testing.assert_array_equal(arrays(model)[reset[0]], before[reset[0]])
    with pytest.raises(WeightsError, match=r"decode_head\.conv_seg\.weight"):
        load_weights(small(num_classes=7), arrays(small()), adapt=())
