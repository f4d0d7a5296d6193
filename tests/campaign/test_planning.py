"""Strategies on a simulated clock: the deadline is kept, killed segments resume, failed parents are replaced."""

from __future__ import annotations

from dataclasses import replace

import pytest

from campaign_samples import (
    RECIPE,
    STEP_SECONDS,
    THREE_RECIPES,
    campaign_state,
    ranking_strategy,
    record_of,
    simulate,
)
from foldfuse.campaign.planning.allocation import (
    affordable_views,
    image_seconds,
    make_plan,
    pending_view_seconds,
    rescoring_seconds,
    reserved_seconds,
    successive_halving,
    view_cost,
)
from foldfuse.campaign.planning.segments import base_runs, is_segment_name, largest_image_size, plan_segments
from foldfuse.campaign.planning.state import CampaignState
from foldfuse.recipes import load_recipe
from foldfuse.storage.segments import Role


def names(decisions):
    return [decision.segment.name for decision in decisions]


def shares_by_round(decisions):
    """The share of the training time that each round has."""
    seconds = [sum(d.seconds for d in decisions if d.segment.round == number) for number in range(3)]
    return [each / sum(seconds) for each in seconds]


def three_candidates(deadline=4200.0, **changes) -> CampaignState:
    return campaign_state(deadline, recipes=THREE_RECIPES, step_seconds=STEP_SECONDS, **changes)


@pytest.mark.parametrize("deadline", [120.0, 600.0, 3600.0])
def test_the_deadline_is_kept_and_the_time_is_used(deadline):
    end, decisions = simulate(campaign_state(deadline))
    assert names(decisions) == ["base-256", "cooldown1-320", "cooldown2-384"]
    assert 0.0 <= end.remaining < max(0.03 * deadline, 15.0)


def test_a_single_base_run_has_half_of_the_training_time_and_cooldown_runs_share_the_rest_equally():
    _, decisions = simulate(campaign_state())
    base, first, second = (decision.seconds for decision in decisions)
    assert base / (base + first + second) == pytest.approx(0.5, abs=0.02)
    assert first / second == pytest.approx(1, abs=0.05)


def test_cooldown_runs_continue_the_base_run_with_a_decaying_learning_rate():
    base, *cooldowns = plan_segments(campaign_state(seed=3))
    assert (base.role, base.parent, base.recipe.lr_decay_start) == (Role.BASE, None, 1.0)
    assert {cooldown.role for cooldown in cooldowns} == {Role.COOLDOWN}
    assert {cooldown.parent for cooldown in cooldowns} == {base.name}
    assert {cooldown.recipe.lr_decay_start for cooldown in cooldowns} == {0.0}
    assert {cooldown.recipe.warmup_fraction for cooldown in cooldowns} == {0.0}
    assert [segment.seed for segment in (base, *cooldowns)] == [3000, 3001, 3002]


def test_larger_images_make_smaller_batches_but_never_of_one():
    assert [s.recipe.batch_size for s in plan_segments(campaign_state())] == [8, 8, 6]
    small = replace(RECIPE, batch_size=2)
    assert [s.recipe.batch_size for s in plan_segments(campaign_state(recipes={"small": small}))] == [2, 2, 2]


def test_only_allowed_image_sizes_are_planned():
    one = plan_segments(campaign_state(image_sizes=(320,)))
    assert [s.recipe.image_size for s in one] == [320, 320, 320]
    assert len({s.name for s in one}) == 3
    assert [s.recipe.image_size for s in plan_segments(campaign_state(image_sizes=(512, 256)))] == [256, 256, 256]


