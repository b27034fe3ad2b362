"""mIoU, mAcc and aAcc from counts of pixels."""

import numpy as np
import pytest

from focal_twins.tasks.segmentation.metrics import PixelCounts, confusion_matrix
from tests.reference import FOLDER, figures

CLASSES, IGNORED = 11, 255


def test_they_equal_the_originals():
    arrays, expected = np.load(FOLDER / "dense" / "miou.npz"), figures("dense/miou")
    total = np.zeros((CLASSES, CLASSES + 1), np.int64)
    for image in range(3):
        labels = arrays[f"raw_label_{image}"].astype(int) - 1  # reduce_zero_label
        labels[labels < 0] = IGNORED
        total += confusion_matrix(labels, arrays[f"pred_{image}"], CLASSES, IGNORED)
    counts = PixelCounts(total)
    for values, name in ((counts.iou, "iou"), (counts.accuracy, "class_acc")):
        np.testing.assert_array_equal(values, np.array(expected[name], float))
    assert (counts.miou, counts.macc, counts.aacc) == (expected["mIoU"], expected["mAcc"], expected["all_acc"])


def test_a_pixel_without_prediction_is_wrong_and_in_no_class():
    labels, predicted = np.array([0, 0, 1, IGNORED]), np.array([0, 2, 2, 2])
    counts = PixelCounts(confusion_matrix(labels, predicted, 2, IGNORED))
    assert counts.without_prediction == 2
    assert (counts.pixels, counts.aacc) == (3, pytest.approx(1 / 3))
    np.testing.assert_array_equal(counts.iou, [0.5, 0])


def test_counts_of_more_than_255_classes_do_not_wrap_around():
    labels = np.array([0, 299, 299], np.int32)
    confusion = confusion_matrix(labels, np.array([299, 299, 0], np.int32), 300, 65535)
    assert (confusion[0, 299], confusion[299, 299], confusion[299, 0], confusion.sum()) == (1, 1, 1, 3)
    uint8 = confusion_matrix(np.array([149], np.uint8), np.array([149], np.int32), 150, 255)
    assert uint8[149, 149] == 1


def test_nothing_that_counts_is_zero_and_no_warning():
    counts = PixelCounts(confusion_matrix(np.full((3, 4), IGNORED), np.zeros((3, 4), int), 2, IGNORED))
    assert (counts.miou, counts.macc, counts.aacc, counts.pixels) == (0, 0, 0, 0)
