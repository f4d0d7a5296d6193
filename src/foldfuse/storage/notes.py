"""Notes of people on a campaign, and the scores that a leaderboard gave its submissions.

Each note is a file of its own in `notes/`, whole or not there, and never written again. So notes may be taken while the
campaign runs, by several people at once: nobody waits for a lock, and nothing that the campaign writes can be hurt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foldfuse.errors import InputError
from foldfuse.storage import ledger

FOLDER = "notes"


@dataclass(frozen=True)
class Note:
    """What somebody wrote down, at an ISO moment in UTC; `leaderboard` is the score that was given to `submission`."""

    at: str
    text: str | None = None
    leaderboard: float | None = None
    submission: int | None = None


@dataclass(frozen=True)
class Scored:
    """A submission with its out-of-fold score, by the campaign's metric, and the score that the leaderboard gave it."""

    submission: int
    out_of_fold: float
    leaderboard: float


@dataclass(frozen=True)
class Noted:
    """All that people noted on a campaign: the notes in their order, and the submissions that have a score."""

    notes: tuple[Note, ...] = ()
    scored: tuple[Scored, ...] = ()


def noted(folder: Path, gaps: list[str]) -> Noted:
    """What people noted on a campaign; a note that cannot be read is told in `gaps`."""
    notes = []
    for path in sorted((folder / FOLDER).glob("[0-9]*.json")):
        try:
            notes.append(_read(path))
        except InputError as error:
            gaps.append(str(error))
    given = {
        n.submission: n.leaderboard for n in notes if n.leaderboard is not None
    }  # of one submission, the last word
    scores = submission_scores(record(folder)) if given else ()
    return Noted(
        tuple(notes),
        tuple(Scored(n, score, given[n]) for n, score in enumerate(scores, 1) if n in given),
    )


def record(folder: Path) -> dict[str, Any]:
    """All that is known of the campaign in a folder: from its ledger, or its export where the ledger is not there.

    Raises:
        InputError: the folder is no campaign's, or what it holds cannot be read.
    """
    if (folder / ledger.NAME).is_file():
        return ledger.snapshot(folder)
    path = folder / "campaign.json"
    if not path.is_file():
        raise InputError(f"{folder}: holds no campaign. Give the folder that 'foldfuse campaign' was told to fill.")
    told = _object(path)
    if told is None:
        raise InputError(f"{path}: holds no JSON object. Give the folder of a campaign that was not changed by hand.")
    return told


def submission_scores(told: Mapping[str, Any]) -> tuple[float, ...]:
    """The out-of-fold score of each submission of a campaign, from the first to the one that holds now."""
    if "submission_scores" in told:
        return tuple(told["submission_scores"])
    fused = told.get("fused")
    return (fused["ap50"],) if isinstance(fused, dict) and fused.get("ap50") is not None else ()


def _read(path: Path) -> Note:
    told = _object(path)
    try:
        return Note(**(told or {}))
    except TypeError:
        raise InputError(f"{path}: is no note. Remove it, or write the note anew with 'foldfuse note'.") from None


def _object(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is none in it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
