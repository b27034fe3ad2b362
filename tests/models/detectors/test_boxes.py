"""Boxes, anchors, matching and selection: small functions in NumPy, against tables and the originals' figures."""

import pickle

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from focal_twins.models.detectors.anchors import AnchorShapes, anchors_on, padded_extent
from focal_twins.models.detectors.assign import (
    BACKGROUND,
    IGNORED,
    IouRule,
    assign_by_centres,
    assign_by_iou,
    labels_of_matches,
)
from focal_twins.models.detectors.box_layers import clip_to_extents, decode_deltas, paired_giou, paired_iou
from focal_twins.models.detectors.boxes import areas, clip, encode, iou
from focal_twins.models.detectors.selection import SelectionRule, non_maximum_suppression, select_detections
from tests.reference import FOLDER

PIECES = np.load(FOLDER / "dense/box_pieces.npz")
BOXES = PIECES["nms_boxes"]
STDS = (0.1, 0.1, 0.2, 0.2)


def boxes(*rows):
    return np.asarray(rows, np.float32).reshape(-1, 4)


# --- overlaps and deltas --------------------------------------------------------------------------------------------

PAIRS = [  # box, other, IoU, GIoU
    ([0, 0, 2, 2], [0, 0, 2, 2], 1, 1),
    ([0, 0, 2, 2], [1, 0, 3, 2], 1 / 3, 1 / 3),
    ([0, 0, 2, 2], [2, 0, 4, 2], 0, 0),  # they touch: no pixel more
    ([0, 0, 1, 1], [3, 0, 4, 1], 0, -0.5),
    ([0, 0, 4, 4], [1, 1, 2, 2], 1 / 16, 1 / 16),
    ([1, 1, 1, 1], [1, 1, 1, 1], 0, 0),  # no area at all
]


@pytest.mark.parametrize(("box", "other", "overlap", "generalised"), PAIRS)
def test_overlaps(box, other, overlap, generalised):
    box, other = boxes(box), boxes(other)
    assert iou(box, other) == pytest.approx(overlap)
    assert paired_iou(Tensor(box), Tensor(other)).asnumpy() == pytest.approx(overlap)
    assert paired_giou(Tensor(box), Tensor(other)).asnumpy() == pytest.approx(generalised)


def test_overlaps_equal_the_originals():
    first, second = BOXES[:20], BOXES[20:40]
    np.testing.assert_array_equal(iou(first[:, None], second), PIECES["iou"])
    pairs = Tensor(first[:, None]), Tensor(second[None])
    np.testing.assert_allclose(paired_iou(*pairs).asnumpy(), PIECES["iou"], atol=1e-6)
    np.testing.assert_allclose(paired_giou(*pairs).asnumpy(), PIECES["giou"], atol=1e-6)
    pairs = Tensor(BOXES[:40]), Tensor(BOXES[40:80])
    np.testing.assert_allclose(paired_giou(*pairs).asnumpy(), PIECES["giou_aligned"], atol=1e-6)


