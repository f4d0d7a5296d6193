"""Several folds: their segments, and how those make members, without a leak."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from campaign_samples import (
    STEP_SECONDS,
    THREE_RECIPES,
    campaign_state,
    ranking_strategy,
    record_of,
    simulate,
)
from foldfuse.campaign import runner
from foldfuse.campaign.fold_members import choose_base_runs, choose_folds
from foldfuse.campaign.planning.allocation import make_plan, successive_halving
from foldfuse.campaign.planning.segments import (
    base_runs,
    compared_base_runs,
    is_segment_name,
    member_name,
    plan_segments,
)
from foldfuse.commands.browse import prediction_sources, read_source
from foldfuse.detections import Detections, Predictions
from foldfuse.ensemble.ensemble import Ensemble, read_ensemble
from foldfuse.ensemble.member_views import MemberView
from foldfuse.evaluation.metrics import measure
from foldfuse.formats.predictions import read_predictions, write_predictions
from foldfuse.formats.raw_boxes import ReadAs
from foldfuse.fusion.methods import wbf
from foldfuse.storage.run import Run
from foldfuse.storage.segments import Role, SegmentRecord

SIX = ["base-256", "cooldown1-320", "cooldown2-384", "base-256-fold2", "cooldown1-320-fold2", "cooldown2-384-fold2"]


def test_a_single_worker_trains_one_fold_after_another():
    end, decisions = simulate(campaign_state(1200.0, folds=(0, 2)))
    assert [decision.segment.name for decision in decisions] == SIX
    assert [decision.segment.fold for decision in decisions] == [0, 0, 0, 2, 2, 2]
    first, second = (sum(d.seconds for d in decisions if d.segment.fold == fold) for fold in (0, 2))
    assert first == pytest.approx(second, rel=0.05)
    assert 0 <= end.remaining < 36


def test_several_workers_train_all_folds_together():
    segments = plan_segments(campaign_state(1200.0, folds=(0, 2), num_workers=2))
    assert [s.name for s in segments] == [SIX[0], SIX[3], *SIX[1:3], *SIX[4:]]
    assert [s.round for s in segments] == [0, 0, 1, 1, 1, 1]


def test_runs_continue_runs_of_their_own_fold_only():
    for segment in plan_segments(campaign_state(1200.0, folds=(0, 2, 3))):
        parent = next(
            (s for s in plan_segments(campaign_state(1200.0, folds=(0, 2, 3))) if s.name == segment.parent), None
        )
        assert parent is None or parent.fold == segment.fold
        assert is_segment_name(segment.name)


def test_a_failed_base_run_is_replaced_by_a_run_of_its_own_fold():
    _, decisions = simulate(campaign_state(1200.0, folds=(0, 2)), diverge={SIX[3]})
    parents = {decision.segment.name: decision.segment.parent for decision in decisions}
    assert parents[SIX[4]] is None, "a run of fold 0 has learnt the images of fold 2"
    assert parents[SIX[5]] == SIX[4]


def test_base_runs_are_compared_on_two_folds_and_the_promoted_are_trained_on_the_others():
    state = campaign_state(14000.0, recipes=THREE_RECIPES, step_seconds=STEP_SECONDS, folds=(0, 2, 3))
    end, decisions = simulate(state, ranking_strategy(promoted=2))
    assert 0 <= end.remaining < 0.03 * 14000
    roles = {fold: [d.segment.role for d in decisions if d.segment.fold == fold] for fold in (0, 2, 3)}
    assert [d.segment.fold for d in decisions[:6]] == [0, 0, 0, 2, 2, 2]
    assert roles[0] == roles[2]
    assert roles[0].count(Role.BASE) == 3
    assert roles[3].count(Role.BASE) == roles[3].count(Role.EXTENDED) == roles[0].count(Role.EXTENDED) == 2
    assert roles[3].count(Role.COOLDOWN) == roles[0].count(Role.COOLDOWN)
    together = plan_segments(replace(state, num_workers=4))
    assert {s.round for s in together if s.fold != 3 and s.role == Role.BASE} == {0}
    assert min(s.round for s in together if s.fold == 3) == 1, "which are promoted is not known before"


def test_a_campaign_that_has_ranked_its_base_runs_on_one_fold_compares_no_more():
    state = campaign_state(9000.0, recipes=THREE_RECIPES, step_seconds=STEP_SECONDS, folds=(0, 2))
    bases = base_runs(state)
    done = tuple(record_of(base, state, 100.0) for base in bases)
    resumed = replace(state, segments=done, ranking=(bases[1].name,))
    planned = [s.name for s in plan_segments(resumed) if s.role == Role.BASE and s.fold == 2]
    assert planned == [f"{bases[1].name}-fold2"]


def test_a_fold_with_base_runs_alone_may_still_be_left_out():
    state = campaign_state(9000.0, recipes=THREE_RECIPES, step_seconds=STEP_SECONDS, folds=(0, 2))
    compared = compared_base_runs(state)
    assert [s.fold for s in compared] == [0, 0, 0, 2, 2, 2]
    done = tuple(record_of(base, state, 100.0) for base in compared)
    late = replace(state, segments=done, ranking=(compared[0].name,))
    decisions = [successive_halving(replace(late, elapsed=9000.0 - left)) for left in range(180, 212, 2)]
    begun = [decision for decision in decisions if decision.segment is not None]
    assert {decision.folds for decision in begun} == {(0,), (0, 2)}
    assert {decision.segment.fold for decision in begun} == {0}


def test_the_plan_with_several_folds_adds_up_to_the_deadline():
    state = campaign_state(1200.0, folds=(0, 2, 3))
    plan = make_plan(state)
    assert len(plan.segments) == 9
    total = state.elapsed + sum(s.seconds for s in plan.segments) + sum(plan.reserved.values())
    assert total == pytest.approx(1200, abs=1)


def records(*names):
    """Finished segments in this order; "-foldN" gives the fold, and "base" or "external" another role than a cooldown run's."""
    made = []
    for name in names:
        fold = int(name.partition("-fold")[2] or 0)
        role = {"base": Role.BASE, "external": Role.EXTERNAL_RUN}.get(name.partition("-")[0], Role.COOLDOWN)
        made.append(SegmentRecord(name, role, {}, None, fold, 0, "done", 1.0, 1.0, 0.0, 1.0, {}))
    return made


