"""Notes are written beside a campaign that may be running, read back unchanged, and shown on its page."""

import json
from contextlib import closing

import pytest

from foldfuse import cli
from foldfuse.commands.campaign import note
from foldfuse.errors import InputError
from foldfuse.reporting.campaign_page import write_campaign_page
from foldfuse.reporting.leaderboard import leaderboard_chart
from foldfuse.storage import ledger
from foldfuse.storage.notes import LeaderboardScore, Note, read_notes, submission_scores


@pytest.fixture
def running(tmp_path):
    """The ledger of a running campaign with two submissions."""
    (tmp_path / "night").mkdir()
    with (
        ledger.exclusive(tmp_path / "night"),
        closing(ledger.create(tmp_path / "night", {"state": "running"}, deadline=60, start=0.0)) as campaign,
    ):
        for score in (0.5, 0.6):
            campaign.add_submission(score, {"fused": {"ap50": score}, "best_member": None})
        yield campaign


def test_notes_keep_their_order_and_the_last_score_of_a_submission_counts(running):
    folder, warnings = running.folder, []
    note(folder, "on a hunch")
    note(folder, leaderboard=0.7)
    note(folder, "typed wrongly before", leaderboard=0.4, submission=1)
    note(folder, leaderboard=0.8)
    found = read_notes(folder, warnings)
    assert [n.text for n in found.notes] == ["on a hunch", None, "typed wrongly before", None]
    assert found.notes[0].submission is None
    assert found.scores == (LeaderboardScore(1, 0.5, 0.4), LeaderboardScore(2, 0.6, 0.8))
    assert not warnings


def test_a_note_needs_no_lock(running):
    running.db.execute("BEGIN EXCLUSIVE")  # the campaign is writing
    path = note(running.folder, "still", leaderboard=None)
    running.db.rollback()
    running.set(state="finished")
    assert json.loads(path.read_text())["text"] == "still"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "there is nothing to note on"),
        ({"text": "  "}, "the note is empty"),
        ({"leaderboard": float("nan")}, "--leaderboard is nan"),
        ({"leaderboard": 0.5, "submission": 3}, "--submission is 3, and the campaign has submissions 1 to 2"),
        ({"text": "x", "submission": 0}, "--submission is 0"),
    ],
)
def test_a_refused_note_is_one_sentence(running, options, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        note(running.folder, **options)
    assert "\n" not in str(caught.value)
    assert not (running.folder / "notes").exists()


def test_there_is_no_score_before_there_is_a_submission(tmp_path, capsys):
    ledger.create(tmp_path, {}, deadline=60, start=0.0).close()
    assert cli.main(["note", str(tmp_path), "--leaderboard", "0.5"]) == 2
    assert "has no submission yet" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert cli.main(["note", str(tmp_path / "empty"), "hello"]) == 2
    assert "holds no campaign" in capsys.readouterr().err


def test_the_page_shows_notes_with_their_scores_and_names_unreadable_ones(running):
    folder = running.folder
    note(folder, "one <b>bold</b> try", leaderboard=0.7123, submission=1)
    page = write_campaign_page(folder).read_text()
    assert "one &lt;b&gt;bold&lt;/b&gt; try" in page
    assert "0.7123 on the leaderboard" in page
    assert "Out-of-fold and leaderboard" not in page, "one dot shows nothing"
    note(folder, leaderboard=0.69)
    (folder / "notes" / "0.json").write_text('{"what": 1}')
    page = write_campaign_page(folder).read_text()
    assert "Out-of-fold and leaderboard" in page
    assert "in 0 of 1 pairs" in page
    assert "0.json: is not a note" in page


def test_the_chart_has_a_dot_for_each_submission_in_its_campaigns_colour():
    chart = leaderboard_chart(
        {"a": (LeaderboardScore(1, 0.5, 0.6), LeaderboardScore(2, 0.6, 0.7)), "b": (LeaderboardScore(1, 0.7, 0.65),)}
    )
    assert chart is not None
    assert chart.svg.count('class="dot c0"') == 2
    assert chart.svg.count('class="dot c1"') == 1
    assert chart.legend == ("a", "b")
    assert "in 2 of 3 pairs" in chart.caption
    assert leaderboard_chart({"a": (LeaderboardScore(1, 0.5, 0.6),), "b": ()}) is None


def test_a_campaign_without_its_ledger_has_the_submission_that_its_export_tells(tmp_path):
    (tmp_path / "campaign.json").write_text(json.dumps({"format": 1, "submission_scores": [0.4]}))
    note(tmp_path, leaderboard=0.3)
    found = read_notes(tmp_path, [])
    assert found.scores == (LeaderboardScore(1, 0.4, 0.3),)
    assert isinstance(found.notes[0], Note)
    assert submission_scores({"fused": None}) == ()


def test_the_export_of_a_newer_format_is_refused(tmp_path):
    (tmp_path / "campaign.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(InputError, match=r"campaign of format 99, .* reads up to 1. Update Foldfuse"):
        note(tmp_path, "hello")
