"""Records of a campaign's or a run's folder, as the page shows them, read while the folder may still be written to.

Any value may be missing: a campaign that has just started has no scores. A missing value, or one of the wrong type, is
None or empty; a file that cannot be read is named in the record's `warnings`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from foldfuse.boxes import Array
from foldfuse.ensemble.ranking import RankedRun
from foldfuse.errors import InputError
from foldfuse.reporting.charts import Span
from foldfuse.reporting.score_records import FusedScore, Rescoring, Submission
from foldfuse.storage import ledger
from foldfuse.storage.segments import Role, member_of
from foldfuse.system.files import read_text
from foldfuse.system.records import VERSION_KEY, from_plain_tolerantly

T = TypeVar("T")


@dataclass(frozen=True)
class Member:
    """One trained detector of the campaign; `leave_one_out_gain` is the score that the ensemble loses without it."""

    name: str = "?"
    recipe: str | None = None
    image_size: int | None = None
    seed: int | None = None
    fold: int | None = None
    views: tuple[str, ...] = ()
    seconds: float | None = None
    steps: int | None = None
    images_per_second: float | None = None
    ap: float | None = None
    ap50: float | None = None
    leave_one_out_gain: float | None = None
    weight: float | None = None  # share of all weights; None or 0 for a member outside the ensemble
    device: str | None = None
    resumed: int | None = None


@dataclass(frozen=True)
class PlannedSegment:
    """A segment of the plan: `seconds` is its training time so far, or its planned time."""

    name: str = "?"
    image_size: int | None = None
    batch_size: int | None = None
    state: str | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Plan:
    """The segments of the plan, and the seconds reserved for other work."""

    segments: tuple[PlannedSegment, ...] = ()
    reserved: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageSizeChoice:
    """The image size in pixels that was chosen from the data, and a sentence or two with the reason."""

    size: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class SegmentResult:
    """The result of a segment: AP50 on the held-out images, why it was left out, and how often it was resumed."""

    ap50: float | None = None
    reason: str | None = None
    resumed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of training; `ended` is None while it runs. Times are seconds since the start of the campaign."""

    name: str = "?"
    role: str | None = None
    parent: str | None = None
    seed: int | None = None
    fold: int | None = None
    state: str | None = None
    seconds: float | None = None
    started: float
    ended: float | None = None
    result: SegmentResult = SegmentResult()

    @property
    def ap50(self) -> float | None:
        """AP50 on the held-out images."""
        return self.result.ap50

    @property
    def member(self) -> str:
        """The member that it makes; see `member_of`."""
        return member_of(self.name, role=Role(self.role) if self.role in set(Role) else None, fold=self.fold)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of work of some kind; `end` is None while it lasts."""

    name: str = "?"
    kind: str = "other"
    start: float
    end: float | None = None


@dataclass(frozen=True)
class UnfinishedSegment:
    """A segment that is no member, how long it was trained, and the reason in words."""

    segment: Segment
    reason: str


class DecisionNote(NamedTuple):
    """A sentence that explains a decision, and when it was taken in seconds since the start."""

    text: str
    at: float | None


@dataclass(frozen=True)
class LeftOut:
    """An image that was not used, and why."""

    file_name: str = "?"
    reason: str = "no reason given"


@dataclass(frozen=True, eq=False)
class LearningCurves:
    """The learning curves of one run.

    Attributes:
        name: the name of the run.
        seconds, loss: (n,) of the steps.
        eval_seconds, scores: (m,) of the evaluations.
        metric: the metric of the scores: "AP50", or a classifier's "accuracy".
        lr_seconds, lr: (k,) learning rates of the steps.
    """

    name: str
    seconds: Array
    loss: Array
    eval_seconds: Array
    scores: Array
    metric: str
    lr_seconds: Array
    lr: Array


@dataclass(frozen=True, eq=False)
class CampaignRecord:
    """All facts on the page but the images and the data; the fields carry the names of the ledger's facts.

    `state` is running, finished, interrupted or unknown.
    """

    folder: Path = Path()
    command: str | None = None
    data: Path | None = None
    test: Path | None = None
    images: Path | None = None
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    deadline_seconds: float | None = None
    seconds_used: float | None = None
    resumed: int | None = None
    started: str | None = None
    finished: str | None = None
    state: str = "unknown"
    seed: int | None = None
    ignore_orientation: bool = False
    device: str | None = None
    machine: Mapping[str, Any] = field(default_factory=dict)
    peak_memory_mb: float | None = None
    cpu_share: float | None = None
    left_out: tuple[LeftOut, ...] = ()
    timeline: tuple[Stage, ...] = ()
    members: tuple[Member, ...] = ()
    plan: Plan = Plan()
    image_size_choice: ImageSizeChoice = ImageSizeChoice()
    fused: FusedScore | None = None
    rescoring: Rescoring | None = None
    best_member: str | None = None
    notes: tuple[str, ...] = ()
    note_times: tuple[float, ...] = ()
    segments: tuple[Segment, ...] = ()
    history: tuple[Submission, ...] = ()
    gains: tuple[RankedRun, ...] = ()
    ranking: tuple[str, ...] = ()
    curves: tuple[LearningCurves, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def best(self) -> Member | None:
        """The member with the highest single score."""
        return next((m for m in self.members if m.name == self.best_member), None)

    @property
    def unfinished(self) -> tuple[UnfinishedSegment, ...]:
        """The segments that are no members, with the reasons."""
        return tuple(UnfinishedSegment(s, self._reason(s)) for s in self.segments if s.state not in ("done", None))

    def _reason(self, segment: Segment) -> str:
        """Why a segment is no member, or not yet."""
        if segment.state == "failed":
            said = f"{segment.name} is left out: "  # in the ledgers of earlier versions only a note has the reason
            noted = [note.removeprefix(said) for note in self.notes if note.startswith(said)]
            return f"left out: {segment.result.reason or (noted[-1] if noted else 'the ledger gives no reason')}"
        if self.state == "running":
            return "training" if segment.state == "running" else f"{segment.state}, not predicted yet"
        return "the campaign was stopped before its training ended"

    @property
    def spans(self) -> tuple[Span, ...]:
        """The timeline; a stage that still lasts ends where it starts."""
        return tuple(Span(s.name, s.kind, s.start, max(s.start, s.end or s.start)) for s in self.timeline)

    @property
    def decisions(self) -> tuple[DecisionNote, ...]:
        """The decision notes, with their times if the times of all notes are known."""
        times = self.note_times if len(self.note_times) == len(self.notes) else (None,) * len(self.notes)
        return tuple(map(DecisionNote, self.notes, times))


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run's recipe as its file has it, and its learning curves."""

    recipe: Mapping[str, Any]
    curves: LearningCurves
    warnings: tuple[str, ...]


