"""Draws differences with their intervals as inline SVG: a row for each, beside the line of no difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from foldfuse.reporting.axes import linear_axis
from foldfuse.reporting.charts import chart_svg, whisker

_ROW, _TOP, _FOOT = 40, 4, 24  # pixels: the height of a row, above the first row, below the last one
_LEFT, _WIDTH = 2.0, 96.0  # per cent of the chart's width


@dataclass(frozen=True)
class Interval:
    """A named difference: its value, and the ends of its interval."""

    name: str
    value: float
    low: float
    high: float


def interval_chart(rows: Sequence[Interval], *, label: str) -> Markup:
    """An SVG with a dot and a whisker for each difference; the axis reaches over all of them and 0."""
    axis = linear_axis(min(0.0, *(row.low for row in rows)), max(0.0, *(row.high for row in rows)))
    bottom = _TOP + _ROW * len(rows)

    def at(value: float) -> float:
        """The horizontal position of a value in per cent."""
        return _LEFT + _WIDTH * axis.position(value)

    parts = []
    for value, text in axis.ticks:
        anchor = "start" if axis.position(value) < 0.03 else "end" if axis.position(value) > 0.97 else "middle"
        parts.append(
            Markup(
                '<line class="{0}" x1="{1:.2f}%" y1="{2}" x2="{1:.2f}%" y2="{3}"/>'
                '<text class="tick" x="{1:.2f}%" y="{4}" text-anchor="{5}">{6}</text>'
            ).format("whisker" if value == 0 else "grid", at(value), _TOP, bottom, bottom + 16, anchor, text)
        )
    for i, row in enumerate(rows):
        name_y, y = _TOP + i * _ROW + 14, _TOP + i * _ROW + 28
        parts.append(Markup('<text class="name" x="0" y="{}">{}</text>').format(name_y, row.name))
        parts += whisker(at(row.low), at(row.high), y)
        parts.append(Markup('<circle class="bar strong" cx="{:.2f}%" cy="{}" r="5"/>').format(at(row.value), y))
    return chart_svg(Markup("").join(parts), bottom + _FOOT, label)
