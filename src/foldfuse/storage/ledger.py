"""The ledger of a campaign: an SQLite file that knows at any moment what was done, what came of it and the time it took.

facts        what the campaign was asked, the fingerprints of its data, its deadline; a JSON value a name
segments     a row for each member: from which other it begins, its recipe and budget, how far it is, what came of it
events       stretches of the timeline, and notes that explain a decision
submissions  each was better than the one before it

A process may be killed at any moment: SQLite's write-ahead log keeps every row that was written whole. Only a loss of power
may take the last rows with it ("synchronous" is NORMAL), never the file. The seconds used are written once a second, so that
a resumed campaign counts the time of the killed process, but not the time that nobody worked.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from foldfuse.errors import InputError
from foldfuse.system.atomic_files import write_text
from foldfuse.system.durations import format_duration

NAME = "campaign.sqlite"
LOCK = "campaign.lock"
HEARTBEAT_SECONDS = 1.0  # seconds between two looks at the clock that are written down
_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE segments (
    name TEXT PRIMARY KEY, kind TEXT NOT NULL, recipe TEXT NOT NULL, parent TEXT, fold INTEGER NOT NULL,
    seed INTEGER NOT NULL, state TEXT NOT NULL CHECK (state IN ('running', 'trained', 'done', 'failed')),
    budget REAL NOT NULL, seconds REAL NOT NULL, started REAL NOT NULL, ended REAL, result TEXT NOT NULL
);
CREATE TABLE events (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, text TEXT NOT NULL, began REAL NOT NULL, ended REAL);
CREATE TABLE submissions (id INTEGER PRIMARY KEY, at REAL NOT NULL, score REAL NOT NULL, result TEXT NOT NULL);
"""


@dataclass(frozen=True)
class SegmentRecord:
    """One segment, as the ledger knows it.

    Attributes:
        name: of the segment, the member that it makes, and its folder.
        kind: "train", "run" (somebody's run folder) or "foreign" (another toolkit's predictions).
        recipe: the fields of its recipe; empty for a foreign one.
        parent: the segment whose last state it began with.
        fold: that it does not learn from.
        seed: of its random choices.
        state: "running", "trained", "done" (its held-back pictures are predicted) or "failed".
        budget: seconds that it may train.
        seconds: that it has trained, up to its last checkpoint.
        started, ended: seconds since the campaign's start.
        result: scores and facts for the report; "cost" is the seconds of one picture in one view.
    """

    name: str
    kind: str
    recipe: Mapping[str, Any]
    parent: str | None
    fold: int
    seed: int
    state: str
    budget: float
    seconds: float
    started: float
    ended: float | None
    result: Mapping[str, Any]


