"""The course of a campaign: its score over time, the training of each segment, and which base runs were promoted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foldfuse.boxes import Array
from foldfuse.ensemble.ranking import MIN_GAIN, MIN_PROB_BETTER
from foldfuse.reporting.axes import linear_axis, time_axis
from foldfuse.reporting.charts import PALETTE_SIZE, Chart, Lane, Line, Span, duration_text, lane_chart, line_chart
from foldfuse.reporting.records import CampaignRecord, Segment

WORK_KINDS = ("setup", "train", "predict", "fuse", "submit", "report", "other")
_ROLES = {  # of the ledger: name on the page, colour
    "base": ("base run", "f1"),
    "extended": ("extended run", "f4"),
    "cooldown": ("cooldown run", "f2"),
    "soup": ("averaged weights", "f3"),
    "external_run": ("external run", "f5"),
    "external_predictions": ("external predictions", "f6"),
}


@dataclass(frozen=True)
class Promotion:
    """A base run in the order of its gain for the ensemble, and whether it was promoted.

    Attributes:
        name: the name of the base run.
        ap50: AP50 of the base run alone.
        ensemble_score: the score of the ensemble of this base run and all before it.
        gain: the increase of `ensemble_score` over the best score before.
        prob_better: share of the bootstrap resamples in which the gain is above 0.
        promoted: whether the base run was trained further.
    """

    name: str
    ap50: float | None
    ensemble_score: float
    gain: float
    prob_better: float
    promoted: bool


@dataclass(frozen=True)
class Timeline:
    """Charts and tables of the course of a campaign; None or empty where the campaign has no data for one yet."""

    scores: Chart | None
    work: Chart | None
    segments: Chart | None
    promotions: tuple[Promotion, ...]
    min_gain: float = MIN_GAIN
    min_prob_better: float = MIN_PROB_BETTER


def timeline(record: CampaignRecord) -> Timeline:
    """The Timeline of a campaign or a run."""
    return Timeline(score_chart(record), work_chart(record), segment_chart(record), promotions(record))


def score_chart(record: CampaignRecord) -> Chart | None:
    """AP50 of the submissions and of the best single member so far, over time."""
    fused = [(s.at, s.ap50) for s in record.history if s.ap50 is not None]
    done = sorted((s.ended, s.ap50) for s in record.segments if s.ended is not None and s.ap50 is not None)
    best = np.maximum.accumulate([ap50 for _, ap50 in done] or [0.0])
    singles = [(at, float(ap50)) for (at, _), ap50 in zip(done, best, strict=False)]
    if not fused and not singles:
        return None
    end = max([record.seconds_used or 0.0] + [at for at, _ in (*fused, *singles)])
    lines = [Line("fused", *step_line(fused, end), 0, strong=True)] if fused else []
    lines += [Line("best single member", *step_line(singles, end), 0)] if singles else []
    values = np.concatenate([line.y for line in lines])
    low, high = float(values.min()), float(values.max())
    svg = line_chart(
        lines,
        time_axis(max(end, record.deadline_seconds or 0.0) * 1.04),
        linear_axis(low if high > low else 0.0, high),
        titles=("time since the start", "AP50"),
        label="AP50 on held-out images over time: "
        + ", ".join(f"{line.name} ends at {line.y[-1]:.3f}" for line in lines),
        deadline=record.deadline_seconds,
    )
    names = tuple(line.name for line in lines)
    caption = "AP50 on held-out images. Each step is a new submission, or a new best member in one TTA view."
    return Chart("Score over time", svg, caption, names[1:] if fused else names, names[0] if fused else None)


def step_line(points: Sequence[tuple[float, float]], end: float) -> tuple[Array, Array]:
    """(2n,), (2n,) corners of a step curve: each of n values holds until the time of the next one, the last until `end`."""
    times, values = (np.array(column, np.float64) for column in zip(*points, strict=True))
    return np.repeat(np.append(times, end), 2)[1:-1], np.repeat(values, 2)


def work_chart(record: CampaignRecord) -> Chart | None:
    """A lane for each kind of work, with the time spent on it."""
    if not record.spans:
        return None
    kinds = [*WORK_KINDS, *sorted({s.kind for s in record.spans} - set(WORK_KINDS))]
    total = _seconds(record.spans) or 1.0
    lanes = []
    for i, kind in enumerate(kinds):
        spans = tuple(s for s in record.spans if s.kind == kind)
        seconds = _seconds(spans)
        if spans:
            words = f"{duration_text(seconds)}, {seconds / total:.0%}"
            lanes.append(Lane(kind, words, spans, f"f{i % PALETTE_SIZE}"))
    svg = lane_chart(lanes, deadline=record.deadline_seconds, label="Time spent on each kind of work")
    caption = "Time since the start. Each block is one piece of work; the shares are of all work done."
    if record.cpu_share is not None:
        caption += f" The process used {record.cpu_share:.0%} of the cores' time."
    return Chart("By kind of work", svg, caption + _deadline_caption(record))


def segment_chart(record: CampaignRecord) -> Chart | None:
    """A lane for each segment, in the order of their starts."""
    if not record.segments:
        return None
    lanes = [_segment_lane(segment, record) for segment in sorted(record.segments, key=lambda s: s.started)]
    svg = lane_chart(lanes, deadline=record.deadline_seconds, label="Training time of each segment")
    caption = "Full colour: training. Faint: until the segment's held-out images were predicted."
    return Chart("By segment", svg, caption + _deadline_caption(record))


def _deadline_caption(record: CampaignRecord) -> str:
    return " The dashed line is the deadline." if record.deadline_seconds is not None else ""


def _segment_lane(segment: Segment, record: CampaignRecord) -> Lane:
    trainings = tuple(s for s in record.spans if s.kind == "train" and s.name == f"train {segment.name}")
    now = max([record.seconds_used or 0.0, segment.started] + [s.end for s in trainings])
    end = segment.ended if segment.ended is not None else now
    role, colour = _ROLES.get(segment.role or "", ("", "f0"))
    words = [
        role,
        f"from {segment.parent}" if segment.parent else "",
        f"trained {duration_text(_seconds(trainings))}" if trainings else "",
        f"AP50 {segment.ap50:.3f}" if segment.ap50 is not None else "",
        segment.state if segment.state and segment.state != "done" else "",
    ]
    whole = Span(segment.name, "segment", segment.started, max(end, segment.started))
    return Lane(segment.name, " · ".join(filter(None, words)), trainings, colour, background=(whole,))


def _seconds(spans: Sequence[Span]) -> float:
    return sum(s.end - s.start for s in spans)


def promotions(record: CampaignRecord) -> tuple[Promotion, ...]:
    """The base runs in the order of their gain for the ensemble; empty for a campaign with one base run."""
    if len(record.gains) < 2:
        return ()
    ap50 = {s.name: s.ap50 for s in record.segments}
    rows, best = [], 0.0
    for ranked in record.gains:
        score = ranked.ensemble_score
        is_promoted = ranked.name in record.ranking
        rows.append(Promotion(ranked.name, ap50.get(ranked.name), score, score - best, ranked.prob_better, is_promoted))
        best = max(best, score)
    return tuple(rows)
