"""Line charts as SVG text, without a plotting library; text and axes follow the light or dark colours of the page.

`line_chart` draws one size. `responsive_chart` draws two, of which a page shows the one that fits the screen: on a
narrow screen a scaled wide chart would have letters of 6 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .lettering import width as width_of
from .lettering import wrapped

__all__ = ["Series", "line_chart", "responsive_chart", "wide_chart"]

COLOURS = ("#3867d6", "#e1793b", "#2f9e6e", "#a55eea", "#d64562", "#8d6e3f", "#1fa2b8", "#7f8c8d")
FAINT = ("currentColor", ' opacity="0.35"')
"""Colour and further attributes of a faint line."""
WIDE, NARROW = (640, 340), (340, 260)
"""Width and height of the axes and their labels, in pixels."""
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 34, 46
DASH, GAP, LINE = 21, 9, 18
"""In pixels: the width of a line of the legend with the space before its text, the space between two entries, and the
height of a line of text."""


@dataclass(frozen=True)
class Series:
    """A line of a chart, optionally with a symmetric band.

    Attributes:
        name: the text of the legend.
        x, y: the points. Points that are not finite, or not positive on a logarithmic axis, are left out.
        spread: half the height of the band at each point.
        faint: a background of other lines: thin, gray, and behind them.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None
    faint: bool = False