@dataclass
class Ledger:
    """An open ledger, and the campaign's clock.

    Attributes:
        folder: of the campaign.
        db: the open file.
        deadline: seconds of work.
        before: seconds that earlier processes worked.
        start: the clock's reading when this process began.
        clock: seconds, from any start.
    """

    folder: Path
    db: sqlite3.Connection
    deadline: float
    before: float
    start: float
    clock: Callable[[], float] = time.monotonic

    @property
    def elapsed(self) -> float:
        """Seconds worked since the start, by this process and those before it."""
        return self.before + self.clock() - self.start

    @property
    def remaining(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.deadline - self.elapsed

    def get(self, name: str) -> Any:
        """The value of a fact; None where there is none."""
        row = self.db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def set(self, **facts: Any) -> None:
        """Write facts down, all or none; those of the same names are replaced."""
        with self.db:
            for name, value in facts.items():
                self.db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    @contextmanager
    def timed(self, name: str, kind: str) -> Iterator[None]:
        """A stretch of the timeline: everything done within it."""
        with self.db:
            made = self.db.execute(
                "INSERT INTO events (kind, text, began) VALUES (?, ?, ?)", (kind, name, round(self.elapsed, 2))
            )
        try:
            yield
        finally:
            with self.db:
                self.db.execute("UPDATE events SET ended = ? WHERE id = ?", (round(self.elapsed, 2), made.lastrowid))

    def log(self, sentence: str) -> None:
        """Keep a sentence that explains a decision, and tell it to whoever watches."""
        with self.db:
            self.db.execute("INSERT INTO events VALUES (NULL, 'note', ?, ?, NULL)", (sentence, round(self.elapsed, 2)))
        print(f"[{format_duration(self.elapsed)}] {sentence}", file=sys.stderr)

    def put_segment(self, row: SegmentRecord) -> None:
        """Write a segment down; one of the same name is replaced."""
        values = (*vars(row).values(),)
        plain = [json.dumps(dict(v)) if isinstance(v, Mapping) else v for v in values]
        columns = ", ".join(vars(row))
        with self.db:
            self.db.execute(
                f"INSERT OR REPLACE INTO segments ({columns}) VALUES ({', '.join('?' * len(plain))})", plain
            )

    def segments(self) -> tuple[SegmentRecord, ...]:
        """The segments in the order in which they began."""
        return _segments(self.db)

    def add_submission(self, score: float, result: Mapping[str, Any]) -> int:
        """The number, from 1, of a submission that is now the campaign's."""
        with self.db:
            made = self.db.execute(
                "INSERT INTO submissions (at, score, result) VALUES (?, ?, ?)",
                (round(self.elapsed, 2), score, json.dumps(result)),
            )
        assert made.lastrowid is not None
        return made.lastrowid

    def latest_submission(self) -> tuple[int, float, dict[str, Any]] | None:
        """Number, score and facts of the submission that holds now; None where there is none yet."""
        row = self.db.execute("SELECT id, score, result FROM submissions ORDER BY id DESC LIMIT 1").fetchone()
        return None if row is None else (row[0], row[1], json.loads(row[2]))

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """While it lasts, the seconds used are written down every `HEARTBEAT_SECONDS` seconds; at its end, once more."""
        stop = threading.Event()

        def beat() -> None:
            with closing(_connect(self.folder / NAME)) as db:
                while not stop.wait(HEARTBEAT_SECONDS):
                    with suppress(sqlite3.Error):  # a full disk; whoever writes more than this stops the campaign
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
        """Write campaign.json: what the ledger knows, for people and tools. Nothing reads it back."""
        self.set(seconds_used=round(self.elapsed, 2))
        write_text(self.folder / "campaign.json", json.dumps(_snapshot(self.db), indent=1))

    def close(self) -> None:
        """Close the file; it is then a single one, that can be copied and read anywhere."""
        with suppress(sqlite3.OperationalError):  # somebody reads it just now: the log stays beside it
            self.db.execute("PRAGMA journal_mode = DELETE")
        self.db.close()


def create(folder: Path, facts: Mapping[str, Any], *, deadline: float, start: float) -> Ledger:
    """A new ledger in `folder`, with these facts in it. It is there whole or not at all."""
    path = folder / NAME
    temporary = folder / f".{NAME}.new"
    temporary.unlink(missing_ok=True)
    with closing(sqlite3.connect(temporary)) as db, db:
        db.executescript(_SCHEMA)
        for name, value in {**facts, "deadline_seconds": deadline, "seconds_used": 0.0}.items():
            db.execute("INSERT INTO facts VALUES (?, ?)", (name, json.dumps(value)))
    temporary.replace(path)
    return Ledger(folder, _connect(path), deadline, 0.0, start)


def resume(folder: Path, *, start: float) -> Ledger:
    """The ledger of a campaign that was stopped; stretches of time that it was stopped in end at the last heartbeat.

    Raises:
        InputError: there is none, or it is broken.
    """
    path = folder / NAME
    if not path.is_file():
        raise InputError(
            f"{folder}: holds no campaign that has begun. Begin it with 'foldfuse campaign DATA --out {folder}'."
        )
    try:
        db = _connect(path)
        ledger = Ledger(folder, db, 0.0, 0.0, start)
        ledger.deadline, ledger.before = ledger.get("deadline_seconds"), ledger.get("seconds_used")
        with db:
            db.execute(
                "UPDATE events SET ended = max(began, ?) WHERE ended IS NULL AND kind != 'note'", (ledger.before,)
            )
    except sqlite3.DatabaseError as error:
        raise _broken(path, error) from None
    return ledger


def snapshot(folder: Path) -> dict[str, Any]:
    """All that the ledger in `folder` knows, as campaign.json has it; it may be written to meanwhile.

    Raises:
        InputError: it cannot be read.
    """
    path = folder / NAME
    try:
        with closing(
            sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", timeout=30, uri=True)
        ) as db:  # never made anew
            return _snapshot(db)
    except sqlite3.DatabaseError as error:
        raise _broken(path, error) from None


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """While it lasts, no other process works in `folder`; the system lets go of it when the process ends, however it ends.

    Raises:
        InputError: another one does.
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
    """Lock a file for this process; OSError where another has it."""
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


def _write_elapsed(db: sqlite3.Connection, seconds: float) -> None:
    with db:
        db.execute("INSERT OR REPLACE INTO facts VALUES ('seconds_used', ?)", (json.dumps(round(seconds, 2)),))


def _segments(db: sqlite3.Connection) -> tuple[SegmentRecord, ...]:
    names = ", ".join(SegmentRecord.__dataclass_fields__)
    found = db.execute(f"SELECT {names} FROM segments ORDER BY started, rowid").fetchall()
    rows = (dict(zip(SegmentRecord.__dataclass_fields__, values, strict=True)) for values in found)
    return tuple(
        SegmentRecord(**row | {"recipe": json.loads(row["recipe"]), "result": json.loads(row["result"])})
        for row in rows
    )


def _snapshot(db: sqlite3.Connection) -> dict[str, Any]:
    """The facts, and what the tables say: the submission that holds, how it came to it, members, notes and the timeline."""
    facts = {name: json.loads(value) for name, value in db.execute("SELECT name, value FROM facts")}
    events = db.execute("SELECT kind, text, began, ended FROM events ORDER BY id").fetchall()
    submitted = [
        (at, score, json.loads(result))
        for at, score, result in db.execute("SELECT at, score, result FROM submissions ORDER BY id")
    ]
    noted = [(text, began) for kind, text, began, _ in events if kind == "note"]
    rows = _segments(db)
    return {
        **facts,
        **(submitted[-1][2] if submitted else {"fused": None, "best_member": None}),
        "members": [dict(row.result) for row in rows if row.state == "done"],
        "segments": [vars(row) for row in rows],
        "submissions": len(submitted),
        "submission_scores": [score for _, score, _ in submitted],
        "history": [
            {"at": at, "score": score, **{key: fused.get(key) for key in ("metric", "ap50", "best_single", "weights")}}
            for at, score, fused in ((at, score, result.get("fused") or {}) for at, score, result in submitted)
        ],
        "notes": [text for text, _ in noted],
        "note_times": [at for _, at in noted],
        "timeline": [
            {"name": text, "kind": kind, "start": began, "end": ended}
            for kind, text, began, ended in events
            if kind != "note"
        ],
    }


def _broken(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path}: cannot be read as a campaign's ledger ({error}). Begin the campaign anew in another folder."
    )
