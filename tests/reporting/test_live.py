"""The live view: what the ledger knows, in lines; notes above it; nothing of it where there is no terminal."""

import io
import sqlite3
import time
from contextlib import suppress

import pytest
from rich.console import Console

from foldfuse.errors import InputError
from foldfuse.reporting import live as watching
from foldfuse.reporting.live import Work, live, view, watch
from foldfuse.storage import ledger as ledgers
from foldfuse.system.progress import error_console, progress_bar
from ledger_samples import a_record
from waiting import wait_until

RESULT = {"name": "trunk-64", "ap50": 0.5, "ap": 0.25, "weight": 0.75, "adds": 0.013}
PLAN = {"segments": [{"name": "trunk-64", "image_size": 64}, {"name": "branch1-96", "image_size": 96, "seconds": 90.0}]}


@pytest.fixture
def campaign(tmp_path):
    """An open ledger: a trunk that is done, a branch that is planned, a submission."""
    ledger = ledgers.create(tmp_path, {"state": "running"}, deadline=600, start=time.monotonic() - 200)
    ledger.put_segment(a_record("trunk-64", state="done", seconds=120.0, ended=150.0, result=RESULT))
    ledger.set(plan=PLAN, seconds_used=200.0)
    ledger.add_submission(0.5125, {"best_member": "trunk-64", "fused": {"ap50": 0.5125, "ap": 0.26}})
    yield ledger
    with suppress(sqlite3.ProgrammingError):  # a test has closed it
        ledger.close()


def shown(told, work=None, *, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(view(told, work or Work()))
    return console.file.getvalue()


def terminal(width=100):
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, force_interactive=True)


def line_with(word, text):
    return next(line.split() for line in text.splitlines() if word in line)


def test_it_tells_clock_score_and_segments(campaign):
    text = shown(ledgers.snapshot(campaign.folder))
    assert "3 min 20 s of 10 min" in text
    assert "6 min 40 s left" in text
    assert "AP50 0.512 out-of-fold, AP 0.260: submission 1; best member trunk-64 0.500" in text
    assert line_with("trunk-64  ", text) == ["trunk-64", "64", "done", "2:00", "0.500", "0.250", "0.75", "+0.013"]
    assert line_with("branch1-96", text) == ["branch1-96", "96", "planned", "~1:30"]


def test_a_campaign_that_has_just_begun(tmp_path):
    ledgers.create(tmp_path, {"state": "running"}, deadline=60, start=time.monotonic()).close()
    text = shown(ledgers.snapshot(tmp_path))
    assert "0 s of 1 min" in text
    assert "no submission yet" in text
    assert shown({}).strip() == ""


def test_what_is_done_now_is_the_bar_else_the_open_stage(campaign):
    campaign.put_segment(a_record("branch1-96", state="running", budget=100.0, seconds=0.0, recipe={"image_size": 96}))
    with campaign.timed("train branch1-96", "train"):
        campaign.set(seconds_used=campaign.elapsed + 25.0)
        told = ledgers.snapshot(campaign.folder)
        assert line_with("now: ", shown(told))[:3] == ["now:", "train", "branch1-96"]
        assert line_with("now: ", shown(told))[-1] == "25%"
        now = line_with("now: ", shown(told, Work("predicting", 0.4)))
        assert now[1] == "predicting"
        assert now[-1] == "40%"
    assert "now: " not in shown(ledgers.snapshot(campaign.folder))


def test_states_have_words_and_promoted_trunks_too(campaign):
    campaign.put_segment(a_record("trunk-b-64", state="failed"))
    campaign.set(ranking=["trunk-64"])
    text = shown(ledgers.snapshot(campaign.folder))
    assert "promoted" in line_with("trunk-64  ", text)
    assert line_with("trunk-b-64", text)[2:4] == ["left", "out"]


def test_in_80_columns_names_give_way_and_numbers_stay(campaign):
    row = a_record(
        "trunk-efficientdet_lite0_384-896", state="done", seconds=3725.0, recipe={"image_size": 1024}, result=RESULT
    )
    campaign.put_segment(row)
    campaign.set(ranking=[row.name])
    line = line_with("trunk-efficientdet_lite0", shown(ledgers.snapshot(campaign.folder), width=80))
    assert line[-7:] == ["1024", "promoted", "1:02:05", "0.500", "0.250", "0.75", "+0.013"]


def test_names_are_no_markup_and_narrow_terminals_break_no_line(campaign):
    campaign.put_segment(a_record("[red]trunk[/red]-64", state="running"))
    assert "[red]trunk[/red]-64" in shown(ledgers.snapshot(campaign.folder))
    assert max(map(len, shown(ledgers.snapshot(campaign.folder), width=40).splitlines())) <= 40


def test_a_terminal_gets_the_view_with_notes_above_it(campaign):
    console = terminal()
    with live(campaign.folder, console=console):
        campaign.log("Something was decided.")
        error_console().print("a table")
        with progress_bar("predicting") as progress:
            progress(0.5)
            wait_until(lambda: "50%" in console.file.getvalue(), what="the view")
    text = console.file.getvalue()
    assert "Something was decided." in text
    assert "a table" in text
    assert "now: predicting" in text
    assert "50%" in text
    assert text.rindex("branch1-96") > text.rindex("a table")  # the last view stays, below the notes


def test_no_terminal_no_view(campaign, capsys):
    with live(campaign.folder, console=Console(file=io.StringIO())):
        campaign.log("Something was decided.")
    assert capsys.readouterr().err.rstrip().endswith("Something was decided.")


def test_a_ledger_that_is_gone_is_not_made_anew(campaign, monkeypatch):
    console, looks = terminal(), []
    look = watching.Latest.look
    monkeypatch.setattr(watching.Latest, "look", lambda self: (looks.append(1), look(self)))
    with live(campaign.folder, console=console):
        campaign.close()
        (campaign.folder / ledgers.NAME).unlink()
        before = len(looks)
        wait_until(lambda: len(looks) > before + 1, what="another look at the ledger")
    assert not (campaign.folder / ledgers.NAME).exists()
    assert "trunk-64" in console.file.getvalue()


def test_watch_shows_a_finished_campaign_once(campaign, capsys):
    campaign.set(state="finished")
    watch(campaign.folder)
    assert "trunk-64" in capsys.readouterr().out


def test_watch_follows_until_the_end(campaign, monkeypatch):
    console = terminal()
    monkeypatch.setattr(watching, "Console", lambda: console)

    def ends(_):
        db = ledgers.resume(campaign.folder, start=time.monotonic())
        db.log("The last word.")
        db.set(state="finished")
        db.close()

    monkeypatch.setattr(watching.time, "sleep", ends)
    watch(campaign.folder)
    assert "The last word." in console.file.getvalue()
    assert "finished" in console.file.getvalue()


def test_watch_says_that_nobody_works(campaign, monkeypatch):
    monkeypatch.setattr(watching, "Console", terminal)
    monkeypatch.setattr(watching, "QUIET", 0.5)
    with pytest.raises(InputError, match=r"no process has worked on it for .* --resume"):
        watch(campaign.folder)


def test_watch_wants_a_campaign(tmp_path):
    with pytest.raises(InputError, match="holds no campaign that has begun"):
        watch(tmp_path / "none")