def test_a_killed_segment_resumes_and_its_time_counts():
    state = campaign_state()
    whole = successive_halving(state)
    killed = record_of(whole.segment, state, whole.seconds, state="running", seconds=whole.seconds / 2, result={})
    at_once = replace(state, elapsed=state.elapsed + whole.seconds / 2, segments=(killed,))
    again = successive_halving(at_once)
    assert again.segment == whole.segment
    assert again.seconds == pytest.approx(whole.seconds), "only the kill itself was lost"
    late = successive_halving(replace(at_once, elapsed=at_once.elapsed + 60))
    assert whole.seconds / 2 < late.seconds < whole.seconds, "the lost minute is shared with the cooldown runs"
    over = successive_halving(replace(at_once, elapsed=state.deadline))
    assert (over.segment, over.seconds) == (whole.segment, whole.seconds / 2), "the trained part is delivered"


@pytest.mark.parametrize("segment_state", ["trained", "done", "failed"])
def test_a_finished_segment_is_not_trained_again(segment_state):
    state = campaign_state()
    record = record_of(plan_segments(state)[0], state, 200.0, state=segment_state)
    assert successive_halving(replace(state, elapsed=205.0, segments=(record,))).segment.name == "cooldown1-320"


def test_the_first_cooldown_run_takes_the_place_of_a_base_run_that_diverged():
    _, decisions = simulate(campaign_state(), diverge={"base-256"})
    first, second = decisions[1].segment, decisions[2].segment
    assert (first.parent, first.recipe.lr_decay_start) == (None, 1.0)
    assert first.recipe.warmup_fraction == RECIPE.warmup_fraction
    assert (second.parent, second.recipe.lr_decay_start) == ("cooldown1-320", 0.0)


def test_a_segment_without_time_is_not_started():
    state = campaign_state(60.0, num_val=1, num_test=0)
    segments = (record_of(plan_segments(state)[0], state, 20.0),)
    assert successive_halving(replace(state, elapsed=30.0, segments=segments)).segment.name == "cooldown1-320"
    assert successive_halving(replace(state, elapsed=45.0, segments=segments)).segment is None


@pytest.mark.parametrize(("elapsed", "num_views"), [(175.0, 3), (185.0, 2), (205.0, 1)])
def test_when_time_runs_short_a_segment_is_trained_and_predicts_in_fewer_views(elapsed, num_views):
    state = campaign_state(240.0, num_val=59, num_test=73)
    segments = tuple(record_of(s, state, 40.0, result={"image_seconds": 0.03}) for s in plan_segments(state)[:2])
    late = replace(state, elapsed=elapsed, segments=segments)
    assert len(affordable_views(late)) == 3
    decision = successive_halving(late)
    assert (decision.segment.name, decision.num_views) == ("cooldown2-384", num_views)
    assert decision.seconds >= 5
    limited = replace(late, max_views=decision.num_views)
    assert len(affordable_views(limited)) == num_views
    assert successive_halving(limited) == decision, "the limit stays"
    assert limited.elapsed + decision.seconds + reserved_seconds((decision.segment,), limited) <= 240.0
    assert successive_halving(replace(late, elapsed=215.0)).segment is None


def test_many_images_are_predicted_in_fewer_views_and_time_is_reserved_for_them():
    few, many = campaign_state(num_val=50, num_test=0), campaign_state(num_val=50, num_test=3950)
    assert len(affordable_views(few)) == 3
    assert len(affordable_views(many)) == 1
    assert reserved_seconds(plan_segments(many), many) > reserved_seconds(plan_segments(few), few) + 100


def test_tiles_are_views_where_images_are_large_and_objects_small_and_cost_their_pixels():
    few = campaign_state(num_val=50, num_test=0, soups=False)
    tiled = replace(few, tiles=True)
    assert [str(view) for view in affordable_views(tiled)] == ["1", "1+hflip", "1+tiles2x2"]
    assert (view_cost(few), view_cost(tiled)) == (3.5625, 6)
    assert [str(view) for view in affordable_views(replace(tiled, max_views=2))] == ["1", "1+hflip"]
    plan, segments = make_plan(tiled), plan_segments(tiled)
    assert plan.views == ("1", "1+hflip", "1+tiles2x2")
    more = reserved_seconds(segments, tiled) - reserved_seconds(segments, few)
    assert more == pytest.approx(50 * sum(image_seconds(segment, few) for segment in segments) * (6 - 3.5625))