@dataclass(frozen=True)
class _Axis:
    """A linear or logarithmic map from values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    only: float | None = None  # the only value, which is then the only tick

    def __call__(self, value: float) -> float:
        if self.log:
            value = math.log10(value)
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """Up to about `most` round values within the range of the axis."""
        if self.only is not None:
            return [self.only]
        if not self.log:
            return _round_values(self.low, self.high, most)
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        factors = (1,) if len(decades) > 4 else (1, 2, 5)
        values = [factor * 10.0**decade for decade in decades for factor in factors]
        inside = [value for value in values if self.low - 1e-9 <= math.log10(value) <= self.high + 1e-9]
        if len(inside) > 2 * most:
            inside = [value for value in inside if math.log10(value).is_integer()]
        return inside if len(inside) > 1 else _round_values(10**self.low, 10**self.high, most)


def _round_values(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / (most - 1)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [place * step for place in range(first, last + 1)]


def line_chart(
    series: Sequence[Series],
    title: str,
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    size: tuple[int, int] = WIDE,
) -> str:
    """A line chart as an `<svg>` element.

    Args:
        series: the lines.
        title: the heading.
        x_label, y_label: the labels of the axes.
        log_x, log_y: whether an axis is logarithmic.
        size: width and height without the legend, in pixels.
    """
    width, bottom = size
    bottom = max(bottom, math.ceil(width_of(y_label)) + BOTTOM - TOP + 4)  # the label of the axis is not cut off
    series = sorted(series, key=lambda line: not line.faint)
    points = [
        [
            (x, y, spread)
            for x, y, spread in zip(line.x, line.y, line.spread or [0.0] * len(line.x), strict=True)
            if math.isfinite(x) and math.isfinite(y) and (x > 0 or not log_x) and (y > 0 or not log_y)
        ]
        for line in series
    ]
    drawn = [point for line in points for point in line] or [(1.0, 1.0, 0.0)]
    x_axis = _axis([x for x, _, _ in drawn], LEFT, width - RIGHT, log_x)
    lows = [y - spread if y > spread or not log_y else y for _, y, spread in drawn]
    y_axis = _axis(lows + [y + spread for _, y, spread in drawn], bottom - BOTTOM, TOP, log_y)
    first = sum(line.faint for line in series)
    styles = [FAINT if line.faint else _style(place - first) for place, line in enumerate(series)]
    legend, height = _legend([line.name for line in series], styles, (width, bottom))
    heading = wrapped(title, width - RIGHT - LEFT, 14, bold=True)
    above = LINE * (len(heading) - 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 {-above} {width} {bottom + height + above}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="currentColor" class="chart">',
        f"<title>{escape(title)}</title>",
        *(
            f'<text x="{LEFT}" y="{18 - above + LINE * place}" font-size="14" font-weight="600">{escape(text)}</text>'
            for place, text in enumerate(heading)
        ),
        *_frame(x_axis, y_axis, x_label, y_label, (width, bottom)),
    ]
    for line, kept, style in zip(series, points, styles, strict=True):
        parts += _line(line.name, kept, x_axis, y_axis, *style)
    return "\n".join([*parts, *legend, "</svg>"])


def responsive_chart(
    series: Sequence[Series], title: str, x_label: str, y_label: str, *, log_x: bool = False, log_y: bool = False
) -> str:
    """A wide and a narrow line chart, of which a page shows the one that fits; arguments as for `line_chart`."""
    charts = [
        line_chart(series, title, x_label, y_label, log_x=log_x, log_y=log_y, size=size).replace(
            'class="chart"', f'class="chart {name}"', 1
        )
        for name, size in (("wide", WIDE), ("narrow", NARROW))
    ]
    return "\n".join(charts)


def wide_chart(charts: str) -> str:
    """The wide one of a `responsive_chart`, for a file of its own."""
    return charts.partition("\n<svg")[0]


def _style(place: int) -> tuple[str, str]:
    """Colour and dash pattern of a line. Lines beyond the last colour reuse the colours with dashes."""
    dash = ("", ' stroke-dasharray="6 3"', ' stroke-dasharray="2 3"')[place // len(COLOURS) % 3]
    return COLOURS[place % len(COLOURS)], dash


def _axis(values: Sequence[float], start: float, end: float, log: bool) -> _Axis:
    low, high = min(values), max(values)
    only = low if low == high else None
    if log:
        low, high = math.log10(low), math.log10(high)
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    margin = 0.04 * (high - low)
    return _Axis(low - margin, high + margin, start, end, log, only)


def _frame(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str, size: tuple[int, int]) -> list[str]:
    width, height = size
    parts = []
    for value in x_axis.ticks(6 if width > NARROW[0] else 4):
        x = x_axis(value)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - BOTTOM}" stroke="currentColor" '
                     f'opacity="0.12"/>')  # fmt: skip
        parts.append(f'<text x="{x:.1f}" y="{height - BOTTOM + 16}" text-anchor="middle">{_number(value)}</text>')
    for value in y_axis.ticks(6):
        y = y_axis(value)
        parts.append(f'<line x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" '
                     f'opacity="0.12"/>')  # fmt: skip
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>')
    middle = (TOP + height - BOTTOM) / 2
    parts.append(f'<text x="{(LEFT + width - RIGHT) / 2:g}" y="{height - 10}" text-anchor="middle">'
                 f"{escape(x_label)}</text>")  # fmt: skip
    parts.append(
        f'<text transform="translate(14 {middle:g}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    return parts


def _number(value: float) -> str:
    """A value of an axis: 0.05, 20,000, 1e+08."""
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e7 else f"{value:.4g}"


def _line(
    name: str, points: Sequence[tuple[float, float, float]], x: _Axis, y: _Axis, colour: str, dash: str
) -> list[str]:
    if not points:
        return []
    parts = []
    if any(spread for _, _, spread in points):
        upper = [f"{x(px):.1f},{y(py + spread):.1f}" for px, py, spread in points]
        lower = [f"{x(px):.1f},{y(py - spread if py > spread or not y.log else py):.1f}" for px, py, spread in points]
        parts.append(f'<polygon points="{" ".join(upper + lower[::-1])}" fill="{colour}" opacity="0.18"/>')
    path = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py, _ in points)
    parts.append(
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round"{dash}/>'
    )
    if len(points) <= 24 and (colour, dash) != FAINT:
        for px, py, _ in points:
            parts.append(f'<circle cx="{x(px):.1f}" cy="{y(py):.1f}" r="3" fill="{colour}"><title>{escape(name)}: '
                         f"{px:.4g}, {py:.4g}</title></circle>")  # fmt: skip
    return parts


def _legend(names: Sequence[str], styles: Sequence[tuple[str, str]], size: tuple[int, int]) -> tuple[list[str], int]:
    """The legend, which lies below the chart, and its height."""
    width, bottom = size
    parts = []
    x, y = float(LEFT), bottom + 12
    for name, (colour, dash) in zip(names, styles, strict=True):
        lines = wrapped(name, width - RIGHT - LEFT - DASH)
        wide = DASH + max(map(width_of, lines))
        if x > LEFT and x + wide > width - RIGHT:
            x, y = float(LEFT), y + LINE
        parts.append(f'<line x1="{x:.0f}" x2="{x + 16:.0f}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}" '
                     f'stroke-width="3"{dash}/>')  # fmt: skip
        parts += [f'<text x="{x + DASH:.0f}" y="{y + LINE * row}">{escape(text)}</text>'
                  for row, text in enumerate(lines)]  # fmt: skip
        y += LINE * (len(lines) - 1)
        x += wide + GAP
    return parts, y + 8 - bottom if names else 0
