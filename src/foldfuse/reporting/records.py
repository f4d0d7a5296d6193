"""What a campaign's or a run's folder says about itself, read while it may still be written to.

Every value may be missing: a campaign that has just begun has no scores, an older one may lack a field. What is absent
is None or empty here; what is there but cannot be read is told in `gaps`, so that nothing is left out in silence.

The learning curves of a run, read from its log while it may still be written to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foldfuse.boxes import Array
from foldfuse.errors import InputError
from foldfuse.reporting.charts import Span
from foldfuse.reporting.values import (
    decoded,
    finite,
    list_of,
    number_of,
    object_of,
    pairs_of,
    path_of,
    rows_of,
    text_of,
    word_of,
)
from foldfuse.storage import ledger


@dataclass(frozen=True)
class Member:
    """One trained detector of the campaign, in the campaign's own words."""

    name: str
    recipe: str | None
    image_size: float | None  # pixels
    seed: float | None
    fold: str | None
    views: tuple[str, ...]
    seconds: float | None
    steps: float | None
    images_per_second: float | None
    ap: float | None
    ap50: float | None
    adds: float | None  # to the fused AP50
    weight: float | None  # in the fusion; None: not a member of it


@dataclass(frozen=True)
class Planned:
    """A line of the plan: a member to train, or what time is kept for."""

    name: str
    image_size: float | None  # pixels
    batch_size: float | None
    state: str | None
    seconds: float | None


@dataclass(frozen=True)
class ClassScore:
    """The fused score of one class."""

    name: str
    boxes: float | None
    ap: float | None
    ap50: float | None


@dataclass(frozen=True)
class Part:
    """A member in one view, as the fusion takes it."""

    name: str
    view: str
    weight: float | None  # as a share of all weights
    adds: float | None  # to the fused score


@dataclass(frozen=True)
class Segment:
    """A stretch of training: a trunk, one that went on from it, or a branch; `ended` is None while it lasts."""

    name: str
    parent: str | None
    state: str | None
    started: float  # seconds since the start, as all times of a campaign
    ended: float | None
    ap50: float | None


@dataclass(frozen=True)
class Submission:
    """One of the submissions, each better than the one before it."""

    at: float
    ap50: float | None
    best_name: str | None  # of the best member in one view
    best_ap50: float | None
    members: int | None  # in the fusion


@dataclass(frozen=True)
class Gain:
    """A trunk with the value of the ensemble of it and those before it, and in what share of draws that is more."""

    name: str
    value: float
    sure: float | None


@dataclass(frozen=True)
class Reason:
    """A sentence that explains a decision."""

    text: str
    at: float | None


@dataclass(frozen=True)
class Fused:
    """The score of the fused predictions on held-back pictures, and how they were fused.

    `metric` is what they were chosen by, `value` that of them.
    """

    metric: str
    value: float | None
    ap: float | None
    ap50: float | None
    ap75: float | None
    kind: str | None
    iou: float | None
    skip: float | None
    interval: tuple[float, float] | None  # of the gain over the best member, on pictures that it was not chosen on
    per_class: tuple[ClassScore, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True, eq=False)
class Facts:
    """All that the page tells but the pictures and the data. `kind` is "campaign" or "run"."""

    kind: str
    folder: Path
    command: str | None
    data: Path | None
    test: Path | None
    deadline_seconds: float | None
    seconds_used: float | None
    started: str | None
    finished: str | None
    state: str  # running, finished, interrupted or unknown
    seed: float | None
    machine: tuple[tuple[str, str], ...]
    left_out: tuple[tuple[str, str], ...]  # file name, reason
    timeline: tuple[Span, ...]
    members: tuple[Member, ...]
    plan: tuple[Planned, ...]
    fused: Fused | None
    best: Member | None
    notes: tuple[Reason, ...]
    segments: tuple[Segment, ...]
    history: tuple[Submission, ...]
    gains: tuple[Gain, ...]
    promoted: frozenset[str]
    logs: tuple[Log, ...]
    recipe: tuple[tuple[str, str], ...]  # of a run
    gaps: tuple[str, ...]