def test_the_coder_equals_the_originals():
    anchors, deltas = BOXES[:40], PIECES["coder_deltas"]
    np.testing.assert_allclose(encode(anchors, BOXES[40:80], STDS), PIECES["coder_encoded"], rtol=1e-5, atol=1e-6)
    decoded = decode_deltas(Tensor(anchors), Tensor(deltas), STDS)
    clipped = clip_to_extents(decoded.reshape((1, 40, 4)), Tensor([[100, 130]], ms.int32))
    np.testing.assert_allclose(decoded.asnumpy(), PIECES["coder_decoded"], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(clipped.asnumpy()[0], PIECES["coder_decoded_clipped"], rtol=1e-5, atol=1e-4)


def test_deltas_come_back_as_boxes():
    anchors, wanted = BOXES[:40], BOXES[40:80]
    deltas = encode(anchors, wanted, STDS)
    np.testing.assert_allclose(decode_deltas(Tensor(anchors), Tensor(deltas), STDS).asnumpy(), wanted, atol=1e-3)
    far = decode_deltas(Tensor(boxes([0, 0, 10, 10])), Tensor(boxes([0, 0, 100, -100])), (1.0,) * 4).asnumpy()
    np.testing.assert_allclose(far[0, 2:] - far[0, :2], [625, 0.16], rtol=1e-5)  # no more than 1000 / 16 times


def test_clipping_and_areas():
    found = clip(boxes([-3, 5, 20, 30], [50, 50, 60, 60]), (25, 15))
    np.testing.assert_array_equal(found, [[0, 5, 15, 25], [15, 25, 15, 25]])
    np.testing.assert_array_equal(areas(found), [300, 0])


# --- anchors --------------------------------------------------------------------------------------------------------


def test_anchors_stand_on_corners_of_cells():
    anchors = anchors_on((64, 96), AnchorShapes((32,), (1.0, 2.0), (1.0, 4.0)))
    assert anchors.map_sizes == ((2, 3),)
    assert anchors.counts == (2 * 3 * 4,)
    np.testing.assert_allclose(  # by ratio, then scale; the areas are those of squares
        anchors.boxes[:4], boxes([-16, -16, 16, 16], [-32, -32, 32, 32], [-8, -32, 8, 32], [-16, -64, 16, 64])
    )
    np.testing.assert_array_equal(anchors.boxes[4:8], anchors.boxes[:4] + boxes([32, 0, 32, 0]))  # columns first
    np.testing.assert_array_equal(anchors.corners[::4], [[0, 0], [0, 32], [0, 64], [32, 0], [32, 32], [32, 64]])


def test_anchors_are_valid_on_the_image_rounded_up():
    """To whole multiples of 32, on every level; beyond there is padding that the originals do not have."""
    anchors = anchors_on((128, 160), AnchorShapes((8, 64), (4.0,), (1.0,)))
    assert padded_extent((33, 64)) == (64, 64)
    valid = anchors.valid((33, 64))
    fine, coarse = (valid[level] for level in anchors.levels)
    np.testing.assert_array_equal(fine.reshape(16, 20), np.outer(np.arange(16) < 8, np.arange(20) < 8))
    np.testing.assert_array_equal(coarse.reshape(2, 3), [[True, False, False], [False] * 3])
    assert anchors.valid((128, 160)).all()


def test_anchors_of_a_dozen_canvases_are_kept():
    canvases, shapes = [(32, 32 * width) for width in range(1, 13)], AnchorShapes((32,), (1.0,), (1.0,))
    listed = [anchors_on(canvas, shapes) for canvas in canvases]
    assert all(anchors_on(canvas, shapes) is anchors for canvas, anchors in zip(canvases, listed, strict=True))


# --- matching -------------------------------------------------------------------------------------------------------

FOUR = boxes([0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 4.5], [20, 20, 30, 30])


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("retina", IouRule(0.5, 0.4)),
        ("rpn", IouRule(0.7, 0.3, least=0.3)),
        ("rcnn", IouRule(0.5, 0.5, least=0.5)),
        ("cascade", IouRule(0.7, 0.7, low_quality=False)),
    ],
)
def test_matching_by_overlap_equals_the_originals(name, rule):
    match = assign_by_iou(BOXES, np.round(BOXES[190:]), rule)
    np.testing.assert_array_equal(match + 1, PIECES[f"assign_{name}"])


@pytest.mark.parametrize(
    ("wanted", "rule", "match"),
    [
        ([[0, 0, 10, 10]], IouRule(0.5, 0.4), [0, 0, IGNORED, BACKGROUND]),
        ([[0, 0, 10, 10]], IouRule(0.8, 0.5), [0, 0, BACKGROUND, BACKGROUND]),
        ([[0, 0, 10, 10], [0, 0, 10, 8]], IouRule(0.5, 0.4), [0, 1, 1, BACKGROUND]),
        ([[20, 20, 30, 22]], IouRule(0.5, 0.4), [BACKGROUND, BACKGROUND, BACKGROUND, 0]),  # low quality
        ([[20, 20, 30, 22]], IouRule(0.5, 0.4, low_quality=False), [BACKGROUND] * 4),
        ([[20, 20, 30, 22]], IouRule(0.5, 0.4, least=0.3), [BACKGROUND] * 4),
        ([[50, 50, 60, 60]], IouRule(0.5, 0.4), [BACKGROUND] * 4),  # no anchor is near
        ([[0, 0, 10, 10], [0, 0, 10, 9.9]], IouRule(0.5, 0.4), [1, 1, IGNORED, BACKGROUND]),  # the last box has it
        ([], IouRule(0.5, 0.4), [BACKGROUND] * 4),
    ],
)
def test_matching_by_overlap(wanted, rule, match):
    np.testing.assert_array_equal(assign_by_iou(FOUR, boxes(*wanted), rule), match)


def test_matching_by_centres():
    """Candidates are near on each level; of them those have the box that overlap it more than most and lie in it."""
    anchors = anchors_on((64, 64), AnchorShapes((8, 16), (4.0,), (1.0,)))
    box = boxes([8, 8, 41, 41])
    match = assign_by_centres(anchors.boxes, box, anchors.counts)
    near, far = (match[level] for level in anchors.levels)
    assert (far == BACKGROUND).all()  # they are twice as large
    np.testing.assert_array_equal(np.flatnonzero(near == 0), [27, 28, 35])  # rows of 8
    two = assign_by_centres(anchors.boxes, np.concatenate([box, box + 1]), anchors.counts)
    assert two[27] == 0  # of two boxes the one that overlaps more
    assert (assign_by_centres(anchors.boxes, boxes(), anchors.counts) == BACKGROUND).all()