def test_images_are_cached_at_the_size_of_tiles():
    state = campaign_state(recipes={"lite0": replace(RECIPE, tiles=0.5, tile_side=0.5)})
    assert largest_image_size(state) == 2 * largest_image_size(campaign_state())


def test_the_plan_adds_up_to_the_deadline_and_follows_the_state():
    state = campaign_state()
    plan = make_plan(state)
    total = state.elapsed + sum(segment.seconds for segment in plan.segments) + sum(plan.reserved.values())
    assert total == pytest.approx(state.deadline, abs=1)
    assert [segment.state for segment in plan.segments] == ["planned"] * 3
    record = record_of(plan_segments(state)[0], state, 250.0)
    later = make_plan(replace(state, elapsed=300.0, segments=(record,)))
    assert (later.segments[0].state, later.segments[0].seconds) == ("done", 250.0)
    assert sum(s.seconds for s in later.segments[1:]) + sum(later.reserved.values()) == pytest.approx(300, abs=1)


def test_no_time_is_kept_for_further_views_of_members_of_next_to_no_weight():
    state = campaign_state(num_test=700)
    base = plan_segments(state)[0]

    def pending(weight):
        result = {"image_seconds": 0.02, "weight": weight}
        return pending_view_seconds(replace(state, segments=(record_of(base, state, 100.0, result=result),)))

    assert pending(0.04) == pending(0.0) == 0
    assert pending(0.06) == pending(None) > 5


def test_time_is_kept_for_the_plain_view_of_members_that_have_not_predicted_the_test_images():
    state = campaign_state(1200.0, folds=(0, 1), num_test=700)
    first, second = (s for s in plan_segments(state) if s.role == Role.BASE)
    records = [record_of(s, state, 100.0, result={"image_seconds": 0.02, "weight": None}) for s in (first, second)]
    both = replace(state, segments=tuple(records))
    more = pending_view_seconds(both)
    plain = 700 * 0.02
    predicted = replace(both, test_predicted=frozenset({first.name}))
    assert pending_view_seconds(predicted) == pytest.approx(more + plain)
    assert pending_view_seconds(replace(predicted, max_views=1)) == pytest.approx(plain)
    assert reserved_seconds((), predicted) == pytest.approx(reserved_seconds((), both) + plain)


def test_slower_images_leave_less_time_for_training():
    slow, fast = (make_plan(campaign_state(pixel_seconds=seconds / 256**2)) for seconds in (0.2, 0.02))
    assert slow.segments[0].seconds < fast.segments[0].seconds


def test_a_slow_network_gives_one_member_where_there_is_no_time_for_all():
    state = campaign_state(75.0, num_val=10, num_test=10, pixel_seconds=0.8 / 256**2)
    decision = successive_halving(state)
    assert (decision.segment.name, decision.num_views) == ("base-256", 1)
    assert decision.segment.recipe.lr_decay_start == RECIPE.lr_decay_start < 1, "no cooldown run follows"
    alone = reserved_seconds([decision.segment], replace(state, max_views=1))
    assert decision.seconds == pytest.approx(state.remaining - alone)
    record = record_of(decision.segment, state, decision.seconds)
    later = replace(state, elapsed=60.0, segments=(record,), max_views=1)
    assert successive_halving(later).segment is None
    assert successive_halving(replace(state, pixel_seconds=5 / 256**2)).segment is None, "not even one member"


def test_crop_rescoring_is_planned_where_it_takes_little_of_the_deadline():
    state = campaign_state(600.0)
    assert 0 < rescoring_seconds(state) <= 0.1 * 600
    assert rescoring_seconds(replace(state, deadline=200.0)) == 0
    assert rescoring_seconds(replace(state, num_test=100_000)) == 0
    assert reserved_seconds(plan_segments(state)[:1], state) > rescoring_seconds(state)


