"""RetinaNet and ATSS equal the originals: outputs, targets, losses, gradients, detections, ten steps of training.

Operator by operator. Recipes: tests/reference/README.md.
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from focal_twins.config.schema import OptimizerConfig
from focal_twins.files.weights import official_names
from focal_twins.models import create_model
from focal_twins.models.backbones.backbone import FeatureMap
from focal_twins.models.detectors.anchor_detector import CandidateChoice
from focal_twins.models.detectors.anchors import AnchorShapes, anchors_on
from focal_twins.models.detectors.atss import STDS, ATSSHead, ATSSLoss, ATSSTargets
from focal_twins.models.detectors.boxes import encode
from focal_twins.models.detectors.retinanet import RetinaHead, RetinaNetLoss, RetinaNetTargets
from focal_twins.models.detectors.selection import SelectionRule, select_detections
from focal_twins.models.pyramid import FPN
from focal_twins.training.optimizer import create_optimizer
from tests.kernels.compiler import COMPILED_OR_EXHAUSTIVE
from tests.reference import FOLDER, figures, formula_value, trajectory_backbone

CANVAS = (128, 160)
EXTENTS = ((120, 150), CANVAS)
SIZES = ((16, 20), (8, 10), (4, 5), (2, 3), (1, 2))
STRIDES = (8, 16, 32, 64, 128)
CLASSES = 7
RETINA = AnchorShapes(STRIDES, tuple(4 * 2 ** (i / 3) for i in range(3)), (0.5, 1.0, 2.0))
CENTRAL = AnchorShapes(STRIDES, (8.0,), (1.0,))
# What the formula's values are multiplied by, and increased by, where the name ends with the text.
TIMES = {"retina_reg.weight": 0.1, "atss_reg.weight": 0.3}
PLUS = {"retina_cls.bias": -3, "atss_cls.bias": -3, ".scale": 1}


def filled(cell, gain=lambda name: 1.4):
    """A cell with weights by formula; its official names begin at it."""
    for name, parameter in official_names(cell).items():
        value = np.asarray(formula_value(name, parameter.shape, gain(name)))
        value *= np.float32(next((factor for end, factor in TIMES.items() if name.endswith(end)), 1))
        value += np.float32(next((summand for end, summand in PLUS.items() if name.endswith(end)), 0))
        parameter.set_data(Tensor(value))
    return cell


def maps(seed, batch, channels, sizes):
    """Token maps [B, h * w, C] of all levels."""
    generator = np.random.default_rng(seed)
    drawn = [
        generator.standard_normal((batch, c, *size)).astype(np.float32) for c, size in zip(channels, sizes, strict=True)
    ]
    return [Tensor(np.ascontiguousarray(m.reshape(*m.shape[:2], -1).transpose(0, 2, 1))) for m in drawn]


def stored(arrays, kind, width):
    """The originals' outputs of the first image, of all levels, [1, A, width]: A numbers level, place and anchor."""
    levels = [arrays[f"{kind}_{level}"][0] for level in range(5)]
    return np.concatenate([level.transpose(1, 2, 0).reshape(-1, width) for level in levels])[None]


def targets_of(maker, arrays):
    """The targets of both images, in a batch."""
    images = [
        maker(CANVAS, extent, arrays[f"gt_boxes_{i}"], arrays[f"gt_labels_{i}"].astype(np.int32), None)
        for i, extent in enumerate(EXTENTS)
    ]
    return tuple(map(np.stack, zip(*images, strict=True)))


class Head(nn.Cell):
    def __init__(self, bbox_head):
        super().__init__()
        self.bbox_head = bbox_head


def close(found, expected, bound):
    return np.abs(found - expected).max() <= bound * np.abs(expected).max()


def norm(gradient):
    return np.linalg.norm(gradient.asnumpy().astype(np.float64))


