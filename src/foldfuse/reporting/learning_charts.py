"""Charts of a training over its time: loss, learning rate, and scores on held-out images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foldfuse.reporting.axes import linear_axis, log_axis, time_axis
from foldfuse.reporting.charts import Chart, Line, downsampled, line_chart
from foldfuse.reporting.records import LearningCurves


def loss_chart(runs: Sequence[LearningCurves]) -> Chart | None:
    """The training loss of each run, on a logarithmic scale; None where no run has one."""
    lines = []
    for colour, run in enumerate(runs):
        shown = (run.loss > 0) & np.isfinite(run.loss)
        if shown.any():
            lines.append(Line(run.name, *downsampled(run.seconds[shown], run.loss[shown]), colour))
    if not lines:
        return None
    values = np.concatenate([line.y for line in lines])
    svg = line_chart(
        lines,
        time_axis(max(line.x.max() for line in lines)),
        log_axis(float(values.min()), float(values.max())),
        titles=("training time", "loss"),
        label="Training loss over training time: "
        + ", ".join(f"{line.name} from {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in lines),
    )
    return Chart("Training loss", svg, "Means over short intervals; the scale is logarithmic.", _legend(runs))


def lr_chart(run: LearningCurves) -> Chart | None:
    """The learning rate of a run; None where fewer than two steps have one."""
    known = (run.lr >= 0) & np.isfinite(run.lr)
    if known.sum() < 2:
        return None
    line = Line(run.name, *downsampled(run.lr_seconds[known], run.lr[known]), 0)
    svg = line_chart(
        [line],
        time_axis(float(line.x.max())),
        linear_axis(0, max(float(line.y.max()), 1e-12), count=4),
        titles=("training time", "learning rate"),
        label=f"Learning rate over training time: at most {line.y.max():.3g}.",
    )
    return Chart("Learning rate", svg, "The base rate; parts of the network may have a share of it.")


def score_chart(runs: Sequence[LearningCurves]) -> Chart | None:
    """The score on held-out images of each run that was scored more than once; None where there is none: a dot is no curve."""
    shown = [run for run in runs if len(run.scores) > 1]
    if not shown:
        return None
    lines = [Line(run.name, run.eval_seconds, run.scores, colour) for colour, run in enumerate(shown)]
    metric = shown[0].metric
    return score_curves(lines, metric, f"{metric} on held-out images.", _legend(shown))


def score_curves(lines: Sequence[Line], metric: str, caption: str, legend: tuple[str, ...]) -> Chart:
    """A chart of a score on held-out images over training time."""
    svg = line_chart(
        lines,
        time_axis(max(line.x.max() for line in lines)),
        linear_axis(0, max(0.01, *(float(line.y.max()) for line in lines))),
        titles=("training time", metric),
        label=f"{metric} on held-out images over training time: "
        + ", ".join(f"{line.name} ends at {line.y[-1]:.3f}" for line in lines),
        dots=True,
    )
    return Chart(f"{metric[0].upper()}{metric[1:]} during training", svg, caption, legend)


def _legend(runs: Sequence[LearningCurves]) -> tuple[str, ...]:
    """The names of the runs; a single one needs no legend."""
    return tuple(run.name for run in runs) if len(runs) > 1 else ()
