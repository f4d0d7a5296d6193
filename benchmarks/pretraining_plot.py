"""Draws AP against steps, from ImageNet weights and from detection weights, from the results of `pretraining.py judge`.

    python benchmarks/pretraining_plot.py results.jsonl benchmarks/pretraining.svg

Rows with changes of the recipe are left out. Points are seeds, lines go through their means.
"""

from __future__ import annotations

import math
import statistics
import sys
from pathlib import Path

from pretraining import JUDGED, Row
from rows import read_rows

STEPS_A_MINUTE = 140  # on two idle cores, see pretraining.md
COLOURS = {"ImageNet": "#8b8b8b", "detection": "#1b6ca8"}
WIDTH, HEIGHT, LEFT, TOP, PLOT_W, PLOT_H, GAP = 980, 380, 50, 60, 260, 240, 60


def plot(rows: list[Row]) -> str:
    """An SVG with a panel for each dataset: AP against steps (logarithmic)."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="16">AP of lite0_fpn by the start of its backbone, neck and head</text>',
    ]
    for i, (name, colour) in enumerate(COLOURS.items()):
        x = LEFT + 620 + i * 130
        parts.append(
            f'<path d="M{x} 19h22" stroke="{colour}" stroke-width="3"/><text x="{x + 28}" y="24">{name}</text>'
        )
    names = [name for name in JUDGED if any(row["data"] == name for row in rows)]
    for panel, name in enumerate(names):
        parts += draw_panel([row for row in rows if row["data"] == name], name, left=LEFT + panel * (PLOT_W + GAP))
    foot = f"minutes on two idle cores ({STEPS_A_MINUTE} steps each); a point is a seed"
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 12}" fill="#555">{foot}</text>')
    return "\n".join([*parts, "</svg>\n"])


def draw_panel(rows: list[Row], name: str, *, left: int) -> list[str]:
    """The SVG elements of one dataset."""
    steps = sorted({row["steps"] for row in rows})
    low_x, high_x = math.log(steps[0]) - 0.2, math.log(steps[-1]) + 0.2
    ends = 0.05 * math.floor(min(row["ap"] for row in rows) / 0.05), 0.05 * math.ceil(max(r["ap"] for r in rows) / 0.05)
    unit = 0.02 if ends[1] - ends[0] <= 0.15 else 0.05 if ends[1] - ends[0] <= 0.3 else 0.1
    low, high = unit * math.floor(ends[0] / unit + 1e-9), unit * math.ceil(ends[1] / unit - 1e-9)

    def x_of(n: int) -> float:
        return left + PLOT_W * (math.log(n) - low_x) / (high_x - low_x)

    def y_of(value: float) -> float:
        return TOP + PLOT_H * (1 - (value - low) / (high - low))

    parts = [f'<text x="{left}" y="{TOP - 12}">{name}</text>']
    for tick in range(round((high - low) / unit) + 1):
        value = low + tick * unit
        parts.append(f'<path d="M{left} {y_of(value):.1f}H{left + PLOT_W}" stroke="#e2e2e2"/>')
        parts.append(f'<text x="{left - 8}" y="{y_of(value) + 4:.1f}" text-anchor="end" fill="#555">{value:.2f}</text>')
    for n in steps:
        y = TOP + PLOT_H + 20
        parts.append(
            f'<text x="{x_of(n):.1f}" y="{y}" text-anchor="middle" fill="#555">{n / STEPS_A_MINUTE:.2g}</text>'
        )
    for start, colour in COLOURS.items():
        mine = [row for row in rows if (row["start"] == "imagenet") == (start == "ImageNet")]
        points = {n: [row["ap"] for row in mine if row["steps"] == n] for n in steps}
        line = "L".join(f"{x_of(n):.1f} {y_of(statistics.mean(each)):.1f}" for n, each in points.items() if each)
        parts.append(f'<path d="M{line}" stroke="{colour}" stroke-width="2" fill="none"/>')
        parts += [
            f'<circle cx="{x_of(n):.1f}" cy="{y_of(value):.1f}" r="3.5" fill="{colour}"/>'
            for n, each in points.items()
            for value in each
        ]
    return parts


if __name__ == "__main__":
    results, out = map(Path, sys.argv[1:])
    out.write_text(plot([row for row in read_rows(results) if not row["changes"]]))
