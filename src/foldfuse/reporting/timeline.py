"""How a campaign went: its score against the clock, what was trained when, which trunks were promoted and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from foldfuse.boxes import Array
from foldfuse.ensemble.ranking import LEAST_ADDED, SURE
from foldfuse.reporting.charts import (
    Chart,
    Lane,
    Line,
    Span,
    duration,
    lanes,
    line_chart,
    linear_axis,
    time_axis,
    timeline,
)
from foldfuse.reporting.records import Facts, Segment

KINDS = ("setup", "train", "predict", "fuse", "submit", "report", "other")
_COLOURS = {"trunk": "f1", "grown": "f4", "branch": "f2"}  # of segments, by what their names begin with


@dataclass(frozen=True)
class Promoted:
    """A trunk, and whether it went on: its own AP50, the ensemble's value with it, and what it adds to those before it.

    `sure` is the share of draws of the pictures in which it adds something; None where that is not known.
    """

    name: str
    ap50: float | None
    value: float
    adds: float
    sure: float | None
    went_on: bool


@dataclass(frozen=True)
class Story:
    """What the page tells of the way; what there is nothing to tell of is None or empty."""

    scores: Chart | None
    kinds: Chart | None
    segments: Chart | None
    trunks: tuple[Promoted, ...]
    least_added: float = LEAST_ADDED
    least_sure: float = SURE


def story(facts: Facts) -> Story:
    """The Story of a campaign or a run."""
    return Story(score_chart(facts), kind_chart(facts), segment_chart(facts), promoted(facts))


def score_chart(facts: Facts) -> Chart | None:
    """AP50 against the clock, of what was submitted and of the best single member so far."""
    fused = [(s.at, s.ap50) for s in facts.history if s.ap50 is not None]
    done = sorted((s.ended, s.ap50) for s in facts.segments if s.ended is not None and s.ap50 is not None)
    singles = list(
        zip((at for at, _ in done), np.maximum.accumulate([ap50 for _, ap50 in done] or [0.0]), strict=False)
    )
    if not fused and not singles:
        return None
    end = max([facts.seconds_used or 0.0] + [at for at, _ in (*fused, *singles)])
    lines = [Line("fused", *steps(fused, end), 0, strong=True)] if fused else []
    lines += [Line("best single member", *steps(singles, end), 0)] if singles else []
    values = np.concatenate([line.y for line in lines])
    low, high = float(values.min()), float(values.max())
    svg = line_chart(
        lines,
        time_axis(max(end, facts.deadline_seconds or 0.0) * 1.04),
        linear_axis(low if high > low else 0.0, high),
        titles=("time since the start", "AP50"),
        label="AP50 on held-back pictures against the clock: "
        + ", ".join(f"{line.name} ends at {line.y[-1]:.3f}" for line in lines),
        deadline=facts.deadline_seconds,
    )
    names = tuple(line.name for line in lines)
    lead = names[0] if fused else None
    return Chart(
        "Score against the clock",
        svg,
        "AP50 on held-back pictures; each step is a new submission or a new best member in one view.",
        names[1:] if fused else names,
        lead,
    )


def steps(points: Sequence[tuple[float, float]], end: float) -> tuple[Array, Array]:
    """(2n,), (2n,) corners of a line that keeps each of n values from its time until the next one's, the last to `end`."""
    times, values = (np.array(column, np.float64) for column in zip(*points, strict=True))
    return np.repeat(np.append(times, end), 2)[1:-1], np.repeat(values, 2)


def kind_chart(facts: Facts) -> Chart | None:
    """A lane for each kind of work."""
    if not facts.timeline:
        return None
    kinds = [*KINDS, *sorted({s.kind for s in facts.timeline} - set(KINDS))]
    taken = {k: sum(s.end - s.start for s in facts.timeline if s.kind == k) for k in kinds}
    words = ", ".join(f"{k} {duration(t)}" for k, t in taken.items() if t)
    svg = timeline(facts.timeline, kinds=kinds, deadline=facts.deadline_seconds, label=f"Where the time went: {words}.")
    caption = "Time since the start; each block is one piece of work. Shares are of all work done."
    return Chart("By kind of work", svg, caption)


def segment_chart(facts: Facts) -> Chart | None:
    """A lane for each segment, in the order in which they began."""
    if not facts.segments:
        return None
    rows = [_lane(segment, facts) for segment in sorted(facts.segments, key=lambda s: s.started)]
    svg = lanes(rows, deadline=facts.deadline_seconds, label="What was trained when")
    caption = "Strong where it was trained, faint until its held-back pictures were predicted."
    deadline = " The dashes are the deadline." if facts.deadline_seconds is not None else ""
    return Chart("By segment", svg, caption + deadline)


def _lane(segment: Segment, facts: Facts) -> Lane:
    own = tuple(s for s in facts.timeline if s.kind == "train" and s.name == f"train {segment.name}")
    now = max([facts.seconds_used or 0.0, segment.started] + [s.end for s in own])
    end = segment.ended if segment.ended is not None else now
    trained = sum(s.end - s.start for s in own)
    words = [
        f"from {segment.parent}" if segment.parent else "",
        f"trained {duration(trained)}" if trained else "",
        f"AP50 {segment.ap50:.3f}" if segment.ap50 is not None else "",
        segment.state if segment.state and segment.state != "done" else "",
    ]
    whole = Span(segment.name, "segment", segment.started, max(end, segment.started))
    colour = next((c for begin, c in _COLOURS.items() if segment.name.startswith(begin)), "f0")
    return Lane(segment.name, _listed(words), whole, own, colour)


def _listed(words: Iterable[str]) -> str:
    return " · ".join(word for word in words if word)


def promoted(facts: Facts) -> tuple[Promoted, ...]:
    """The trunks by what they add to those before them; empty where there was one alone."""
    if len(facts.gains) < 2:
        return ()
    alone = {s.name: s.ap50 for s in facts.segments}
    rows, best = [], 0.0
    for gain in facts.gains:
        went_on = gain.name in facts.promoted
        rows.append(Promoted(gain.name, alone.get(gain.name), gain.value, gain.value - best, gain.sure, went_on))
        best = max(best, gain.value)
    return tuple(rows)
