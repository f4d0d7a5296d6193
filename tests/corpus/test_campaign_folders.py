"""Folders of campaigns that were changed by hand, damaged, or are of other software: one sentence, at once, nothing written."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from corpus_samples import Case, coco, parametrize, run, write_coco
from foldfuse.campaign.request import CampaignRequest
from foldfuse.storage import ledger as ledgers
from foldfuse.system.records import to_plain
from ledger_samples import a_record

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes")
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT CAST(i AS TEXT) AS name, '1' AS value FROM n"


def campaign(folder: Path, **facts: Any) -> Path:
    """Makes the folder `night` of a stopped campaign on train.json, with one member, one submission and one note."""
    data = write_coco(folder, coco(8), with_images=False)
    night = folder / "night"
    night.mkdir()
    request = to_plain(CampaignRequest(data=data, out=night).absolute(), version=1)
    begun = {"state": "interrupted", "request": request, "fingerprints": {"data": "0", "test": None}, "reported": False}
    with closing(ledgers.create(night, {**begun, **facts}, deadline=600.0, start=0.0)) as book:
        book.put_segment(
            a_record("base-256", state="done", result={"views": ["1"], "predicted_views": ["1"], "ap50": 0.5})
        )
        book.add_submission(0.5, {"fused": {"ap50": 0.5, "ap": 0.25}, "best_member": "base-256"})
        book.log("a sentence")
    (night / ledgers.LOCK).touch()
    return night


def changed(*statements: str) -> Callable[[Path], None]:
    """Makes a campaign, and runs statements of SQL on its ledger."""

    def make(folder: Path) -> None:
        with closing(sqlite3.connect(campaign(folder) / ledgers.NAME)) as db, db:
            for statement in statements:
                db.execute(statement)

    return make


def fact(name: str, text: str) -> Callable[[Path], None]:
    return changed(f"INSERT OR REPLACE INTO facts VALUES ('{name}', '{text}')")


def file(name: str, content: bytes) -> Callable[[Path], None]:
    """Makes a campaign, and replaces one of its files."""

    def make(folder: Path) -> None:
        path = campaign(folder) / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)

    return make


def pipe(name: str) -> Callable[[Path], None]:
    """Makes a campaign with a pipe in the place of a file."""

    def make(folder: Path) -> None:
        path = campaign(folder) / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        os.mkfifo(path)

    return make


def export(**facts: Any) -> Callable[[Path], None]:
    """Makes a campaign of which only campaign.json is left, with some facts changed."""

    def make(folder: Path) -> None:
        night = campaign(folder)
        content = {"format": 1, **ledgers.snapshot(night), **facts}
        (night / ledgers.NAME).unlink()
        (night / ledgers.EXPORT).write_text(json.dumps(content))

    return make


def bookmarks(folder: Path) -> None:
    (folder / "night").mkdir()
    with closing(sqlite3.connect(folder / "night" / ledgers.NAME)) as db, db:
        db.execute("CREATE TABLE moz_places (id INTEGER PRIMARY KEY, url TEXT)")


def hidden(folder: Path) -> None:
    night = campaign(folder, state="finished", reported=True)
    (night / ".git").mkdir()
    (night / ".git" / "config").write_text("mine")
    (night / ".notes").write_text("mine")


def hidden_is_left(folder: Path) -> None:
    assert (folder / "night" / ".git" / "config").read_text() == (folder / "night" / ".notes").read_text() == "mine"


RESUME, WATCH, NOTE, REPORT = "campaign --resume night", "watch night", "note night hello", "report night --out r.html"
NOT_WRITTEN = "is not what a campaign writes"
CASES = [
    Case("sound_watch", changed(), WATCH, says=("AP50 0.500",)),
    Case("sound_note", changed(), NOTE),
    Case("other_data", changed(), RESUME, 2, ("was started with other data than",)),
    Case("no_database", file(ledgers.NAME, b"hello" * 500), RESUME, 2, ("cannot be read as a campaign's ledger",)),
    Case("cut_off", file(ledgers.NAME, b"SQLite format 3\0" + b"\0" * 300), WATCH, 2, ("cannot be read as a campaign's",)),
    Case("empty_ledger", file(ledgers.NAME, b""), RESUME, 2, ("not the ledger of a campaign",)),
    Case("database_of_other_software", bookmarks, RESUME, 2, ("holds the table 'moz_places'",)),
    Case("endless_view", changed("DROP TABLE facts", f"CREATE VIEW facts AS {ENDLESS}"), RESUME, 2, ("the view 'facts'",)),
    Case("endless_view_watched", changed("DROP TABLE events", f"CREATE VIEW events AS {ENDLESS}"), WATCH, 2, ("the view",)),
    Case("trigger", changed("CREATE TRIGGER t AFTER UPDATE ON events BEGIN DELETE FROM facts; END"), RESUME, 2, ("trigger",)),
    Case("missing_table", changed("DROP TABLE submissions"), WATCH, 2, ("not the ledger of a campaign",)),
    Case("newer_format", changed("PRAGMA user_version = 7"), RESUME, 2, ("of format 7", "Update Foldfuse")),
    Case("deadline_null", fact("deadline_seconds", "null"), RESUME, 2, ("'deadline_seconds'", NOT_WRITTEN)),
    Case("deadline_of_400_digits", fact("deadline_seconds", "9" * 400), RESUME, 2, ("deadline_seconds",)),
    Case("deadline_nan", fact("deadline_seconds", "NaN"), WATCH, 2, ("'deadline_seconds'", NOT_WRITTEN)),
    Case("clock_is_text", fact("seconds_used", '"long"'), RESUME, 2, ("'seconds_used'", NOT_WRITTEN)),
    Case("fact_is_deep", fact("plan", "[" * 1000 + "]" * 1000), WATCH, 2, ("nested more than",)),
    Case("request_null", fact("request", "null"), RESUME, 2, ("'request'", NOT_WRITTEN)),
    Case("request_lacks_fields", fact("request", "{}"), RESUME, 2, ("is not a campaign's request",)),
    Case("request_of_wrong_types", fact("request", '{"format": 1, "data": 7}'), RESUME, 2, ("is not a campaign's request",)),
    Case("plan_of_wrong_types", fact("plan", '{"segments": [{"name": 3}]}'), WATCH, 2, ("'plan'", NOT_WRITTEN)),
    Case("state_unknown", fact("state", '"asleep"'), WATCH, 2, ("'state'", NOT_WRITTEN)),
    Case("role_unknown", changed("UPDATE segments SET role = 'king'"), WATCH, 2, ("'base-256'", NOT_WRITTEN)),
    Case("result_is_a_list", changed("UPDATE segments SET result = '[]'"), WATCH, 2, ("'base-256'", NOT_WRITTEN)),
    Case("budget_is_infinite", changed("UPDATE segments SET budget = 9e999"), WATCH, 2, ("not finite",)),
    Case("submission_is_null", changed("UPDATE submissions SET result = 'null'"), NOTE, 2, ("the submission 1",)),
    Case("lock_is_a_pipe", pipe(ledgers.LOCK), "campaign train.json --out night --overwrite --deadline 60s", 2, ("is a pipe",)),
    Case("ledger_is_a_pipe", pipe(ledgers.NAME), RESUME, 2, ("holds no campaign",)),
    Case("wal_is_a_pipe", pipe(f"{ledgers.NAME}-wal"), WATCH, 2, ("is a pipe",)),
    Case("no_folder", lambda folder: None, RESUME, 2, ("holds no campaign",)),
    Case("export_of_wrong_types", export(submission_scores="high"), NOTE, 2, ("'submission_scores'", NOT_WRITTEN)),
    Case("export_of_a_newer_format", export(format=9), NOTE, 2, ("of format 9",)),
    Case("export_of_no_format", export(format="new"), NOTE, 2, ("of format 'new'",)),
    Case("export_is_sound", export(), NOTE),
    Case("export_is_a_list", file(ledgers.EXPORT, b"[]"), NOTE),
    Case("note_of_wrong_types", file("notes/1.json", b'{"format": 1, "at": 7}'), REPORT, says=("r.html",)),
    Case("note_is_a_pipe", pipe("notes/1.json"), REPORT, says=("r.html",)),
    Case("note_with_nan", file("notes/1.json", b'{"format": 1, "at": "x", "leaderboard": NaN, "submission": 1}'), REPORT),
    Case("report_of_an_endless_view", changed("DROP TABLE facts", f"CREATE VIEW facts AS {ENDLESS}"), REPORT),
    Case("hidden_files_stay", hidden, RESUME, says=("has finished already",), right=hidden_is_left),
]  # fmt: skip


@parametrize(CASES)
def test_campaign_folders(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(case, tmp_path, monkeypatch, capsys)
