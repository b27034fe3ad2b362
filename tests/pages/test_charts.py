"""What charts draw: ticks, gaps, extremes."""

import re

import pytest

from focal_twins.pages.charts import MAX_DRAWN_POINTS, Axis, Chart, Series, format_number, render, thin_points


def test_ticks_are_round_and_within_the_axis():
    assert Axis([0, 28], 0, 1).ticks() == [0, 5, 10, 15, 20, 25]
    assert Axis([0.92, 2.3], 0, 1).ticks() == pytest.approx([1.0, 1.5, 2.0])
    assert Axis([1024, 65536], 0, 1, powers=2).ticks() == [2.0**e for e in range(10, 17)]
    assert Axis([1, 2.0**40], 0, 1, powers=2).ticks()[:3] == [1, 2.0**7, 2.0**14]
    for alike in (0.0, 5.0, -1e-9):
        axis = Axis([alike, alike], 10, 20)
        assert axis.at(alike) == pytest.approx(15)
    assert Axis([2, 4], 100, 0).at(3) == pytest.approx(50)


def test_numbers_are_shown_to_five_digits():
    cases = {
        0: "0",
        0.001: "0.001",
        5e-4: "5e-4",
        0.1 + 0.2: "0.3",
        12.34567: "12.346",
        65536: "65,536",
        9999.9: "10,000",
    }
    cases |= {1048576: "1.0486e6", -1.5: "-1.5", 1e-5: "1e-5"}
    assert {value: format_number(value) for value in cases} == cases
    assert format_number(None) == "-"


def test_long_curves_keep_their_extremes_and_gaps():
    y = [0.0] * 20_000
    y[777], y[12_345], y[15_000] = 9.0, -9.0, None
    points = thin_points(list(range(20_000)), y)
    assert len(points) <= 1.6 * MAX_DRAWN_POINTS
    assert {(777, 9.0), (12_345, -9.0), (15_000, None)} <= set(points)
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert thin_points([1, 2], [3.0, None]) == [(1, 3.0), (2, None)]


def test_gaps_break_a_curve_and_empty_charts_are_left_out():
    drawn = render(Chart("T", "x", "y", [Series("s", [0, 1, 2, 3], [1.0, None, 2.0, 3.0])]))
    path = re.search(r'<path class="curve c0" d="([^"]*)"/><circle', drawn).group(1)
    assert re.sub(r"[\d. ]+", "", path) == "MML"
    assert render(Chart("T", "x", "y", [Series("s", [0, 1], [None, None])])) == ""
    assert render(Chart("T", "x", "y", [Series("s", [0, 1], [0.0, -1.0])], powers=2)) == ""
    escaped = render(Chart("<T>", "x", "y", [Series("</script><b>", [0, 1], [1.0, 2.0])]))
    assert "<b>" not in escaped and "</script><b>" not in escaped and "<T>" not in escaped
