"""Line charts as SVG, drawn without any library, for pages that need no other file.

Each chart is a <figure>: the curves as they stay without scripts, and their values as JSON, which charts.js shows where
the pointer or the arrow keys are.
"""

import html
import json
import math
from dataclasses import dataclass, field, replace

WIDTH, HEIGHT = 640, 320  # of the drawing's own units
LEFT, RIGHT, TOP, BOTTOM = 74, 12, 12, 44  # margins around the curves
TICKS = 6  # at most, about, on an axis
MARKED = 40  # points of a curve up to which each is marked
FINE = 300  # points from which on a curve is drawn with a fine line
DRAWN = 1200  # points of a curve, beyond which only the extremes of each part of the axis are drawn
COLORS = 8  # that style.css has: --c0 to --c7
OPENING = '<figure class="chart">'  # of each, by which pages know that they need charts.js
DIGITS = 7  # of values shown; float32 has no more


@dataclass(frozen=True)
class Series:
    """A curve. Values that are None leave a gap.

    Attributes:
        color: which of the page's colours.
        dashed: drawn with a broken line, for a second curve of the same colour.
    """

    name: str
    x: list[float]
    y: list[float | None]
    color: int = 0
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart of curves that share axes.

    Attributes:
        x_label, y_label: with units.
        powers: of what the axis of values has its ticks at powers, logarithmically (what is not positive is left out);
            None for a linear one.
        from_zero: the axis of values begins at zero; that of x always does.
    """

    title: str
    x_label: str
    y_label: str
    series: list[Series] = field(default_factory=list)
    powers: int | None = None
    from_zero: bool = False


class Axis:
    """Values along a line of the drawing.

    Args:
        values: what must have room; not empty.
        start, end: of the line, in units of the drawing.
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

    def padded(self, below: bool, above: bool) -> "Axis":
        """The same with a little room at its ends."""
        margin = 0.04 * (self.high - self.low)
        self.low, self.high = self.low - margin * below, self.high + margin * above
        return self

    def at(self, value: float) -> float:
        """Where a value is."""
        part = (self._scaled(value) - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values between the ends."""
        if self.powers:
            step = max(1, math.ceil((self.high - self.low) / TICKS))
            exponents = range(math.ceil(self.low), math.floor(self.high) + 1, step)
            return [float(self.powers) ** exponent for exponent in exponents]
        step = round_step((self.high - self.low) / TICKS)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def round_step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is at least so much."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def shown(value: float | None) -> str:
    """A number for reading, to five digits."""
    if value is None:
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:.5g}" if abs(value) < 9999.5 else f"{value:,.0f}"
    mantissa, exponent = f"{value:.4e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def render(chart: Chart) -> str:
    """A chart as HTML; empty where no curve has a value."""
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
    y_axis.padded(below=not chart.from_zero, above=True)
    title = html.escape(chart.title)
    described = html.escape(
        f"{chart.title}: {chart.y_label} against {chart.x_label}. {_last_values(curves)}", quote=True
    )
    return (
        f"{OPENING}<figcaption>{title}</figcaption>{_legend(curves)}"
        f'<div class="plot"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{described}">'
        f"{_axes(chart, x_axis, y_axis)}{''.join(_curve(series, x_axis, y_axis) for series in curves)}"
        '<line class="cursor" hidden></line><g class="dots"></g></svg>'
        '<div class="tip" role="status" hidden></div></div>'
        f'<script type="application/json">{_data(chart, curves, x_axis, y_axis)}</script></figure>'
    )


def _last_values(curves: list[Series]) -> str:
    """The last value of each curve, for those who do not see them."""
    lasts = [(series.name, next(y for y in reversed(series.y) if y is not None)) for series in curves]
    return "Last values: " + ", ".join(f"{name} {shown(y)}" for name, y in lasts) + "."


def _legend(curves: list[Series]) -> str:
    """Names of the curves; one alone has the chart's."""
    if len(curves) == 1:
        return ""
    entries = "".join(
        f'<li><svg viewBox="0 0 26 8" aria-hidden="true"><path class="curve c{series.color % COLORS}'
        f'{" dashed" if series.dashed else ""}" d="M0 4H26"/></svg>{html.escape(series.name)}</li>'
        for series in curves
    )
    return f'<ul class="legend">{entries}</ul>'


def _axes(chart: Chart, x_axis: Axis, y_axis: Axis) -> str:
    """Grid, ticks and labels."""
    parts = []
    for value in y_axis.ticks():
        y = round(y_axis.at(value), 1)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y}" text-anchor="end" dy="0.32em">{shown(value)}</text>')
    for value in x_axis.ticks():
        x = round(x_axis.at(value), 1)
        parts.append(f'<path class="grid" d="M{x} {HEIGHT - BOTTOM}v5"/>')
        parts.append(
            f'<text class="tick" x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{shown(value)}</text>'
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


def _curve(series: Series, x_axis: Axis, y_axis: Axis) -> str:
    style = f"curve c{series.color % COLORS}" + (" dashed" if series.dashed else "")
    path, points, pen_is_down = [], [], False
    for x, y in thinned(series.x, series.y):
        if y is None:
            pen_is_down = False
            continue
        place = f"{x_axis.at(x):.1f} {y_axis.at(y):.1f}"
        path.append(("L" if pen_is_down else "M") + place)
        points.append(place.split())
        pen_is_down = True
    marks = ""
    if len(points) <= MARKED:
        marks = "".join(f'<circle class="{style}" cx="{x}" cy="{y}" r="2.5"/>' for x, y in points)
    fine = " fine" if len(points) >= FINE else ""
    return f'<path class="{style}{fine}" d="{"".join(path)}"/>{marks}'


def thinned(x: list[float], y: list[float | None]) -> list[tuple[float, float | None]]:
    """The points to draw: of long curves, the lowest and the highest of each part, in their order."""
    points = list(zip(x, y, strict=True))
    if len(points) <= DRAWN:
        return points
    size = math.ceil(2 * len(points) / DRAWN)
    kept = []
    for first in range(0, len(points), size):
        part = range(first, min(first + size, len(points)))
        known = {index: value for index in part if (value := y[index]) is not None}
        gaps = [index for index in part if y[index] is None][:1]
        extremes = {min(known, key=known.__getitem__), max(known, key=known.__getitem__)} if known else set()
        kept += [points[index] for index in sorted({*extremes, *gaps})]
    return kept


def _data(chart: Chart, curves: list[Series], x_axis: Axis, y_axis: Axis) -> str:
    """What charts.js needs: the values, and how they lie in the drawing."""
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
