"""Colours of classes."""

import numpy as np

from focal_twins.pages.palette import COLOURS, IGNORED, OKABE_ITO, hexadecimal, palette


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
