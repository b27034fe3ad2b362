"""RepPoints v2 equals the original: neck, outputs, targets, matching, losses, gradients and detections.

Operator by operator. Recipes: tests/reference/README.md.
"""

import zlib
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from focal_twins.files.weights import official_names
from focal_twins.models.backbones.backbone import FeatureMap
from focal_twins.models.bifpn import BiFPN
from focal_twins.models.detectors import reppoints_v2
from focal_twins.models.detectors.point_losses import FACTORS, RepPointsLosses, box_of_points
from focal_twins.models.detectors.point_targets import PointTargets
from focal_twins.models.detectors.reppoints_v2 import PointCandidates, RepPointsV2Head
from focal_twins.models.detectors.selection import SelectionRule, select_detections
from focal_twins.models.level_layers import level_spans
from tests.reference import FOLDER, figures, formula_value

FRAME, CLASSES = (384, 384), 7
STRIDES = (8, 16, 32, 64, 128)
SIZES = ((48, 48), (24, 24), (12, 12), (6, 6), (3, 3))
ADDED = {
    "reppoints_cls_out.bias": -3,
    "reppoints_hem_tl_score_out.bias": -2,
    "reppoints_hem_br_score_out.bias": -2,
    "reppoints_sem_out.bias": -3,
    "gn1.weight": 1,  # which the formula does not see is a norm's
}


class Part(nn.Cell):
    """A part under its name in the original, with weights by formula."""

    def __init__(self, name, part):
        super().__init__()
        setattr(self, name, part)
        for key, parameter in official_names(self).items():
            value = formula_value(key, parameter.shape, 1.4)
            if key.endswith(".weights"):  # of a fusion
                noise = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(parameter.shape)
                value = 1 + (0.1 * noise).astype(np.float32)
            value = value + np.float32(sum(number for end, number in ADDED.items() if key.endswith(end)))
            if key.endswith("reppoints_pts_init_out.bias"):
                value[:4] += np.array([-2, -2, 2, 2], np.float32)
            parameter.set_data(Tensor(value))


def drawn_maps(seed, batch, channels, sizes):
    """Tokens [B, h * w, C] of each level."""
    generator = np.random.default_rng(seed)
    maps = [
        generator.standard_normal((batch, c, h * w)).astype(np.float32)
        for c, (h, w) in zip(channels, sizes, strict=True)
    ]
    return tuple(Tensor(np.ascontiguousarray(m.transpose(0, 2, 1))) for m in maps)


def as_tokens(arrays, name):
    """A stored output [B, C, h, w] of all levels as tokens [B, L, C]."""
    levels = [arrays[f"{name}_{level}"] for level in range(len(SIZES))]
    return np.concatenate([x.reshape(*x.shape[:2], -1).transpose(0, 2, 1) for x in levels], 1)


def assert_close(found, expected, bound):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= bound * np.abs(expected).max()


@pytest.fixture(scope="module")
def arrays():
    return np.load(FOLDER / "dense/reppointsv2.npz")


@pytest.fixture(scope="module")
def run(arrays):
    """The head's outputs, the targets of both images, the parts of the loss, and gradients."""
    part = Part("bbox_head", RepPointsV2Head(SIZES, 32, 32, CLASSES))
    make = PointTargets(CLASSES, STRIDES, max_boxes=8)
    targets = [
        # The original's fixture has padded all images to the frame.
        make(FRAME, FRAME, arrays[f"gt_boxes_{i}"], arrays[f"gt_labels_{i}"].astype(np.int32), np.random.default_rng(0))
        for i in range(2)
    ]
    targets = tuple(Tensor(np.stack(of_images)) for of_images in zip(*targets, strict=True))
    loss = RepPointsLosses(SIZES, STRIDES, CLASSES)
    x, parameters = ops.concat(drawn_maps(73, 2, (32,) * 5, SIZES), 1), part.trainable_params()

    def loss_of(x):
        outputs = part.bbox_head(x)
        sums, weights = loss(outputs, targets)
        return (sums / weights).sum(), outputs, sums, weights

    gradient = ms.value_and_grad(loss_of, 0, parameters, has_aux=True)
    (_, outputs, sums, weights), (to_x, to_parameters) = gradient(x)
    named = {id(p): name for name, p in official_names(part).items()}
    norms = {named[id(p)]: norm(g) for p, g in zip(parameters, to_parameters, strict=True)}
    return SimpleNamespace(
        outputs=outputs,
        targets=dict(zip(make.names, (t.asnumpy() for t in targets), strict=True)),
        tensors=targets,
        loss=loss,
        parts=dict(zip(FACTORS, (sums / weights).asnumpy(), strict=True)),
        weights=dict(zip(FACTORS, weights.asnumpy(), strict=True)),
        norms=norms,
        input_norms=[norm(to_x[:, first:end]) for first, end in level_spans(SIZES)],
    )


def norm(gradient):
    return np.linalg.norm(gradient.asnumpy().astype(np.float64))


def test_the_neck(arrays):
    sizes, channels = ((26, 38), (13, 19), (7, 10)), (16, 24, 48)
    maps = [FeatureMap(c, 8 * 2**i, size) for i, (c, size) in enumerate(zip(channels, sizes, strict=True))]
    neck = Part("neck", BiFPN(maps, 32)).neck
    for level, out in enumerate(neck(drawn_maps(72, 1, channels, sizes))):
        expected = arrays[f"neck_{level}"]
        assert neck.feature_maps[level].size == expected.shape[2:]
        assert_close(out.asnumpy(), expected.reshape(1, 32, -1).transpose(0, 2, 1), 1e-4)


