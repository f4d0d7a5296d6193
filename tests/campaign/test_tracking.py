"""A campaign's trackers get each row of each segment and each submission once, and never hold the campaign up."""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from foldfuse.campaign import tracking
from foldfuse.campaign.request import CampaignRequest, command_line
from foldfuse.campaign.tracking import CampaignRows, tracked
from foldfuse.errors import InputError
from foldfuse.storage.ledger import create
from foldfuse.storage.segments import Role, SegmentRecord


@pytest.fixture
def ledger(tmp_path):
    (tmp_path / "night1").mkdir()
    with closing(create(tmp_path / "night1", {}, deadline=100, start=time.monotonic())) as ledger:
        yield ledger


@pytest.fixture
def calls(monkeypatch):
    """What a fake Trackio was given."""
    found = []
    run = SimpleNamespace(log=lambda row, step: found.append((step, row)), finish=lambda: found.append("finished"))
    fake = ModuleType("trackio")
    fake.init = lambda **kwargs: found.append(kwargs["name"]) or run
    monkeypatch.setitem(sys.modules, "trackio", fake)
    return found


def put(ledger, name, *rows, role=Role.BASE):
    ledger.put_segment(SegmentRecord(name, role, {}, None, 0, 0, "running", 1.0, 0.0, 0.0, None, {}))
    folder = ledger.folder / "members" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_each_row_and_submission_is_read_once(ledger):
    rows = CampaignRows(ledger.folder)
    assert rows.read() == []
    first = [{"step": 0, "loss": 2.0}, {"step": 1, "loss": 1.5}]
    put(ledger, "base", *first)
    put(ledger, "other", {"step": 9, "loss": 9.0}, role=Role.EXTERNAL_RUN)
    assert rows.read() == [{"step": 0, "base/loss": 2.0}, {"step": 1, "base/loss": 1.5}]
    assert rows.read() == []
    ledger.add_submission(0.4, {})
    scored = {"step": 2, "seconds": 3.0, "ap50": 0.4}
    put(ledger, "base", *first, scored, {"step": 2, "loss": 1.0})
    *new, submission = rows.read()
    assert new == [{"step": 2, "base/seconds": 3.0, "base/ap50": 0.4}, {"step": 2, "base/loss": 1.0}]
    assert submission["step"] == 1
    assert submission["campaign/score"] == 0.4
    put(ledger, "base", *first)  # a crash cut rows off; they are trained again
    assert rows.read() == []
    put(ledger, "base", *first, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 0.5})
    assert rows.read() == [{"step": 3, "base/loss": 0.5}]


def test_a_campaign_is_one_run_and_a_resumed_one_brings_the_new_rows(ledger, calls):
    put(ledger, "base", {"step": 0, "loss": 2.0})
    with tracked(ledger.folder, ["trackio:p"]):
        put(ledger, "base", {"step": 0, "loss": 2.0}, {"step": 1, "loss": 1.0})
    assert calls == ["night1", (1, {"base/loss": 1.0}), "finished"]


def test_a_tracker_that_fails_or_hangs_never_ends_a_campaign(ledger, calls, monkeypatch, caplog):
    def refuse(**kwargs):
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(sys.modules["trackio"], "init", refuse)
    with tracked(ledger.folder, ["trackio:p"]):
        pass
    assert caplog.text.count("trackio:p cannot be opened (ConnectionError: nobody answers)") == 1
    monkeypatch.setattr(sys.modules["trackio"], "init", lambda **kwargs: time.sleep(1.0))
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 0.05)
    start = time.monotonic()
    with tracked(ledger.folder, ["trackio:p"]):
        pass
    assert time.monotonic() - start < 0.9
    assert "trackio:p did not take the last rows within 0.05 s" in caplog.text
    time.sleep(1.0)  # the thread ends


def test_a_failed_campaign_is_a_failed_run(ledger, monkeypatch):
    ends = []
    fake = ModuleType("mlflow")
    for name in ("set_tracking_uri", "log_metrics", "flush_async_logging"):
        setattr(fake, name, lambda *_, **__: None)
    fake.start_run = lambda **_: None
    fake.end_run = ends.append
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    with pytest.raises(FloatingPointError), tracked(ledger.folder, ["mlflow:x"]):
        raise FloatingPointError
    with tracked(ledger.folder, ["mlflow:x"]):
        pass
    assert ends == ["FAILED", "FINISHED"]


def test_the_request_checks_and_keeps_its_trackers(calls, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    request = CampaignRequest(data=Path("d"), tracker=("trackio:p", "tensorboard:logs"))
    assert request.absolute().tracker == ("trackio:p", f"tensorboard:{tmp_path / 'logs'}")
    assert "--tracker trackio:p --tracker tensorboard:logs" in command_line(request, ray=None)
    with pytest.raises(InputError, match="Did you mean 'trackio'"):
        replace(request, tracker=("tracko:p",)).check()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"pip install 'foldfuse\[wandb\]'"):
        replace(request, tracker=("wandb:p",)).check()
