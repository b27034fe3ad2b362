"""Colours of classes, and pictures made with them."""

import numpy as np

from src.tasks.segmentation.palette import (
    COLOURS,
    IGNORED,
    OKABE_ITO,
    colour_image,
    edges,
    hexadecimal,
    ignored_index,
    index_image,
    overlay,
    palette,
)


def test_every_class_has_a_colour_of_its_own_whatever_their_number():
    colours = palette(COLOURS).astype(int)
    assert [tuple(colour) for colour in colours[: len(OKABE_ITO)].tolist()] == list(OKABE_ITO)
    np.testing.assert_array_equal(palette(11), colours[:11])
    distances = np.abs(np.concatenate([colours, [IGNORED]])[:, None] - colours).sum(axis=2)
    np.fill_diagonal(distances, 999)
    assert distances.min() >= 17  # of 765, among all
    assert distances[:20, :20].min() >= 80  # among the first twenty
    np.testing.assert_array_equal(palette(COLOURS + 3)[-3:], palette(3))
    assert hexadecimal(0) == "#0072b2"


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
