"""Sparse R-CNN equals the original: outputs of its stages, matching, losses, gradients and detections."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.files.weights import official_names
from src.models.detectors.padded_objects import padded_objects
from src.models.detectors.selection import SelectionRule, select_detections
from src.models.detectors.set_losses import SetLosses, relative_sides
from src.models.detectors.sparse_rcnn import DynamicHead, LearnedProposals, SparseRoIHead
from tests.reference import FOLDER, figures, formula_value

STRIDES = (4, 8, 16, 32)
SIZES = ((32, 40), (16, 20), (8, 10), (4, 5))
EXTENTS = Tensor(np.array([[120, 150], [128, 160]], np.int32))
CLASSES, PROPOSALS = 7, 20


@pytest.fixture(scope="module")
def stored():
    return np.load(FOLDER / "dense/sparse_rcnn.npz")


class Heads(nn.Cell):
    def __init__(self, arrays):
        super().__init__()
        self.rpn_head = LearnedProposals(PROPOSALS, 32)
        self.roi_head = SparseRoIHead(SIZES, STRIDES, [DynamicHead(32, CLASSES, 4, 64, 8) for _ in range(3)])
        for name, parameter in official_names(self).items():
            value = formula_value(name, parameter.shape, 1.0 if name.startswith("rpn_head") else 1.4)
            if any(part in name for part in ("_fcs.1.weight", "_fcs.4.weight", "_fcs.7.weight")):
                value = value + 1
            if name.endswith("fc_reg.weight"):
                value = value * np.float32(0.1)
            if name.endswith("fc_cls.bias"):
                value = value - 2
            parameter.set_data(Tensor(value.astype(np.float32)))
        boxes = arrays["init_boxes"][0] / np.array([150, 120, 150, 120], np.float32)
        boxes = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
        self.rpn_head.init_proposal_bboxes.weight.set_data(Tensor(boxes))

    def construct(self, *maps):
        sides = relative_sides(EXTENTS)
        return (*self.roi_head(ops.concat(maps, 1), *self.rpn_head(sides)), sides)


def test_all(stored):
    network = Heads(stored)
    generator = np.random.default_rng(61)
    maps = [Tensor(generator.standard_normal((2, 32, h * w)).astype(np.float32).transpose(0, 2, 1)) for h, w in SIZES]
    boxes, features = network.rpn_head(relative_sides(EXTENTS))
    np.testing.assert_allclose(boxes.asnumpy(), stored["init_boxes"], rtol=1e-5)
    np.testing.assert_allclose(features.asnumpy()[0], stored["init_features"], rtol=1e-6)
    logits, boxes, sides = network(*maps)
    for s in range(3):
        for name, found, expected in (("cls", logits[:, s], stored[f"s{s}_cls"]), ("boxes", boxes[:, s], stored[f"s{s}_boxes"].reshape(2, 20, 4))):
            assert np.abs(found.asnumpy() - expected).max() < 1e-4 * np.abs(expected).max(), (name, s)
    objects = [padded_objects(stored[f"gt_boxes_{i}"], stored[f"gt_labels_{i}"], 10, np.random.default_rng(0)) for i in range(2)]
    targets = tuple(Tensor(np.stack(v)) for v in zip(*objects, strict=True))
    loss = SetLosses(CLASSES)
    for s in range(3):
        costs = loss.costs(logits[:, s], boxes[:, s], sides, *targets)
        np.testing.assert_array_equal(loss.match(costs, targets[1] >= 0).asnumpy() + 1, stored[f"s{s}_assigned"])
    expected = figures("dense/sparse_rcnn")
    def losses_of(*maps):
        sums, weights = loss(network(*maps), targets)
        return (sums / weights).sum(), sums / weights
    parameters = network.trainable_params()
    (_, parts), (to_maps, gradients) = ms.value_and_grad(losses_of, (0, 1, 2, 3), parameters, has_aux=True)(*maps)
    for part, kind in zip(parts.asnumpy(), ("cls", "bbox", "iou"), strict=True):
        assert abs(part / sum(expected["losses"][f"stage{s}_loss_{kind}"] for s in range(3)) - 1) < 1e-5, kind
    names = {id(p): n for n, p in official_names(network).items()}
    norms = {names[id(p)]: np.linalg.norm(g.asnumpy().astype(np.float64)) for p, g in zip(parameters, gradients, strict=True)}
    assert norms.keys() == expected["grad_norms"].keys()
    np.testing.assert_allclose(list(norms.values()), [expected["grad_norms"][k] for k in norms], rtol=1e-3)
    np.testing.assert_allclose([np.linalg.norm(g.asnumpy()) for g in to_maps], expected["input_grad_norms"], rtol=1e-3, atol=1e-6)
    cands = ops.concat((boxes[:, -1], ops.sigmoid(logits[:, -1])), 2).asnumpy()
    for i, scale in enumerate(([1.25, 1.2] * 2,) * 2):
        found = select_detections(cands[i], SelectionRule(CLASSES, False, False, 0.0, None, 20), (1e9, 1e9))
        det = stored[f"det_boxes_{i}"]
        order = np.argsort(-det[:, 4], kind="stable")
        np.testing.assert_allclose(found.scores, det[order, 4], rtol=1e-4)
        np.testing.assert_allclose(found.boxes / scale, det[order, :4], rtol=1e-4, atol=1e-3)
        np.testing.assert_array_equal(found.labels, stored[f"det_labels_{i}"][order])
