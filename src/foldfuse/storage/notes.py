"""Notes of people on a campaign, and the scores that a leaderboard gave its submissions.

Each note is a separate file in `notes/`, written whole and never changed. So several people can add notes while the campaign
runs: no lock is needed, and no note can damage a file of the campaign.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foldfuse.errors import InputError
from foldfuse.storage import ledger
from foldfuse.storage.ledger_file import FORMAT as FORMAT_OF_EXPORT
from foldfuse.storage.ledger_file import check_facts, check_format
from foldfuse.system.files import read_json
from foldfuse.system.records import read_record, write_record

FOLDER = "notes"
FORMAT = 1


@dataclass(frozen=True)
class Note:
    """A note of a person, at an ISO time in UTC; `leaderboard` is the score that `submission` got."""

    at: str
    text: str | None = None
    leaderboard: float | None = None
    submission: int | None = None


@dataclass(frozen=True)
class LeaderboardScore:
    """A submission with its out-of-fold score by the campaign's metric, and its score on the leaderboard."""

    submission: int
    out_of_fold: float
    leaderboard: float


@dataclass(frozen=True)
class Notes:
    """All notes on a campaign in their order, and the submissions that have a leaderboard score."""

    notes: tuple[Note, ...] = ()
    scores: tuple[LeaderboardScore, ...] = ()


def write_note(folder: Path, *, text: str | None, leaderboard: float | None, submission: int | None) -> Path:
    """Adds a note to the campaign in `folder`, and returns the note's file."""
    path = folder / FOLDER / f"{time.time_ns()}.json"
    note = Note(datetime.now(UTC).isoformat(timespec="seconds"), text, leaderboard, submission)
    write_record(path, note, version=FORMAT)
    return path


def read_notes(folder: Path, warnings: list[str]) -> Notes:
    """The notes on a campaign; for a note that cannot be read, `warnings` gets a sentence."""
    notes = []
    for path in sorted((folder / FOLDER).glob("[0-9]*.json")):
        try:
            notes.append(read_record(path, Note, version=FORMAT, what="a note"))
        except InputError as error:
            warnings.append(f"{error} Remove it, or write the note again with 'foldfuse note'.")
    given = {
        n.submission: n.leaderboard for n in notes if n.leaderboard is not None
    }  # the last note on a submission counts
    scores = submission_scores(read_snapshot(folder)) if given else ()
    return Notes(
        tuple(notes),
        tuple(LeaderboardScore(n, score, given[n]) for n, score in enumerate(scores, 1) if n in given),
    )


def read_snapshot(folder: Path) -> dict[str, Any]:
    """The facts of the campaign in a folder, from its ledger, or from campaign.json where there is no ledger.

    Raises:
        InputError: the folder holds no campaign, or its content cannot be read.
    """
    if (folder / ledger.NAME).is_file():
        facts = ledger.snapshot(folder)
        check_facts(facts, folder / ledger.NAME)
        return facts
    path = folder / ledger.EXPORT
    if not path.is_file():
        raise InputError(f"{folder}: holds no campaign. Give the --out folder of a 'foldfuse campaign'.")
    facts = read_json(path, what="the export of a campaign")
    if not isinstance(facts, dict):
        raise InputError(f"{path}: holds no JSON object. Give the folder of a campaign that was not changed by hand.")
    check_format(facts.get("format", FORMAT_OF_EXPORT), path)
    check_facts(facts, path)
    return facts


def submission_scores(facts: Mapping[str, Any]) -> tuple[float, ...]:
    """The out-of-fold score of each submission of a campaign, from the first to the current one."""
    return tuple(facts.get("submission_scores", ()))
