"""Notes of people on a campaign, and the scores that a leaderboard gave its submissions.

Each note is a file of its own in `notes/`, whole or not there, and never written again. So notes may be taken while the
campaign runs, by several people at once: nobody waits for a lock, and nothing that the campaign writes can be hurt.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from foldfuse import ledger
from foldfuse.errors import InputError
from foldfuse.files import write_text
from foldfuse.report_charts import Chart, Line, line_chart, linear_axis

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

    @property
    def chart(self) -> Chart | None:
        """Out-of-fold score against leaderboard score, once two submissions have one."""
        return leaderboard_chart({"": self.scored})


def note(
    folder: Path, text: str | None = None, *, leaderboard: float | None = None, submission: int | None = None
) -> Path:
    """Attach a note, or the score that a leaderboard gave a submission, to a campaign; the note's file comes back.

    Args:
        folder: of the campaign, which may be running.
        text: of the note.
        leaderboard: score that a submission got.
        submission: the one that is meant, a number in `submissions/`; by default the one that holds now.

    Raises:
        InputError: the folder is no campaign's, it has no such submission, or nothing is said.
    """
    folder = Path(folder)
    count = len(submission_scores(record(folder)))
    if text is not None and not text.strip():
        raise InputError("the note is empty. Write a text, or leave it out and give --leaderboard SCORE.")
    if text is None and leaderboard is None:
        raise InputError(f"nothing is said about {folder}. Give a text, --leaderboard SCORE, or both.")
    if leaderboard is not None and not math.isfinite(leaderboard):
        raise InputError(f"--leaderboard is {leaderboard}, and must be a number.")
    if submission is not None and not 1 <= submission <= count:
        has = f"submissions 1 to {count}" if count > 1 else "submission 1 alone" if count else "no submission yet"
        raise InputError(f"{folder}: --submission is {submission}, and the campaign has {has}.")
    if leaderboard is not None and submission is None:
        if not count:
            raise InputError(f"{folder}: has no submission yet that could have a score. Wait for the first one.")
        submission = count
    said = Note(datetime.now(UTC).isoformat(timespec="seconds"), text, leaderboard, submission)
    path = folder / FOLDER / f"{time.time_ns()}.json"
    write_text(path, json.dumps(asdict(said), indent=1, ensure_ascii=False) + "\n")
    return path


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
        return ledger.told(folder)
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


def leaderboard_chart(scored: Mapping[str, Sequence[Scored]]) -> Chart | None:
    """A dot for each submission of each campaign: the out-of-fold score to the right, the leaderboard's score upwards.

    None for fewer than two submissions: one dot tells nothing.
    """
    dots = [
        Line(
            f"{name} submission {one.submission}: {one.out_of_fold:.4f} out-of-fold, {one.leaderboard:.4f}".strip(),
            np.array([one.out_of_fold]),
            np.array([one.leaderboard]),
            colour,
        )
        for colour, (name, its) in enumerate(scored.items())
        for one in its
    ]
    if len(dots) < 2:
        return None
    x, y = (np.concatenate([getattr(dot, axis) for dot in dots]) for axis in "xy")
    pairs = list(itertools.combinations(range(len(dots)), 2))
    alike = sum((x[i] - x[j]) * (y[i] - y[j]) > 0 for i, j in pairs)
    svg = line_chart(
        dots,
        linear_axis(float(x.min()), float(x.max())),
        linear_axis(float(y.min()), float(y.max())),
        titles=("out-of-fold", "leaderboard"),
        label="Leaderboard score against the one out-of-fold: " + "; ".join(dot.name for dot in dots) + ".",
    )
    told = f"Each dot is a submission. Both scores agree on which is the better one in {alike} of {len(pairs)} pairs."
    return Chart("Out-of-fold and leaderboard", svg, told, tuple(scored) if len(scored) > 1 else ())


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
