"""focal_twins.create_model: what programs of others expect of it, and that it says what it cannot do."""

import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from PIL import Image

import focal_twins
from focal_twins.config.load import load_config
from focal_twins.data.open_images import open_images
from focal_twins.data.pipeline import UnreadableImages
from focal_twins.errors import UserError
from focal_twins.files.weights import CONFIG, official_names, save_weights
from focal_twins.models import ArgumentError
from focal_twins.models import create_model as create_network
from focal_twins.tasks.find_task import create_task
from tests.conftest import DIGITS_CONFIG, PACKAGE, TOY_MODEL
from tests.models.test_training_options import FAMILIES
from tests.reference import images
from tests.trained import with_formula_weights, write_digits_checkpoint

X = Tensor(images((2, 3, 32, 32)))
TOY = {"img_size": 16, "window_size": 2, "embed_dim": 16, "depths": [2], "num_heads": [1], "focal_stages": [0],
       "focal_levels": [1], "focal_topK": 8}  # fmt: skip


def test_importing_the_package_imports_nothing_heavy():
    """Commands set MindSpore's environment before it is imported; `dir` lists what is there."""
    script = (
        "import sys, focal_twins; assert {'create_model', 'load'} <= {*dir(focal_twins)}; "
        "print([name for name in ('mindspore', 'numpy') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", script], cwd=PACKAGE.parent, text=True) == "[]\n"
    with pytest.raises(AttributeError, match="no attribute 'create_modell'"):
        focal_twins.create_modell  # noqa: B018


def test_names_are_listed_by_pattern_and_task():
    assert focal_twins.list_models("twins_svt*", task="classification") == [
        "twins_svt_base", "twins_svt_large", "twins_svt_small",
    ]  # fmt: skip
    assert "upernet_focal_tiny_ade20k" in focal_twins.list_models("upernet*")
    assert "retinanet_focal_tiny_1x_coco" in focal_twins.list_models(task="detection")
    with pytest.raises(ArgumentError, match="task: must be one of classification, segmentation, detection"):
        focal_twins.list_models(task="pose")


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_are_replaced_and_left_out(family, tmp_path):
    """num_classes=0 and reset_classifier(0) give what the head classifies; files with and without heads load."""
    arguments = FAMILIES[family]
    model = with_formula_weights(focal_twins.create_model(family, **arguments))
    logits = model(X).asnumpy()
    head = model.head
    focal_twins.save_weights(model, tmp_path / "x.safetensors")
    bare = focal_twins.create_model(family, pretrained=tmp_path / "x.safetensors", **arguments | {"num_classes": 0})
    pooled = bare.set_train(False)(X)
    assert pooled.shape == (2, bare.num_features)
    np.testing.assert_array_equal(head(pooled).asnumpy(), logits)

    model.reset_classifier(0)
    np.testing.assert_array_equal(model(X).asnumpy(), pooled.asnumpy())
    assert not [name for name in official_names(model) if name.startswith("head")]
    model.reset_classifier(7)
    assert model(X).shape == (2, 7)
    assert {"head.weight", "head.bias"} <= official_names(model).keys()
    assert model.at(64).num_classes == 7
    with pytest.raises(ArgumentError, match="num_classes: must be at least 0, got -1"):
        model.reset_classifier(-1)


def test_a_new_head_is_in_the_next_graph(graph_mode):
    model = focal_twins.create_model("twins", **FAMILIES["twins"] | {"depths": [1, 1]}).set_train(False)
    assert model(X).shape == (2, 5)
    model.reset_classifier(7)
    assert model(X).shape == (2, 7)


