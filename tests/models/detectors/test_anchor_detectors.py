"""Detectors on anchors as the rest of the project uses them: sizes, training, candidates, configurations, files."""

import pickle

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from mindspore.nn.utils import no_init_parameters

from focal_twins.files.class_rows import choose_rows
from focal_twins.files.weights import load_weights, official_names
from focal_twins.models import ArgumentError, create_model
from focal_twins.models.detectors.anchors import padded_extent
from focal_twins.models.detectors.losses import BinaryCrossEntropy, SigmoidFocalLoss, SmoothL1Loss
from focal_twins.models.device_options import device_options, set_device_options
from tests.models.test_training_options import FAMILIES
from tests.reference import formula_value, images

HEADS = {"retinanet": {"channels": 8}, "atss": {"channels": 32}}
CANVAS = (32, 64)
X = Tensor(images((2, 3, *CANVAS)))
EXTENTS = ((32, 30), (20, 64))
OBJECTS = (np.array([[2, 3, 20, 28]], np.float32), np.array([[5, 5, 16, 14], [30, 1, 60, 19]], np.float32))


def small(name="retinanet", family="focal", canvas=CANVAS, **options):
    """A detector on a backbone of two stages, with weights by formula, that gives every anchor as a candidate."""
    arguments = {key: value for key, value in FAMILIES[family].items() if key != "num_classes"}
    arguments |= {"img_size": list(canvas)} | ({} if family == "twins" else {"pretrain_size": 32})
    on = create_model(family, features_only=True, **arguments)
    defaults = {"num_classes": 3, "neck_channels": 8, "start_level": 0, "num_outs": 3, "stacked_convs": 2}
    defaults["candidates_per_level"] = 5000
    return filled(create_model(name, backbone=on, **defaults | HEADS[name] | options))


def filled(model):
    for name, parameter in official_names(model).items():
        if "topk_cloest" not in name:
            parameter.set_data(Tensor(np.asarray(formula_value(name, parameter.shape, 1.0))))
    return model


def targets_of(model):
    maker, generator = model.target_maker(), np.random.default_rng(0)
    both = [
        maker(model.img_size, extent, boxes, np.arange(len(boxes), dtype=np.int32), generator)
        for extent, boxes in zip(EXTENTS, OBJECTS, strict=True)
    ]
    return tuple(Tensor(np.stack(arrays)) for arrays in zip(*both, strict=True))


# --- what a detector is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_training_and_detection_on_every_backbone(name, family):
    model = small(name, family)
    extents, targets = Tensor(EXTENTS, ms.int32), targets_of(model)
    sums, weights = model.loss()(model.set_train()(X, extents, targets), targets)
    assert sums.shape == weights.shape == (len(model.loss_names),) == (len(model.loss_floors),)
    assert np.isfinite(sums.asnumpy()).all()
    assert (sums.asnumpy() > 0).all()
    assert (weights.asnumpy() > 0).all()
    candidates = model.set_train(False)(X, extents).asnumpy()
    assert candidates.dtype == np.float32
    assert candidates.shape == (2, len(model.anchors.boxes), 4 + 3 + model.has_factor)


@pytest.mark.parametrize("name", HEADS)
def test_candidates_stay_on_the_image(name):
    """Boxes end at its edge, and anchors beyond it, rounded up to multiples of 32, have no chance."""
    model = small(name, canvas=(32, 96)).set_train(False)
    x, extents = Tensor(images((2, 3, 32, 96))), ((20, 30), (32, 96))
    candidates = model(x, Tensor(extents, ms.int32)).asnumpy()
    for found, (height, width) in zip(candidates, extents, strict=True):
        assert found[:, :4].min() >= 0
        assert (found[:, [0, 2]] <= width).all()
        assert (found[:, [1, 3]] <= height).all()
    scores = candidates[0, :, 4:7]
    assert (scores > 0).any(1).sum() == model.anchors.valid(extents[0]).sum() < len(model.anchors.boxes)
    np.testing.assert_array_equal(model(x).asnumpy()[1], candidates[1])  # without extents images fill the canvas