def test_with_time_base_runs_are_compared_and_the_best_are_promoted():
    state = three_candidates()
    end, decisions = simulate(state, ranking_strategy())
    assert names(decisions) == [
        *("base-lite0_fpn-256", "base-lite0-256", "base-yolov5n-256"),
        *("extended-yolov5n-320", "extended-lite0-320"),
        *("cooldown1-yolov5n-320", "cooldown2-lite0-320", "cooldown3-yolov5n-384", "cooldown4-lite0-384"),
    ]
    segments = {decision.segment.name: decision.segment for decision in decisions}
    assert [s.role for s in segments.values()] == [Role.BASE] * 3 + [Role.EXTENDED] * 2 + [Role.COOLDOWN] * 4
    for segment in list(segments.values())[3:]:
        assert segment.recipe.detector == segments[segment.parent].recipe.detector
    assert shares_by_round(decisions) == pytest.approx([0.15, 0.4, 0.45], abs=0.03)
    assert 0.0 <= end.remaining < 0.03 * 4200
    assert max(segment.recipe.image_size for segment in segments.values()) <= largest_image_size(state)


def test_base_runs_are_compared_only_where_each_gets_enough_steps():
    assert len(base_runs(three_candidates(600.0))) == 1
    assert len(base_runs(campaign_state(3600.0, recipes=THREE_RECIPES))) == 1, "no candidate was measured"
    slow = dict.fromkeys(THREE_RECIPES, 4.0)
    assert len(base_runs(campaign_state(3600.0, recipes=THREE_RECIPES, step_seconds=slow))) == 1
    many = base_runs(three_candidates(20 * 3600.0))
    assert sorted({s.recipe.image_size for s in many}) == [256, 320], "then at a second size too"
    assert len({s.name for s in many}) == 6


def test_a_base_run_that_diverged_is_not_promoted():
    _, decisions = simulate(three_candidates(), ranking_strategy(), diverge={"base-yolov5n-256"})
    assert names(decisions)[3:5] == ["extended-lite0-320", "extended-lite0_fpn-320"]


def test_cooldown_runs_are_trained_side_by_side_after_the_base_run():
    state = campaign_state(600.0, num_workers=2)
    base = successive_halving(state).segment
    assert successive_halving(replace(state, busy=frozenset({base.name}))).segment is None
    state = replace(state, elapsed=200.0, segments=(record_of(base, state, 190.0),))
    first = successive_halving(state)
    second = successive_halving(replace(state, busy=frozenset({first.segment.name})))
    assert {first.segment.name, second.segment.name} == {"cooldown1-320", "cooldown2-384"}
    alone = successive_halving(replace(state, num_workers=1))
    assert first.seconds == pytest.approx(second.seconds)
    assert first.seconds > 1.8 * alone.seconds
    both = frozenset({first.segment.name, second.segment.name})
    assert successive_halving(replace(state, busy=both)).segment is None


def test_each_worker_gets_a_cooldown_run_and_those_that_have_begun_stay():
    state = campaign_state(600.0, num_workers=5)
    assert len(plan_segments(state)) == 6
    segments = tuple(record_of(s, state, 90.0, state="running") for s in plan_segments(state))
    assert plan_segments(replace(state, num_workers=2, segments=segments)) == plan_segments(state)


def test_a_single_promoted_base_run_gets_all_of_the_remaining_time():
    _, decisions = simulate(three_candidates(), ranking_strategy(1))
    assert names(decisions)[3:] == ["extended-yolov5n-320", "cooldown1-yolov5n-320", "cooldown2-yolov5n-384"]
    assert shares_by_round(decisions) == pytest.approx([0.15, 0.4, 0.45], abs=0.03)


