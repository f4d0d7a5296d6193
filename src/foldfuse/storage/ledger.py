"""The ledger of a campaign: an SQLite file with the campaign's settings, segments, events and submissions.

facts        a JSON value for each name: the request, the data's fingerprints, the deadline, the plan, ...
segments     a row for each member: its role, parent, recipe and budget, its state and its scores
events       intervals of the timeline, and log sentences that explain a decision
submissions  each scored better out-of-fold than the one before it

A process may be killed at any moment: SQLite's write-ahead log keeps every committed row. A loss of power may take the last
rows ("synchronous" is NORMAL), never the file. A heartbeat writes the elapsed seconds once a second, so that a resumed
campaign counts the time of the killed process, but not the time in between.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from foldfuse.errors import InputError, shown
from foldfuse.storage import ledger_file
from foldfuse.storage.ledger_file import COLUMNS, FORMAT
from foldfuse.storage.segments import SegmentRecord
from foldfuse.system import locks
from foldfuse.system.atomic_files import write_text
from foldfuse.system.durations import format_duration
from foldfuse.system.files import parse_json

NAME = "campaign.sqlite"
_MARKS = (NAME, "campaign.json", "members", "fused_oof.parquet")  # one of them makes a folder a campaign's
LOCK = "campaign.lock"
EXPORT = "campaign.json"
HEARTBEAT_SECONDS = 1.0

logger = logging.getLogger(__name__)


def is_campaign(folder: Path) -> bool:
    """Whether a folder is a campaign's, running or finished, perhaps copied without its ledger; a run's folder is not."""
    return any((folder / name).exists() for name in _MARKS) and not (folder / "run.json").exists()


class Interval(NamedTuple):
    """An interval of the timeline; its end is None while it lasts."""

    name: str
    kind: str
    start: float
    end: float | None

    @property
    def seconds(self) -> float:
        """Its length; 0 while it lasts."""
        return 0.0 if self.end is None else self.end - self.start


@dataclass
class Ledger:
    """An open ledger, and the campaign's clock.

    Attributes:
        folder: the folder of the campaign.
        db: the open file.
        deadline: seconds of work.
        elapsed_before: seconds that earlier processes worked.
        start: the clock's reading when this process began.
        clock: seconds, from any start.
    """

    folder: Path
    db: sqlite3.Connection
    deadline: float
    elapsed_before: float
    start: float
    clock: Callable[[], float] = time.monotonic

    @property
    def elapsed(self) -> float:
        """Seconds of work since the start, by this process and by earlier processes."""
        return self.elapsed_before + self.clock() - self.start

    @property
    def remaining(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.deadline - self.elapsed

    def get(self, name: str) -> Any:
        """The value of a fact; None where there is none."""
        row = self.db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else ledger_file.fact(name, row[0], self.folder / NAME)

    def set(self, **facts: Any) -> None:
        """Writes facts, all or none; a fact of the same name is replaced."""
        with self.db:
            for name, value in facts.items():
                self.db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    @contextmanager
    def timed(self, name: str, kind: str) -> Iterator[None]:
        """Records the time that the block takes as an interval of the timeline."""
        with self.db:
            row = self.db.execute(
                "INSERT INTO events (kind, text, began) VALUES (?, ?, ?)", (kind, name, round(self.elapsed, 2))
            )
        try:
            yield
        finally:
            with self.db:
                self.db.execute("UPDATE events SET ended = ? WHERE id = ?", (round(self.elapsed, 2), row.lastrowid))

    def intervals(self) -> list[Interval]:
        """The intervals of the timeline, in the order in which they began."""
        query = "SELECT text, kind, began, ended FROM events WHERE kind != 'note' ORDER BY id"
        return [Interval(*row) for row in self.db.execute(query)]

    def log(self, sentence: str) -> None:
        """Keeps a sentence that explains a decision, and logs it with the campaign's time."""
        with self.db:
            self.db.execute("INSERT INTO events VALUES (NULL, 'note', ?, ?, NULL)", (sentence, round(self.elapsed, 2)))
        logger.info("[%s] %s", format_duration(self.elapsed), sentence)

    def put_segment(self, record: SegmentRecord) -> None:
        """Writes a segment; one of the same name is replaced."""
        values = [json.dumps(dict(v)) if isinstance(v, Mapping) else v for v in vars(record).values()]
        places = ", ".join("?" * len(COLUMNS))
        with self.db:
            self.db.execute(f"INSERT OR REPLACE INTO segments ({', '.join(COLUMNS)}) VALUES ({places})", values)

    def segments(self) -> tuple[SegmentRecord, ...]:
        """The segments in the order in which they began."""
        path = self.folder / NAME
        return tuple(ledger_file.check_folder_names(record, path) for record in _segments(self.db, path))

    def add_submission(self, score: float, result: Mapping[str, Any]) -> int:
        """Records a submission that replaces the one before it, and returns its number, counted from 1."""
        with self.db:
            row = self.db.execute(
                "INSERT INTO submissions (at, score, result) VALUES (?, ?, ?)",
                (round(self.elapsed, 2), score, json.dumps(result)),
            )
        assert row.lastrowid is not None
        return row.lastrowid

    def latest_submission(self) -> tuple[int, float, dict[str, Any]] | None:
        """Number, score and facts of the current submission; None before the first."""
        row = self.db.execute("SELECT id, at, score, result FROM submissions ORDER BY id DESC LIMIT 1").fetchone()
        if row is None:
            return None
        number, _, score, facts = ledger_file.submission(row, self.folder / NAME)
        return number, score, facts

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Writes the elapsed seconds every `HEARTBEAT_SECONDS` within the block, and once more at its end."""
        stop = threading.Event()

        def beat() -> None:
            with closing(ledger_file.connect(self.folder / NAME)) as db:
                while not stop.wait(HEARTBEAT_SECONDS):
                    with suppress(sqlite3.Error):  # a full disk; the campaign's next larger write stops it
                        _write_elapsed(db, self.elapsed)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            with suppress(sqlite3.Error):
                _write_elapsed(self.db, self.elapsed)

    def export(self) -> None:
        """Writes campaign.json, the ledger's content for people and tools."""
        self.set(seconds_used=round(self.elapsed, 2))
        write_text(
            self.folder / EXPORT, json.dumps({"format": FORMAT, **_snapshot(self.db, self.folder / NAME)}, indent=1)
        )

    def close(self) -> None:
        """Closes the file. It is then a single file that can be copied and read anywhere."""
        with suppress(
            sqlite3.OperationalError
        ):  # another process is reading: the write-ahead log stays beside the file
            self.db.execute("PRAGMA journal_mode = DELETE")
        self.db.close()


