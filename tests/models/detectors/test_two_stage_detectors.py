"""Two-stage detectors as the rest of the project uses them: training, candidates, masks, sizes, arguments."""

import pickle

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from mindspore.nn.utils import no_init_parameters

from focal_twins.files.weights import official_names
from focal_twins.models import ArgumentError, create_model
from tests.models.test_training_options import FAMILIES
from tests.reference import formula_value, images

NAMES = ("mask_rcnn", "cascade_rcnn")
CANVAS = (64, 96)
SMALL = {
    "num_classes": 3, "channels": 8, "hidden": 16, "anchor_scale": 4.0, "anchor_samples": 16, "samples": 16,
    "proposals_per_level": 64, "proposals": 48, "max_boxes": 4,
}  # fmt: skip
X = Tensor(images((2, 3, *CANVAS)))
EXTENTS = ((64, 90), (40, 96))
OBJECTS = (
    (np.array([[2, 3, 40, 48], [30, 10, 64, 60]], np.float32), np.array([0, 2], np.int32)),
    (np.array([[5, 5, 46, 34]], np.float32), np.array([1], np.int32)),
)
NOTHING = (np.zeros((0, 4), np.float32), np.zeros(0, np.int32))


def small(name="mask_rcnn", family="focal", canvas=CANVAS, **options):
    """A detector on a backbone of two stages, with weights by formula."""
    arguments = {key: value for key, value in FAMILIES[family].items() if key != "num_classes"}
    arguments |= {"img_size": list(canvas)} | ({} if family == "twins" else {"pretrain_size": 32})
    on = create_model(family, features_only=True, **arguments)
    model = create_model(name, backbone=on, **SMALL | options)
    for key, parameter in official_names(model).items():
        if "topk_cloest" not in key:
            parameter.set_data(Tensor(np.asarray(formula_value(key, parameter.shape, 1.0))))
    return model


def target(model, extent, objects, seed=0):
    boxes, labels = objects
    masks = np.zeros((len(boxes), *extent), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1:y2, x1 : (x1 + x2) // 2] = 1  # the left half of each box
    maker = model.target_maker()
    return maker(model.img_size, extent, boxes, labels, np.random.default_rng(seed), masks)


def batch(*of_images):
    return tuple(Tensor(np.stack(arrays)) for arrays in zip(*of_images, strict=True))


def targets_of(model, objects=OBJECTS):
    return batch(*(target(model, e, o, i) for i, (e, o) in enumerate(zip(EXTENTS, objects, strict=True))))


class Gradients(nn.Cell):
    """The parts of a detector's loss and its gradients by the parameters of neck and heads."""

    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.model, self.loss = model, model.loss()
        self.chosen = [p for p in model.trainable_params() if not p.name.startswith("backbone.")]
        self.gradients = ms.value_and_grad(self.total, None, self.chosen, has_aux=True)

    def total(self, x, extents, targets):
        sums, weights = self.loss(self.model(x, extents, targets), targets)
        parts = sums / ms.ops.maximum(weights, Tensor(self.model.loss_floors))
        return parts.sum(), parts, weights

    def construct(self, x, extents, *targets):
        return self.gradients(x, extents, targets)


def losses(model, x, extents, targets):
    """Sums and weights of a batch."""
    sums, weights = model.loss()(model(x, Tensor(extents, ms.int32), targets), targets)
    return sums.asnumpy(), weights.asnumpy()


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "family"), [*(("mask_rcnn", f) for f in FAMILIES), ("cascade_rcnn", "focal")])
def test_training_and_detection_on_every_backbone(name, family):
    model = small(name, family)
    targets = targets_of(model)
    sums, weights = losses(model.set_train(), X, EXTENTS, targets)
    assert sums.shape == weights.shape == (len(model.loss_names),) == (len(model.loss_floors),)
    assert np.isfinite(sums).all()
    assert (sums > 0).all()
    assert (weights > 0).all()
    candidates, pyramid = model.set_train(False)(X, Tensor(EXTENTS, ms.int32))
    assert candidates.dtype == pyramid.dtype == ms.float32
    found = candidates.asnumpy()
    assert found.shape[2] == 3 * 4 + 3
    scores = found[:, :, 12:].sum(-1)
    assert ((scores == 0) | ((scores > 0) & (scores < 1))).all()
    for boxes, (height, width) in zip(found[:, :, :12].reshape(2, -1, 4), EXTENTS, strict=True):
        assert boxes.min() >= 0
        assert (boxes[:, [0, 2]] <= width).all()
        assert (boxes[:, [1, 3]] <= height).all()
    labels = Tensor(np.array([[0, 2], [1, 1]], np.int32))
    masks = model.mask_cell()(pyramid, Tensor(found[:, :2, :4]), labels).asnumpy()
    assert masks.shape == (2, 2, 28, 28)
    assert ((masks > 0) & (masks < 1)).all()