def chosen(*names, submitted=(), last=False, folds=(0, 1, 2)):
    keys = [MemberView(name, "1") for name in names]
    return choose_folds(keys, records(*names), folds=folds, submitted=submitted, last=last)


def test_the_folds_of_the_submission_stay_until_another_fold_has_all_members():
    assert chosen("a").folds == (0,)
    assert chosen("a", "b", "a-fold1", submitted=(0,)).folds == (0,)
    both = chosen("a", "b", "a-fold1", "b-fold1", submitted=(0,))
    assert both.folds == (0, 1)
    assert both.parts[MemberView("a", "1")] == (MemberView("a", "1"), MemberView("a-fold1", "1"))


def test_the_last_ensemble_is_of_the_folds_with_most_segments():
    assert chosen("a", "b", "c", "a-fold1", submitted=(0,), last=True).folds == (0,)
    assert chosen("a", "b", "a-fold1", "b-fold1", "a-fold2", submitted=(0, 1), last=True).folds == (0, 1)
    assert chosen("a", "b", "a-fold2", "b-fold2", "a-fold1", submitted=(0,), last=True).folds == (0, 2)
    assert chosen("a-fold1", "b-fold1", last=True).folds == (1,), "the segments of fold 0 failed"


def test_base_runs_of_two_folds_do_not_take_the_place_of_one_fold():
    assert chosen("base", "base-fold1", submitted=(0,)).folds == (0,)
    assert chosen("base", "a", "base-fold1", submitted=(0,)).folds == (0,)
    assert chosen("base", "a", "base-fold1", "a-fold1", submitted=(0,)).folds == (0, 1)


