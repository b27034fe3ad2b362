"""COCO's figures of what a detector finds, over batches, ranks and resized images."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from focal_twins.distributed.ranks import Dist
from focal_twins.models.detectors.selection import SelectionRule
from focal_twins.tasks.detection.coco_figures import evaluate_coco
from focal_twins.tasks.detection.evaluator import DetectionEvaluator
from focal_twins.tasks.detection.results import coco_boxes
from focal_twins.tasks.evaluation_file import write_evaluation
from focal_twins.tasks.task import evaluate
from tests.tasks.detection.scenes import CATEGORIES, CLASSES, OBJECTS, SIZES, Scenes, found_in, on_canvas

RULE = SelectionRule(len(CLASSES), False, False, 0.05, 0.5, 100)
CONFIG = SimpleNamespace(name="x", eval=SimpleNamespace(short_side=100, long_side=200, batch_size=3))
EXTENTS = ((96, 160), (128, 93), (60, 80), (77, 99))  # of the images, resized with a factor for each axis


class Network:
    """Finds what `found_in` says; an image holds its own index."""

    training = False

    def __init__(self, masks=False):
        self.masks = masks

    def set_train(self, mode):
        assert not mode

    def __call__(self, images, extents):
        found = []
        for image, extent in zip(images, extents, strict=True):
            index = int(image[0, 0, 0])
            scale = [side / own for side, own in zip(extent, SIZES[index], strict=True)]
            found.append(on_canvas(found_in(index, self.masks), scale))
        return found


def batch_of(indices, unreadable=()):
    images = np.array(indices, np.float32)[:, None, None, None] * np.ones((1, 3, 2, 2), np.float32)
    extents = np.array([EXTENTS[index] for index in indices], np.int32)
    weights = np.array([index not in unreadable for index in indices], np.float32)
    return images, extents, weights, np.array(indices, np.int64)


def evaluator(dist=None, masks=False):
    return DetectionEvaluator(Scenes(), CONFIG, dist or Dist(), lambda network, call: network, RULE, masks)


@pytest.fixture(scope="module", params=[False, True], ids=["boxes", "masks"])
def result(request):
    network = Network(request.param)
    return evaluate(network, [batch_of([2, 0]), batch_of([3]), batch_of([1])], evaluator(masks=request.param))


def test_the_figures_are_of_boxes_at_the_size_of_the_images(result):
    """Of the first class all three objects are found, of the second one of three; of the third there is none."""
    figures = result.figures
    assert len(figures) == (24 if "mask_ap" in figures else 12)
    # The second class has its one detection first, so a third of the recalls have a precision of 1.
    second = 34 / 101
    # The first has an invented one between; 0.9, 0.88, [0.86], [0.84], 0.78 are the scores, the third in image 2.
    first = (67 + 34 * 3 / 5) / 101
    assert figures["box_ap"] == pytest.approx(100 * (first + second) / 2, abs=1e-4)
    assert figures["box_ar_100"] == pytest.approx(100 * (1 + 1 / 3) / 2, abs=1e-4)
    assert figures["box_ar_1"] == pytest.approx(100 * (2 / 3 + 1 / 3) / 2, abs=1e-4)
    assert figures["box_ap_small"] == pytest.approx(50, abs=1e-4)
    assert np.isnan(figures["box_ap_large"])
    if "mask_ap" in figures:
        assert figures["mask_ap"] == pytest.approx(figures["box_ap"], abs=1e-4)
    assert str(result).startswith(f"box AP {figures['box_ap']:.2f}%  box AP50 ")
    assert str(result).endswith("(4 images)")


def test_the_content_says_what_was_found_missed_and_invented(result):
    content = result.content()
    assert (content["count"], content["objects"], content["detections"]) == (4, 6, 8)
    assert (content["found"], content["invented"]) == (4, 2)
    cell, other, never = content["classes"]
    assert [cell[key] for key in ("name", "objects", "found", "invented")] == ["cell", 3, 3, 2]
    assert [other[key] for key in ("objects", "found", "invented")] == [3, 1, 0]
    assert never["objects"] == 0 and never["box_ap"] is None
    assert [size["objects"] for size in content["sizes"]] == [2, 4, 0]
    assert content["box_ap_large"] is None
    worst = content["worst_images"]
    assert [entry["image"] for entry in worst] == ["scene3.png", "scene2.png", "scene1.png"]
    counts = [tuple(entry[key] for key in ("found", "missed", "invented")) for entry in worst]
    assert counts == [(0, 1, 1), (0, 0, 1), (2, 1, 0)]
    (missed,), (invented,) = worst[0]["objects"], worst[1]["detections"]
    has_masks = "mask_ap" in content
    assert ("segmentation" in missed, "segmentation" in invented) == (has_masks, has_masks)
    assert [missed[key] for key in ("class", "bbox", "found")] == [1, [5, 5, 40, 40], False]
    assert [invented[key] for key in ("class", "bbox", "invented")] == [0, [1, 1, 29, 29], True]
    assert invented["score"] == pytest.approx(0.86)


def test_the_curves_are_precisions_by_overlap_and_by_class(result):
    arrays = result.arrays()
    assert arrays["box_precision"].shape == (10, 101)
    assert arrays["box_class_precision"].shape == (3, 101)
    np.testing.assert_allclose(100 * arrays["box_precision"].mean(), result.figures["box_ap"], atol=0.01)
    assert (arrays["box_class_precision"][2] == -1).all()


def test_boxes_of_files_end_at_the_rounded_corners():
    assert coco_boxes(np.array([[0.0004, 2, 1.0006, 5.25]])) == [[0.0, 2.0, 1.001, 3.25]]  # the width itself is 1.0002
    assert coco_boxes(np.array([[0.1, 0.2, 0.4, 0.7]], np.float32)) == [[0.1, 0.2, 0.3, 0.5]]


def test_the_files_are_coco_results_that_give_the_same_figures(result, tmp_path):
    write_evaluation(tmp_path / "evaluation.json", result.content(), result.arrays(), None, result.files())
    assert json.loads((tmp_path / "evaluation.json").read_text())["files"] == ["evaluation_results.json"]
    results = json.loads((tmp_path / "evaluation_results.json").read_text())
    assert [entry["image_id"] for entry in results] == [0] * 3 + [10] * 2 + [20] * 2 + [30]
    x1, y1, x2, y2, label = OBJECTS[0][1]
    assert results[1]["category_id"] == CATEGORIES[label]
    assert results[1]["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-3)
    assert ("segmentation" in results[1]) == ("mask_ap" in result.figures)
    again = evaluate_coco(Scenes().ground_truth(), results)
    assert 100 * again.stats[0] == result.figures["box_ap"]


def test_unreadable_images_do_not_count():
    """Their objects are not missed: without the last image the second class has two objects."""
    batches = [batch_of([2, 0]), batch_of([3], unreadable=[3]), batch_of([1])]
    result = evaluate(Network(), batches, evaluator())
    assert result.content()["count"] == 3 and result.content()["objects"] == 5
    assert result.figures["box_ar_100"] == pytest.approx(75)


def test_without_any_detection_or_object_there_are_figures():
    built = evaluator()
    built.add(None, batch_of([2], unreadable=[2]))
    nothing = built.result()
    assert nothing.figures["box_ap"] == 0 and nothing.remarks() == []
    assert nothing.content()["worst_images"] == []


class TwoRanks(Dist):
    """Stands for the main one of two ranks, of which the other has sent some arrays."""

    def __init__(self, others):
        super().__init__(rank=0, size=2)
        object.__setattr__(self, "others", others)

    def sum_counts(self, counts):
        return counts + self.others.counts

    def gather(self, array):
        return [array, self.others.arrays.pop(0)]

    def sum(self, values):
        object.__setattr__(self, "shared", values)
        return values


class OtherRank(Dist):
    """Notes what it sends."""

    def __init__(self):
        super().__init__(rank=1, size=2)
        object.__setattr__(self, "arrays", [])

    def sum_counts(self, counts):
        object.__setattr__(self, "counts", counts)
        return counts

    def gather(self, array):
        self.arrays.append(array)

    def sum(self, values):
        assert not values.any()  # the main rank's alone reach all
        return self.shared


@pytest.mark.parametrize("masks", [False, True])
def test_ranks_together_find_what_one_finds(masks):
    expected = evaluate(Network(masks), [batch_of([0, 1, 2, 3])], evaluator(masks=masks))
    other = OtherRank()
    main = None
    object.__setattr__(other, "shared", np.zeros(48 * (1 + masks), np.uint16))
    evaluate(Network(masks), [batch_of([3, 1])], evaluator(other, masks))
    main = TwoRanks(other)
    result = evaluate(Network(masks), [batch_of([2, 0])], evaluator(main, masks))
    assert result.figures == pytest.approx(expected.figures, abs=0, nan_ok=True)
    assert result.files() == expected.files()
    last = OtherRank()  # once more, with what the main rank shares
    object.__setattr__(last, "shared", main.shared)
    far = evaluate(Network(masks), [batch_of([3, 1])], evaluator(last, masks))
    assert far.figures == pytest.approx(expected.figures, abs=0, nan_ok=True)
    with pytest.raises(ValueError, match="main rank"):
        far.content()


@pytest.mark.parametrize(("ranks", "common"), [(1, True), (2, False)])
def test_ranks_do_not_wait_for_each_other_s_canvases(ranks, common):
    """A call that all ranks make together would wait for one that has no image of that canvas."""

    def together(cell, *inputs):
        raise AssertionError("a call of all ranks")

    evaluator_of_ranks = DetectionEvaluator(Scenes(), CONFIG, Dist(size=ranks), lambda network, call: call, RULE)
    assert (evaluator_of_ranks.answering(None, together) is together) == common
