"""The ledger: committed rows survive a kill, its clock counts the working time, and one process at a time holds it."""

import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress

import pytest

from foldfuse.errors import InputError
from foldfuse.storage import ledger as ledgers
from foldfuse.storage.ledger import Ledger, create, exclusive, resume, snapshot
from ledger_samples import a_record
from waiting import wait_until

WRITER = """
import sys, time
from pathlib import Path
from foldfuse.storage import ledger
made = ledger.create(Path(sys.argv[1]), {"written": -1}, deadline=60, start=time.monotonic())
with ledger.exclusive(Path(sys.argv[1])), made.heartbeat(), made.timed("count", "train"):
    for i in range(10**9):
        made.set(written=i, again=i)
        print(i, flush=True)
"""


def opened(folder, *, now=None):
    now = now or [100.0]
    made = create(folder, {"a": 1}, deadline=60, start=now[0])
    return Ledger(made.folder, made.db, made.deadline, 0.0, now[0], clock=lambda: now[0])


def test_intervals_are_timed_by_the_clock(tmp_path):
    now = [100.0]
    ledger = opened(tmp_path, now=now)
    with ledger.timed("one", "train"):
        now[0] = 115.0
    with suppress(RuntimeError), ledger.timed("two", "fuse"):
        now[0] = 130.0
        raise RuntimeError
    assert (ledger.elapsed, ledger.remaining) == (30, 30)
    ledger.export()
    saved = json.loads((tmp_path / "campaign.json").read_text())
    assert saved["timeline"] == [
        {"name": "one", "kind": "train", "start": 0, "end": 15},
        {"name": "two", "kind": "fuse", "start": 15, "end": 30},
    ]
    assert saved["seconds_used"] == 30
    assert saved == {"format": ledgers.FORMAT, **snapshot(tmp_path)}
    ledger.close()


def test_facts_segments_and_submissions_are_read_back_unchanged(tmp_path):
    ledger = opened(tmp_path)
    ledger.set(a=[1, {"b": None}])
    ledger.put_segment(a_record("second", started=2.0))
    ledger.put_segment(a_record("first", started=1.0, parent="x", result={"ap50": 0.5}))
    ledger.put_segment(a_record("second", started=2.0, state="done", result={"ap50": 0.25, "name": "second"}))
    assert ledger.latest_submission() is None
    assert ledger.add_submission(0.25, {"fused": {"ap50": 0.25}}) == 1
    assert ledger.add_submission(0.5, {"fused": {"ap50": 0.5}}) == 2
    ledger.close()

    again = resume(tmp_path, start=0.0)
    assert again.get("a") == [1, {"b": None}]
    assert again.get("no such fact") is None
    assert [row.name for row in again.segments()] == ["first", "second"]
    assert again.segments()[0] == a_record("first", started=1.0, parent="x", result={"ap50": 0.5})
    assert again.latest_submission() == (2, 0.5, {"fused": {"ap50": 0.5}})
    page = snapshot(tmp_path)
    assert page["members"] == [{"ap50": 0.25, "name": "second"}]
    assert page["fused"] == {"ap50": 0.5}
    again.close()


def test_a_resumed_ledger_counts_the_working_time_and_not_the_time_in_between(tmp_path):
    now = [100.0]
    ledger = opened(tmp_path, now=now)
    now[0] = 140.0
    ledger.set(seconds_used=ledger.elapsed)  # as the heartbeat does
    ledger.db.execute("INSERT INTO events (kind, text, began) VALUES ('train', 'cut off', 30)")
    ledger.db.commit()
    ledger.db.close()
    resumed = resume(tmp_path, start=5000.0)
    resumed.clock = lambda: 5007.0
    assert resumed.elapsed == 47
    assert resumed.remaining == 13
    assert snapshot(tmp_path)["timeline"][-1] == {"name": "cut off", "kind": "train", "start": 30, "end": 40}
    resumed.close()


def test_the_heartbeat_needs_no_other_write(tmp_path, monkeypatch):
    monkeypatch.setattr(ledgers, "HEARTBEAT_SECONDS", 0.01)
    made = create(tmp_path, {}, deadline=60, start=time.monotonic() - 7)
    with made.heartbeat():
        wait_until(lambda: snapshot(tmp_path)["seconds_used"] >= 7, what="a heartbeat")
    made.close()


def test_a_closed_ledger_is_a_single_file(tmp_path):
    ledger = opened(tmp_path)
    ledger.close()
    assert [p.name for p in tmp_path.iterdir()] == [ledgers.NAME]


@pytest.mark.parametrize("lines", [1, 5, 50, 300])
def test_committed_rows_survive_a_kill(tmp_path, lines):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    said = [writer.stdout.readline() for _ in range(lines)]
    writer.kill()
    said += writer.stdout.readlines()
    writer.wait()
    writer.stdout.close()
    last = int([line for line in said if line.endswith("\n")][-1])
    with exclusive(tmp_path):  # the lock went with the process
        ledger = resume(tmp_path, start=0.0)
    assert ledger.get("written") >= last
    assert ledger.get("written") == ledger.get("again"), "half of a write"
    assert ledger.db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    ledger.close()


def test_a_second_process_is_refused_with_a_sentence(tmp_path):
    def take(folder, answer):
        try:
            with exclusive(folder):
                answer.put("taken")
        except InputError as error:
            answer.put(str(error))

    context = multiprocessing.get_context("fork") if os.name == "posix" else pytest.skip("needs fork")
    answer = context.SimpleQueue()
    with exclusive(tmp_path):
        other = context.Process(target=take, args=(tmp_path, answer))
        other.start()
        other.join()
    sentence = answer.get()
    assert "another process is at work on this campaign" in sentence
    assert "\n" not in sentence
    with exclusive(tmp_path):
        pass


def test_a_missing_or_broken_ledger_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="holds no campaign"):
        resume(tmp_path, start=0.0)
    (tmp_path / ledgers.NAME).write_bytes(b"not a database" * 100)
    with pytest.raises(InputError, match="cannot be read as a campaign's ledger"):
        resume(tmp_path, start=0.0)
    with pytest.raises(InputError, match="cannot be read as a campaign's ledger"):
        snapshot(tmp_path)


def test_a_full_disk_keeps_the_committed_rows(tmp_path):
    resource = pytest.importorskip("resource")
    child = os.fork()
    if child == 0:  # the limit cannot be lifted again, so another process has it
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        ledger = create(tmp_path, {}, deadline=60, start=0.0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            for i in range(1000):
                ledger.set(written=i, load="x" * 3000)
                (tmp_path / "said").write_text(str(i))
        except sqlite3.OperationalError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    ledger = resume(tmp_path, start=0.0)
    assert ledger.get("written") == int((tmp_path / "said").read_text())
    assert ledger.db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    ledger.close()


def test_a_ledger_of_a_newer_format_is_refused(tmp_path):
    opened(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / ledgers.NAME)) as db:
        db.execute("PRAGMA user_version = 99")
    for read in (snapshot, lambda folder: resume(folder, start=0.0)):
        with pytest.raises(InputError, match=r"campaign of format 99, .* reads up to 1. Update Foldfuse"):
            read(tmp_path)
