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
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, Literal

from foldfuse.errors import InputError
from foldfuse.system.atomic_files import write_text
from foldfuse.system.durations import format_duration

NAME = "campaign.sqlite"
LOCK = "campaign.lock"
EXPORT = "campaign.json"
FORMAT = 1  # of the tables and of campaign.json; SQLite keeps it as user_version
HEARTBEAT_SECONDS = 1.0
_SCHEMA = f"""
PRAGMA user_version = {FORMAT};
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE segments (
    name TEXT PRIMARY KEY, role TEXT NOT NULL, recipe TEXT NOT NULL, parent TEXT, fold INTEGER NOT NULL,
    seed INTEGER NOT NULL, state TEXT NOT NULL CHECK (state IN ('running', 'trained', 'done', 'failed')),
    budget REAL NOT NULL, seconds REAL NOT NULL, started REAL NOT NULL, ended REAL, result TEXT NOT NULL
);
CREATE TABLE events (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, text TEXT NOT NULL, began REAL NOT NULL, ended REAL);
CREATE TABLE submissions (id INTEGER PRIMARY KEY, at REAL NOT NULL, score REAL NOT NULL, result TEXT NOT NULL);
"""

logger = logging.getLogger(__name__)


class Role(StrEnum):
    """The part of a segment in the campaign's schedule, or where an external member comes from."""

    BASE = "base"  # trains at a constant learning rate from the recipe's initial weights
    EXTENDED = "extended"  # continues a promoted base run at a larger image size, still at a constant rate
    COOLDOWN = "cooldown"  # continues a base or extended run while the learning rate decays to 0
    EXTERNAL_RUN = "external_run"  # a run folder trained outside the campaign
    EXTERNAL_PREDICTIONS = "external_predictions"  # another toolkit's predictions

    @property
    def is_external(self) -> bool:
        """Whether the campaign did not train the member itself."""
        return self in (Role.EXTERNAL_RUN, Role.EXTERNAL_PREDICTIONS)


State = Literal["running", "trained", "done", "failed"]


@dataclass(frozen=True)
class SegmentRecord:
    """One segment in the ledger.

    Attributes:
        name: the name of the segment, of the member that it makes, and of its folder.
        role: part in the schedule.
        recipe: fields of its recipe; empty for external predictions.
        parent: the segment whose last checkpoint it starts from.
        fold: held-out fold.
        seed: the seed of its random choices.
        state: "running", "trained", "done" (the held-out images are predicted) or "failed".
        budget: seconds of training that it is given.
        seconds: seconds trained, up to its last checkpoint.
        started, ended: seconds since the campaign's start.
        result: scores and measurements for the report; "image_seconds" is the seconds that one image takes in the plain view.
    """

    name: str
    role: Role
    recipe: Mapping[str, Any]
    parent: str | None
    fold: int
    seed: int
    state: State
    budget: float
    seconds: float
    started: float
    ended: float | None
    result: Mapping[str, Any]