def test_outputs(arrays, run):
    names = ("cls", "pts_init", "pts_refine", "hm_score", "hm_offset", "sem")
    for name, out in zip(names, run.outputs, strict=True):
        assert_close(out.asnumpy()[:1], as_tokens(arrays, name), 1e-4)


def test_targets(arrays, run):
    starts = run.targets["starts"]
    np.testing.assert_array_equal(labels_of(run, starts), arrays["init_labels"])
    rows = np.maximum(starts, 0)[..., None]
    boxes = np.where(starts[..., None] >= 0, np.take_along_axis(run.targets["boxes"], rows, 1), 0)
    np.testing.assert_array_equal(boxes, arrays["init_box_targets"])
    for i, corner in enumerate(("tl", "br")):
        np.testing.assert_allclose(run.targets["heat"][..., i], arrays[f"target_hm_{corner}"], atol=1e-6)
        offsets = run.targets["corner_offsets"][..., 2 * i : 2 * i + 2]
        np.testing.assert_allclose(offsets, arrays[f"target_offset_{corner}"], atol=1e-6)
        np.testing.assert_array_equal(
            run.targets["heat"][..., i] == 1, arrays[f"target_offset_{corner}_weight"][..., 0] == 1
        )
    covered = (
        np.unpackbits(arrays["sem_map_packed"])[: 2 * CLASSES * 48 * 48].reshape(2, CLASSES, -1).transpose(0, 2, 1)
    )
    np.testing.assert_array_equal(run.targets["semantics"] > 0, covered > 0)
    assert (run.targets["few_places"] == -1).all()


def test_the_weights_of_covered_cells(arrays, run):
    weights = run.loss.cell_weights(run.tensors[0], run.tensors[5].astype(ms.int32)).asnumpy()
    classes = [(i, label) for i in range(2) for label in arrays[f"gt_labels_{i}"]]
    for (image, label), expected in zip(classes, arrays["sem_weights_of_gt_classes"], strict=True):
        np.testing.assert_allclose(weights[image, : 48 * 48, label], expected.reshape(-1), rtol=1e-6)


def labels_of(run, matches):
    labels = np.take_along_axis(run.targets["labels"], np.maximum(matches, 0), 1)
    return np.where(matches >= 0, labels, CLASSES)


def test_matching_of_the_first_boxes(arrays, run):
    loss = run.loss
    boxes = box_of_points(run.outputs[1]) * loss.strides + loss.places
    is_valid, objects, labels, few = (
        ops.ones(boxes.shape[:2], ms.float32),
        run.tensors[0],
        run.tensors[1],
        run.tensors[6],
    )
    matches = loss.match(boxes, is_valid, objects, labels >= 0, few).asnumpy()
    np.testing.assert_array_equal(labels_of(run, matches), arrays["refine_labels"])
    boxes = np.take_along_axis(run.targets["boxes"], np.maximum(matches, 0)[..., None], 1)
    np.testing.assert_array_equal(np.where(matches[..., None] >= 0, boxes, 0), arrays["refine_box_targets"])


def test_losses_and_divisors(run):
    expected = figures("dense/reppointsv2")
    parts, losses = run.parts, {name: np.sum(levels) for name, levels in expected["losses"].items()}
    found = {
        "loss_cls": parts["classification"],
        "loss_pts_init": parts["first_boxes"],
        "loss_pts_refine": parts["refined_boxes"],
        "loss_heatmap": parts["top_left_corners"] + parts["bottom_right_corners"],
        "loss_offset": parts["top_left_offsets"] + parts["bottom_right_offsets"],
        "loss_sem": parts["semantic_objects"] + parts["semantic_background"],
    }
    assert found.keys() == losses.keys()
    np.testing.assert_allclose([found[name] for name in losses], list(losses.values()), rtol=1e-5)
    counts = {
        "classification": "refine",
        "first_boxes": "init",
        "refined_boxes": "refine",
        "top_left_corners": "tl",
        "bottom_right_offsets": "br",
    }
    assert {name: run.weights[name] for name in counts} == {
        name: expected["counts"][key] for name, key in counts.items()
    }


def test_gradients(run):
    expected = figures("dense/reppointsv2")
    assert run.norms.keys() == expected["grad_norms"].keys()
    np.testing.assert_allclose(list(run.norms.values()), [expected["grad_norms"][key] for key in run.norms], rtol=1e-3)
    np.testing.assert_allclose(run.input_norms, expected["input_grad_norms"], rtol=1e-3)


def test_detections(arrays, run, monkeypatch):
    # As above: in the fixture all places of the frame belong to both images.
    monkeypatch.setattr(reppoints_v2, "stands_on_image", lambda places, _: ops.ones((2, places.shape[1]), ms.float32))
    extents = [(360, 350), FRAME]
    candidates = PointCandidates(SIZES, STRIDES, 1000)(run.outputs, Tensor(np.array(extents, np.int32))).asnumpy()
    rule = SelectionRule(CLASSES, False, False, 0.05, nms_iou=0.6, max_detections=100)
    for i, extent in enumerate(extents):
        found, expected = select_detections(candidates[i], rule, extent), arrays[f"det_boxes_{i}"]
        np.testing.assert_array_equal(found.labels, arrays[f"det_labels_{i}"])
        np.testing.assert_allclose(found.scores, expected[:, 4], rtol=1e-4)
        scale = np.array([1.25, 1.2, 1.25, 1.2], np.float32)
        np.testing.assert_allclose(found.boxes / scale, expected[:, :4], atol=1e-2)