def test_an_external_member_predicts_all_folds_and_decides_on_none():
    theirs = MemberView("external", "1")
    assert chosen("external").folds == (0,)
    assert chosen("external", "a", "b", submitted=(0,)).folds == (0,)
    assert chosen("external", "a", "b", "c", "a-fold1", last=True).folds == (0,), "not (0, 1), with two members"
    both = chosen("external", "a", "a-fold1", submitted=(0,))
    assert both.folds == (0, 1)
    assert both.parts[theirs] == (theirs,)
    assert chosen("external", last=True).folds == (0, 1, 2), "no segment was trained"


def test_base_runs_are_chosen_on_the_folds_of_most_of_them():
    def compared(*names):
        made = choose_base_runs(records(*names), names, folds=(0, 1))
        return made.folds, [key.member for key in made.parts]

    assert compared("base-a", "base-b", "base-a-fold1", "base-b-fold1") == ((0, 1), ["base-a", "base-b"])
    assert compared("base-a", "base-b", "base-c", "base-a-fold1") == ((0,), ["base-a", "base-b", "base-c"])
    assert compared("base-a", "base-a-fold1", "base-b-fold1") == ((0, 1), ["base-a"]), "base-b failed in the first fold"
    assert compared("base-a-fold1") == ((0, 1), [])


def test_parts_share_the_weight_of_their_member():
    whole = Ensemble({"a": 1.0, "b": 0.5}, score_exponents={"a": 2.0})
    parts = whole.with_parts({"a": ["a", "a-fold1"], "b": ["b", "b-fold1"]})
    assert parts.weights == {"a": 0.5, "a-fold1": 0.5, "b": 0.25, "b-fold1": 0.25}
    assert parts.score_exponents == {"a": 2.0, "a-fold1": 2.0}


def run_it(workers):
    runner.run(workers.task, workers.ledger, successive_halving, workers)


def test_no_image_is_scored_by_a_member_that_has_learnt_it(two_folds):
    run_it(two_folds)
    task, ledger = two_folds.task, two_folds.ledger
    done = [record for record in ledger.segments() if record.state == "done"]
    assert {record.fold for record in done} == {0, 1}
    hashes = dict(zip(task.labeled.image_ids, task._hashes.values(), strict=True))
    for record in done:
        run = Run(ledger.folder / "members" / record.name)
        learnt = run.learnt_images
        scored = read_predictions(run.folder / "val@1.parquet", task.val_in(record.fold))
        assert {*scored} == {*task.held_out[record.fold]}
        assert not {hashes[i] for i in scored} & {*learnt}
        assert len(learnt) == len(task.train_in(record.fold))
        parent = next((other for other in done if other.name == record.parent), None)
        assert parent is None or parent.fold == record.fold


def test_base_runs_are_ranked_on_the_held_out_images_of_both_folds(two_folds, compare_base_runs, monkeypatch):
    class Ranked(Exception):
        pass

    def ranked(candidates, images, *, metric):
        assert all({*predictions} == {*images.image_ids} for predictions in candidates.values())
        raise Ranked([*candidates], {*images.image_ids})

    two_folds.fates = {f"{compare_base_runs[0]}-fold1": ["diverged"]}
    monkeypatch.setattr(runner, "rank_by_ensemble_gain", ranked)
    with pytest.raises(Ranked) as caught:
        run_it(two_folds)
    assert caught.value.args == (compare_base_runs[1:], {*two_folds.task.val.image_ids})
    started = {name for name, _, _ in two_folds.started}
    assert started == {*compare_base_runs, *(f"{name}-fold1" for name in compare_base_runs)}


