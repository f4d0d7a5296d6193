"""The live view: the ledger in some lines, log sentences above it, and no view without a terminal."""

import io
import sqlite3
import time
from contextlib import suppress

import pytest
from rich.console import Console

from foldfuse.errors import InputError
from foldfuse.reporting import live as live_view
from foldfuse.reporting.live import CurrentWork, follow, live, render
from foldfuse.storage import ledger as ledgers
from foldfuse.system.progress import error_console, log_on_standard_error, progress_bar
from ledger_samples import a_record
from waiting import wait_until

RESULT = {"name": "base-64", "ap50": 0.5, "ap": 0.25, "weight": 0.75, "leave_one_out_gain": 0.013}
PLAN = {
    "segments": [{"name": "base-64", "image_size": 64}, {"name": "cooldown1-96", "image_size": 96, "seconds": 90.0}]
}


@pytest.fixture
def campaign(tmp_path):
    """An open ledger with a finished base run, a planned cooldown run and a submission."""
    ledger = ledgers.create(tmp_path, {"state": "running"}, deadline=600, start=time.monotonic() - 200)
    ledger.put_segment(a_record("base-64", state="done", seconds=120.0, ended=150.0, result=RESULT))
    ledger.set(plan=PLAN, seconds_used=200.0)
    ledger.add_submission(0.5125, {"best_member": "base-64", "fused": {"ap50": 0.5125, "ap": 0.26}})
    yield ledger
    with suppress(sqlite3.ProgrammingError):  # a test has closed it
        ledger.close()


def shown(facts, work=None, *, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(render(facts, work or CurrentWork()))
    return console.file.getvalue()


def terminal(width=100):
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, force_interactive=True)


def line_with(word, text):
    return next(line.split() for line in text.splitlines() if word in line)


def test_the_view_shows_clock_score_and_segments(campaign):
    text = shown(ledgers.snapshot(campaign.folder))
    assert "3 min 20 s of 10 min" in text
    assert "6 min 40 s left" in text
    assert "AP50 0.512 out-of-fold, AP 0.260: submission 1" in text
    assert line_with("base-64  ", text) == ["base-64", "64", "done", "2:00", "0.500", "0.250", "75", "%", "+0.013"]
    assert line_with("cooldown1-96", text) == ["cooldown1-96", "96", "planned", "~1:30"]


def test_a_new_campaign_has_no_submission(tmp_path):
    ledgers.create(tmp_path, {"state": "running"}, deadline=60, start=time.monotonic()).close()
    text = shown(ledgers.snapshot(tmp_path))
    assert "0 s of 1 min" in text
    assert "no submission yet" in text
    assert shown({}).strip() == ""


def test_the_current_work_is_the_progress_bar_else_the_open_interval(campaign):
    campaign.put_segment(
        a_record("cooldown1-96", state="running", budget=100.0, seconds=0.0, recipe={"image_size": 96})
    )
    with campaign.timed("train cooldown1-96", "train"):
        campaign.set(seconds_used=campaign.elapsed + 25.0)
        facts = ledgers.snapshot(campaign.folder)
        assert line_with("now: ", shown(facts))[:3] == ["now:", "train", "cooldown1-96"]
        assert line_with("now: ", shown(facts))[-1] == "25%"
        now = line_with("now: ", shown(facts, CurrentWork("predicting", 0.4)))
        assert now[1] == "predicting"
        assert now[-1] == "40%"
    assert "now: " not in shown(ledgers.snapshot(campaign.folder))


def test_states_and_promoted_base_runs_have_words(campaign):
    campaign.put_segment(a_record("base-b-64", state="failed"))
    campaign.set(ranking=["base-64"])
    text = shown(ledgers.snapshot(campaign.folder))
    assert "promoted" in line_with("base-64  ", text)
    assert line_with("base-b-64", text)[2:4] == ["left", "out"]


def test_in_80_columns_names_shrink_and_numbers_stay(campaign):
    record = a_record(
        "base-efficientdet_lite0_384-896", state="done", seconds=3725.0, recipe={"image_size": 1024}, result=RESULT
    )
    campaign.put_segment(record)
    campaign.set(ranking=[record.name])
    line = line_with("base-efficientdet_lite0", shown(ledgers.snapshot(campaign.folder), width=80))
    assert line[-8:] == ["1024", "promoted", "1:02:05", "0.500", "0.250", "75", "%", "+0.013"]


def test_names_are_not_markup_and_lines_fit_a_narrow_terminal(campaign):
    campaign.put_segment(a_record("[red]base[/red]-64", state="running"))
    assert "[red]base[/red]-64" in shown(ledgers.snapshot(campaign.folder))
    assert max(map(len, shown(ledgers.snapshot(campaign.folder), width=40).splitlines())) <= 40


def test_a_terminal_gets_the_view_with_notes_above_it(campaign):
    console = terminal()
    with log_on_standard_error(), live(campaign.folder, console=console):
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
    assert text.rindex("cooldown1-96") > text.rindex("a table")  # the last view stays, below the notes


def test_without_a_terminal_there_is_no_view(campaign, capsys):
    with log_on_standard_error(), live(campaign.folder, console=Console(file=io.StringIO())):
        campaign.log("Something was decided.")
    assert capsys.readouterr().err.rstrip().endswith("Something was decided.")


def test_a_missing_ledger_is_not_created(campaign, monkeypatch):
    console, refreshes = terminal(), []
    refresh = live_view.LedgerView.refresh
    monkeypatch.setattr(live_view.LedgerView, "refresh", lambda self: (refreshes.append(1), refresh(self)))
    with live(campaign.folder, console=console):
        campaign.close()
        (campaign.folder / ledgers.NAME).unlink()
        before = len(refreshes)
        wait_until(lambda: len(refreshes) > before + 1, what="another refresh")
    assert not (campaign.folder / ledgers.NAME).exists()
    assert "base-64" in console.file.getvalue()


def test_follow_shows_a_finished_campaign_once(campaign):
    campaign.set(state="finished")
    console = terminal()
    follow(campaign.folder, console=console)
    assert console.file.getvalue().count("base-64  ") == 1


def test_follow_shows_the_campaign_until_its_end(campaign, monkeypatch):
    console = terminal()

    def ends(_):
        db = ledgers.resume(campaign.folder, start=time.monotonic())
        db.log("The last word.")
        db.set(state="finished")
        db.close()

    monkeypatch.setattr(live_view.time, "sleep", ends)
    follow(campaign.folder, console=console)
    assert "The last word." in console.file.getvalue()
    assert "finished" in console.file.getvalue()


def test_follow_reports_a_dead_process(campaign, monkeypatch):
    monkeypatch.setattr(live_view, "DEAD_SECONDS", 0.5)
    with pytest.raises(InputError, match=r"no process has worked on it for .* --resume"):
        follow(campaign.folder, console=terminal())


def test_follow_wants_a_campaign(tmp_path):
    with pytest.raises(InputError, match="holds no campaign"):
        follow(tmp_path / "none", console=terminal())
