"""The HTML page of a sweep: scores over training time, and a table of all runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from foldfuse.reporting.campaign_page import score_curves, template
from foldfuse.reporting.charts import Line
from foldfuse.system.durations import format_duration
from foldfuse.training.sweep import rows


def page(record: Mapping[str, Any], name: str) -> str:
    """The HTML page of a sweep's record."""
    charts = []
    curves = {name: run["scores"] for name, run in record["runs"].items() if run["scores"]}
    for key, title in (("ap", "AP"), ("ap50", "AP50")):
        lines = [
            Line(run, np.array([r["seconds"] for r in scores]), np.array([r[key] or 0.0 for r in scores]), i)
            for i, (run, scores) in enumerate(curves.items())
        ]
        if lines:
            charts.append(score_curves(lines, title, "On the held-out fold.", tuple(curves)))
    each = format_duration(record["seconds_each"])
    return template("sweep.html").render(name=name, each=each, charts=charts, rows=rows(record))
