"""Draws line charts, bar charts, histograms and lane charts (spans of time) as inline SVG.

Heights are in pixels and horizontal positions in per cent: a chart is as wide as its container on the page, and its
text has the page's font size. The page's style sheet sets colours, strokes and fonts: the classes `c0`..`c7` (strokes) and
`f0`..`f7` (fills) are the palette, and curves beyond the eighth are dashed. `Markup.format` escapes every text.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from foldfuse.boxes import Array
from foldfuse.reporting.axes import Axis, linear_axis, time_axis
from foldfuse.system.durations import format_duration

PALETTE_SIZE = 8
_PLOT_TOP, _PLOT_HEIGHT, _PLOT_FOOT = 26, 200, 42  # pixels: above the plot, the plot, its tick labels and axis title
_PLOT_LEFT, _PLOT_WIDTH = 11.0, 87.0  # per cent of the chart's width
_LANE = 15  # pixels: the height of a lane below its name
_ROW, _BAR = 36, 11  # pixels: the height of a bar with its label, and of the bar alone


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        name: shown in the legend and when the pointer rests on the curve.
        x, y: (n,) points.
        colour: index into the palette; from 8 on the palette repeats with dashes.
        strong: True for a thicker curve in the colour of the text, drawn on top of the others.
    """

    name: str
    x: Array
    y: Array
    colour: int
    strong: bool = False


@dataclass(frozen=True)
class Bar:
    """One labelled bar; `interval` becomes a whisker, and a `strong` bar has the page's accent colour."""

    label: str
    value: float
    text: str
    strong: bool = False
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Chart:
    """A chart with its title, its caption and the names in its legend; `lead` is the name of the strong curve."""

    title: str
    svg: Markup
    caption: str
    legend: tuple[str, ...] = ()
    lead: str | None = None


@dataclass(frozen=True)
class Span:
    """A named stretch of time, in seconds."""

    name: str
    kind: str
    start: float
    end: float


@dataclass(frozen=True)
class Lane:
    """One row of a lane chart: a name with details, and below them spans along the time axis.

    Attributes:
        name, details: text above the spans.
        blocks: spans in full colour.
        background: faint spans behind the blocks.
        colour: `f0`..`f7`, a fill of the palette.
    """

    name: str
    details: str
    blocks: tuple[Span, ...]
    colour: str
    background: tuple[Span, ...] = ()


def duration_text(seconds: float) -> str:
    """Seconds as text, with tenths below ten seconds: "0.4 s", "48 s", "9 min 5 s"."""
    return f"{seconds:.1f} s" if seconds < 9.95 else format_duration(seconds)


def downsampled(x: Array, y: Array, *, points: int = 60) -> tuple[Array, Array]:
    """(n,), (n,) -> (m,), (m,) with m <= points: means over m consecutive bins, which also smooths a noisy curve."""
    edges = np.linspace(0, len(x), min(len(x), points) + 1).astype(int)
    bins = list(itertools.pairwise(edges))
    return np.array([x[a:b].mean() for a, b in bins]), np.array([y[a:b].mean() for a, b in bins])


