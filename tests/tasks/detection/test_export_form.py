"""Detections selected in a graph against those selected on the host, and how rows of exported files are compared."""

import numpy as np
import pytest
from mindspore import Tensor, nn

from focal_twins.models.detectors.selection import SelectionRule, non_maximum_suppression, select_detections
from focal_twins.models.detectors.suppression import ComposedSuppression, RankedSuppression
from focal_twins.tasks.detection.export_difference import difference_of_rows
from focal_twins.tasks.detection.export_form import CANDIDATES, DETECTIONS, ExportForm, SelectedDetections

EXTENT = (1000, 1000)


def clustered(generator, shape):
    """Boxes [*shape, 4] in clusters of about five, so that many overlap."""
    count = int(np.prod(shape))
    centres = generator.uniform(60, 900, (count // 5 + 1, 2)).repeat(5, axis=0)[:count]
    sides = generator.uniform(30, 60, (count // 5 + 1, 2)).repeat(5, axis=0)[:count]
    corners = centres + generator.normal(0, 6, (count, 2))
    sides = sides * generator.uniform(0.8, 1.25, (count, 2))
    return np.concatenate([corners, corners + sides], axis=1).reshape(*shape, 4).astype(np.float32)


def candidates_of(rule, batch, count, seed=0):
    generator = np.random.default_rng(seed)
    boxes = clustered(generator, (batch, count, rule.num_classes if rule.class_boxes else 1))
    scores = generator.uniform(0, 1, (batch, count, rule.num_classes)) ** 3
    factors = [generator.uniform(0, 1, (batch, count, 1))] if rule.has_factor else []
    return np.concatenate([boxes.reshape(batch, count, -1), scores, *factors], axis=2).astype(np.float32)


RULES = {
    "one box": SelectionRule(7, False, False, 0.05, 0.5, 30),
    "a factor": SelectionRule(7, False, True, 0.05, 0.6, 30),
    "a box for each class": SelectionRule(5, True, False, 0.05, 0.5, 30),
    "no suppression": SelectionRule(3, False, False, 0.0, None, 30),
    "fewer pairs than detections": SelectionRule(2, False, False, 0.3, 0.5, 100),
    "more than 1,000 detections": SelectionRule(20, False, False, 0.0, None, 1050),
}


@pytest.mark.parametrize("case", RULES)
def test_a_graph_selects_what_the_host_selects(case):
    rule = RULES[case]
    candidates = candidates_of(rule, 2, 40 if case.startswith("fewer") else 60)
    boxes, scores, labels = (output.asnumpy() for output in SelectedDetections(rule)(Tensor(candidates)))
    assert boxes.shape == (2, rule.max_detections, 4) and scores.shape == labels.shape == (2, rule.max_detections, 1)
    for number in range(2):
        expected = select_detections(candidates[number], rule, EXTENT)
        count = len(expected.scores)
        assert 5 < count <= rule.max_detections
        np.testing.assert_array_equal(scores[number, :count, 0], expected.scores)
        np.testing.assert_array_equal(boxes[number, :count], expected.boxes)
        np.testing.assert_array_equal(labels[number, :count, 0], expected.labels)
        assert not scores[number, count:].any()


@pytest.mark.parametrize("iou", [0.3, 0.7])
def test_both_kinds_of_suppression_are_the_greedy_one(iou):
    boxes = clustered(np.random.default_rng(1), (2, 120))
    found = [kind(iou)(Tensor(boxes)).asnumpy() for kind in (RankedSuppression, ComposedSuppression)]
    for number in range(2):
        kept = non_maximum_suppression(boxes[number], np.arange(120, 0, -1), np.zeros(120, int), iou)
        for mask in found:
            np.testing.assert_array_equal(np.flatnonzero(mask[number]), np.sort(kept))
        assert 20 < len(kept) < 110


class Masked(nn.Cell):
    """A detector that has masks: of each box, its label everywhere."""

    has_masks = True

    def construct(self, images):
        return images[:, 0], images[:, 0, :, :1]

    def mask_cell(self):
        return Labels()


class Labels(nn.Cell):
    def construct(self, pyramid, boxes, labels):
        return (labels + 1).reshape((*labels.shape, 1, 1)) * Tensor(np.ones((1, 1, 2, 2), np.float32))


def test_masks_are_drawn_for_the_detections():
    rule = RULES["fewer pairs than detections"]
    candidates = Tensor(candidates_of(rule, 1, 40)[:, None])
    rows, masks = (output.asnumpy() for output in ExportForm(Masked(), DETECTIONS, rule)(candidates))
    there = rows[0, :, 4] > 0
    assert rows.shape == (1, 100, 6) and 5 < there.sum() < 80 and not rows[0, ~there].any()
    np.testing.assert_array_equal(masks[0, :, 0, 1], np.where(there, rows[0, :, 5] + 1, 0))
    alone = ExportForm(Masked(), CANDIDATES, rule)(candidates).asnumpy()
    np.testing.assert_array_equal(alone, candidates.asnumpy()[:, 0])


def test_rows_are_equal_in_any_order_within_tolerances():
    rule = RULES["fewer pairs than detections"]
    generator = np.random.default_rng(0)
    rows = np.concatenate([clustered(generator, (1, 50)), generator.random((1, 50, 2))], axis=2)
    rows[0, 40:, 4:] = 0  # those stand for nothing
    other = rows[:, generator.permutation(50)] + np.array([0.4] * 4 + [5e-4] * 2)
    same = difference_of_rows([((other,), (rows,))], CANDIDATES, rule)
    assert same.is_small and str(same) == "100.00% of 40 candidates are equal"
    other = rows.copy()
    for place, passes in ((3, True), (7, False)):  # one of forty may be another, two may not
        other[0, place, 0] += 0.6
        moved = difference_of_rows([((other,), (rows,))], CANDIDATES, rule)
        assert moved.is_small is passes
    assert moved.value == pytest.approx(38 / 40)


@pytest.mark.parametrize(("total", "others"), [(9, 0), (10, 1), (100, 1), (101, 2), (300, 3)])
def test_of_a_hundred_rows_one_may_be_another(total, others):
    rule = RULES["fewer pairs than detections"]
    rows = np.arange(total * 6, dtype=np.float64).reshape(1, total, 6) + 1
    for moved in (others, others + 1):
        other = rows.copy()
        other[0, :moved, 0] -= 0.6
        assert difference_of_rows([((other,), (rows,))], CANDIDATES, rule).is_small is (moved == others)


def test_detections_have_labels_and_masks_to_compare():
    rows = np.array([[[0, 0, 9, 9, 0.5, 1], [0, 0, 0, 0, 0, 0]]], np.float32)
    masks = np.full((1, 2, 2, 2), 0.5, np.float32)
    rule = RULES["fewer pairs than detections"]

    def is_small(label=0.0, mask=0.0):
        own = rows + np.array([0, 0, 0, 0, 0, label]), masks + mask
        return difference_of_rows([(own, (rows, masks))], DETECTIONS, rule).is_small

    assert is_small() and is_small(mask=0.009)
    assert not is_small(label=1) and not is_small(mask=0.02)
    nothing = difference_of_rows([((rows[:, 1:],), (rows[:, 1:],))], DETECTIONS, rule)
    assert nothing.is_small and str(nothing) == "there are no detections to compare"
