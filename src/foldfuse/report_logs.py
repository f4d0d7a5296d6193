"""The learning curves of a run, read from its log while it may still be written to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foldfuse.boxes import Array
from foldfuse.report_values import decoded, number_of


@dataclass(frozen=True, eq=False)
class Log:
    """The learning curves of one member: (n,) seconds and loss, (m,) seconds and AP50 of the evaluations."""

    name: str
    seconds: Array
    loss: Array
    tested: Array
    ap50: Array


def read_log(path: Path, name: str, gaps: list[str]) -> Log:
    """The Log in a log.jsonl; empty where there is none. A last line that is still being written is passed over."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    loss: list[tuple[float, float]] = []
    tested: list[tuple[float, float]] = []
    broken = 0
    for line in lines[:-1]:
        row = decoded(line)
        seconds = number_of(row, "seconds")
        if seconds is None:
            broken += 1
            continue
        for key, curve in (("loss", loss), ("ap50", tested)):
            value = number_of(row, key)
            if value is not None:
                curve.append((seconds, value))
    if broken:
        gaps.append(f"{path.name} of {name}: {broken} of {len(lines) - 1} lines could not be read.")
    losses, tests = (np.array(curve, np.float64).reshape(-1, 2) for curve in (loss, tested))
    return Log(name, losses[:, 0], losses[:, 1], tests[:, 0], tests[:, 1])