def test_sums_and_counts_add_up_over_images():
    """So that ranks and accumulated batches make one large batch: a part is its sums over the sum of its counts."""
    model = small().set_train()
    single = [
        target(model, extent, objects, i) for i, (extent, objects) in enumerate(zip(EXTENTS, OBJECTS, strict=True))
    ]
    together = losses(model, X, EXTENTS, batch(*single))
    apart = [losses(model, X[i : i + 1], EXTENTS[i : i + 1], batch(single[i])) for i in range(2)]
    np.testing.assert_allclose(together[0], apart[0][0] + apart[1][0], rtol=1e-4)
    np.testing.assert_array_equal(together[1], apart[0][1] + apart[1][1])
    assert together[1][:2].tolist() == [2 * SMALL["anchor_samples"]] * 2
    assert together[1][2:4].tolist() == [2 * SMALL["samples"]] * 2
    assert together[1][4] % 784 == 0


@pytest.mark.parametrize("name", NAMES)
def test_images_without_objects_teach_the_background_alone(name):
    """All parts and gradients are finite; what needs an object is zero, and its divisor is not."""
    model = small(name).set_train()
    targets = targets_of(model, (NOTHING, NOTHING))
    (_, parts, weights), gradients = Gradients(model)(X, Tensor(EXTENTS, ms.int32), *targets)
    parts, named = parts.asnumpy(), model.loss_names
    assert np.isfinite(parts).all()
    assert all((parts[i] > 0) == ("classification" in part) for i, part in enumerate(named))
    assert all((weights.asnumpy()[i] > 0) != ("masks" in part) for i, part in enumerate(named))
    assert all(np.isfinite(g.asnumpy()).all() for g in gradients)


def test_a_graph_has_the_gradients_of_operators(graph_mode):
    """Proposals, sampling, regions, heads, targets of masks and losses are one graph."""
    gradients = Gradients(small().set_train())
    given = X, Tensor(EXTENTS, ms.int32), *targets_of(gradients.model)
    (_, parts, weights), compiled = gradients(*given)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    (_, expected_parts, expected_weights), expected = gradients(*given)
    np.testing.assert_allclose(parts.asnumpy(), expected_parts.asnumpy(), rtol=1e-5)
    np.testing.assert_array_equal(weights.asnumpy(), expected_weights.asnumpy())
    for parameter, value, wanted in zip(gradients.chosen, compiled, expected, strict=True):
        scale = np.abs(wanted.asnumpy()).max()
        assert np.isfinite(value.asnumpy()).all()
        np.testing.assert_allclose(value.asnumpy(), wanted.asnumpy(), atol=1e-3 * scale, err_msg=parameter.name)


def test_a_graph_detects_as_operators_do(graph_mode):
    model = small("cascade_rcnn").set_train(False)
    given = X, Tensor(EXTENTS, ms.int32)
    compiled = model(*given)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    for found, expected in zip(compiled, model(*given), strict=True):
        np.testing.assert_allclose(found.asnumpy(), expected.asnumpy(), rtol=1e-3, atol=1e-3)


