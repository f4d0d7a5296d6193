"""One fold instead of several, where the first base run still learns fast at its end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from campaign_samples import campaign_state, record_of, simulate
from foldfuse.campaign import constants as c
from foldfuse.campaign import runner, submissions
from foldfuse.campaign.learning import loss_left
from foldfuse.campaign.planning.allocation import successive_halving
from foldfuse.campaign.planning.segments import plan_segments
from foldfuse.campaign.planning.slack import views_in_time
from foldfuse.formats.predictions import read_predictions
from foldfuse.storage.run import Run

FALLING = [1.0] * 10 + [0.8] * 10 + [0.6] * 10 + [0.4] * 10
FLAT = [1.0] * 10 + [0.8] * 20 + [0.7] * 10


def rows(losses):
    return [{"step": i, "loss": loss + 1.0, "class": loss} for i, loss in enumerate(losses)]


def test_the_loss_that_is_left_is_that_of_the_classes_in_the_last_quarter_over_the_second():
    assert loss_left(rows(FALLING)) == pytest.approx(0.5)
    assert loss_left([*rows(FLAT), {"step": 40, "ap": 0.5, "ap50": 0.7}]) == pytest.approx(7 / 8)
    assert loss_left([{"step": i, "loss": loss} for i, loss in enumerate(FALLING)]) == pytest.approx(0.5)
    assert loss_left(rows([1.0, 0.5, 0.2])) is None
    assert loss_left(rows([0.0] * 8)) is None


def run_with(workers, losses, *, auto=True):
    workers.capacities = {0.0: 1}
    workers.losses = {"base-160": losses}
    workers.ledger.set(train_folds_auto=auto)
    runner.run(workers.task, workers.ledger, successive_halving, workers)
    return [name for name, _, _ in workers.started]


def test_a_base_run_that_learns_fast_is_continued_on_one_fold(two_folds, caplog):
    names = run_with(two_folds, FALLING)
    assert names[:2] == ["base-160", "extended-192"]
    assert all(name.startswith("cooldown") for name in names[2:])
    ledger = two_folds.ledger
    parents = {record.name: record.parent for record in ledger.segments()}
    assert parents["extended-192"] == "base-160"
    assert {parents[name] for name in names[2:]} == {"extended-192"}
    assert ledger.latest_submission()[2]["folds"] == [0]
    told = (
        "base-160 was still learning fast at its end: its class loss fell by 50% from the second to the last quarter of its "
        "40 steps. So 1 fold is trained for longer, instead of 2."
    )
    assert caplog.text.count(told) == 1


def test_the_fold_that_is_not_trained_is_learnt_and_never_scored(two_folds):
    run_with(two_folds, FALLING)
    task, folder = two_folds.task, two_folds.ledger.folder
    left = {*task.held_out[1]}
    for record in two_folds.ledger.segments():
        if record.state == "done":
            run = Run(folder / "members" / record.name)
            assert {task._hashes[image_id] for image_id in left} <= {*run.learnt_images}
            assert not left & {*read_predictions(run.folder / "val@1.parquet", task.val_in(0))}
    assert not left & {*read_predictions(folder / "fused_oof.parquet", task.val)}


def candidates_of(monkeypatch):
    """The members of each choice of an ensemble, in their order."""
    chosen, real = [], submissions.build_ensemble

    def build(named, *arguments, **options):
        chosen.append({name.partition("@")[0] for name in named})
        return real(named, *arguments, **options)

    monkeypatch.setattr(submissions, "build_ensemble", build)
    monkeypatch.setattr(submissions, "are_compiled", lambda: True)
    return chosen


def test_each_run_takes_the_place_of_the_one_that_it_continues(two_folds, monkeypatch):
    chosen = candidates_of(monkeypatch)
    names = run_with(two_folds, FALLING)
    assert chosen[:3] == [{names[0]}, {names[1]}, {names[2]}]
    assert not chosen[-1] & {*names[:2]}
    assert {*names[2:]} <= chosen[-1]


def test_base_runs_stay_candidates_where_they_had_learnt_most(two_folds, monkeypatch):
    chosen = candidates_of(monkeypatch)
    run_with(two_folds, FLAT)
    assert "base-160" in chosen[-1]


def test_a_run_that_cooldown_runs_replace_predicts_one_view():
    state = replace(campaign_state(600.0), still_learning=True)
    base, extended = plan_segments(state)[:2]
    records = record_of(base, state, 90.0), record_of(extended, state, 90.0)
    begun = replace(state, elapsed=250.0, segments=records)
    assert len(views_in_time(begun, base.name)) == 3
    assert views_in_time(begun, extended.name) == (c.PLAIN_VIEW,)


@pytest.mark.parametrize(
    ("losses", "auto"),
    [
        pytest.param(FLAT, True, id="it has learnt most"),
        pytest.param(FALLING, False, id="the user gave the number of folds"),
        pytest.param([loss for loss in FALLING for _ in range(13)], True, id="it had many steps"),
        pytest.param([], True, id="no log"),
    ],
)
def test_otherwise_all_folds_are_trained(two_folds, losses, auto):
    names = run_with(two_folds, losses, auto=auto)
    assert "base-160-fold1" in names
    assert not any(name.startswith("extended") for name in names)


def test_folds_that_have_begun_are_trained(two_folds):
    two_folds.losses = {"base-160": FALLING}
    two_folds.ledger.set(train_folds_auto=True)
    runner.run(two_folds.task, two_folds.ledger, successive_halving, two_folds)
    assert [name for name, _, _ in two_folds.started][:2] == ["base-160", "base-160-fold1"]
    assert two_folds.ledger.get("still_learning") is None


def test_the_longer_plan_uses_the_time_and_is_not_late():
    state = campaign_state(600.0)
    base = plan_segments(state)[0]
    begun = replace(state, elapsed=120.0, segments=(record_of(base, state, 90.0),), still_learning=True)
    planned = plan_segments(begun)
    assert [segment.name for segment in planned] == ["base-256", "extended-320", "cooldown1-320", "cooldown2-384"]
    assert planned[1].recipe.warmup_fraction == 0.0
    assert planned[1].recipe.lr_decay_start == 1.0
    end, decisions = simulate(begun)
    assert [decision.segment.name for decision in decisions] == [segment.name for segment in planned[1:]]
    seconds = [decision.seconds for decision in decisions]
    assert seconds[0] == pytest.approx(seconds[1] * c.EXTENDED_BASE_SHARE / 0.25, rel=0.1)
    assert 0 <= end.remaining < 0.03 * 600
