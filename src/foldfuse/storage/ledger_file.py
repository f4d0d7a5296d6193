"""The SQLite file of a ledger, opened without trusting it: it may be damaged, changed by hand, or of other software.

A view, a trigger or a computed column could run for ever, so the file may hold the ledger's own tables alone. Every value that
decides anything is checked by type before it is used.
"""

from __future__ import annotations

import math
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec

from foldfuse.errors import InputError, shown
from foldfuse.storage.segments import SegmentRecord
from foldfuse.system.files import kind_of_file, parse_json
from foldfuse.system.records import in_words

FORMAT = 1  # of the tables and of campaign.json; SQLite keeps it as user_version
SCHEMA = f"""
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
TABLES = {
    "facts": ("name", "value"),
    "segments": (
        "name",
        "role",
        "recipe",
        "parent",
        "fold",
        "seed",
        "state",
        "budget",
        "seconds",
        "started",
        "ended",
        "result",
    ),
    "events": ("id", "kind", "text", "began", "ended"),
    "submissions": ("id", "at", "score", "result"),
}
MAX_TEXT = 2**26  # bytes of a value: a campaign's facts have some KB
MAX_ROWS = 1_000_000  # of a table: a campaign of a week has some thousands
MAX_SECONDS = 30.0  # of reading a whole ledger, which takes some ms
_ADVICE = (
    "Give the folder of a campaign that other software has not changed, or start the campaign again in another folder."
)
_NAME = re.compile(r"[^/\\\0]+")  # of a member, which is the name of its folder


COLUMNS = tuple(field.name for field in fields(SegmentRecord))

_View = Annotated[str, msgspec.Meta(pattern=r"^[0-9.]+(\+tiles[1-8]x[1-8])?(\+[hv]flip)*$")]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
_Ids = list[int]


class _Result(TypedDict):
    """The fields of `SegmentRecord.result` that are read again."""

    name: NotRequired[str]
    views: NotRequired[list[_View]]
    predicted_views: NotRequired[list[_View]]
    image_seconds: NotRequired[_Seconds]
    ap: NotRequired[float | None]
    ap50: NotRequired[float | None]
    weight: NotRequired[float | None]
    leave_one_out_gain: NotRequired[float | None]


class _Planned(TypedDict):
    name: str
    image_size: NotRequired[int]
    seconds: NotRequired[float]


class _Plan(TypedDict):
    segments: list[_Planned]


class _ImageSizeChoice(TypedDict):
    size: Annotated[int, msgspec.Meta(ge=32, le=4096, multiple_of=32)]
    reason: str


class _Fused(TypedDict):
    metric: NotRequired[str]
    value: NotRequired[float | None]
    ap: NotRequired[float | None]
    ap50: NotRequired[float | None]


_SUBMITTED: dict[str, Any] = {"fused": _Fused | None, "best_member": str | None}
_FACTS: dict[str, Any] = {
    "state": Literal["running", "interrupted", "failed", "finished"],
    "request": dict[str, Any],
    "fingerprints": dict[str, str | None],
    "deadline_seconds": _Seconds,
    "seconds_used": _Seconds,
    "undecodable_train": _Ids | None,
    "undecodable_test": _Ids | None,
    "external_members_added": bool,
    "reported": bool,
    "plan": _Plan | None,
    "pixel_seconds": _Seconds | None,
    "crop_seconds": _Seconds | None,
    "object_crop_seconds": _Seconds | None,
    "cpu_share": _Seconds | None,
    "slowdown": Annotated[float, msgspec.Meta(gt=0, le=1e4)] | None,
    "step_seconds": dict[str, Annotated[float, msgspec.Meta(gt=0)]] | None,
    "image_size_choice": _ImageSizeChoice,
    "ranking": list[str] | None,
    "max_views": Annotated[int, msgspec.Meta(ge=1)] | None,
    "chosen_from": list[str] | None,
    "train_folds": list[int] | None,
    "train_folds_auto": bool | None,
    "folds_in_time": list[int] | None,
    "still_learning": bool | None,
    "train_folds_reason": str | None,
}
_TABLE_FACTS: dict[str, Any] = {  # of a snapshot
    **_SUBMITTED,
    "members": list[_Result],
    "submissions": int,
    "submission_scores": list[float],
    "notes": list[str],
}


def connect(path: Path) -> sqlite3.Connection:
    """An open ledger to read and write, of the campaign's own process.

    Raises:
        InputError: the file is no ledger of this format.
    """
    check_is_file(path)
    with as_input_error(path):
        db = sqlite3.connect(path, timeout=30)
        _restrict(db)
        _check_schema(db, path)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.set_progress_handler(None, 0)
    return db


def connect_to_read(path: Path) -> sqlite3.Connection:
    """An open ledger to read, which another process may be writing to; a query that takes too long is stopped.

    Raises:
        InputError: the file is no ledger of this format.
    """
    check_is_file(path)
    with as_input_error(path):
        uri = f"{path.resolve().as_uri()}?mode=rw"  # rw: a file that is missing is not created
        db = sqlite3.connect(uri, timeout=30, uri=True)
        _restrict(db)
        _check_schema(db, path)
    return db


def check_is_file(path: Path) -> None:
    """Raises InputError where a ledger, or a file that SQLite keeps beside it, is no regular file."""
    for each in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        kind = kind_of_file(each.stat().st_mode) if each.exists() else None
        if kind is not None:
            raise InputError(f"{each}: is {kind}, expected a file of a campaign's ledger. Remove it.")


def _restrict(db: sqlite3.Connection) -> None:
    """Sets limits on what reading a file can cost."""
    until = time.monotonic() + MAX_SECONDS
    db.set_progress_handler(lambda: time.monotonic() > until, 10_000)
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_TEXT)
    db.execute("PRAGMA trusted_schema = OFF")
    db.execute("PRAGMA cell_size_check = ON")


def _check_schema(db: sqlite3.Connection, path: Path) -> None:
    """Raises InputError where the file holds anything but the tables of a ledger, or is of a newer format."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    check_format(int(version), path)
    found: dict[str, tuple[str, ...]] = {}
    for kind, name, sql in db.execute("SELECT type, name, sql FROM sqlite_master"):
        if kind == "table" and name in TABLES and not str(sql).upper().startswith("CREATE VIRTUAL"):
            columns = db.execute("SELECT name, hidden FROM pragma_table_xinfo(?)", (name,)).fetchall()
            found[name] = tuple(column if not hidden else "?" for column, hidden in columns)
        elif sql is not None and not str(name).startswith("sqlite_stat"):
            raise InputError(f"{path}: holds the {kind} {shown(name)}, which no campaign writes. {_ADVICE}")
    if found != TABLES:
        raise InputError(f"{path}: is a database, but not the ledger of a campaign. {_ADVICE}")