def test_freezing_leaves_the_head_or_later_stages(tmp_path):
    model = focal_twins.create_model("twins", **FAMILIES["twins"] | {"drop_path_rate": 0.5})
    model.freeze()
    assert {parameter.name for parameter in model.trainable_params()} == {"head.weight", "head.bias"}
    np.testing.assert_array_equal(*(model.set_train()(X).asnumpy() for _ in range(2)))  # nothing is dropped
    model.reset_classifier(3)
    assert len(model.trainable_params()) == 2
    assert len(model.at(64).trainable_params()) == 2
    later = focal_twins.create_model("twins", **FAMILIES["twins"])
    later.freeze(1)
    assert not [p.name for p in later.trainable_params() if p.name.startswith(("patch_embeds.0", "blocks.0"))]
    backbone = focal_twins.create_model("twins", features_only=True, **_without_classes("twins"))
    backbone.freeze()
    assert backbone.trainable_params() == []


def _without_classes(family):
    return {key: value for key, value in FAMILIES[family].items() if key != "num_classes"}


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_of_features_are_the_tokens_in_their_places(family):
    model = focal_twins.create_model(family, features_only=True, out_indices=[1], **_without_classes(family))
    with_formula_weights(model)
    (tokens,) = model.backbone(X)
    (shown,) = model(X)
    assert (model.channels, model.strides) == ((32,), (8,))
    assert shown.shape == (2, 32, 4, 4)
    np.testing.assert_array_equal(shown.asnumpy()[:, :, 1, 2], tokens.asnumpy()[:, 1 * 4 + 2])
    assert model.preprocessing(np.zeros((9, 9), np.uint8)).shape == (1, 3, 32, 32)
    on_it = focal_twins.create_model(
        "semantic_fpn", num_classes=3, channels=16,
        backbone=focal_twins.create_model(family, features_only=True, **_without_classes(family)),
    )  # fmt: skip
    assert on_it.set_train(False)(X).shape[-1] == 3


def test_preprocessing_is_that_of_evaluation(digits, tmp_path):
    """Of the configuration that a name has, or of the one in a checkpoint: paths, Pillow images, arrays."""
    config = load_config(DIGITS_CONFIG, [*TOY_MODEL, f"data.path={digits}"])
    data = open_images(digits, "val")
    samples = create_task(config).eval_samples(config.build_model("CPU"), data, UnreadableImages(tmp_path / "none"))
    numbers = (0, 100)
    arrays = zip(*(samples.sample((np.int64(n), 0), n) for n in numbers), strict=True)
    expected = samples.batch(tuple(np.stack(array) for array in arrays))[0]
    paths = [digits / "val" / data.names[n] for n in numbers]
    checkpoint = write_digits_checkpoint(config, tmp_path / "x.ckpt")
    for model in (
        focal_twins.create_model("focalv2_digits", **TOY),
        focal_twins.create_model(
            "focalv2", in_chans=1, num_classes=10, use_conv_embed=True, pretrained=checkpoint, **TOY
        ),
    ):
        opened = [Image.open(path) for path in paths]
        for sources in (paths, opened, [np.asarray(image) for image in opened]):
            np.testing.assert_array_equal(model.preprocessing(sources).asnumpy(), expected)
        assert model.preprocessing(paths[0]).shape == (1, 1, 16, 16)
    assert model.at(32).preprocessing(paths[0]).shape == (1, 1, 32, 32)
    assert model.num_classes == 10


def test_grey_models_have_the_mean_of_colours_and_others_no_preprocessing():
    arguments = FAMILIES["twins"]
    grey = focal_twins.create_model("twins", in_chans=1, **arguments).preprocessing
    assert (grey.channels, grey.mean) == (1, [pytest.approx((0.485 + 0.456 + 0.406) / 3)])
    assert focal_twins.create_model("twins", in_chans=5, **arguments).preprocessing is None


