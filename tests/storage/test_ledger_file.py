"""A ledger that was changed, damaged or made by other software is refused in one sentence, and never runs for long."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import closing

import pytest

from foldfuse.errors import InputError
from foldfuse.storage import ledger as ledgers
from foldfuse.storage import ledger_file
from foldfuse.storage.ledger import create, resume, snapshot
from foldfuse.storage.ledger_file import check_facts
from foldfuse.storage.notes import read_snapshot
from ledger_samples import a_record

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT CAST(i AS TEXT) AS name, '1' AS value FROM n"
SLOW_COLUMN = "CREATE TABLE facts (name TEXT, value TEXT AS (hex(zeroblob(100000000))))"


@pytest.fixture
def folder(tmp_path):
    ledger = create(tmp_path, {"state": "running"}, deadline=60, start=0.0)
    ledger.put_segment(
        a_record("a", state="done", result={"views": ["1"], "predicted_views": ["1", "1+tiles2x2+hflip"], "ap50": 0.5})
    )
    ledger.log("a sentence")
    ledger.add_submission(0.5, {"fused": {"ap50": 0.5}, "best_member": "a"})
    ledger.close()
    return tmp_path


def change(folder, *statements):
    with closing(sqlite3.connect(folder / ledgers.NAME)) as db, db:
        for statement in statements:
            db.execute(statement)


SCHEMAS = [
    (["DROP TABLE facts", f"CREATE VIEW facts AS {ENDLESS}"], "holds the view 'facts'"),
    ([f"CREATE VIEW other AS {ENDLESS}"], "holds the view 'other'"),
    (["CREATE TRIGGER t AFTER UPDATE ON events BEGIN DELETE FROM facts; END"], "holds the trigger 't'"),
    (["DROP TABLE facts", SLOW_COLUMN], "is a database, but not the ledger of a campaign"),
    (["CREATE TABLE bookmarks (url TEXT)"], "holds the table 'bookmarks'"),
    (["CREATE INDEX i ON events (hex(text))"], "holds the index 'i'"),
    (["DROP TABLE segments"], "is a database, but not the ledger of a campaign"),
    (["ALTER TABLE segments DROP COLUMN result"], "is a database, but not the ledger of a campaign"),
    (["PRAGMA user_version = 99"], "campaign of format 99"),
]


@pytest.mark.parametrize(("statements", "message"), SCHEMAS)
def test_a_file_with_other_tables_is_refused_at_once(folder, statements, message):
    change(folder, *statements)
    before = (folder / ledgers.NAME).read_bytes()
    start = time.monotonic()
    for read in (snapshot, lambda f: resume(f, start=0.0)):
        with pytest.raises(InputError, match=message):
            read(folder)
    assert time.monotonic() - start < 5
    assert (folder / ledgers.NAME).read_bytes() == before


ROWS = [
    "UPDATE segments SET role = 'king'",
    "UPDATE segments SET recipe = '[]'",
    "UPDATE segments SET result = 'null'",
    "UPDATE segments SET result = '{'",
    """UPDATE segments SET result = '{"predicted_views": ["1/../../secret"]}'""",
    """UPDATE segments SET result = '{"image_seconds": -1}'""",
    """UPDATE segments SET result = '{"ap50": NaN}'""",
    "UPDATE segments SET budget = 9e999",
    "UPDATE segments SET budget = 'long'",
    "UPDATE segments SET seed = 1.5",
    "UPDATE segments SET name = x'00ff'",
    "UPDATE events SET began = 'then'",
    "UPDATE events SET text = x'00'",
    "UPDATE submissions SET score = 'good'",
    "UPDATE submissions SET score = -9e999",
    "UPDATE submissions SET result = '7'",
    """UPDATE submissions SET result = '{"fused": [1]}'""",
]


@pytest.mark.parametrize("statement", ROWS)
def test_a_row_with_a_wrong_value_is_one_sentence(folder, statement):
    change(folder, statement)
    for read in (snapshot, lambda f: resume(f, start=0.0)):
        with pytest.raises(InputError, match=r"campaign\.sqlite: ") as caught:
            read(folder)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500


def get_fact(folder, name):
    with closing(resume(folder, start=0.0)) as ledger:
        return ledger.get(name)


FACTS = {
    "deadline_seconds": ["null", "NaN", '"60"', "-1", "1e400", "true", "[]", "9" * 400, "{"],
    "seconds_used": ["null", "-5", '"x"'],
    "state": ['"asleep"', "7"],
    "request": ["null", "[]", '"x"'],
    "ranking": ['"base-256"', "[1]"],
    "step_seconds": ["[]", '{"a": 0}', '{"a": NaN}'],
    "max_views": ["0", '"2"'],
    "plan": ["[]", '{"segments": 7}', '{"segments": [null]}'],
    "undecodable_train": ["7", '["a"]'],
    "chosen_from": ["{}", "[null]"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in FACTS.items() for text in texts])
def test_a_fact_of_another_type_is_one_sentence(folder, name, text):
    change(folder, f"INSERT OR REPLACE INTO facts VALUES ('{name}', '{text}')")
    with pytest.raises(InputError) as caught:
        get_fact(folder, name)
    assert name in str(caught.value)
    with pytest.raises(InputError):
        read_snapshot(folder)


@pytest.mark.parametrize("name", ["../../outside", "/etc", "..", "a/b", ""])
def test_a_segment_whose_name_leads_elsewhere_is_refused(folder, name):
    change(folder, f"UPDATE segments SET name = '{name}'")
    with pytest.raises(InputError, match="no name of a folder"):
        resume(folder, start=0.0)


def test_a_table_without_an_end_is_refused(folder, monkeypatch):
    monkeypatch.setattr(ledger_file, "MAX_ROWS", 100)
    change(folder, f"INSERT INTO facts SELECT name, value FROM ({ENDLESS} LIMIT 200)")
    with pytest.raises(InputError, match="more than 100 rows"):
        snapshot(folder)


def test_a_value_of_many_megabytes_is_refused(folder):
    change(folder, f"UPDATE events SET text = hex(zeroblob({2**26}))")
    with pytest.raises(InputError, match="cannot be read as a campaign's ledger"):
        snapshot(folder)


def test_a_query_that_takes_too_long_is_stopped(folder, monkeypatch):
    monkeypatch.setattr(ledger_file, "MAX_SECONDS", -1.0)
    db = ledger_file.connect_to_read(folder / ledgers.NAME)
    with pytest.raises(sqlite3.OperationalError, match="interrupted"), closing(db):
        db.execute(f"SELECT count(*) FROM ({ENDLESS})").fetchone()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
@pytest.mark.parametrize("name", [f"{ledgers.NAME}-wal", ledgers.LOCK, ledgers.EXPORT])
def test_a_pipe_beside_the_ledger_is_refused_and_not_waited_for(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    if name == ledgers.LOCK:
        with pytest.raises(InputError, match="is a pipe"), ledgers.exclusive(folder):
            pass
        return
    if name == ledgers.EXPORT:
        (folder / ledgers.NAME).unlink()
        with pytest.raises(InputError, match="holds no campaign"):
            read_snapshot(folder)
        return
    with pytest.raises(InputError, match="is a pipe"):
        snapshot(folder)


@pytest.mark.parametrize(
    "facts",
    [
        {"submission_scores": ["high"]},
        {"submission_scores": None},
        {"fused": []},
        {"members": [7]},
        {"notes": [None]},
        {"deadline_seconds": "60"},
    ],
)
def test_an_export_with_wrong_values_is_one_sentence(folder, facts):
    content = json.dumps({"format": 1, **snapshot(folder), **facts})
    (folder / ledgers.NAME).unlink()
    (folder / ledgers.EXPORT).write_text(content)
    with pytest.raises(InputError, match="is not what a campaign writes"):
        read_snapshot(folder)


def test_what_a_campaign_writes_is_accepted(folder):
    check_facts(snapshot(folder), folder)
    assert read_snapshot(folder) == snapshot(folder)
