"""Draws line charts as SVG without any library, for pages that need no other file.

Each chart is a <figure> with the curves, which need no script, and their values as JSON, which charts.js shows where
the pointer or the arrow keys are.
"""

import html
import json
import math
from dataclasses import dataclass, field, replace

WIDTH, HEIGHT = 640, 320  # size of the drawing in its own units
LEFT, RIGHT, TOP, BOTTOM = 74, 12, 12, 44  # margins around the curves
MAX_TICKS = 6  # ticks on an axis, at most (about)
MAX_MARKED_POINTS = 40  # a curve of up to so many points has a mark at each
MIN_FINE_POINTS = 300  # a curve of so many points or more is drawn with a fine line
MAX_DRAWN_POINTS = 1200  # of a curve of more points, only the extremes of each part of the axis are drawn
COLORS = 8  # style.css has these colours: --c0 to --c7
OPENING = '<figure class="chart">'  # begins each chart; pages that contain it need charts.js
DIGITS = 7  # significant digits of values in the JSON; float32 has no more


@dataclass(frozen=True)
class Series:
    """Holds the points of a curve. Values that are None leave a gap.

    Attributes:
        color: number of the curve's colour among the page's.
        dashed: drawn with a broken line, for a second curve of the same colour.
    """

    name: str
    x: list[float]
    y: list[float | None]
    color: int = 0
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Describes a chart of curves that share axes.

    Attributes:
        x_label, y_label: labels of the axes, with units.
        powers: base of a logarithmic axis of values, whose ticks are at its powers (values that are not positive are
            left out); None for a linear axis.
        from_zero: the axis of values begins at zero; that of x always does.
    """

    title: str
    x_label: str
    y_label: str
    series: list[Series] = field(default_factory=list)
    powers: int | None = None
    from_zero: bool = False


class Axis:
    """Maps values to positions along a line of the drawing.

    Args:
        values: the values that must have room on the line; not empty.
        start, end: ends of the line, in units of the drawing.
        powers: see Chart.
    """

    def __init__(self, values: list[float], start: float, end: float, powers: int | None = None):
        self.start, self.end, self.powers = start, end, powers
        low, high = self._scaled(min(values)), self._scaled(max(values))
        if high - low < 1e-12 * max(abs(low), abs(high), 1e-300):  # all alike
            spread = 1 if powers else abs(low) / 10 or 1
            low, high = low - spread, high + spread
        self.low, self.high = low, high

    def _scaled(self, value: float) -> float:
        return math.log(value, self.powers) if self.powers else value

    def add_margins(self, below: bool, above: bool) -> "Axis":
        """Add a little room at the ends; return the axis itself."""
        margin = 0.04 * (self.high - self.low)
        self.low, self.high = self.low - margin * below, self.high + margin * above
        return self

    def at(self, value: float) -> float:
        """Return the position of a value, in units of the drawing."""
        part = (self._scaled(value) - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return round values between the ends, at which the axis has its ticks."""
        if self.powers:
            step = max(1, math.ceil((self.high - self.low) / MAX_TICKS))
            exponents = range(math.ceil(self.low), math.floor(self.high) + 1, step)
            return [float(self.powers) ** exponent for exponent in exponents]
        step = round_step((self.high - self.low) / MAX_TICKS)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def round_step(least: float) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def format_number(value: float | None) -> str:
    """Format a number for reading, to five digits; None becomes "-"."""
    if value is None:
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:.5g}" if abs(value) < 9999.5 else f"{value:,.0f}"
    mantissa, exponent = f"{value:.4e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def render(chart: Chart) -> str:
    """Draw a chart as HTML; return an empty text where no curve has a value."""
    positive = [
        replace(series, y=[y if y is None or chart.powers is None or y > 0 else None for y in series.y])
        for series in chart.series
    ]
    curves = [series for series in positive if any(y is not None for y in series.y)]
    if not curves:
        return ""
    values = [y for series in curves for y in series.y if y is not None]
    x_axis = Axis([0.0, *(x for series in curves for x in series.x)], LEFT, WIDTH - RIGHT)
    y_axis = Axis([*values, *([0.0] if chart.from_zero else [])], HEIGHT - BOTTOM, TOP, chart.powers)
    y_axis.add_margins(below=not chart.from_zero, above=True)
    title = html.escape(chart.title)
    description = html.escape(
        f"{chart.title}: {chart.y_label} against {chart.x_label}. {_last_values(curves)}", quote=True
    )
    return (
        f"{OPENING}<figcaption>{title}</figcaption>{_legend(curves)}"
        f'<div class="plot"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{description}">'
        f"{_draw_axes(chart, x_axis, y_axis)}{''.join(_draw_curve(series, x_axis, y_axis) for series in curves)}"
        '<line class="cursor" hidden></line><g class="dots"></g></svg>'
        '<div class="tip" role="status" hidden></div></div>'
        f'<script type="application/json">{_script_data(chart, curves, x_axis, y_axis)}</script></figure>'
    )