def test_with_hours_there_are_more_cooldown_runs_rather_than_longer_ones():
    segments = plan_segments(campaign_state(2 * 3600.0))
    assert [s.name for s in segments] == [
        *("base-256", "cooldown1-320", "cooldown2-384", "cooldown3-320", "cooldown4-384"),
    ]
    assert len({s.seed for s in segments}) == 5
    state = three_candidates(2 * 3600.0)
    segments = plan_segments(replace(state, ranking=(base_runs(state)[0].name,)))
    assert [s.name for s in segments if s.role == Role.COOLDOWN] == [
        *("cooldown1-lite0_fpn-320", "cooldown2-lite0_fpn-384", "cooldown3-lite0_fpn-320", "cooldown4-lite0_fpn-384"),
    ]
    assert sum(s.share for s in segments) == pytest.approx(1)


def test_no_two_segments_have_the_same_name():
    small = {name: replace(recipe, image_size=128) for name, recipe in THREE_RECIPES.items()}
    for changes in ({"recipes": small}, {"image_sizes": (320,)}, {"image_sizes": (256, 320)}):
        values = {"recipes": THREE_RECIPES, "step_seconds": STEP_SECONDS, **changes}
        found = [s.name for s in plan_segments(campaign_state(20 * 3600.0, **values))]
        assert len(set(found)) == len(found) > 3
        assert all(map(is_segment_name, found))
    assert not any(map(is_segment_name, ("baseline", "ours", "cooldown", "extended_yolo", "my-base-256")))


def test_with_pseudo_labels_the_last_cooldown_runs_wait_for_the_others_and_keep_their_share():
    plain, pseudo = plan_segments(campaign_state()), plan_segments(campaign_state(pseudo_labels=True))
    assert [(s.name, s.share) for s in plain] == [(s.name, s.share) for s in pseudo]
    assert [(s.round, s.pseudo_labels) for s in pseudo] == [(0, False), (1, False), (2, True)]
    steps = dict.fromkeys("abc", 0.1)
    several = campaign_state(3600.0, recipes=dict.fromkeys("abc", RECIPE), step_seconds=steps, pseudo_labels=True)
    cooldowns = [(s.round, s.pseudo_labels) for s in plan_segments(several) if s.role == Role.COOLDOWN]
    half = len(cooldowns) // 2
    assert cooldowns == [(2, False)] * half + [(3, True)] * half
    end, decisions = simulate(campaign_state(pseudo_labels=True))
    assert names(decisions) == [s.name for s in pseudo]
    assert end.remaining >= 0


@pytest.mark.parametrize(
    ("chosen", "sizes", "batches"),
    [(256, [192, 256, 320], [8, 8, 8]), (320, [256, 320, 384], [8, 8, 6]), (512, [416, 512, 608], [5, 4, 4])],
)
def test_segments_go_around_the_image_size_that_was_chosen_from_the_data(chosen, sizes, batches):
    state = campaign_state(recipes={"lite0_fpn": load_recipe("lite0_fpn")}, auto_image_size=chosen)
    recipes = [s.recipe for s in plan_segments(state)]
    assert [recipe.image_size for recipe in recipes] == sizes
    assert [recipe.batch_size for recipe in recipes] == batches, (
        "the memory of the recipe's batch at 320 px, but 4 images or more"
    )
    assert largest_image_size(state) == max(sizes)
    assert {s.recipe.image_size for s in plan_segments(replace(state, image_sizes=(96,)))} == {96}
    assert [line.image_size for line in make_plan(state).segments] == sizes


def test_recipes_with_an_image_size_of_their_own_keep_it_beside_others():
    recipes = {name: load_recipe(name) for name in ("lite0_fpn", "efficientdet_lite1", "yolov5n")}
    steps = dict.fromkeys(recipes, 0.1)
    bases = base_runs(campaign_state(3 * 3600.0, recipes=recipes, step_seconds=steps, auto_image_size=512))
    assert [(s.recipe.detector, s.recipe.image_size) for s in bases[:3]] == [
        *(("lite0_fpn", 416), ("efficientdet_lite1", 320), ("yolov5n", 416)),
    ]
