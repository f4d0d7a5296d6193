"""Campaigns of the same data side by side, and what the difference between them is worth.

Two campaigns are compared on the pictures that both held back, since neither learnt from those: their paired bootstrap is
that of `score`. Each ensemble was chosen on its held-back pictures, so its score there flatters it a little; the nested
score is the honest one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from foldfuse.data.dataset import Dataset
from foldfuse.data.readers.coco import read
from foldfuse.detections import Predictions
from foldfuse.errors import InputError
from foldfuse.evaluation import metrics
from foldfuse.formats.predictions import read_predictions
from foldfuse.reporting.campaign_page import template
from foldfuse.reporting.leaderboard import leaderboard_chart
from foldfuse.storage.notes import Noted, noted, record
from foldfuse.system.atomic_files import write_text
from foldfuse.system.durations import format_duration

METRICS = ("ap50", "ap")
HEADS = (
    "deadline",
    "used",
    "members fused",
    "chosen by",
    "AP50 out-of-fold",
    "AP out-of-fold",
    "nested",
    "best single AP50",
    "second opinion",
    "leaderboard",
)


@dataclass(frozen=True, eq=False)
class Entry:
    """A campaign that is compared: its folder, its name among the others, what is known of it, what people noted."""

    folder: Path
    name: str
    told: Mapping[str, Any]
    noted: Noted


@dataclass(frozen=True)
class Gain:
    """The scores of two campaigns by one metric on `common` pictures; `difference` is of the second from the first."""

    common: int
    first: float
    second: float
    difference: metrics.Difference


def compare(folders: tuple[Path, ...], *, out: Path | None = None) -> None:
    """Put campaigns of the same data side by side; each is held against the first on the pictures that both held back.

    Args:
        folders: of the campaigns, two or more; the first is the one that the others are held against.
        out: HTML page to write as well; it opens anywhere, without network.

    Raises:
        InputError: a folder is no campaign's, or they are of different data.
    """
    gaps: list[str] = []
    entries = read_entries(folders, gaps)
    dataset = _dataset(entries, gaps)
    gains: dict[str, list[Gain]] = {}
    for entry in entries[1:] if dataset is not None else ():
        assert dataset is not None
        try:
            gains[entry.name] = held_against(entries[0], entry, dataset)
        except InputError as error:
            gaps.append(str(error))
    console = Console(highlight=False)
    console.print(_table("Campaigns", ["", *(e.name for e in entries)], side_by_side(entries)))
    if gains:
        console.print(_table(_title(entries), ["", *gains], _against(gains)))
    for gap in gaps:
        console.print(gap, markup=False, soft_wrap=True)
    if out is not None:
        write_text(out, page(entries, gains, gaps))
        console.print(str(out), markup=False, soft_wrap=True)


def read_entries(folders: Sequence[Path], gaps: list[str]) -> tuple[Entry, ...]:
    """The campaigns in these folders, where they are of the same data.

    Raises:
        InputError: fewer than two, one of them twice, no campaign's folder, or different data.
    """
    paths = [Path(folder).resolve() for folder in folders]
    if len(set(paths)) < max(2, len(paths)):
        raise InputError("two or more different campaigns are compared. Give two or more folders, each once.")
    alike = len({path.name for path in paths}) < len(paths)
    entries = tuple(
        Entry(path, str(given) if alike else path.name, record(path), noted(path, gaps))
        for given, path in zip(folders, paths, strict=True)
    )
    first, *others = ((entry, _fingerprint(entry)) for entry in entries)
    for entry, fingerprint in others:
        if fingerprint != first[1]:
            raise InputError(
                f"{entry.folder} is a campaign of {entry.told['data']} ({fingerprint}), and {first[0].folder} one of "
                f"{first[0].told['data']} ({first[1]}): other pictures, boxes or classes. Compare campaigns of the same data."
            )
    return entries


def side_by_side(entries: Sequence[Entry]) -> list[list[str]]:
    """A row of cells for each of HEADS, a cell for each campaign after the head."""
    return [list(row) for row in zip(HEADS, *map(_summary, entries), strict=True)]


def held_against(first: Entry, second: Entry, dataset: Dataset) -> list[Gain]:
    """By AP50 and AP, how much better the second is than the first on the pictures that both held back.

    Raises:
        InputError: one has no predictions of held-back pictures yet, or there are no such pictures, or nothing on them.
    """
    a, b = _held(first, dataset), _held(second, dataset)
    common = [i for i in a if i in b]
    if not common:
        raise InputError(
            f"{second.name} and {first.name} hold back no picture in common ({len(b)} and {len(a)} of their own): their "
            "difference has no interval. Campaigns with the same --folds file hold back the same pictures."
        )
    seen, a, b = dataset.subset(common), a.of_images(common), b.of_images(common)
    return [
        Gain(
            len(common),
            metrics.measure(a, seen, metric=metric),
            metrics.measure(b, seen, metric=metric),
            metrics.bootstrap_difference(b, a, seen, metric),
        )
        for metric in METRICS
    ]


def page(entries: Sequence[Entry], gains: Mapping[str, Sequence[Gain]], gaps: Sequence[str]) -> str:
    """The comparison as one page of HTML."""
    return template("compare.html").render(
        names=[entry.name for entry in entries],
        data=entries[0].told["data"],
        rows=side_by_side(entries),
        gains_title=_title(entries),
        gains=list(gains),
        gain_rows=_against(gains),
        chart=leaderboard_chart({entry.name: entry.noted.scored for entry in entries}),
        noted=[(entry.name, entry.noted) for entry in entries if entry.noted.notes],
        gaps=gaps,
    )


def _against(gains: Mapping[str, Sequence[Gain]]) -> list[list[str]]:
    """A row of cells for each thing to tell, a cell for each campaign after the head."""
    heads = ["pictures in common"]
    columns = [[str(its[0].common)] for its in gains.values()]
    for k, metric in enumerate(METRICS):
        name = metric.upper()
        heads += [f"{name} of the first", name, f"{name} difference", "95 % of the draws", "draws above 0"]
        for column, its in zip(columns, gains.values(), strict=True):
            gain, drawn = its[k], its[k].difference
            column += [f"{gain.first:.4f}", f"{gain.second:.4f}", f"{gain.second - gain.first:+.4f}"]
            column += [f"{drawn.low:+.4f} to {drawn.high:+.4f}", f"{100 * drawn.above:.1f} %"]
    return [list(row) for row in zip(heads, *columns, strict=True)]


def _title(entries: Sequence[Entry]) -> str:
    return f"Against {entries[0].name}, on the pictures that both held back, drawn anew 1000 times"


def _summary(entry: Entry) -> list[str]:
    """The cells of a campaign, in the order of HEADS."""
    told, scored = entry.told, entry.noted.scored
    fused: Mapping[str, Any] = told.get("fused") or {}
    members: Sequence[Mapping[str, Any]] = told.get("members") or []
    best = next((m for m in members if m["name"] == told.get("best_member")), None)
    opinion = told.get("second_opinion")
    return [
        format_duration(told["deadline_seconds"]),
        format_duration(told["seconds_used"]),
        f"{sum(bool(m.get('weight')) for m in members)} of {len(members)}",
        str(fused.get("metric", "ap50")).upper(),
        _number(fused.get("ap50")),
        _number(fused.get("ap")),
        _number(fused.get("nested", fused.get("nested_ap50"))),
        f"{_number(best.get('ap50'))} {best['name']}" if best else "–",
        f"{opinion['after'] - opinion['before']:+.4f}" if opinion else "–",
        f"{scored[-1].leaderboard:.4f} (submission {scored[-1].submission})" if scored else "–",
    ]


def _fingerprint(entry: Entry) -> str:
    """Of the annotated data, as it was when the campaign began; as it is now where the campaign did not keep it."""
    kept = entry.told.get("fingerprints")
    return str(kept["data"]) if kept else read(Path(entry.told["data"])).fingerprint


def _dataset(entries: Sequence[Entry], gaps: list[str]) -> Dataset | None:
    """The annotated pictures that the campaigns were of; where they are gone or changed, None and a gap."""
    path = Path(entries[0].told["data"])
    try:
        dataset = read(path)
        if dataset.fingerprint != _fingerprint(entries[0]):
            raise InputError(f"{path}: has changed since the campaigns began.")
    except InputError as error:
        gaps.append(f"{error} Without the annotations the differences have no interval.")
        return None
    return dataset


def _held(entry: Entry, dataset: Dataset) -> Predictions:
    path = entry.folder / "fused_oof.parquet"
    if not path.is_file():
        raise InputError(f"{entry.name} has no submission yet: its difference has no interval.")
    return read_predictions(path, dataset)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table