def _last_values(curves: list[Series]) -> str:
    """Describe the last value of each curve, for readers who cannot see the drawing."""
    lasts = [(series.name, next(y for y in reversed(series.y) if y is not None)) for series in curves]
    return "Last values: " + ", ".join(f"{name} {format_number(y)}" for name, y in lasts) + "."


def _legend(curves: list[Series]) -> str:
    """List the names of the curves; a single curve needs none, as the chart's title names it."""
    if len(curves) == 1:
        return ""
    entries = "".join(
        f'<li><svg viewBox="0 0 26 8" aria-hidden="true"><path class="curve c{series.color % COLORS}'
        f'{" dashed" if series.dashed else ""}" d="M0 4H26"/></svg>{html.escape(series.name)}</li>'
        for series in curves
    )
    return f'<ul class="legend">{entries}</ul>'


def _draw_axes(chart: Chart, x_axis: Axis, y_axis: Axis) -> str:
    """Draw the axes with grid, ticks and labels."""
    parts = []
    for value in y_axis.ticks():
        y = round(y_axis.at(value), 1)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{y}" text-anchor="end" dy="0.32em">{format_number(value)}</text>'
        )
    for value in x_axis.ticks():
        x = round(x_axis.at(value), 1)
        parts.append(f'<path class="grid" d="M{x} {HEIGHT - BOTTOM}v5"/>')
        parts.append(
            f'<text class="tick" x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{format_number(value)}</text>'
        )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    parts.append(
        f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{html.escape(chart.x_label)}</text>"
    )
    parts.append(
        f'<text class="label" transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(chart.y_label)}</text>"
    )
    return "".join(parts)


def _draw_curve(series: Series, x_axis: Axis, y_axis: Axis) -> str:
    style = f"curve c{series.color % COLORS}" + (" dashed" if series.dashed else "")
    path, points, pen_is_down = [], [], False
    for x, y in thin_points(series.x, series.y):
        if y is None:
            pen_is_down = False
            continue
        point = f"{x_axis.at(x):.1f} {y_axis.at(y):.1f}"
        path.append(("L" if pen_is_down else "M") + point)
        points.append(point.split())
        pen_is_down = True
    marks = ""
    if len(points) <= MAX_MARKED_POINTS:
        marks = "".join(f'<circle class="{style}" cx="{x}" cy="{y}" r="2.5"/>' for x, y in points)
    fine = " fine" if len(points) >= MIN_FINE_POINTS else ""
    return f'<path class="{style}{fine}" d="{"".join(path)}"/>{marks}'


def thin_points(x: list[float], y: list[float | None]) -> list[tuple[float, float | None]]:
    """Return the points of a curve to draw: of a long one, the lowest and the highest of each part, in their order."""
    points = list(zip(x, y, strict=True))
    if len(points) <= MAX_DRAWN_POINTS:
        return points
    size = math.ceil(2 * len(points) / MAX_DRAWN_POINTS)
    kept = []
    for first in range(0, len(points), size):
        part = range(first, min(first + size, len(points)))
        known = {index: value for index in part if (value := y[index]) is not None}
        gaps = [index for index in part if y[index] is None][:1]
        extremes = {min(known, key=known.__getitem__), max(known, key=known.__getitem__)} if known else set()
        kept += [points[index] for index in sorted({*extremes, *gaps})]
    return kept


def _script_data(chart: Chart, curves: list[Series], x_axis: Axis, y_axis: Axis) -> str:
    """Return the JSON that charts.js needs: the values, and how they lie in the drawing."""
    content = {
        "xLabel": chart.x_label,
        "x": [x_axis.low, x_axis.high, x_axis.start, x_axis.end],
        "y": [y_axis.low, y_axis.high, y_axis.start, y_axis.end],
        "powers": chart.powers,
        "series": [
            {
                "name": series.name,
                "color": series.color % COLORS,
                "x": series.x,
                "y": [None if y is None else float(f"{y:.{DIGITS}g}") for y in series.y],
            }
            for series in curves
        ],
    }
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
