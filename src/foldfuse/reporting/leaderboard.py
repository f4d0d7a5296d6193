"""The chart of out-of-fold scores against leaderboard scores."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from foldfuse.reporting.axes import linear_axis
from foldfuse.reporting.charts import Chart, Line, line_chart
from foldfuse.storage.notes import LeaderboardScore


def leaderboard_chart(scores: Mapping[str, Sequence[LeaderboardScore]]) -> Chart | None:
    """A dot for each submission with a leaderboard score, by campaign: out-of-fold score on x, leaderboard score on y.

    None for fewer than two submissions, which show no trend.
    """
    dots = [
        Line(
            f"{name} submission {one.submission}: {one.out_of_fold:.4f} out-of-fold, {one.leaderboard:.4f}".strip(),
            np.array([one.out_of_fold]),
            np.array([one.leaderboard]),
            colour,
        )
        for colour, (name, submissions) in enumerate(scores.items())
        for one in submissions
    ]
    if len(dots) < 2:
        return None
    x, y = (np.concatenate([getattr(dot, axis) for dot in dots]) for axis in "xy")
    pairs = list(itertools.combinations(range(len(dots)), 2))
    agreeing = sum((x[i] - x[j]) * (y[i] - y[j]) > 0 for i, j in pairs)
    svg = line_chart(
        dots,
        linear_axis(float(x.min()), float(x.max())),
        linear_axis(float(y.min()), float(y.max())),
        titles=("out-of-fold", "leaderboard"),
        label="Leaderboard score against out-of-fold score: " + "; ".join(dot.name for dot in dots) + ".",
    )
    caption = f"Each dot is a submission. Both scores give the same order in {agreeing} of {len(pairs)} pairs."
    return Chart("Out-of-fold and leaderboard", svg, caption, tuple(scores) if len(scores) > 1 else ())