def create(folder: Path, facts: Mapping[str, Any], *, deadline: float, start: float) -> Ledger:
    """A new ledger in `folder` that holds `facts`. The file appears whole or not at all."""
    path = folder / NAME
    temporary = folder / f".{NAME}.new"
    temporary.unlink(missing_ok=True)
    with closing(sqlite3.connect(temporary)) as db, db:
        db.executescript(ledger_file.SCHEMA)
        for name, value in {**facts, "deadline_seconds": deadline, "seconds_used": 0.0}.items():
            db.execute("INSERT INTO facts VALUES (?, ?)", (name, json.dumps(value)))
    temporary.replace(path)
    return Ledger(folder, ledger_file.connect(path), deadline, 0.0, start)


def check_exists(folder: Path) -> None:
    """Raises InputError where `folder` holds no ledger."""
    if not (folder / NAME).is_file():
        raise InputError(f"{folder}: holds no campaign. Start one: foldfuse campaign DATA --out {folder}")


def resume(folder: Path, *, start: float) -> Ledger:
    """The ledger of a stopped campaign. Intervals that the stop cut off end at the last heartbeat.

    Raises:
        InputError: there is no ledger, or it is broken or of a newer format.
    """
    check_exists(folder)
    path = folder / NAME
    db = ledger_file.connect(path)
    with ledger_file.as_input_error(path):
        ledger = Ledger(folder, db, 0.0, 0.0, start)
        deadline, elapsed = ledger.get("deadline_seconds"), ledger.get("seconds_used")
        if deadline is None or elapsed is None:
            raise InputError(
                f"{path}: lacks the campaign's deadline or its clock. Start the campaign in another folder."
            )
        ledger.deadline, ledger.elapsed_before = deadline, elapsed
        _snapshot(db, path)  # every row is checked before anything is changed
        ledger.segments()
        with db:
            db.execute(
                "UPDATE events SET ended = max(began, ?) WHERE ended IS NULL AND kind != 'note'",
                (ledger.elapsed_before,),
            )
    return ledger


