"""Pictures of labels in the colours of their classes."""

import numpy as np

from focal_twins.pages.palette import IGNORED, palette
from focal_twins.tasks.segmentation.label_pictures import colour_image, edges, ignored_index, index_image, overlay


def test_index_images_hold_the_numbers_of_classes():
    labels = np.array([[0, 1, 149], [150, -1, 255]])
    image = index_image(labels, 150)
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), [[0, 1, 149], [255, 255, 255]])
    shown = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(shown, colour_image(labels, 150))
    np.testing.assert_array_equal(shown[1, 1], IGNORED)
    wide = index_image(np.array([[0, 299, 300]]), 300)
    np.testing.assert_array_equal(np.asarray(wide), [[0, 299, ignored_index(300)]])
    assert ignored_index(300) == 65535
    assert ignored_index(255) == 255


def test_overlays_paint_classes_and_leave_ignored_pixels():
    labels = np.zeros((4, 6), np.int32)
    labels[:, 3:], labels[0] = 1, 9
    grey = np.full((4, 6, 1), 100, np.uint8)
    painted = overlay(grey, labels, 2, 0.5).astype(int)
    np.testing.assert_array_equal(painted[0], np.full((6, 3), 100))
    np.testing.assert_array_equal(painted[3, 0], (100 + palette(2)[0].astype(int) + 1) // 2)
    np.testing.assert_array_equal(painted[3, 2], palette(2)[0])  # the edge
    assert edges(labels)[1:, 2].all()
    assert not edges(labels)[1:, 3:].any()