def test_the_ensemble_is_chosen_on_the_images_of_all_folds_and_all_segments_predict_the_test_images(two_folds):
    run_it(two_folds)
    task, ledger = two_folds.task, two_folds.ledger
    _, score, facts = ledger.latest_submission()
    assert facts["folds"] == [0, 1]
    fused = read_predictions(ledger.folder / "fused_oof.parquet", task.val)
    assert {*fused} == {*task.val.image_ids}
    assert measure(fused, task.val) == pytest.approx(score)
    names = {name.partition("@")[0] for name in read_ensemble(ledger.folder / "ensemble.json").weights}
    by_name = {record.name: record for record in ledger.segments()}
    by_member = {}
    for name in names:
        by_member.setdefault(member_name(by_name[name]), set()).add(by_name[name].fold)
    assert all(folds == {0, 1} for folds in by_member.values())
    weights = [record.result["weight"] for record in by_name.values() if record.name in names]
    assert all(weights)


def test_browse_shows_the_segments_of_several_folds_as_one_member(two_folds):
    run_it(two_folds)
    task, folder = two_folds.task, two_folds.ledger.folder
    names = {name.partition("@")[0] for name in read_ensemble(folder / "ensemble.json").weights}
    fused, *members = prediction_sources([str(folder)])
    assert fused.name == "fused"
    assert sorted(source.name for source in members) == sorted({name.removesuffix("-fold1") for name in names})
    for source in members:
        assert {*read_source(source, task.val, ReadAs())} == {*task.val.image_ids}
        parts = []
        for x, path in enumerate(source.tests):
            one = Detections(np.array([[5.0 + x, 5, 40, 40]]), np.array([0.8 - 0.2 * x]), np.array([0]))
            parts.append(Predictions.of(dict.fromkeys(task.test.image_ids, one), task.test.classes))
            write_predictions(parts[-1], path, task.test)
        assert len(parts) == 2
        fused = read_source(source, task.test, ReadAs())
        assert {*fused} == {*task.test.image_ids}
        assert np.allclose(fused.boxes, wbf(parts).boxes)


def test_resumed_after_a_fold_it_goes_on_with_the_next(two_folds):
    two_folds.fates = {"base-160-fold1": ["interrupted"]}
    two_folds.capacities = {0.0: 1}
    run_it(two_folds)
    assert two_folds.ledger.get("state") == "interrupted"
    before = two_folds.ledger.latest_submission()
    assert before[2]["folds"] == [0]
    two_folds.running.clear()
    run_it(two_folds)
    assert two_folds.ledger.get("state") == "finished"
    assert two_folds.ledger.latest_submission()[2]["folds"] == [0, 1]


def test_a_segment_that_fails_in_one_fold_leaves_its_member_out(two_folds):
    two_folds.fates = {"cooldown1-192-fold1": ["diverged"]}
    run_it(two_folds)
    assert two_folds.ledger.latest_submission()[2]["folds"] == [0, 1]
    names = {name.partition("@")[0] for name in read_ensemble(two_folds.ledger.folder / "ensemble.json").weights}
    assert not {name for name in names if name.startswith("cooldown1")}


def test_where_time_is_short_the_last_folds_are_left_out():
    state = campaign_state(600.0, folds=(0, 2, 3), num_val=200, num_test=1500)
    assert successive_halving(replace(state, folds=(0,))).segment is not None
    end, decisions = simulate(state)
    assert {decision.segment.fold for decision in decisions} < {0, 2, 3}
    assert decisions[0].folds < (0, 2, 3)
    assert end.remaining >= 0


def test_a_fold_that_has_begun_is_not_left_out():
    state = campaign_state(1200.0, folds=(0, 2))
    done = [record_of(s, state, 100.0) for s in plan_segments(state)[:3]]
    begun = record_of(plan_segments(state)[3], state, 100.0, state="running", seconds=50.0, result={})
    late = replace(state, elapsed=1100.0, segments=(*done, begun))
    assert successive_halving(late).folds == (0, 2)


def test_the_folds_left_out_are_told_and_stay_left_out(two_folds, caplog):
    two_folds.ledger.deadline = 60.0
    two_folds.capacities = {0.0: 1}
    run_it(two_folds)
    state = two_folds.ledger.get("folds_in_time")
    assert state == [0], caplog.text
    assert "Time is short: 1 fold of the planned 2 is trained." in caplog.text
