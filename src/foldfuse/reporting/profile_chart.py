"""The chart of `profile`: how a model's parameters, FLOPs, memory and time grow with the image size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from foldfuse.inference.cost import PATCH, QUANTITIES, CostPoint, scaling_exponents
from foldfuse.reporting.axes import Axis, log_axis
from foldfuse.reporting.charts import Line, line_chart

_WIDTH, _HEIGHT, _LEGEND = 520, 268, 22  # pixels: a panel, its chart, and a line of its legend
_COLOURS = ("#2563a8", "#c2410c", "#0f7f5c", "#7c3aad", "#a16207")


def cost_chart(found: dict[str, list[CostPoint]]) -> Markup:
    """An SVG file: a panel for each model, with each cost relative to that at the smallest size; both axes logarithmic."""
    growth = {name: _growth(points) for name, points in found.items()}
    top = max(max(values) for lines in growth.values() for values in lines.values())
    height = _HEIGHT + 44 + _LEGEND * len(QUANTITIES)
    panels = []
    for i, (name, lines) in enumerate(growth.items()):
        points = found[name]
        patches = np.array([p.patches for p in points])
        x = Axis(patches[0], patches[-1], tuple((p.patches, f"{p.patches:.0f}") for p in points), log=True)
        drawn = [Line(what, patches, np.array(values), list(QUANTITIES).index(what)) for what, values in lines.items()]
        chart = line_chart(
            drawn,
            x,
            log_axis(1 / 1.1, max(top, 2.0)),
            titles=(f"patches of {PATCH} px", f"{name}: times as much as at {points[0].image_size} px"),
            label=f"How the costs of {name} grow with the number of patches",
            dots=True,
        )
        legend = _legend(scaling_exponents(points))
        panels.append(
            Markup('<svg x="{}" y="16" width="{}" height="{}">{}{}</svg>').format(
                16 + i * (_WIDTH + 24), _WIDTH, height, chart, legend
            )
        )
    width = 32 + len(found) * (_WIDTH + 24) - 24
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{1}" viewBox="0 0 {0} {1}">'
        '<style>{2}</style><rect width="100%" height="100%" fill="#ffffff"/>{3}</svg>\n'
    ).format(width, height, _style(), Markup("").join(panels))


def _growth(points: Sequence[CostPoint]) -> dict[str, list[float]]:
    """{quantity: values over the first one}; a quantity that is 0 is left out."""
    return {name: [of(p) / of(points[0]) for p in points] for name, of in QUANTITIES.items() if of(points[0]) > 0}


def _legend(powers: dict[str, float]) -> Markup:
    rows = []
    for i, (what, e) in enumerate(powers.items()):
        y = _HEIGHT + 20 + i * _LEGEND
        colour = list(QUANTITIES).index(what)
        rows.append(
            Markup('<path class="line c{0}" d="M58,{1}h28"/><text x="94" y="{2}">{3} ~ patches^{4:.2f}</text>').format(
                colour, y, y + 4, what, e
            )
        )
    return Markup("").join(rows)


def _style() -> Markup:
    strokes = "".join(f".c{i}{{stroke:{colour}}}" for i, colour in enumerate(_COLOURS))
    return Markup(
        "text{font:13px system-ui,sans-serif;fill:#16202c}.tick{fill:#5a6675;font-size:12px}.grid{stroke:#e8ecf0}"
        ".plot{overflow:visible}.line,.dot{fill:none;stroke-width:2;vector-effect:non-scaling-stroke}"
        f".dot{{stroke-width:7;stroke-linecap:round}}{strokes}"
    )