def read_campaign_record(folder: Path) -> CampaignRecord:
    """The CampaignRecord of a campaign's folder: one with a ledger, or with its export campaign.json.

    Raises:
        InputError: the folder does not exist, or holds no campaign.
    """
    _require(folder, ledger.is_campaign(folder))
    warnings: list[str] = []
    record = record_from(_campaign_facts(folder, warnings))
    runs = sorted(p for p in (folder / "members").glob("*") if p.is_dir())
    curves = {run.name: read_learning_curves(run / "log.jsonl", run.name, warnings) for run in runs}
    names = dict.fromkeys([*(m.name for m in record.members if m.name in curves), *curves])
    return replace(record, folder=folder, curves=tuple(curves[n] for n in names), warnings=tuple(warnings))


def read_run_record(folder: Path) -> RunRecord:
    """The RunRecord of a run's folder.

    Raises:
        InputError: the folder does not exist, or holds no run.
    """
    _require(folder, any((folder / name).exists() for name in ("run.json", "recipe.json", "log.jsonl")))
    warnings: list[str] = []
    recipe = read_object(folder / "recipe.json", warnings)
    recipe.pop(VERSION_KEY, None)
    curves = read_learning_curves(folder / "log.jsonl", folder.name, warnings)
    return RunRecord(recipe, curves, tuple(warnings))


def _require(folder: Path, is_known: bool) -> None:
    """Raises InputError for a folder that does not exist, or has none of the files that the page is made of."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder. Give the folder of a campaign or of a run.")
    if not is_known:
        raise InputError(
            f"{folder}: holds neither a campaign.json nor a run.json. Give the folder of a campaign or of a run."
        )


def read_or_warn(read: Callable[[Path], T], path: Path | None, warnings: list[str]) -> T | None:
    """The result of `read`; None without a path, None and a warning where `read` raises InputError."""
    try:
        return None if path is None else read(path)
    except InputError as error:
        warnings.append(str(error))
        return None


def record_from(facts: Mapping[str, Any]) -> CampaignRecord:
    """The CampaignRecord with these facts of a ledger; without folder and learning curves."""
    record = from_plain_tolerantly(_decode_object(json.dumps(facts)), CampaignRecord)
    assert record is not None, "every field has a default"
    return record


def _campaign_facts(folder: Path, warnings: list[str]) -> dict[str, Any]:
    """The facts of the ledger, or of campaign.json where there is no ledger; {} and a warning for an unreadable file."""
    if not (folder / ledger.NAME).exists():
        return read_object(folder / "campaign.json", warnings)
    return read_or_warn(ledger.snapshot, folder, warnings) or {}


def read_object(path: Path, warnings: list[str]) -> dict[str, Any]:
    """The object in a JSON file; {} for a missing file, {} and a warning for one without an object."""
    if not path.exists():
        return {}
    value = _decode_object(_text_of(path, warnings))
    if not value:
        warnings.append(f"{path.name}: holds no JSON object.")
    return value


def _text_of(path: Path, warnings: list[str]) -> str:
    """The text in a file; "" for a missing file, "" and a warning for one that cannot be read."""
    return read_or_warn(partial(read_text, what="JSON"), path if path.exists() else None, warnings) or ""


def _decode_object(text: str) -> dict[str, Any]:
    """The JSON object in a text, with null for NaN and infinity; {} for a text without one."""
    try:
        value = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


@dataclass(frozen=True)
class _LogRow:
    seconds: float
    loss: float | None = None
    lr: float | None = None
    ap50: float | None = None
    accuracy: float | None = None


def read_learning_curves(path: Path, name: str, warnings: list[str]) -> LearningCurves:
    """The learning curves in a log.jsonl; empty for a missing file. An unfinished last line is ignored."""
    lines = _text_of(path, warnings).split("\n")[:-1]
    rows = [from_plain_tolerantly(_decode_object(line), _LogRow) for line in lines]
    unreadable = sum(row is None for row in rows)
    if unreadable:
        warnings.append(f"{path.name} of {name}: {unreadable} of {len(lines)} lines could not be read.")
    readable = [row for row in rows if row is not None]
    metric = "accuracy" if any(row.accuracy is not None for row in readable) else "ap50"
    loss, scores = _columns(readable, "loss"), _columns(readable, metric)
    metric = "AP50" if metric == "ap50" else metric
    return LearningCurves(name, *loss, *scores, metric, *_columns(readable, "lr"))


def _columns(rows: Sequence[_LogRow], key: str) -> tuple[Array, Array]:
    """(n,) seconds and (n,) values of the rows that have a value."""
    points = [(row.seconds, value) for row in rows if (value := getattr(row, key)) is not None]
    seconds, values = np.array(points, np.float64).reshape(-1, 2).T
    return seconds, values