def snapshot(folder: Path) -> dict[str, Any]:
    """The whole content of the ledger in `folder`, as in campaign.json. Another process may be writing to it.

    Raises:
        InputError: the ledger cannot be read.
    """
    path = folder / NAME
    with closing(ledger_file.connect_to_read(path)) as db, ledger_file.as_input_error(path):
        return _snapshot(db, path)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Locks `folder` against other processes; the operating system frees the lock however the process ends.

    Raises:
        InputError: another process holds the lock.
    """
    refusal = f"{folder}: another process is at work on this campaign. Wait for it, or stop it first."
    with locks.exclusive(folder / LOCK, refusal=refusal):
        yield


def _write_elapsed(db: sqlite3.Connection, seconds: float) -> None:
    with db:
        db.execute("INSERT OR REPLACE INTO facts VALUES ('seconds_used', ?)", (json.dumps(round(seconds, 2)),))


def _segments(db: sqlite3.Connection, path: Path) -> tuple[SegmentRecord, ...]:
    query = f"SELECT {', '.join(COLUMNS)} FROM segments ORDER BY started, rowid"
    return tuple(ledger_file.segment(row, path) for row in ledger_file.rows(db, query, path))


def _snapshot(db: sqlite3.Connection, path: Path) -> dict[str, Any]:
    """The facts with the tables: the current submission and its history, the members, segments, notes and timeline."""
    facts = {
        name: parse_json(value, f"{path}: the fact {shown(name)}", what="JSON")
        for name, value in ledger_file.rows(db, "SELECT name, value FROM facts", path)
    }
    events = [
        ledger_file.event(row, path)
        for row in ledger_file.rows(db, "SELECT kind, text, began, ended FROM events ORDER BY id", path)
    ]
    submissions = [
        ledger_file.submission(row, path)[1:]
        for row in ledger_file.rows(db, "SELECT id, at, score, result FROM submissions ORDER BY id", path)
    ]
    notes = [(text, began) for kind, text, began, _ in events if kind == "note"]
    segments = _segments(db, path)
    return {
        **facts,
        **(submissions[-1][2] if submissions else {"fused": None, "best_member": None}),
        "members": [dict(segment.result) for segment in segments if segment.state == "done"],
        "segments": [vars(segment) for segment in segments],
        "submissions": len(submissions),
        "submission_scores": [score for _, score, _ in submissions],
        "history": [
            {
                "at": at,
                "score": score,
                **{
                    key: fused.get(key)
                    for key in ("metric", "ap50", "best_single", "num_members", "nested", "nested_single", "interval")
                },
            }
            for at, score, fused in ((at, score, result.get("fused") or {}) for at, score, result in submissions)
        ],
        "notes": [text for text, _ in notes],
        "note_times": [at for _, at in notes],
        "timeline": [
            {"name": text, "kind": kind, "start": began, "end": ended}
            for kind, text, began, ended in events
            if kind != "note"
        ],
    }
