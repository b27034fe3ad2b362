"""Sparse R-CNN equals the original: proposals, outputs of the stages, matching, losses, gradients and detections.

Operator by operator. Recipes: tests/reference/README.md.
"""

from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from focal_twins.files.weights import official_names
from focal_twins.models.detectors.padded_objects import padded_objects
from focal_twins.models.detectors.selection import SelectionRule, select_detections
from focal_twins.models.detectors.set_losses import SetLosses, relative_sides
from focal_twins.models.detectors.sparse_rcnn import DynamicHead, LearnedProposals, SparseRCNN, SparseRoIHead
from tests.reference import FOLDER, figures, formula_value

EXTENTS = ((120, 150), (128, 160))
CLASSES, STAGES, PROPOSALS = 7, 3, 20
SIZES, STRIDES = ((32, 40), (16, 20), (8, 10), (4, 5)), (4, 8, 16, 32)


class Heads(nn.Cell):
    """What stands on the pyramid, with weights by formula, and proposals at the fixture's boxes."""

    def __init__(self, boxes):
        super().__init__()
        self.rpn_head = LearnedProposals(PROPOSALS, 32)
        self.roi_head = SparseRoIHead(SIZES, STRIDES, [DynamicHead(32, CLASSES, 4, 64, 8) for _ in range(STAGES)])
        for name, parameter in official_names(self).items():
            value = formula_value(name, parameter.shape, 1.0 if name.startswith("rpn_head.") else 1.4)
            if value.ndim == 1 and "_fcs." in name and name.endswith(".weight"):
                value += 1  # a norm, which the formula does not see by its name
            value *= np.float32(0.1 if name.endswith("fc_reg.weight") else 1)
            value -= np.float32(2 if name.endswith("fc_cls.bias") else 0)
            parameter.set_data(Tensor(value))
        height, width = EXTENTS[0]
        boxes = boxes / np.array([width, height, width, height], np.float32)
        relative = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
        self.rpn_head.init_proposal_bboxes.weight.set_data(Tensor(relative))

    def construct(self, sides, *maps):
        return self.roi_head(ops.concat(maps, 1), *self.rpn_head(sides))


@pytest.fixture(scope="module")
def arrays():
    return np.load(FOLDER / "dense/sparse_rcnn.npz")


@pytest.fixture(scope="module")
def run(arrays):
    """The outputs, the matching of all stages, the parts of the loss, and gradients."""
    network, loss = Heads(arrays["init_boxes"][0]), SetLosses(CLASSES)
    generator = np.random.default_rng(61)
    maps = [generator.standard_normal((2, 32, h * w)).astype(np.float32).transpose(0, 2, 1) for h, w in SIZES]
    objects = [padded_objects(arrays[f"gt_boxes_{i}"], arrays[f"gt_labels_{i}"], 6, generator) for i in range(2)]
    targets = tuple(Tensor(np.stack(of_images)) for of_images in zip(*objects, strict=True))
    sides, parameters = relative_sides(Tensor(np.array(EXTENTS, np.int32))), network.trainable_params()

    def loss_of(*maps):
        logits, boxes = network(sides, *maps)
        sums, weights = loss((logits, boxes, sides), targets)
        return (sums / weights).sum(), logits, boxes, sums, weights

    gradient = ms.value_and_grad(loss_of, (0, 1, 2, 3), parameters, has_aux=True)
    (_, logits, boxes, sums, weights), (to_maps, to_parameters) = gradient(*map(Tensor, maps))
    matches = []
    for stage in range(STAGES):
        costs = loss.costs(logits[:, stage], boxes[:, stage], sides, *targets)
        matches.append(loss.match(costs, targets[1] >= 0).asnumpy())
    named = {id(p): name for name, p in official_names(network).items()}
    return SimpleNamespace(
        proposals=[x.asnumpy() for x in network.rpn_head(sides)],
        logits=logits.asnumpy(),
        boxes=boxes.asnumpy(),
        matches=matches,
        parts=(sums / weights).asnumpy(),
        weights=weights.asnumpy(),
        norms={named[id(p)]: norm(g) for p, g in zip(parameters, to_parameters, strict=True)},
        input_norms=[norm(g) for g in to_maps],
    )


def norm(gradient):
    return np.linalg.norm(gradient.asnumpy().astype(np.float64))


def assert_close(found, expected, bound):
    assert np.abs(found - expected.reshape(found.shape)).max() <= bound * np.abs(expected).max()


def test_proposals(arrays, run):
    np.testing.assert_allclose(run.proposals[0], arrays["init_boxes"], rtol=1e-5)
    np.testing.assert_array_equal(run.proposals[1], np.stack([arrays["init_features"]] * 2))


@pytest.mark.parametrize("stage", range(STAGES))
def test_outputs_and_matching_of_a_stage(arrays, run, stage):
    assert_close(run.logits[:, stage], arrays[f"s{stage}_cls"], 1e-4)
    assert_close(run.boxes[:, stage], arrays[f"s{stage}_boxes"], 1e-4)
    np.testing.assert_array_equal(run.matches[stage] + 1, arrays[f"s{stage}_assigned"])


def test_losses(run):
    """A part is the sum of all stages; every object counts once in its divisor."""
    losses = figures("dense/sparse_rcnn")["losses"]
    expected = [sum(losses[f"stage{s}_loss_{part}"] for s in range(STAGES)) for part in ("cls", "bbox", "iou")]
    np.testing.assert_allclose(run.parts, expected, rtol=1e-5)
    assert (run.weights == 5).all()


def test_gradients(run):
    expected = figures("dense/sparse_rcnn")
    assert run.norms.keys() == expected["grad_norms"].keys()
    np.testing.assert_allclose(list(run.norms.values()), [expected["grad_norms"][key] for key in run.norms], rtol=1e-3)
    np.testing.assert_allclose(run.input_norms, expected["input_grad_norms"], rtol=1e-3)


def test_detections(arrays, run):
    """They are not suppressed, nor cut off at the image's edges."""
    rule = SelectionRule(
        CLASSES,
        class_boxes=False,
        has_factor=False,
        score_threshold=SparseRCNN.score_threshold,
        nms_iou=SparseRCNN.nms_iou,
        max_detections=20,
        clips_boxes=SparseRCNN.clips_boxes,
    )
    scores = 1 / (1 + np.exp(-run.logits[:, -1]))
    candidates = np.concatenate([run.boxes[:, -1], scores], 2)
    for i, extent in enumerate(EXTENTS):
        found, expected = select_detections(candidates[i], rule, extent), arrays[f"det_boxes_{i}"]
        order = np.argsort(-expected[:, 4], kind="stable")  # the original does not order them
        np.testing.assert_array_equal(found.labels, arrays[f"det_labels_{i}"][order])
        np.testing.assert_allclose(found.scores, expected[order, 4], rtol=1e-4)
        np.testing.assert_allclose(found.boxes / ([1.25, 1.2] * 2), expected[order, :4], atol=1e-2)