def test_each_level_gives_its_best():
    model = small(candidates_per_level=10).set_train(False)
    every = small().set_train(False)(X).asnumpy()[0]
    found = model(X).asnumpy()[0]
    assert [min(10, count) for count in model.anchors.counts] == [10, 10, 10]
    for i, level in enumerate(model.anchors.levels):
        best = every[level][np.argsort(-every[level, 4:].max(1))[:10]]
        np.testing.assert_allclose(found[10 * i : 10 * i + 10], best, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_padding_is_ignored_by_targets_and_loss(name):
    """Anchors on padding have label -1, and no part in any sum; divisors count the positives of each image."""
    model = small(name, canvas=(32, 96))
    maker = model.target_maker()
    inside, boxes = (30, 40), OBJECTS[0]
    labels = maker((32, 96), inside, boxes, np.array([1], np.int32), np.random.default_rng(0))[0]
    np.testing.assert_array_equal(labels[~model.anchors.valid(padded_extent(inside))], -1)
    assert set(labels) <= {-1, 1, 3}
    empty = maker((32, 96), inside, np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.random.default_rng(0))
    assert set(empty[0]) == {-1, 3}
    outputs = model.set_train()(Tensor(images((1, 3, 32, 96))), None)
    sums, weights = model.loss()(outputs, tuple(Tensor(array[None]) for array in empty))
    assert sums.asnumpy()[0] > 0
    assert not sums.asnumpy()[1:].any()
    assert weights.asnumpy()[0] == 1  # an image without objects counts as one
    ignored = tuple(Tensor(np.where(array == 3, -1, array)[None].astype(array.dtype)) for array in empty)
    assert not model.loss()(outputs, ignored)[0].asnumpy().any()


@pytest.mark.parametrize("name", HEADS)
def test_makers_travel_to_other_processes(name):
    maker = small(name).target_maker()
    again = pickle.loads(pickle.dumps(maker))
    given = CANVAS, EXTENTS[0], OBJECTS[0], np.array([2], np.int32), np.random.default_rng(0)
    for array, other in zip(maker(*given), again(*given), strict=True):
        np.testing.assert_array_equal(array, other)
    assert len(maker.names) == len(maker(*given))


@pytest.mark.parametrize("name", HEADS)
def test_another_canvas_has_the_same_parameters(name):
    model = set_device_options(small(name), conv_implementation="conv2d")
    other = model.at((64, 32))
    assert model.at(CANVAS) is model
    assert all(p is official_names(model)[key] for key, p in official_names(other).items())
    assert device_options(other) == device_options(model)
    assert other.set_train(False)(Tensor(images((1, 3, 64, 32)))).shape[1] == len(other.anchors.boxes)


@pytest.mark.parametrize("name", HEADS)
def test_both_kinds_of_convolution_are_equal(name):
    model = small(name).set_train(False)
    expected = model(X).asnumpy()
    found = set_device_options(model, conv_implementation="conv2d")(X).asnumpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


class Gradients(nn.Cell):
    """The loss of a detector and its gradients by the parameters of neck and head."""

    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.model, self.loss = model, model.loss()
        self.chosen = [p for p in model.trainable_params() if not p.name.startswith("backbone.")]
        self.gradients = ms.value_and_grad(self.total, None, self.chosen)

    def trainable_params(self, recurse=True):
        return self.chosen

    def total(self, maps, targets):
        sums, weights = self.loss(self.model.bbox_head(ms.ops.concat(self.model.neck(maps), 1)), targets)
        return (sums / weights).sum()

    def construct(self, maps, targets):
        return self.gradients(maps, targets)


@pytest.mark.parametrize("name", HEADS)
def test_a_graph_has_the_gradients_of_operators(name, graph_mode):
    """Neck, head and loss; on a backbone they would take three times as long to compile."""
    cell = Gradients(small(name, num_outs=2, stacked_convs=1).set_train())
    maps = tuple(
        Tensor(np.random.default_rng(i).standard_normal((2, np.prod(m.size), m.channels)).astype(np.float32))
        for i, m in enumerate(cell.model.backbone.feature_maps)
    )
    targets = targets_of(cell.model)
    value, gradients = cell(maps, targets)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    expected, of_operators = cell(maps, targets)
    np.testing.assert_allclose(value.asnumpy(), expected.asnumpy(), rtol=1e-5)
    for parameter, found, wanted in zip(cell.chosen, gradients, of_operators, strict=True):
        scale = np.abs(wanted.asnumpy()).max()
        np.testing.assert_allclose(found.asnumpy(), wanted.asnumpy(), atol=1e-4 * scale, err_msg=parameter.name)


# --- losses ---------------------------------------------------------------------------------------------------------


def test_focal_loss_and_its_own_gradient():
    """Against the formula of the paper, in float64, with differences for the gradient; far logits stay finite."""
    logits = np.array([[[2.0, -1.0], [0.5, 3.0], [-60.0, 60.0], [1.0, 1.0]]], np.float32)
    labels = np.array([[1, 2, 0, -1]], np.int32)

    def formula(x, alpha=0.3, gamma=2.0):
        own = labels[..., None] == np.arange(2)
        p = 1 / (1 + np.exp(-x))
        each = np.where(
            own, -alpha * (1 - p) ** gamma * np.log(p), -(1 - alpha) * p**gamma * (x * -1 - np.log1p(np.exp(-x)))
        )
        return (each * (labels >= 0)[..., None]).sum()

    loss = SigmoidFocalLoss(2, alpha=0.3)
    value, gradient = ms.value_and_grad(loss)(Tensor(logits), Tensor(labels))
    x = logits.astype(np.float64)
    assert float(value) == pytest.approx(formula(x), rel=1e-5)
    for place in np.ndindex(*x.shape):
        step = np.zeros_like(x)
        step[place] = 1e-4
        slope = (formula(x + step) - formula(x - step)) / 2e-4
        assert gradient.asnumpy()[place] == pytest.approx(slope, rel=1e-3, abs=1e-6), place
    half = SigmoidFocalLoss(2, alpha=0.3, gamma=1.5)(Tensor(logits), Tensor(labels))
    assert float(half) == pytest.approx(formula(x, gamma=1.5), rel=1e-5)


def test_other_losses_are_weighted_sums():
    deltas, zeros = Tensor(np.array([[[1, -2, 0, 0.05]], [[9, 9, 9, 9]]], np.float32)), Tensor(np.zeros((2, 1, 4), "f"))
    weights = Tensor(np.array([[2.0], [0.0]], np.float32))
    assert float(SmoothL1Loss()(deltas, zeros, weights)) == pytest.approx(2 * 3.05)
    smooth = 0.95 + 1.95 + 0.05**2 / 2 / 0.1
    assert float(SmoothL1Loss(0.1)(deltas, zeros, weights)) == pytest.approx(2 * smooth, rel=1e-6)
    logits, shares = np.array([0.5, -80.0, 80.0], np.float32), np.array([0.3, 0.0, 0.5], np.float32)
    found = BinaryCrossEntropy()(*map(Tensor, (logits, shares, np.array([1, 1, 2], np.float32))))
    p = 1 / (1 + np.exp(-0.5))
    assert float(found) == pytest.approx(-0.3 * np.log(p) - 0.7 * np.log(1 - p) + 80, rel=1e-6)


# --- what cannot work -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "key"),
    [
        ("retinanet", {"start_level": 2}, "start_level"),
        ("retinanet", {"start_level": -1}, "start_level"),
        ("retinanet", {"num_outs": 1}, "num_outs"),
        ("retinanet", {"anchor_scale": 0.0}, "anchor_scale"),
        ("retinanet", {"num_classes": 0}, "num_classes"),
        ("retinanet", {"candidates_per_level": 0}, "candidates_per_level"),
        ("atss", {"channels": 40}, "channels"),
        ("atss", {"canvas": (32, 48)}, "img_size"),
    ],
)
def test_arguments_that_cannot_work_are_named(name, arguments, key):
    with pytest.raises(ArgumentError) as error:
        small(name, **arguments)
    assert error.value.argument == key


