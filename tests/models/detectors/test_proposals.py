"""Proposals of boxes, and the anchors that their network learns from."""

import numpy as np
import pytest
from mindspore import Tensor

from focal_twins.models.detectors.anchors import AnchorShapes, anchors_on
from focal_twins.models.detectors.box_layers import clip_to_extents, decode_deltas
from focal_twins.models.detectors.boxes import iou
from focal_twins.models.detectors.proposals import STDS, AnchorSampler, Proposals
from focal_twins.models.detectors.selection import non_maximum_suppression

SHAPES = AnchorShapes((8, 16), (4.0,), (0.5, 1.0, 2.0))
CANVAS = (64, 96)
ANCHORS = anchors_on(CANVAS, SHAPES)
EXTENTS = ((64, 96), (30, 50))


def scored(seed=0, moves=0.3):
    """Logits [2, A] and deltas [2, A, 4]."""
    generator = np.random.default_rng(seed)
    count = len(ANCHORS.boxes)
    deltas = moves * generator.standard_normal((2, count, 4))
    return generator.standard_normal((2, count)).astype(np.float32), deltas.astype(np.float32)


def expected(logits, deltas, extent, per_level, count):
    """The same level by level, the choice by NumPy."""
    found = []
    valid = ANCHORS.valid(extent)
    for level in ANCHORS.levels:
        numbers = np.arange(level.start, level.stop)[valid[level]]
        best = numbers[np.argsort(-logits[numbers], kind="stable")[:per_level]]
        moved = decode_deltas(Tensor(ANCHORS.boxes[best]), Tensor(deltas[best]), STDS).reshape((1, -1, 4))
        boxes = clip_to_extents(moved, Tensor(np.int32([extent]))).asnumpy()[0]
        kept = non_maximum_suppression(boxes, logits[best], np.zeros(len(best), int), 0.7)
        found += [(logits[best[i]], boxes[i]) for i in kept]
    found.sort(key=lambda pair: -pair[0])
    return np.array([box for _, box in found[:count]])


@pytest.mark.parametrize(("per_level", "count"), [(60, 40), (500, 2000)])
def test_proposals(per_level, count):
    """Also where there are fewer than asked for: the rest is marked. Nothing comes from beyond the image."""
    logits, deltas = scored()
    boxes, is_proposal = Proposals(ANCHORS, per_level, count, 0.7)(*map(Tensor, (logits, deltas, np.int32(EXTENTS))))
    for i, extent in enumerate(EXTENTS):
        wanted = expected(logits[i], deltas[i], extent, per_level, count)
        marks = is_proposal.asnumpy()[i]
        assert marks.tolist() == [1] * len(wanted) + [0] * (len(marks) - len(wanted))
        np.testing.assert_allclose(boxes.asnumpy()[i][: len(wanted)], wanted, atol=1e-3)


def test_boxes_without_an_area_suppress_nothing():
    """Boxes that leave the image are clipped to lines and points at its edge; the others stay as they are."""
    logits, deltas = scored(1)
    logits[:, ::2] += 5
    deltas[:, ::2] = (30, 30, 0, 0)
    boxes, is_proposal = Proposals(ANCHORS, 500, 2000, 0.7)(*map(Tensor, (logits, deltas, np.int32(EXTENTS))))
    for i, extent in enumerate(EXTENTS):
        found = boxes.asnumpy()[i][is_proposal.asnumpy()[i] == 1]
        flat = (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1]) == 0
        assert flat.sum() > 10
        wanted = expected(logits[i], deltas[i], extent, 500, 2000)
        whole = wanted[(wanted[:, 2] - wanted[:, 0]) * (wanted[:, 3] - wanted[:, 1]) > 0]
        np.testing.assert_allclose(found[~flat], whole, atol=1e-3)


# --- what is learnt from --------------------------------------------------------------------------------------------

BOXES = np.array([[8, 4, 45, 40], [60, 30, 90, 62]], np.float32)


def test_sampled_anchors_and_their_targets():
    sampler = AnchorSampler(SHAPES, 64)
    index, labels, deltas = sampler(CANVAS, CANVAS, BOXES, np.random.default_rng(0))
    assert (index.dtype, labels.dtype, deltas.dtype) == (np.int32, np.float32, np.float32)
    overlaps = iou(ANCHORS.boxes[:, None], BOXES)
    positive, negative = index[labels == 1], index[labels == 0]
    assert len(positive) + len(negative) == 64 == len(set(index))
    assert (overlaps[negative].max(1) < 0.3).all()
    best_of_object = overlaps.max(0)
    assert all(row.max() >= 0.7 or (row == best_of_object).any() for row in overlaps[positive])
    moved = decode_deltas(Tensor(ANCHORS.boxes[positive]), Tensor(deltas[labels == 1]), STDS).asnumpy()
    np.testing.assert_allclose(moved, BOXES[overlaps[positive].argmax(1)], atol=1e-3)
    assert not deltas[labels == 0].any()


def test_a_generator_decides_the_sample():
    sampler = AnchorSampler(SHAPES, 32)
    drawn = [sampler(CANVAS, CANVAS, BOXES, np.random.default_rng(seed))[0].tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_half_of_the_sample_is_positive_at_most():
    many = ANCHORS.boxes[100:140]
    labels = AnchorSampler(SHAPES, 32)(CANVAS, CANVAS, many, np.random.default_rng(0))[1]
    assert (labels == 1).sum() == 16 == (labels == 0).sum()


def test_without_objects_all_are_negative():
    index, labels, deltas = AnchorSampler(SHAPES, 32)(CANVAS, (30, 50), BOXES[:0], np.random.default_rng(0))
    assert (labels == 0).all()
    assert not deltas.any()
    assert ANCHORS.valid((30, 50))[index].all()


def test_too_few_anchors_are_marked():
    labels = AnchorSampler(SHAPES, 1000)(CANVAS, CANVAS, BOXES, np.random.default_rng(0))[1]
    assert 0 < (labels == -1).sum() < 1000
    assert (labels == 0).any()


def test_a_cascade_takes_anchors_within_the_image():
    extent = (60, 90)
    index, labels, _ = AnchorSampler(SHAPES, 1000, inside=True)(CANVAS, extent, BOXES, np.random.default_rng(0))
    chosen = ANCHORS.boxes[index[labels >= 0]]
    inside = (ANCHORS.boxes >= 0).all(1) & (ANCHORS.boxes[:, 2] < 90) & (ANCHORS.boxes[:, 3] < 60)
    assert 0 < len(chosen) <= inside.sum()
    assert (chosen >= 0).all()
    assert (chosen[:, 2:] < (90, 60)).all()
