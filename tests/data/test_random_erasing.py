"""Random erasing against its definition."""

import numpy as np

from focal_twins.data.random_erasing import Rectangle, draw_rectangles, erase

DRAWS = 20000


def test_rectangles_have_the_area_aspect_and_place_asked_for():
    generator = np.random.default_rng(0)
    drawn = [draw_rectangles(generator, 224, 224, 0.25, (1, 1)) for _ in range(4 * DRAWS)]
    assert abs(np.mean([len(rectangles) for rectangles in drawn]) - 0.25) < 0.006
    rectangles = np.array([rectangle for rectangles in drawn for rectangle in rectangles])
    top, left, height, width = rectangles.T
    area = height * width / 224**2
    aspect = np.log(height / width)
    # Few areas are redrawn, for a third of the image at an aspect of 3.3 just does not fit.
    np.testing.assert_allclose(
        np.quantile(area, [0, 0.25, 0.5, 0.75, 1]), [0.02, 0.098, 0.177, 0.253, 0.333], atol=0.006
    )
    np.testing.assert_allclose(
        np.quantile(aspect, [0, 0.25, 0.5, 0.75, 1]), np.log(0.3) * np.array([1, 0.5, 0, -0.5, -1]), atol=0.05
    )
    for start, side in ((top, height), (left, width)):
        assert start.min() == 0
        assert (start + side).max() == 224
        places = start / np.maximum(224 - side, 1)
        np.testing.assert_allclose(np.quantile(places, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.015)


def test_the_count_is_drawn_and_shares_the_area():
    generator = np.random.default_rng(0)
    drawn = [draw_rectangles(generator, 100, 100, 1.0, (1, 3)) for _ in range(DRAWS)]
    counts = np.array([len(rectangles) for rectangles in drawn])
    np.testing.assert_allclose([(counts == n).mean() for n in (1, 2, 3)], 1 / 3, atol=0.012)
    for n in (1, 2, 3):
        areas = np.array([r.height * r.width for rectangles in drawn if len(rectangles) == n for r in rectangles])
        assert abs(areas.mean() / 10000 - (0.02 + 1 / 3) / 2 / n) < 0.004


def test_what_does_not_fit_is_left_out():
    """In an image of one row nothing is smaller than the image."""
    assert draw_rectangles(np.random.default_rng(0), 1, 100, 1.0, (1, 1)) == []


def test_values():
    generator = np.random.default_rng(0)
    rectangles = [Rectangle(2, 4, 100, 50), Rectangle(110, 60, 80, 60)]
    inside = np.zeros((200, 160), bool)
    for top, left, height, width in rectangles:
        inside[top : top + height, left : left + width] = True
    for mode in ("const", "rand", "pixel"):
        image = np.full((3, 200, 160), 7, np.float32)
        erase(image, rectangles, mode, generator)
        assert (image[:, ~inside] == 7).all()
        erased = image[:, inside]
        if mode == "const":
            assert (erased == 0).all()
        elif mode == "rand":
            assert len(np.unique(erased)) == 6  # a colour of three channels for each rectangle
        else:
            assert abs(erased.mean()) < 0.03
            assert abs(erased.std() - 1) < 0.02