# --- targets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_makers_travel_to_other_processes(name):
    model = small(name)
    maker = model.target_maker()
    assert maker.needs_masks
    again = pickle.loads(pickle.dumps(maker))
    masks = np.ones((2, *EXTENTS[0]), np.uint8)
    arrays, others = (made(CANVAS, EXTENTS[0], *OBJECTS[0], np.random.default_rng(3), masks) for made in (maker, again))
    assert len(arrays) == len(maker.names)
    for array, other in zip(arrays, others, strict=True):
        np.testing.assert_array_equal(array, other)
    named = dict(zip(maker.names, arrays, strict=True))
    keys = named["sampling_keys"]
    assert keys.shape == (len(model.stages), SMALL["max_boxes"] + SMALL["proposals"])
    assert all(sorted(row) == list(range(len(row))) for row in keys.tolist())
    assert named["box_count"] == 2
    assert named["frame"].tolist() == [64, 96]  # of 64 x 90
    assert named["bitmaps"].sum(dtype=int) == 2 * 64 * (11 * 255 + 192)  # 90 pixels of 96


def test_of_too_many_objects_some_are_drawn():
    maker = small(masks=False).target_maker()
    boxes = np.float32([[i, 0, i + 20, 20] for i in range(30)])
    drawn = []
    for seed in (0, 0, 1):
        arrays = maker(CANVAS, CANVAS, boxes, np.arange(30, dtype=np.int32) % 3, np.random.default_rng(seed))
        named = dict(zip(maker.names, arrays, strict=True))
        assert named["box_count"] == 4
        assert (named["labels"] == named["boxes"][:, 0] % 3).all()
        drawn.append(named["boxes"][:, 0].tolist())
    assert drawn[0] == drawn[1] != drawn[2]


# --- forms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_without_masks_there_is_no_trace_of_them(name):
    model = small(name, masks=False)
    assert not model.has_masks
    assert not [key for key in official_names(model) if "mask" in key]
    assert not [part for part in (*model.loss_names, *model.classifiers, *model.target_maker().names) if "mask" in part]
    sums, _ = losses(model.set_train(), X, EXTENTS, targets_of(model))
    assert sums.shape == (len(model.loss_names),)
    assert model.set_train(False)(X).shape[2] == 15


def test_another_canvas_has_the_same_parameters():
    model = small()
    other = model.at((96, 64))
    assert model.at(CANVAS) is model
    assert all(p is official_names(model)[key] for key, p in official_names(other).items())
    candidates, _ = other.set_train(False)(Tensor(images((1, 3, 96, 64))))
    assert candidates.shape == (1, other.candidate_count, 15) == (1, 48, 15)


@pytest.mark.parametrize("name", NAMES)
def test_classifiers_have_rows_for_classes(name):
    model = small(name, num_classes=5)
    names = official_names(model)
    rows = {layer: names[f"{layer}.weight"].shape[0] for layer in model.classifiers}
    assert {layer.rsplit(".", 1)[1]: count for layer, count in rows.items()} == {
        "fc_cls": 6,
        "fc_reg": 20,
        "conv_logits": 5,
    }
    assert len(rows) == 3 * len(model.stages)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"sampling_ratio": -1}, "sampling_ratio"),
        ({"proposals_per_level": 3000}, "proposals_per_level"),
        ({"samples": 3}, "samples"),
        ({"anchor_scale": 0.0}, "anchor_scale"),
        ({"max_boxes": 0}, "max_boxes"),
    ],
)
def test_arguments_that_cannot_work(arguments, key):
    with pytest.raises(ArgumentError, match=key):
        small(**arguments)


@pytest.mark.parametrize(
    ("name", "size", "millions"),
    [
        ("mask_rcnn", "tiny", 48.70),
        pytest.param("mask_rcnn", "small", 70.96, marks=pytest.mark.exhaustive),
        pytest.param("mask_rcnn", "base", 109.60, marks=pytest.mark.exhaustive),
        ("cascade_rcnn", "tiny", 86.53),
    ],
)
def test_published_sizes(name, size, millions):
    """Published: 49, 71, 110 and 87 million. They fit a backbone whose last stage has tables of neighbours, too."""
    with no_init_parameters():
        backbone = f"focal_{size}_patch4_window7_224"
        on = create_model(backbone, features_only=True, img_size=224, pretrain_size=448)
        model = create_model(name, backbone=on)
    assert round(sum(p.size for p in model.trainable_params()) / 1e6, 2) == millions