def test_a_single_candidate_has_no_deviation():
    anchor = boxes([0, 0, 30, 30])
    assert assign_by_centres(anchor, boxes([2, 2, 30, 30]), (1,)).tolist() == [0]
    assert assign_by_centres(anchor, boxes([20, 20, 30, 30]), (1,)).tolist() == [BACKGROUND]  # does not hold its centre


def test_the_deviation_of_candidates_is_the_unbiased_one():
    """With it, of two candidates not even the better lies above; the biased one would be exactly as high as that."""
    pair = boxes([0, 0, 30, 30], [0, 0, 20, 20])
    assert assign_by_centres(pair, boxes([0, 0, 30, 30]), (2,)).tolist() == [BACKGROUND, BACKGROUND]


def test_labels_of_matches():
    match = np.array([0, BACKGROUND, IGNORED, 1], np.int32)
    np.testing.assert_array_equal(labels_of_matches(match, np.array([5, 2], np.int32), 80), [5, 80, -1, 2])


# --- selection ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("percent", [3, 5, 7])
def test_suppression_equals_the_originals(percent):
    scores, labels = PIECES["nms_scores"], PIECES["nms_labels"]
    kept = non_maximum_suppression(BOXES, scores, np.zeros_like(labels), percent / 10)
    np.testing.assert_array_equal(kept, PIECES[f"nms_keep_{percent}"])
    by_class = non_maximum_suppression(BOXES, scores, labels, percent / 10)
    np.testing.assert_array_equal(by_class, PIECES[f"batched_nms_keep_{percent}"])
    np.testing.assert_array_equal(non_maximum_suppression(BOXES, scores, labels, percent / 10, 20), by_class[:20])


def test_suppression_is_strict_and_within_classes():
    three = boxes([0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 10])
    scores = np.array([0.5, 0.9, 0.5], np.float32)
    one_class = np.zeros(3, int)
    assert non_maximum_suppression(three, scores, one_class, 0.5).tolist() == [1, 0]  # 0.5 is not more than 0.5
    assert non_maximum_suppression(three, scores, one_class, 0.49).tolist() == [1]
    assert non_maximum_suppression(three, scores, np.array([0, 0, 1]), 0.49).tolist() == [1, 2]
    assert non_maximum_suppression(three, scores, one_class, None).tolist() == [1, 0, 2]
    assert non_maximum_suppression(three[:0], scores[:0], one_class[:0], 0.5).tolist() == []


RULE = SelectionRule(2, class_boxes=False, has_factor=False, score_threshold=0.05, nms_iou=0.5, max_detections=100)


def test_every_class_of_a_candidate_can_be_a_detection():
    candidates = np.array([[0, 0, 10, 10, 0.3, 0.6], [0, 0, 30, 10, 0.05, 0.01]], np.float32)
    found = select_detections(candidates, RULE, (8, 20))
    np.testing.assert_array_equal(found.boxes, [[0, 0, 10, 8]] * 2)  # 0.05 is not more than 0.05
    np.testing.assert_array_equal(found.scores, np.float32([0.6, 0.3]))
    np.testing.assert_array_equal(found.labels, [1, 0])
    np.testing.assert_array_equal(found.candidates, [0, 0])


def test_the_factor_ranks_and_does_not_decide():
    rule = SelectionRule(1, False, True, 0.05, 0.5, 1)
    candidates = np.array([[0, 0, 10, 10, 0.9, 0.01], [30, 0, 40, 10, 0.06, 0.5]], np.float32)
    found = select_detections(candidates, rule, (50, 50))
    np.testing.assert_array_equal(found.candidates, [1])
    np.testing.assert_allclose(found.scores, [0.03], rtol=1e-6)


def test_boxes_of_classes():
    rule = SelectionRule(2, True, False, 0.05, 0.5, 100)
    candidate = np.array([[0, 0, 10, 10, 20, 0, 30, 10, 0.2, 0.4]], np.float32)
    found = select_detections(candidate, rule, (50, 50))
    np.testing.assert_array_equal(found.labels, [1, 0])
    np.testing.assert_array_equal(found.boxes, [[20, 0, 30, 10], [0, 0, 10, 10]])
    assert len(select_detections(candidate, SelectionRule(2, True, False, 0.5, 0.5, 9), (50, 50)).boxes) == 0


def test_rules_travel_to_other_processes():
    assert pickle.loads(pickle.dumps(RULE)) == RULE
