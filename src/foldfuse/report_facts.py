"""What a campaign's or a run's folder says about itself, read while it may still be written to.

Every value may be missing: a campaign that has just begun has no scores, an older one may lack a field. What is absent
is None or empty here; what is there but cannot be read is told in `gaps`, so that nothing is left out in silence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foldfuse import ledger
from foldfuse.boxes import Array
from foldfuse.errors import InputError
from foldfuse.report_charts import Span


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
class Fused:
    """The score of the fused predictions on held-back pictures, and how they were fused."""

    ap: float | None
    ap50: float | None
    ap75: float | None
    kind: str | None
    iou: float | None
    skip: float | None
    interval: tuple[float, float] | None  # of the gain over the best member
    per_class: tuple[ClassScore, ...]


@dataclass(frozen=True, eq=False)
class Log:
    """The learning curves of one member: (n,) seconds and loss, (m,) seconds and AP50 of the evaluations."""

    name: str
    seconds: Array
    loss: Array
    tested: Array
    ap50: Array


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
    notes: tuple[str, ...]
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
        return ledger.told(folder)
    except InputError as error:
        gaps.append(str(error))
        return {}


def read_log(path: Path, name: str, gaps: list[str]) -> Log:
    """The Log in a log.jsonl; empty where there is none. A last line that is still being written is passed over."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    loss: list[tuple[float, float]] = []
    tested: list[tuple[float, float]] = []
    broken = 0
    for line in lines[:-1]:
        row = _decoded(line)
        seconds = _number(row, "seconds")
        if seconds is None:
            broken += 1
            continue
        for key, curve in (("loss", loss), ("ap50", tested)):
            value = _number(row, key)
            if value is not None:
                curve.append((seconds, value))
    if broken:
        gaps.append(f"{path.name} of {name}: {broken} of {len(lines) - 1} lines could not be read.")
    losses, tests = (np.array(curve, np.float64).reshape(-1, 2) for curve in (loss, tested))
    return Log(name, losses[:, 0], losses[:, 1], tests[:, 0], tests[:, 1])


def _facts(kind: str, folder: Path, row: Mapping[str, Any], runs: list[Path], gaps: list[str]) -> Facts:
    members = tuple(_member(r) for r in _rows(row, "members"))
    best_name = _text(row, "best_member")
    fused, memory = row.get("fused"), _number(row, "peak_memory_mb")
    logs = {run.name: read_log(run / "log.jsonl", run.name, gaps) for run in runs}
    order = [m.name for m in members if m.name in logs] + [n for n in logs if n not in {m.name for m in members}]
    recipe = _object(folder / "recipe.json", gaps) if kind == "run" else {}
    return Facts(
        kind=kind,
        folder=folder,
        command=_text(row, "command"),
        data=_path(row, "data"),
        test=_path(row, "test"),
        deadline_seconds=_number(row, "deadline_seconds"),
        seconds_used=_number(row, "seconds_used" if kind == "campaign" else "seconds"),
        started=_text(row, "started"),
        finished=_text(row, "finished"),
        state=_text(row, "state") or "unknown",
        seed=_number(row, "seed"),
        machine=_pairs(row.get("machine")) + _pairs({"peak memory": f"{memory:.0f} MB"} if memory else {}),
        left_out=tuple(
            (_text(r, "file_name") or "?", _text(r, "reason") or "no reason given") for r in _rows(row, "left_out")
        ),
        timeline=tuple(s for s in map(_span, _rows(row, "timeline")) if s is not None),
        members=members,
        plan=_plan(row.get("plan")),
        fused=_fused(fused) if isinstance(fused, dict) else None,
        best=next((m for m in members if m.name == best_name), None),
        notes=tuple(str(note) for note in _list(row, "notes")),
        logs=tuple(logs[name] for name in order),
        recipe=_pairs(recipe),
        gaps=tuple(gaps),
    )


def _member(row: Mapping[str, Any]) -> Member:
    return Member(
        name=_text(row, "name") or "?",
        recipe=_text(row, "recipe"),
        image_size=_number(row, "image_size"),
        seed=_number(row, "seed"),
        fold=_text(row, "fold"),
        views=tuple(_word(view) for view in _list(row, "views")),
        seconds=_number(row, "seconds"),
        steps=_number(row, "steps"),
        images_per_second=_number(row, "images_per_second"),
        ap=_number(row, "ap"),
        ap50=_number(row, "ap50"),
        adds=_number(row, "adds"),
        weight=_number(row, "weight"),
    )


def _plan(value: object) -> tuple[Planned, ...]:
    """The plan as it is now; empty where there is none."""
    row = value if isinstance(value, dict) else {}
    parts = [
        Planned(
            f"train {_text(r, 'name') or '?'}",
            _number(r, "image_size"),
            _number(r, "batch_size"),
            _text(r, "state"),
            _number(r, "seconds"),
        )
        for r in _rows(row, "segments")
    ]
    kept = row.get("reserved")
    reserved = kept if isinstance(kept, dict) else {}
    return (*parts, *(Planned(name, None, None, "kept", _number(reserved, name)) for name in reserved))


def _fused(row: Mapping[str, Any]) -> Fused:
    ends = [v for v in (_finite(v) for v in _list(row, "interval")) if v is not None]
    return Fused(
        ap=_number(row, "ap"),
        ap50=_number(row, "ap50"),
        ap75=_number(row, "ap75"),
        kind=_text(row, "kind"),
        iou=_number(row, "iou"),
        skip=_number(row, "skip"),
        interval=(ends[0], ends[1]) if len(ends) == 2 else None,
        per_class=tuple(
            ClassScore(_text(r, "name") or "?", _number(r, "boxes"), _number(r, "ap"), _number(r, "ap50"))
            for r in _rows(row, "per_class")
        ),
    )


def _span(row: Mapping[str, Any]) -> Span | None:
    """The Span, or None where the stretch of time is not known; one still under way ends where it starts."""
    start, end = _number(row, "start"), _number(row, "end")
    if start is None:
        return None
    return Span(_text(row, "name") or "?", _text(row, "kind") or "other", start, max(start, end or start))


def _object(path: Path, gaps: list[str]) -> dict[str, Any]:
    """The object in a JSON file; {} where it is absent, or broken, which is a gap."""
    if not path.exists():
        return {}
    value = _decoded(path.read_text(encoding="utf-8", errors="replace"))
    if not value:
        gaps.append(f"{path.name}: holds no JSON object.")
    return value


def _decoded(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _finite(value: object) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good and isinstance(value, (int, float)) else None


def _number(row: Mapping[str, Any], key: str) -> float | None:
    return _finite(row.get(key))


def _text(row: Mapping[str, Any], key: str) -> str | None:
    value = row.get(key)
    return None if value is None else _word(value)


def _path(row: Mapping[str, Any], key: str) -> Path | None:
    text = _text(row, key)
    return Path(text) if text else None


def _list(row: Mapping[str, Any], key: str) -> list[Any]:
    value = row.get(key)
    return value if isinstance(value, list) else []


def _rows(row: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    return [value for value in _list(row, key) if isinstance(value, dict)]


def _pairs(value: object) -> tuple[tuple[str, str], ...]:
    return tuple((str(k), _word(v)) for k, v in value.items()) if isinstance(value, dict) else ()


def _word(value: object) -> str:
    """A JSON value as people write it."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {_word(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(_word, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
