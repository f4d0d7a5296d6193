"""The HTML page of `profile`: a chart for each model of its costs over the number of patches, both axes logarithmic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from foldfuse.inference.cost import PATCH, QUANTITIES, CostPoint, scaling_exponents
from foldfuse.reporting.axes import Axis, log_axis
from foldfuse.reporting.charts import Chart, Line, line_chart
from foldfuse.reporting.page_template import template


def page(costs: Mapping[str, Sequence[CostPoint]]) -> str:
    """The HTML page of the costs of each model, each relative to that at the smallest image size."""
    return template("profile.html").render(charts=[cost_chart(name, points) for name, points in costs.items()])


def cost_chart(name: str, points: Sequence[CostPoint]) -> Chart:
    """A chart of a model's costs over the number of patches; a cost that is 0 is left out."""
    patches = np.array([p.patches for p in points])
    growth = {
        quantity: np.array([value(p) for p in points]) / value(points[0])
        for quantity, value in QUANTITIES.items()
        if value(points[0]) > 0
    }
    svg = line_chart(
        [Line(quantity, patches, values, i) for i, (quantity, values) in enumerate(growth.items())],
        Axis(patches[0], patches[-1], tuple((p.patches, f"{p.patches:.0f}") for p in points), log=True),
        log_axis(1 / 1.1, max(2.0, *(values.max() for values in growth.values()))),
        titles=(f"patches of {PATCH} px", f"cost relative to {points[0].image_size} px"),
        label=f"How the costs of {name} grow with the number of patches",
        dots=True,
    )
    exponents = scaling_exponents(points)
    legend = tuple(f"{quantity} ~ patches^{exponents[quantity]:.2f}" for quantity in growth)
    return Chart(name, svg, f"Costs relative to an image of {points[0].image_size} px.", legend)
