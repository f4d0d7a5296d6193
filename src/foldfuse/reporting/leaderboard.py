"""The chart of out-of-fold scores against leaderboard scores."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from foldfuse.reporting.axes import linear_axis
from foldfuse.reporting.charts import Chart, Line, line_chart
from foldfuse.storage.notes import LeaderboardScore


def leaderboard_chart(scored: Mapping[str, Sequence[LeaderboardScore]]) -> Chart | None:
    """A dot for each submission of each campaign: the out-of-fold score to the right, the leaderboard's score upwards.

    None for fewer than two submissions: one dot tells nothing.
    """
    dots = [
        Line(
            f"{name} submission {one.submission}: {one.out_of_fold:.4f} out-of-fold, {one.leaderboard:.4f}".strip(),
            np.array([one.out_of_fold]),
            np.array([one.leaderboard]),
            colour,
        )
        for colour, (name, its) in enumerate(scored.items())
        for one in its
    ]
    if len(dots) < 2:
        return None
    x, y = (np.concatenate([getattr(dot, axis) for dot in dots]) for axis in "xy")
    pairs = list(itertools.combinations(range(len(dots)), 2))
    alike = sum((x[i] - x[j]) * (y[i] - y[j]) > 0 for i, j in pairs)
    svg = line_chart(
        dots,
        linear_axis(float(x.min()), float(x.max())),
        linear_axis(float(y.min()), float(y.max())),
        titles=("out-of-fold", "leaderboard"),
        label="Leaderboard score against the one out-of-fold: " + "; ".join(dot.name for dot in dots) + ".",
    )
    caption = (
        f"Each dot is a submission. Both scores agree on which is the better one in {alike} of {len(pairs)} pairs."
    )
    return Chart("Out-of-fold and leaderboard", svg, caption, tuple(scored) if len(scored) > 1 else ())