def test_a_loop_of_ones_own_and_mindspore_model_train_it():
    ms.set_seed(0)
    model = focal_twins.create_model("twins", **FAMILIES["twins"] | {"drop_path_rate": 0.1, "num_classes": 2})
    labels = np.arange(8, dtype=np.int32) % 2
    inputs = images((8, 3, 32, 32)) + labels[:, None, None, None].astype(np.float32)
    loss_of, optimizer = nn.CrossEntropyLoss(), nn.AdamWeightDecay(model.trainable_params(), 3e-3)
    step = ms.value_and_grad(lambda x, y: loss_of(model(x), y), None, optimizer.parameters)
    losses = []
    for _ in range(12):
        loss, gradients = step(Tensor(inputs), Tensor(labels))
        optimizer(gradients)
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    data = ms.dataset.NumpySlicesDataset((inputs, labels), ["image", "label"], shuffle=False).batch(4)
    trainer = ms.train.Model(model, loss_of, optimizer, metrics={"accuracy"})
    trainer.train(1, data, dataset_sink_mode=False)
    assert trainer.eval(data, dataset_sink_mode=False) == {"accuracy": 1.0}


def test_dense_models_by_name():
    """The configuration's network, with arguments for its heads and its backbone."""
    model = focal_twins.create_model("retinanet_digits", num_classes=3, drop_path_rate=0.2, channels=8, stacked_convs=1)
    assert (model.num_classes, model.arguments["channels"], max(model.backbone.drop_path_rates)) == (3, 8, 0.2)
    with pytest.raises(ArgumentError, match="features_only: is for classifiers; upernet_digits is a model of segm"):
        focal_twins.create_model("upernet_digits", features_only=True)
    assert focal_twins.create_model("retinanet_digits", img_size=(96, 96), channels=8).backbone.img_size == (96, 96)


def test_a_backbone_starts_from_a_dense_checkpoint(tmp_path):
    """Whose configuration says nothing of how a classifier's images are prepared."""
    config = load_config("retinanet_digits", ["model.channels=8", "model.neck_channels=8"])
    dense = config.build_model("CPU")
    save_weights(dense, tmp_path / "dense.ckpt", {CONFIG: config.to_yaml()})
    backbone = focal_twins.create_model(
        "focalv2_digits", img_size=96, features_only=True, pretrained=tmp_path / "dense.ckpt"
    )
    loaded = {name.removeprefix("backbone."): value for name, value in backbone.parameters_dict().items()}
    name = "layers.0.blocks.0.mlp.fc1.weight"
    np.testing.assert_array_equal(
        loaded[name].asnumpy(), dense.backbone.parameters_dict()[f"backbone.{name}"].asnumpy()
    )
    assert backbone.preprocessing(np.zeros((8, 8), np.uint8)).shape == (1, 1, 96, 96)


REFUSALS = {
    "misspelt": (("twins_svt_smal",), {}, "did you mean twins_svt_small"),
    "argument": (("twins",), {"image_size": 32}, "did you mean img_size"),
    "dense argument": (("upernet_digits",), {"chanels": 8}, r"^upernet_digits: backbone\.chanels: unknown key"),
    "weights": (("twins",), {"pretrained": "no.pth"}, "checkpoint no.pth: no such file"),
    "true": (("twins",), {"pretrained": True}, "must be a file of weights"),
    "classes of a backbone": (("focalv2_digits",), {"features_only": True, "num_classes": 5}, "num_classes"),
    "maps": (("twins",), {"out_indices": [0]}, "add features_only=True"),
}


@pytest.mark.parametrize(("names", "arguments", "problem"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_work_is_named(names, arguments, problem):
    with pytest.raises((ArgumentError, UserError), match=problem):
        focal_twins.create_model(*names, **arguments)


def test_a_configuration_trains_at_least_one_class():
    with pytest.raises(UserError, match=r"model\.num_classes: must be at least 1, got 0"):
        load_config(DIGITS_CONFIG, ["model.num_classes=0"])


def test_the_networks_are_those_of_the_models():
    """The same constructor and initial weights, whatever offers them."""
    ms.set_seed(3)
    one = create_network("twins", **FAMILIES["twins"])
    ms.set_seed(3)
    other = focal_twins.create_model("twins", **FAMILIES["twins"])
    for name, value in official_names(one).items():
        np.testing.assert_array_equal(value.asnumpy(), official_names(other)[name].asnumpy())