# --- published sizes and files --------------------------------------------------------------------------------------

SIZES = [  # model, size of Focal Transformer, millions of parameters
    ("retinanet", "tiny", 39.36),
    ("retinanet", "small", 61.62),
    ("retinanet", "base", 100.85),
    ("atss", "tiny", 36.64),
]


@pytest.mark.parametrize(("name", "size", "millions"), SIZES)
def test_parameters_equal_the_published(name, size, millions):
    """With tables of neighbours in the last stage, which a classifier of 224 px does not have; see pretrain_size."""
    with no_init_parameters():
        options = {"img_size": 224, "pretrain_size": 448}
        backbone = create_model(f"focal_{size}_patch4_window7_224", features_only=True, **options)
        model = create_model(name, backbone=backbone)
    assert round(sum(parameter.size for parameter in model.trainable_params()) / 1e6, 2) == millions


@pytest.mark.parametrize("name", HEADS)
def test_a_classifiers_checkpoint_starts_the_backbone(name):
    classifier = filled(create_model("focal", **FAMILIES["focal"] | {"img_size": 32}))
    model = small(name)
    report = load_weights(model, {key: p.asnumpy() for key, p in official_names(classifier).items()}, announce=str)
    assert report.moved == ("", "backbone.")
    assert not report.missing + report.unexpected
    assert {key.split(".")[0] for key in report.begun} == {"backbone", "neck", "bbox_head"}


@pytest.mark.parametrize("name", HEADS)
def test_a_class_keeps_its_rows_among_other_classes(name):
    """At each of a place's anchors; other classes begin anew."""
    source, model = small(name), small(name, num_classes=2)
    (layer,) = model.classifiers
    own = official_names(model)[f"{layer}.weight"].asnumpy().reshape(-1, 2, 72 if name == "retinanet" else 288)
    rows = choose_rows("by_name", ("a", "b", "c"), ("d", "b"))
    report = load_weights(model, {k: p.asnumpy() for k, p in official_names(source).items()}, announce=str, rows=rows)
    assert {*report.kept} == {f"{layer}.weight", f"{layer}.bias"}
    assert not report.reset + report.missing + report.unexpected
    found = official_names(model)[f"{layer}.weight"].asnumpy().reshape(own.shape)
    theirs = official_names(source)[f"{layer}.weight"].asnumpy().reshape(len(own), 3, -1)
    np.testing.assert_array_equal(found[:, 1], theirs[:, 1])
    np.testing.assert_array_equal(found[:, 0], own[:, 0])


def test_names_are_those_of_published_checkpoints():
    names = official_names(small("atss"))
    for name in (
        "neck.lateral_convs.0.conv.bias", "neck.fpn_convs.2.conv.weight", "bbox_head.cls_convs.1.conv.weight",
        "bbox_head.reg_convs.0.gn.bias", "bbox_head.atss_cls.bias", "bbox_head.scales.2.scale",
    ):  # fmt: skip
        assert name in names, name
    assert "bbox_head.cls_convs.0.conv.bias" not in names
    assert {"bbox_head.retina_cls.weight", "bbox_head.reg_convs.0.conv.bias"} <= official_names(small()).keys()