def read_facts(folder: Path) -> Facts:
    """The Facts of a campaign's folder (it holds a ledger, or its export campaign.json) or of a run's.

    Raises:
        InputError: the folder does not exist, or is neither.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder}: there is no such folder. Give the folder that a campaign or a run was told to fill."
        )
    gaps: list[str] = []
    if any((folder / name).exists() for name in (ledger.NAME, "campaign.json", "members")):
        row = _campaign(folder, gaps)
        runs = sorted(p for p in (folder / "members").glob("*") if p.is_dir())
        return _facts("campaign", folder, row, runs, gaps)
    if any((folder / name).exists() for name in ("run.json", "recipe.json", "log.jsonl")):
        return _facts("run", folder, _object(folder / "run.json", gaps), [folder], gaps)
    raise InputError(
        f"{folder}: holds neither a campaign.json nor a run.json. Give the folder of a campaign or of a run."
    )


def _campaign(folder: Path, gaps: list[str]) -> dict[str, Any]:
    """What the ledger knows, else what campaign.json says; {} where that cannot be read, which is a gap."""
    if not (folder / ledger.NAME).exists():
        return _object(folder / "campaign.json", gaps)
    try:
        return ledger.snapshot(folder)
    except InputError as error:
        gaps.append(str(error))
        return {}


def _facts(kind: str, folder: Path, row: Mapping[str, Any], runs: list[Path], gaps: list[str]) -> Facts:
    members = tuple(_member(r) for r in rows_of(row, "members"))
    best_name = text_of(row, "best_member")
    fused, memory = row.get("fused"), number_of(row, "peak_memory_mb")
    logs = {run.name: read_log(run / "log.jsonl", run.name, gaps) for run in runs}
    order = [m.name for m in members if m.name in logs] + [n for n in logs if n not in {m.name for m in members}]
    recipe = _object(folder / "recipe.json", gaps) if kind == "run" else {}
    return Facts(
        kind=kind,
        folder=folder,
        command=text_of(row, "command"),
        data=path_of(row, "data"),
        test=path_of(row, "test"),
        deadline_seconds=number_of(row, "deadline_seconds"),
        seconds_used=number_of(row, "seconds_used" if kind == "campaign" else "seconds"),
        started=text_of(row, "started"),
        finished=text_of(row, "finished"),
        state=text_of(row, "state") or "unknown",
        seed=number_of(row, "seed"),
        machine=pairs_of(row.get("machine")) + pairs_of({"peak memory": f"{memory:.0f} MB"} if memory else {}),
        left_out=tuple(
            (text_of(r, "file_name") or "?", text_of(r, "reason") or "no reason given")
            for r in rows_of(row, "left_out")
        ),
        timeline=tuple(s for s in map(_span, rows_of(row, "timeline")) if s is not None),
        members=members,
        plan=_plan(row.get("plan")),
        fused=_fused(fused) if isinstance(fused, dict) else None,
        best=next((m for m in members if m.name == best_name), None),
        notes=_reasons(row),
        segments=tuple(s for s in map(_segment, rows_of(row, "segments")) if s is not None),
        history=tuple(s for s in map(_submission, rows_of(row, "history")) if s is not None),
        gains=_gains(row),
        promoted=frozenset(word_of(name) for name in list_of(row, "ranking")),
        logs=tuple(logs[name] for name in order),
        recipe=pairs_of(recipe),
        gaps=tuple(gaps),
    )


def _member(row: Mapping[str, Any]) -> Member:
    return Member(
        name=text_of(row, "name") or "?",
        recipe=text_of(row, "recipe"),
        image_size=number_of(row, "image_size"),
        seed=number_of(row, "seed"),
        fold=text_of(row, "fold"),
        views=tuple(word_of(view) for view in list_of(row, "views")),
        seconds=number_of(row, "seconds"),
        steps=number_of(row, "steps"),
        images_per_second=number_of(row, "images_per_second"),
        ap=number_of(row, "ap"),
        ap50=number_of(row, "ap50"),
        adds=number_of(row, "adds"),
        weight=number_of(row, "weight"),
    )


def _plan(value: object) -> tuple[Planned, ...]:
    """The plan as it is now; empty where there is none."""
    row = object_of(value)
    parts = [
        Planned(
            f"train {text_of(r, 'name') or '?'}",
            number_of(r, "image_size"),
            number_of(r, "batch_size"),
            text_of(r, "state"),
            number_of(r, "seconds"),
        )
        for r in rows_of(row, "segments")
    ]
    reserved = object_of(row.get("reserved"))
    return (*parts, *(Planned(name, None, None, "kept", number_of(reserved, name)) for name in reserved))


def _fused(row: Mapping[str, Any]) -> Fused:
    ends = [v for v in (finite(v) for v in list_of(row, "interval")) if v is not None]
    metric, value = text_of(row, "metric") or "ap50", number_of(row, "value")
    return Fused(
        metric=metric,
        value=value if value is not None else number_of(row, metric),  # an older campaign has AP50 alone
        ap=number_of(row, "ap"),
        ap50=number_of(row, "ap50"),
        ap75=number_of(row, "ap75"),
        kind=text_of(row, "kind"),
        iou=number_of(row, "iou"),
        skip=number_of(row, "skip"),
        interval=(ends[0], ends[1]) if len(ends) == 2 else None,
        per_class=tuple(
            ClassScore(text_of(r, "name") or "?", number_of(r, "boxes"), number_of(r, "ap"), number_of(r, "ap50"))
            for r in rows_of(row, "per_class")
        ),
        parts=_parts(row),
    )


def _parts(row: Mapping[str, Any]) -> tuple[Part, ...]:
    """The parts of the fusion; of a campaign that did not keep them, out of the weights alone."""
    if "parts" in row:
        return tuple(
            Part(text_of(r, "name") or "?", text_of(r, "view") or "?", number_of(r, "weight"), number_of(r, "adds"))
            for r in rows_of(row, "parts")
        )
    weights = {name: finite(w) or 0.0 for name, w in object_of(row.get("weights")).items()}
    total = sum(weights.values())
    return tuple(
        Part(name.partition("@")[0], name.partition("@")[2] or "1", w / total if total else None, None)
        for name, w in weights.items()
    )


def _segment(row: Mapping[str, Any]) -> Segment | None:
    started = number_of(row, "started")
    if started is None:
        return None
    return Segment(
        name=text_of(row, "name") or "?",
        parent=text_of(row, "parent"),
        state=text_of(row, "state"),
        started=started,
        ended=number_of(row, "ended"),
        ap50=number_of(object_of(row.get("result")), "ap50"),
    )


def _submission(row: Mapping[str, Any]) -> Submission | None:
    at, by_ap50 = number_of(row, "at"), text_of(row, "metric") in (None, "ap50")
    if at is None:
        return None
    name, value = [*list_of(row, "best_single"), None, None][:2]
    weights = object_of(row.get("weights"))
    return Submission(
        at=at,
        ap50=number_of(row, "ap50"),
        best_name=None if name is None else word_of(name),
        best_ap50=finite(value) if by_ap50 else None,  # else it is of another metric
        members=len({part.partition("@")[0] for part in weights}) or None,
    )


def _reasons(row: Mapping[str, Any]) -> tuple[Reason, ...]:
    notes, times = list_of(row, "notes"), list_of(row, "note_times")
    if len(times) != len(notes):
        times = [None] * len(notes)
    return tuple(Reason(str(note), finite(at)) for note, at in zip(notes, times, strict=True))


def _gains(row: Mapping[str, Any]) -> tuple[Gain, ...]:
    triples = [[*one, None, None, None][:3] for one in list_of(row, "gains") if isinstance(one, list)]
    found = ((word_of(name), finite(value), finite(sure)) for name, value, sure in triples)
    return tuple(Gain(name, value, sure) for name, value, sure in found if value is not None)


def _span(row: Mapping[str, Any]) -> Span | None:
    """The Span, or None where the stretch of time is not known; one still under way ends where it starts."""
    start, end = number_of(row, "start"), number_of(row, "end")
    if start is None:
        return None
    return Span(text_of(row, "name") or "?", text_of(row, "kind") or "other", start, max(start, end or start))


def _object(path: Path, gaps: list[str]) -> dict[str, Any]:
    """The object in a JSON file; {} where it is absent, or broken, which is a gap."""
    if not path.exists():
        return {}
    value = decoded(path.read_text(encoding="utf-8", errors="replace"))
    if not value:
        gaps.append(f"{path.name}: holds no JSON object.")
    return value


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
