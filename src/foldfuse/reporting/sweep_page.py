"""The HTML page of a sweep: curves of AP and AP50 over the seconds of training, the table of all runs, and their differences."""

from __future__ import annotations

import numpy as np

from foldfuse.evaluation.custom_metric import metric_label
from foldfuse.reporting.charts import Chart, Line
from foldfuse.reporting.interval_chart import Interval, interval_chart
from foldfuse.reporting.learning_charts import score_curves
from foldfuse.reporting.page_template import template
from foldfuse.system.durations import format_duration
from foldfuse.training.sweep import Sweep, SweepRun
from foldfuse.training.sweep_comparison import SweepComparison

MISSING = "–"
TERMINAL_HEADS = 6  # that fit 80 columns


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
    comparison = sweep.comparison or SweepComparison()
    if chart := _difference_chart(sweep, comparison):
        charts.append(chart)
    rows = [(*row, comparison.verdict(row[0]) or MISSING) for row in sweep_rows(sweep)]
    return template("sweep.html").render(
        name=name,
        each=format_duration(sweep.seconds_each or 0.0),
        charts=charts,
        heads=[*sweep_heads(sweep), "compared with the best"],
        rows=rows,
        sentences=comparison.sentences(),
    )


def sweep_heads(sweep: Sweep) -> tuple[str, ...]:
    """The heads of `sweep_rows`: another metric than AP and AP50 has a column of its own."""
    metric = sweep.request.metric
    own = (metric_label(metric),) if _has_own_column(sweep) else ()
    return ("run", *own, "AP", "AP50", f"{metric_label(metric)} − best", "95 % interval", "images/s", "steps", "lr")


def _has_own_column(sweep: Sweep) -> bool:
    return sweep.request.metric not in ("ap", "ap50")


def sweep_rows(sweep: Sweep) -> list[tuple[str, ...]]:
    """The texts of `sweep_heads` for each run, the best by the sweep's metric first."""
    rows, comparison = [], sweep.comparison or SweepComparison()
    for name, run in sweep.runs.items():
        ap, ap50 = _last_scores(run)
        own = comparison.scores.get(name, ap)
        scores: tuple[str, ...] = ("failed", MISSING) if run.failed else (_score_text(ap), _score_text(ap50))
        if _has_own_column(sweep):
            scores = (MISSING if run.failed else _score_text(own), *scores)
        one = comparison.differences.get(name)
        difference = (f"{one.value:+.3f}", f"{one.low:+.3f} to {one.high:+.3f}") if one else (MISSING, MISSING)
        speed = f"{run.images_per_second or 0:.1f}"
        lr = f"{sweep.request.recipes[name].lr:.2g}"
        texts = (name, *scores, *difference, speed, str(run.steps or MISSING), lr)
        rows.append((not run.failed, own or 0.0, texts))
    return [texts for *_, texts in sorted(rows, key=lambda row: row[:2], reverse=True)]


def _difference_chart(sweep: Sweep, comparison: SweepComparison) -> Chart | None:
    """The differences from the best run with their intervals, the best first; None where there is none."""
    rows = [
        Interval(f"{name}: {row[1]}", one.value, one.low, one.high)
        for row in sweep_rows(sweep)
        for name in [row[0]]
        if (one := comparison.differences.get(name)) is not None
    ]
    if not rows:
        return None
    title = f"{metric_label(comparison.metric)} minus that of the best, {comparison.best}"
    caption = (
        f"On the {comparison.num_images:,} held-out images; whiskers are 95 % intervals of the bootstrap over them. A run whose "
        "whiskers reach 0 cannot be told apart from the best."
    )
    return Chart(title, interval_chart(rows, label=title), caption)


def _last_scores(run: SweepRun) -> tuple[float | None, float | None]:
    """AP and AP50 at the end of a run; None without a score."""
    last = run.evaluations[-1] if run.evaluations else None
    return (last.ap, last.ap50) if last else (None, None)


def _score_text(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"
