"""The HTML page of a sweep: score against seconds of training, and the table of all runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from foldfuse.reporting.campaign_page import template
from foldfuse.reporting.charts import Chart, Line, line_chart, linear_axis, time_axis
from foldfuse.system.durations import format_duration
from foldfuse.training.sweep import rows


def page(record: Mapping[str, Any], name: str) -> str:
    """The HTML page: AP and AP50 against seconds of training, and the table."""
    charts = []
    curves = {name: run["scores"] for name, run in record["runs"].items() if run["scores"]}
    for key, title in (("ap", "AP"), ("ap50", "AP50")):
        lines = [
            Line(run, np.array([r["seconds"] for r in found]), np.array([r[key] or 0.0 for r in found]), i)
            for i, (run, found) in enumerate(curves.items())
        ]
        if lines:
            svg = line_chart(
                lines,
                time_axis(max(line.x.max() for line in lines)),
                linear_axis(0, max(0.01, *(float(line.y.max()) for line in lines))),
                titles=("time in training", title),
                label=f"{title} on held-back pictures against time: "
                + ", ".join(f"{line.name} ends at {line.y[-1]:.3f}" for line in lines),
                dots=True,
            )
            charts.append(Chart(f"{title} while training", svg, "On the held-back fold.", tuple(curves)))
    each = format_duration(record["seconds_each"])
    return template("sweep.html").render(name=name, each=each, charts=charts, rows=rows(record))