HEADS = {
    "retinanet": (
        lambda: RetinaHead(32, 32, 4, CLASSES, 9, SIZES), RetinaNetTargets(RETINA, CLASSES),
        lambda: RetinaNetLoss(CLASSES), 21, {"cls": CLASSES, "reg": 4}, ("loss_cls", "loss_bbox"),
    ),
    "atss": (
        lambda: ATSSHead(32, 64, 4, CLASSES, SIZES), ATSSTargets(CENTRAL, CLASSES),
        lambda: ATSSLoss(CLASSES, anchors_on(CANVAS, CENTRAL)), 31, {"cls": CLASSES, "reg": 4, "ctr": 1},
        ("loss_cls", "loss_bbox", "loss_centerness"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_heads_and_losses_equal_the_originals(name):
    build, maker, make_loss, seed, kinds, parts = HEADS[name]
    network, loss = filled(Head(build())).set_train(), make_loss()
    expected, arrays = figures(f"dense/{name}"), np.load(FOLDER / f"dense/{name}.npz")
    targets = tuple(map(Tensor, targets_of(maker, arrays)))

    def losses_of(*levels):
        outputs = network.bbox_head(ops.concat(levels, 1))
        sums, weights = loss(outputs, targets)
        return (sums / weights).sum(), sums / weights, weights, outputs

    levels, parameters = maps(seed, 2, [32] * 5, SIZES), network.trainable_params()
    gradient = ms.value_and_grad(losses_of, tuple(range(5)), parameters, has_aux=True)
    (_, losses, weights, outputs), (to_maps, to_parameters) = gradient(*levels)
    for output, (kind, width) in zip(outputs, kinds.items(), strict=True):
        assert close(output.asnumpy()[:1].reshape(1, -1, width), stored(arrays, kind, width), 1e-4), kind
    assert weights.asnumpy()[0] == expected["num_total_pos"]
    sums = [sum(expected["losses"][part]) for part in parts]
    np.testing.assert_allclose(losses.asnumpy(), sums, rtol=1e-5)
    names = {id(parameter): key for key, parameter in official_names(network).items()}
    norms = {names[id(p)]: norm(value) for p, value in zip(parameters, to_parameters, strict=True)}
    assert norms.keys() == expected["grad_norms"].keys()
    np.testing.assert_allclose(list(norms.values()), [expected["grad_norms"][key] for key in norms], rtol=1e-3)
    np.testing.assert_allclose([norm(value) for value in to_maps], expected["input_grad_norms"], rtol=1e-3)


def test_targets_of_retinanet_equal_the_originals():
    arrays = np.load(FOLDER / "dense/retinanet.npz")
    np.testing.assert_array_equal(anchors_on(CANVAS, RETINA).boxes, arrays["anchors"])
    labels, deltas = targets_of(RetinaNetTargets(RETINA, CLASSES), arrays)
    np.testing.assert_array_equal(labels, np.where(arrays["label_weights"] == 0, -1, arrays["labels"]))
    assert close(deltas, arrays["box_targets"], 1e-6)


def test_targets_of_atss_equal_the_originals():
    arrays = np.load(FOLDER / "dense/atss.npz")
    anchors = anchors_on(CANVAS, CENTRAL).boxes
    np.testing.assert_array_equal(anchors, arrays["anchors"])
    labels, boxes, central = targets_of(ATSSTargets(CENTRAL, CLASSES), arrays)
    np.testing.assert_array_equal(labels, np.where(arrays["label_weights"] == 0, -1, arrays["labels"]))
    positive = labels < CLASSES
    deltas = encode(np.broadcast_to(anchors, boxes.shape)[positive], boxes[positive], STDS)
    assert close(deltas, arrays["box_targets"][positive], 1e-6)
    assert close(central[positive], arrays["centerness_targets"], 1e-6)
    assert not central[~positive].any()
    assert not arrays["box_targets"][~positive].any()


@pytest.mark.parametrize(
    ("name", "shapes", "stds", "per_level", "nms_iou"),
    [("retinanet", RETINA, (1.0,) * 4, 200, 0.5), ("atss", CENTRAL, STDS, 100, 0.6)],
)
def test_detections_equal_the_originals(name, shapes, stds, per_level, nms_iou):
    arrays = np.load(FOLDER / f"dense/{name}.npz")
    outputs = [Tensor(stored(arrays, kind, width)) for kind, width in HEADS[name][4].items()]
    factor = outputs[2].reshape((1, -1)) if name == "atss" else None
    choose = CandidateChoice(anchors_on(CANVAS, shapes), stds, per_level)
    candidates = choose(outputs[0], outputs[1], factor, Tensor([EXTENTS[0]], ms.int32)).asnumpy()[0]
    rule = SelectionRule(CLASSES, False, name == "atss", 0.05, nms_iou, 100)
    found, expected = select_detections(candidates, rule, EXTENTS[0]), arrays["raw_boxes_0"]
    np.testing.assert_array_equal(found.labels, arrays["raw_labels_0"])
    np.testing.assert_allclose(found.boxes, expected[:, :4], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found.scores, expected[:, 4], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "channels", "sizes", "start_level", "further", "seed"),
    [
        ("retinanet", (8, 16, 24, 32), ((26, 38), (13, 19), (7, 10), (4, 5)), 1, "on_input", 22),
        ("atss", (16, 24, 32), ((13, 19), (7, 10), (4, 5)), 0, "on_output", 32),
    ],
)
def test_pyramids_with_further_levels_equal_the_originals(name, channels, sizes, start_level, further, seed):
    network, arrays = nn.Cell(), np.load(FOLDER / f"dense/{name}.npz")
    given = [FeatureMap(c, 4 * 2**i, size) for i, (c, size) in enumerate(zip(channels, sizes, strict=True))]
    network.neck = FPN(given, 16, start_level, 5, further)
    outputs = filled(network).neck(tuple(maps(seed, 1, channels, sizes)))
    for level, (output, described) in enumerate(zip(outputs, network.neck.feature_maps, strict=True)):
        expected = arrays[f"neck_{level}"]
        assert described.size == expected.shape[2:]
        assert close(output.asnumpy().transpose(0, 2, 1).reshape(expected.shape), expected, 1e-4), level


@pytest.mark.parametrize("kernels", COMPILED_OR_EXHAUSTIVE)
def test_ten_steps_of_retinanet_equal_the_original(kernels):
    """Bounds of losses and outputs are what a relative noise of 2e-7 in the weights does to the original."""
    backbone = trajectory_backbone(CANVAS, kernels)
    model = create_model("retinanet", backbone=backbone, num_classes=CLASSES, neck_channels=32, channels=32)
    filled(model, lambda name: {"backbone": 0.5, "neck": 1.0, "bbox_head": 1.4}[name.split(".")[0]])
    options = OptimizerConfig(weight_decay=0.05, no_weight_decay=["norm", "relative_position_bias_table"])
    optimizer = create_optimizer(model, options)
    expected, arrays = figures("dense/retinanet_trajectory"), np.load(FOLDER / "dense/retinanet_trajectory.npz")
    targets = tuple(map(Tensor, targets_of(model.target_maker(), np.load(FOLDER / "dense/retinanet.npz"))))
    loss, extents = model.loss(), Tensor(EXTENTS, ms.int32)

    def losses_of(x):
        sums, weights = loss(model(x, extents, targets), targets)
        return (sums / weights).sum(), sums / weights

    gradient = ms.value_and_grad(losses_of, None, model.trainable_params(), has_aux=True)
    model.set_train()
    for t in range(10):
        x = np.random.default_rng(2000 + t).standard_normal((2, 3, *CANVAS)).astype(np.float32)
        (_, losses), gradients = gradient(Tensor(x))
        sums = [sum(expected["losses"][t][part]) for part in ("loss_cls", "loss_bbox")]
        np.testing.assert_allclose(losses.asnumpy(), sums, rtol=2e-4)
        total = np.sqrt(sum(norm(g) ** 2 for g in gradients))
        assert abs(total / expected["grad_norms"][t] - 1) < 1e-3
        rate = 1e-3 * min(t / 3, 1) * (1 - t / 20)
        optimizer(gradients, Tensor(rate, ms.float32), Tensor(1.0, ms.float32))
    x = np.random.default_rng(0).standard_normal((1, 3, *CANVAS)).astype(np.float32)
    outputs = [output.asnumpy() for output in model.set_train(False).outputs(Tensor(x))]
    levels = model.anchors.levels[1:]
    for output, kind in zip(outputs, ("cls", "reg"), strict=True):
        for level, places in enumerate(levels, start=1):
            figure = arrays[f"final_{kind}_{level}"]
            found = output[0, places].reshape(*figure.shape[2:], -1).transpose(2, 0, 1)
            assert np.abs(found - figure[0]).max() < 0.01, (kind, level)