_COLUMNS = tuple(field.name for field in fields(SegmentRecord))


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
        return None if row is None else json.loads(row[0])

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

    def log(self, sentence: str) -> None:
        """Keeps a sentence that explains a decision, and logs it with the campaign's time."""
        with self.db:
            self.db.execute("INSERT INTO events VALUES (NULL, 'note', ?, ?, NULL)", (sentence, round(self.elapsed, 2)))
        logger.info("[%s] %s", format_duration(self.elapsed), sentence)

    def put_segment(self, record: SegmentRecord) -> None:
        """Writes a segment; one of the same name is replaced."""
        values = [json.dumps(dict(v)) if isinstance(v, Mapping) else v for v in vars(record).values()]
        places = ", ".join("?" * len(_COLUMNS))
        with self.db:
            self.db.execute(f"INSERT OR REPLACE INTO segments ({', '.join(_COLUMNS)}) VALUES ({places})", values)

    def segments(self) -> tuple[SegmentRecord, ...]:
        """The segments in the order in which they began."""
        return _segments(self.db)

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
        row = self.db.execute("SELECT id, score, result FROM submissions ORDER BY id DESC LIMIT 1").fetchone()
        return None if row is None else (row[0], row[1], json.loads(row[2]))

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Writes the elapsed seconds every `HEARTBEAT_SECONDS` within the block, and once more at its end."""
        stop = threading.Event()

        def beat() -> None:
            with closing(_connect(self.folder / NAME)) as db:
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
        write_text(self.folder / EXPORT, json.dumps({"format": FORMAT, **_snapshot(self.db)}, indent=1))

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
        db.executescript(_SCHEMA)
        for name, value in {**facts, "deadline_seconds": deadline, "seconds_used": 0.0}.items():
            db.execute("INSERT INTO facts VALUES (?, ?)", (name, json.dumps(value)))
    temporary.replace(path)
    return Ledger(folder, _connect(path), deadline, 0.0, start)


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
    try:
        db = _connect(path)
        check_format(_format(db), path)
        ledger = Ledger(folder, db, 0.0, 0.0, start)
        ledger.deadline, ledger.elapsed_before = ledger.get("deadline_seconds"), ledger.get("seconds_used")
        with db:
            db.execute(
                "UPDATE events SET ended = max(began, ?) WHERE ended IS NULL AND kind != 'note'",
                (ledger.elapsed_before,),
            )
    except sqlite3.DatabaseError as error:
        raise _broken(path, error) from None
    return ledger


def snapshot(folder: Path) -> dict[str, Any]:
    """The whole content of the ledger in `folder`, as in campaign.json. Another process may be writing to it.

    Raises:
        InputError: the ledger cannot be read.
    """
    path = folder / NAME
    uri = f"{path.resolve().as_uri()}?mode=rw"  # rw: a file that is missing is not created
    try:
        with closing(sqlite3.connect(uri, timeout=30, uri=True)) as db:
            check_format(_format(db), path)
            return _snapshot(db)
    except sqlite3.DatabaseError as error:
        raise _broken(path, error) from None


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Locks `folder` against other processes; the operating system frees the lock however the process ends.

    Raises:
        InputError: another process holds the lock.
    """
    with (folder / LOCK).open("a") as file:
        try:
            _lock(file)
        except OSError:
            raise InputError(
                f"{folder}: another process is at work on this campaign. Wait for it, or stop it first."
            ) from None
        yield


def _lock(file: IO[str]) -> None:
    """Locks a file for this process; OSError where another process has it."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=30)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    return db


def check_format(found: int, path: Path) -> None:
    """Raises InputError where a ledger or its export has a newer format than this version reads."""
    if found > FORMAT:
        raise InputError(
            f"{path}: is a campaign of format {found}, and this version of Foldfuse reads up to {FORMAT}. "
            "Update Foldfuse, or use the version that wrote it."
        )


def _format(db: sqlite3.Connection) -> int:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return int(version)


def _write_elapsed(db: sqlite3.Connection, seconds: float) -> None:
    with db:
        db.execute("INSERT OR REPLACE INTO facts VALUES ('seconds_used', ?)", (json.dumps(round(seconds, 2)),))


def _segments(db: sqlite3.Connection) -> tuple[SegmentRecord, ...]:
    rows = db.execute(f"SELECT {', '.join(_COLUMNS)} FROM segments ORDER BY started, rowid")
    segments = (dict(zip(_COLUMNS, row, strict=True)) for row in rows)
    return tuple(
        SegmentRecord(
            **{
                **segment,
                "role": Role(segment["role"]),
                "recipe": json.loads(segment["recipe"]),
                "result": json.loads(segment["result"]),
            }
        )
        for segment in segments
    )


def _snapshot(db: sqlite3.Connection) -> dict[str, Any]:
    """The facts with the tables: the current submission and its history, the members, segments, notes and timeline."""
    facts = {name: json.loads(value) for name, value in db.execute("SELECT name, value FROM facts")}
    events = db.execute("SELECT kind, text, began, ended FROM events ORDER BY id").fetchall()
    submissions = [
        (at, score, json.loads(result))
        for at, score, result in db.execute("SELECT at, score, result FROM submissions ORDER BY id")
    ]
    notes = [(text, began) for kind, text, began, _ in events if kind == "note"]
    segments = _segments(db)
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
                **{key: fused.get(key) for key in ("metric", "ap50", "best_single", "num_members")},
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


def _broken(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path}: cannot be read as a campaign's ledger ({error}). Start the campaign again in another folder."
    )
