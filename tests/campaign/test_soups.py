"""Soups: when they are planned, what they average, and what they cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from campaign_samples import STEP_SECONDS, THREE_RECIPES, campaign_state, ranked, record_of, simulate
from foldfuse.campaign import constants as c
from foldfuse.campaign import runner, soups
from foldfuse.campaign.planning.allocation import reserved_seconds, successive_halving
from foldfuse.campaign.planning.segments import base_runs, plan_segments
from foldfuse.campaign.planning.slack import views_in_time
from foldfuse.campaign.planning.soups import pending_soups, planned_soups, ready_soups
from foldfuse.recipes import load_recipe
from foldfuse.storage.run import Run, RunMetadata
from foldfuse.storage.segments import Role
from foldfuse.training.soups import average_weights


def done(state, *numbers, **changes):
    """The state with these segments of its plan finished."""
    segments = plan_segments(state)
    return replace(state, segments=tuple(record_of(segments[i], state, 100.0, **changes) for i in numbers))


def test_the_cooldown_runs_of_a_base_run_make_a_soup_at_their_mean_size():
    state = campaign_state(600.0)
    (name,) = planned_soups(state)
    soup, runs = planned_soups(state)[name]
    assert (name, runs) == ("soup1-352", ("cooldown1-320", "cooldown2-384"))
    assert (soup.role, soup.parent, soup.recipe.image_size) == (Role.SOUP, "base-256", 352)


def test_a_soup_waits_for_all_of_its_runs():
    state = campaign_state(600.0)
    assert not ready_soups(done(state, 0, 1))
    assert list(ready_soups(done(state, 0, 1, 2))) == ["soup1-352"]


def test_a_run_that_failed_is_left_out_and_one_run_makes_no_soup():
    state = campaign_state(7200.0)
    base, *cooldowns = plan_segments(state)
    assert len(cooldowns) == 4
    failed = record_of(cooldowns[1], state, 0.0, state="failed", result={})
    others = [record_of(s, state, 100.0) for s in (base, cooldowns[0], *cooldowns[2:])]
    ((_, runs),) = ready_soups(replace(state, segments=(*others, failed))).values()
    assert runs == tuple(s.name for s in (cooldowns[0], *cooldowns[2:]))
    short = campaign_state(600.0)
    first, one, two = plan_segments(short)
    records = (record_of(first, short, 1.0), record_of(one, short, 1.0), record_of(two, short, 0.0, state="failed"))
    assert not planned_soups(replace(short, segments=records))


def test_each_fold_and_each_promoted_run_has_its_own_soup():
    assert list(planned_soups(campaign_state(1200.0, folds=(0, 2)))) == ["soup1-352", "soup1-352-fold2"]
    compared = campaign_state(4200.0, recipes=THREE_RECIPES, step_seconds=STEP_SECONDS)
    bases = tuple(record_of(s, compared, 1.0) for s in base_runs(compared))
    state = ranked(replace(compared, segments=bases))
    made = planned_soups(state)
    assert len(made) == len({s.parent for s in plan_segments(state) if s.role == Role.COOLDOWN}) == 2
    by_name = {s.name: s for s in plan_segments(state)}
    for soup, runs in made.values():
        assert {by_name[run].recipe.detector for run in runs} == {soup.recipe.detector}


def test_their_predictions_are_reserved_until_they_are_there():
    state = campaign_state(600.0)
    without = replace(state, soups=False)
    assert reserved_seconds((), state) > reserved_seconds((), without)
    ready = done(state, 0, 1, 2)
    (soup,) = pending_soups(ready)
    there = replace(ready, segments=(*ready.segments, record_of(soup, state, 0.0)))
    assert not pending_soups(there)
    assert not pending_soups(replace(there, segments=(*ready.segments, record_of(soup, state, 0.0, state="failed"))))


def test_with_little_time_there_is_none_and_a_segment_is_worth_more():
    assert not planned_soups(campaign_state(c.MIN_SOUP_DEADLINE - 1))
    state = done(campaign_state(600.0, num_val=200, num_test=400), 0, 1)
    for elapsed in range(100, 600, 5):
        late = replace(state, elapsed=float(elapsed))
        assert (successive_halving(late).segment is None) == (
            successive_halving(replace(late, soups=False)).segment is None
        )


def test_a_soup_predicts_in_no_more_views_than_there_is_time_for():
    state = done(campaign_state(600.0), 0, 1, 2)
    ((soup, _),) = ready_soups(state).values()
    record = record_of(soup, state, 0.0, state="trained", result={"image_seconds": 0.03})
    there = replace(state, segments=(*state.segments, record))
    assert len(views_in_time(replace(there, elapsed=300.0), soup.name)) == 3
    assert len(views_in_time(replace(there, elapsed=560.0), soup.name)) == 1


@pytest.mark.parametrize("deadline", [300.0, 600.0, 7200.0])
def test_the_deadline_is_kept_with_soups(deadline):
    end, _ = simulate(campaign_state(deadline))
    assert [record.role for record in end.segments][-1] == Role.SOUP
    assert end.remaining >= 0


def test_a_campaign_has_its_soup_as_a_member(workers):
    workers.ledger.deadline = 400.0
    runner.run(workers.task, workers.ledger, successive_halving, workers)
    (soup,) = (record for record in workers.ledger.segments() if record.role == Role.SOUP)
    assert (soup.state, soup.result["averaged"]) == ("done", ["cooldown1-192", "cooldown2-224"])
    assert soup.result["ap50"] is not None


def trained(folder, value, hashes):
    run = Run.create(folder, load_recipe("lite0_fpn", ["image_size=64"]), RunMetadata(classes=("a",), steps=int(value)))
    run.save_weights(
        {"w": torch.full((2, 2), value), "half": torch.full((2,), value).half(), "n": torch.tensor(int(value))}
    )
    run.write_learnt_images(hashes)
    return run


def test_weights_are_averaged_and_integers_are_of_the_first(tmp_path):
    runs = [trained(tmp_path / name, value, ()) for name, value in (("a", 1.0), ("b", 2.0), ("c", 6.0))]
    mean = average_weights(runs)
    assert torch.equal(mean["w"], torch.full((2, 2), 3.0))
    assert (mean["half"].dtype, mean["half"].tolist()) == (torch.float16, [3.0, 3.0])
    assert mean["n"].item() == 1


def test_a_soup_has_learnt_what_its_runs_have_and_replaces_what_a_killed_process_left(tmp_path):
    members = tmp_path / "members"
    for name, value, hashes in (("one", 1.0, ("10-a", "10-b")), ("two", 3.0, ("10-b", "10-c"))):
        trained(members / name, value, hashes)
    (members / "soup").mkdir()
    (members / "soup" / "weights.safetensors").write_bytes(b"half")
    ledger = type("Folder", (), {"folder": tmp_path})
    soups._write(ledger, "soup", load_recipe("lite0_fpn", ["image_size=96"]), ("one", "two"))
    run = Run(members / "soup")
    assert run.learnt_images == {"10-a", "10-b", "10-c"}
    assert (run.recipe.image_size, run.metadata.steps, run.metadata.seconds) == (96, 3, 0.0)
    assert torch.equal(run.load_weights()["w"], torch.full((2, 2), 2.0))