_ADVICE = (
    "Give the folder of a campaign that other software has not changed, or start the campaign again in another folder."
)


def check_format(found: Any, path: Path) -> None:
    """Raises InputError where a ledger or its export has a newer format than this version reads."""
    if not isinstance(found, int) or found > FORMAT:
        raise InputError(
            f"{path}: is a campaign of format {shown(found)}, and this version of Foldfuse reads up to {FORMAT}. "
            "Update Foldfuse, or use the version that wrote it."
        )


@contextmanager
def as_input_error(path: Path) -> Iterator[None]:
    """Turns an error of SQLite within the block into an InputError on the file."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise InputError(
            f"{path}: cannot be read as a campaign's ledger ({error}). Start the campaign again in another folder."
        ) from None


def rows(db: sqlite3.Connection, query: str, path: Path) -> list[tuple[Any, ...]]:
    """The rows that a query gives. Raises InputError where they are more than any campaign writes."""
    found = list(islice(db.execute(query), MAX_ROWS + 1))
    if len(found) > MAX_ROWS:
        raise InputError(f"{path}: has more than {MAX_ROWS:,} rows in a table, which no campaign writes. {_ADVICE}")
    return found


def fact(name: str, text: Any, path: Path) -> Any:
    """The value of a fact from its JSON. Raises InputError where it is not JSON, or of another type than the campaign writes."""
    value = parse_json(_text(text, f"the fact {name!r}", path), f"{path}: the fact {shown(name)}", what="JSON")
    if name in _FACTS:
        _check(value, _FACTS[name], f"the fact {name!r}", path)
    return value


def check_facts(facts: Mapping[str, Any], path: Path) -> None:
    """Raises InputError where a snapshot, or an export that was read, has values of other types than a campaign writes."""
    for name, kind in (_FACTS | _TABLE_FACTS).items():
        if name in facts:
            _check(facts[name], kind, f"the fact {name!r}", path)


def segment(row: Sequence[Any], path: Path) -> SegmentRecord:
    """The SegmentRecord in a row of the table. Raises InputError where a value is of another type than a campaign writes."""
    values = dict(zip(COLUMNS, row, strict=True))
    where = f"the segment {shown(values['name'])}"
    for name in ("recipe", "result"):
        values[name] = parse_json(_text(values[name], where, path), f"{path}: {where}", what="JSON")
    record: SegmentRecord = _check(values, SegmentRecord, where, path)
    _check(values["result"], _Result, where, path)
    return record


def check_folder_names(record: SegmentRecord, path: Path) -> SegmentRecord:
    """The record itself. Raises InputError where its name or its parent's would lead out of the folder of the members."""
    for name in (record.name, record.parent or "a"):
        if not _NAME.fullmatch(name) or name in (".", ".."):
            raise InputError(f"{path}: a segment has the name {shown(name)}, which is no name of a folder. {_ADVICE}")
    return record


def submission(row: Sequence[Any], path: Path) -> tuple[int, float, float, dict[str, Any]]:
    """(number, seconds, score, facts) in a row of the table. Raises InputError as `segment` does."""
    number, at, score, text = row
    where = f"the submission {shown(number)}"
    result = parse_json(_text(text, where, path), f"{path}: {where}", what="JSON")
    for value, kind in ((number, int), (at, _Seconds), (score, float), (result, dict[str, Any])):
        _check(value, kind, where, path)
    for name, kind in _SUBMITTED.items():
        if name in result:
            _check(result[name], kind, where, path)
    return number, at, score, result


def event(row: Sequence[Any], path: Path) -> tuple[str, str, float, float | None]:
    """(kind, text, began, ended) in a row of the table. Raises InputError as `segment` does."""
    kind, text, began, ended = row
    for value, type_ in ((kind, str), (text, str), (began, float), (ended, float | None)):
        _check(value, type_, "an event", path)
    return kind, text, began, ended


def _text(value: Any, where: str, path: Path) -> str:
    if not isinstance(value, str):
        raise InputError(f"{path}: {where} is not text. {_ADVICE}")
    return value


def _check(value: Any, kind: Any, where: str, path: Path) -> Any:
    """`value` as `kind`. Raises InputError where it is of another type, or holds a number that is not finite."""
    try:
        converted = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: {where} is not what a campaign writes: {in_words(str(error))}. {_ADVICE}") from None
    if not _is_finite(value):
        raise InputError(f"{path}: {where} holds a number that is not finite. {_ADVICE}")
    return converted


def _is_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    return all(map(_is_finite, value)) if isinstance(value, list) else True
