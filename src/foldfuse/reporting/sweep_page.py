"""The HTML page of a sweep: curves of AP and AP50 over the seconds of training, and the table of all runs."""

from __future__ import annotations

import numpy as np

from foldfuse.reporting.charts import Line
from foldfuse.reporting.learning_charts import score_curves
from foldfuse.reporting.page_template import template
from foldfuse.system.durations import format_duration
from foldfuse.training.sweep import Sweep

MISSING = "–"


def sweep_page(sweep: Sweep, name: str) -> str:
    """The HTML page of a sweep on the dataset called `name`."""
    charts = []
    evaluated = {run_name: run.evaluations for run_name, run in sweep.runs.items() if run.evaluations}
    for key, title in (("ap", "AP"), ("ap50", "AP50")):
        lines = [
            Line(run_name, np.array([e.seconds for e in its]), np.array([getattr(e, key) or 0.0 for e in its]), i)
            for i, (run_name, its) in enumerate(evaluated.items())
        ]
        if lines:
            charts.append(score_curves(lines, title, "On the held-out fold.", tuple(evaluated)))
    each = format_duration(sweep.seconds_each or 0.0)
    return template("sweep.html").render(name=name, each=each, charts=charts, rows=sweep_rows(sweep))


def sweep_rows(sweep: Sweep) -> list[tuple[str, ...]]:
    """Name, AP, AP50, steps, images per second and learning rate of each run as texts, the best AP first."""
    rows = []
    for name, run in sweep.runs.items():
        last = run.evaluations[-1] if run.evaluations else None
        ap, ap50 = (last.ap, last.ap50) if last else (None, None)
        scores = ("failed", MISSING) if run.failed else (_score_text(ap), _score_text(ap50))
        speed = f"{run.images_per_second or 0:.1f}"
        lr = f"{sweep.request.recipes[name].lr:.2g}"
        rows.append((ap or 0.0, (name, *scores, str(run.steps or MISSING), speed, lr)))
    return [texts for _, texts in sorted(rows, key=lambda row: -row[0])]


def _score_text(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"