def line_chart(
    lines: Sequence[Line],
    x: Axis,
    y: Axis,
    *,
    titles: tuple[str, str],
    label: str,
    dots: bool = False,
    deadline: float | None = None,
) -> Markup:
    """Curves over a grid.

    Args:
        lines: the curves.
        x, y: the axes.
        titles: the titles of the x axis and the y axis.
        label: the chart in words, for screen readers.
        dots: marks every point of every curve.
        deadline: the deadline's position on the x axis.
    """
    curves = []
    for line in sorted(lines, key=lambda line: line.strong):
        points = [
            (round(1000 * x.position(a), 1), round(1000 * (1 - y.position(b)), 1))
            for a, b in zip(line.x.tolist(), line.y.tolist(), strict=True)
        ]
        style = f"line c{line.colour % PALETTE_SIZE}" + (" dashed" if line.colour // PALETTE_SIZE % 2 else "")
        style = "line strong" if line.strong else style
        path = "M" + " ".join(f"{a:g},{b:g}" for a, b in points)
        curves.append(Markup('<path class="{}" d="{}"><title>{}</title></path>').format(style, path, line.name))
        if dots or len(points) == 1:  # a line of length 0 with round caps is a round dot, even in a stretched plot
            for a, b in points:
                curves.append(
                    Markup('<path class="dot c{}" d="M{:g},{:g}h0"/>').format(line.colour % PALETTE_SIZE, a, b)
                )
    marks = Markup("")
    if deadline is not None:
        at = _PLOT_LEFT + _PLOT_WIDTH * x.position(deadline)
        marks = _deadline(at, _PLOT_TOP, _PLOT_TOP + _PLOT_HEIGHT, label_y=_PLOT_TOP - 8)
    return chart_svg(_frame(x, y, titles) + marks + _stretched(curves), _PLOT_TOP + _PLOT_HEIGHT + _PLOT_FOOT, label)


def histogram(counts: Sequence[int], edges: Sequence[float], x: Axis, *, titles: tuple[str, str], label: str) -> Markup:
    """Vertical bars: n counts between n + 1 edges."""
    y = linear_axis(0, max([*counts, 1]), count=4)
    bars = []
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        left, right, top = x.position(low), x.position(high), y.position(count)
        bars.append(
            Markup(
                '<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>'
            ).format(
                1000 * left,
                1000 * (1 - top),
                1000 * max(right - left, 0.001),
                1000 * top,
                f"{low:.4g} to {high:.4g}: {count}",
            )
        )
    return chart_svg(_frame(x, y, titles) + _stretched(bars), _PLOT_TOP + _PLOT_HEIGHT + _PLOT_FOOT, label)


def bar_chart(bars: Sequence[Bar], *, label: str) -> Markup:
    """Horizontal bars from 0 with labels above and texts at their ends; the longest takes three quarters of the width."""
    top = max([b.value for b in bars] + [b.interval[1] for b in bars if b.interval] + [1e-12])
    parts = []
    for i, bar in enumerate(bars):
        y, end = i * _ROW, 75 * max(bar.value, 0) / top
        parts.append(
            Markup(
                '<text class="name" x="0" y="{}">{}</text>'
                '<rect class="bar{}" x="0" y="{}" width="{:.2f}%" height="{}" rx="2"/>'
            ).format(y + 13, bar.label, " strong" if bar.strong else "", y + 19, end, _BAR)
        )
        if bar.interval:
            low, high = (75 * min(max(v, 0), top) / top for v in bar.interval)
            parts += whisker(low, high, y + 19 + _BAR / 2)
            end = max(end, high)
        parts.append(Markup('<text x="{:.2f}%" dx="6" y="{}">{}</text>').format(end, y + 19 + _BAR - 1, bar.text))
    return chart_svg(Markup("").join(parts), max(len(bars), 1) * _ROW, label)


def whisker(low: float, high: float, y: float) -> list[Markup]:
    """A line from low to high per cent with a stroke at each end, and an outline that keeps it visible over other marks."""
    strokes = [
        Markup('x1="{:.2f}%" y1="{:g}" x2="{:.2f}%" y2="{:g}"').format(x1, y + y1, x2, y + y2)
        for x1, y1, x2, y2 in ((low, 0, high, 0), (low, -4, low, 4), (high, -4, high, 4))
    ]
    return [
        Markup('<line class="{}" {}/>').format(style, stroke)
        for style in ("whisker rim", "whisker")
        for stroke in strokes
    ]


def lane_chart(lanes: Sequence[Lane], *, deadline: float | None, label: str) -> Markup:
    """A list of lanes, each below its name and details, and a time axis from the start of the campaign below the last lane.

    Names and details are text of the page, which wraps on a narrow page.
    """
    spans = [span for lane in lanes for span in (*lane.background, *lane.blocks)]
    axis = time_axis(max([s.end for s in spans] + [deadline or 0.0]) * 1.04)
    items = []
    for lane in lanes:
        parts = [_block(axis, span, f"{lane.colour} faint") for span in lane.background]
        parts += [_block(axis, span, lane.colour) for span in lane.blocks]
        if deadline is not None:
            parts.append(_deadline(100 * axis.position(deadline), 0, _LANE, label_y=None))
        items.append(
            Markup('<li><span class="name">{}</span> <span class="aside">{}</span>{}</li>').format(
                lane.name, lane.details, _decoration(Markup("").join(parts), _LANE)
            )
        )
    foot = _time_grid(axis)
    if deadline is not None:
        foot += _deadline(100 * axis.position(deadline), 0, 4, label_y=None)
    return Markup('<ul class="lanes" aria-label="{}">{}</ul>{}').format(
        label, Markup("").join(items), _decoration(foot, 24)
    )


def _block(axis: Axis, span: Span, style: str) -> Markup:
    left, right = 100 * axis.position(span.start), 100 * axis.position(span.end)
    title = f"{span.name}: {duration_text(span.end - span.start)}, from {duration_text(span.start)} on"
    return Markup(
        '<rect class="block {}" x="{:.2f}%" y="1" width="{:.2f}%" height="{}"><title>{}</title></rect>'
    ).format(style, left, max(right - left, 0.25), _BAR + 2, title)


def _time_grid(axis: Axis) -> Markup:
    """Short vertical lines at the ticks of a time axis, with the tick labels below."""
    parts = []
    for value, text in axis.ticks:
        at = 100 * axis.position(value)
        anchor = "start" if at < 4 else "end" if at > 97 else "middle"
        parts.append(
            Markup(
                '<line class="grid" x1="{0:.2f}%" y1="0" x2="{0:.2f}%" y2="4"/>'
                '<text class="tick" x="{0:.2f}%" y="18" text-anchor="{1}">{2}</text>'
            ).format(at, anchor, text)
        )
    return Markup("").join(parts)


def _deadline(at: float, top: int, bottom: int, *, label_y: int | None) -> Markup:
    """A vertical line at `at` per cent of the width, labelled at height `label_y` (None: no label)."""
    line = Markup('<line class="deadline" x1="{0:.2f}%" y1="{1}" x2="{0:.2f}%" y2="{2}"/>').format(at, top, bottom)
    if label_y is None:
        return line
    label = Markup('<text class="deadline" x="{:.2f}%" dx="-5" y="{}" text-anchor="end">deadline</text>')
    return line + label.format(at, label_y)


def chart_svg(inside: Markup, height: int, label: str) -> Markup:
    """An SVG as wide as its container and `height` pixels high; `label` is the chart in words, for screen readers."""
    return Markup('<svg class="chart" role="img" aria-label="{}" width="100%" height="{}">{}</svg>').format(
        label, height, inside
    )


def _decoration(inside: Markup, height: int) -> Markup:
    """An SVG that screen readers skip, since the text beside it says the same."""
    return Markup('<svg class="chart" aria-hidden="true" width="100%" height="{}">{}</svg>').format(height, inside)


def _stretched(parts: Iterable[Markup]) -> Markup:
    """Parts in a 1000 x 1000 square, stretched to the plot; the page's style keeps the width of strokes."""
    return Markup(
        '<svg class="plot" x="{}%" y="{}" width="{}%" height="{}" viewBox="0 0 1000 1000" preserveAspectRatio="none">'
        "{}</svg>"
    ).format(_PLOT_LEFT, _PLOT_TOP, _PLOT_WIDTH, _PLOT_HEIGHT, Markup("").join(parts))


def _frame(x: Axis, y: Axis, titles: tuple[str, str]) -> Markup:
    """Grid lines, tick labels and the axes' titles."""
    bottom, right = _PLOT_TOP + _PLOT_HEIGHT, _PLOT_LEFT + _PLOT_WIDTH
    parts = []
    for value, text in y.ticks:
        at = bottom - _PLOT_HEIGHT * y.position(value)
        parts.append(
            Markup('<line class="grid" x1="{}%" y1="{:.1f}" x2="{}%" y2="{:.1f}"/>').format(_PLOT_LEFT, at, right, at)
        )
        parts.append(
            Markup('<text class="tick" x="{}%" dx="-6" y="{:.1f}" text-anchor="end">{}</text>').format(
                _PLOT_LEFT, at + 4, text
            )
        )
    for value, text in x.ticks:
        at = x.position(value)
        anchor = "end" if at > 0.97 else "middle"
        parts.append(
            Markup('<text class="tick" x="{:.2f}%" y="{}" text-anchor="{}">{}</text>').format(
                _PLOT_LEFT + _PLOT_WIDTH * at, bottom + 16, anchor, text
            )
        )
    parts.append(
        Markup('<text class="axis" x="{}%" y="{}" text-anchor="end">{}</text>').format(right, bottom + 35, titles[0])
    )
    parts.append(Markup('<text class="axis" x="0" y="11">{}</text>').format(titles[1]))
    return Markup("").join(parts)
