"""Strategies on a fake clock: the time is kept, what was killed goes on, what diverged is gone round."""

from dataclasses import replace

import pytest

from foldfuse.ledger import Row
from foldfuse.recipes import load_recipe
from foldfuse.strategy import (
    Standing,
    opinion_seconds,
    outlook,
    plan,
    reserve,
    search_seconds,
    trunk_and_branches,
    views,
)

RECIPE = load_recipe("efficientdet_lite0")


def standing(deadline=600.0, **changes):
    return Standing(
        **{
            "recipe": RECIPE,
            "sizes": (),
            "seed": 0,
            "deadline": deadline,
            "used": 3.0,
            "num_held": 50,
            "num_target": 70,
        }
        | changes
    )


def row_of(segment, now, budget, /, **changes):
    values = {
        "kind": "train",
        "recipe": vars(segment.recipe),
        "parent": segment.parent,
        "fold": segment.fold,
        "seed": segment.seed,
        "state": "done",
        "budget": budget,
        "seconds": budget,
        "started": now.used,
        "ended": now.used + budget,
        "result": {"cost": 0.03 * (segment.recipe.image_size / 256) ** 2},
    }
    return Row(segment.name, **values | changes)


def carried_out(now, strategy=trunk_and_branches, *, overhead=2.0, diverge=()):
    """The standing at the end, and [(segment, seconds)], of a campaign whose work takes fake time."""
    done = []
    while (coming := strategy(now)).segment is not None:
        segment, seconds = coming.segment, coming.seconds
        before = now.row(segment.name)
        had = before.seconds if before else 0.0
        cost = 0.03 * (segment.recipe.image_size / 256) ** 2
        state = "failed" if segment.name in diverge else "done"
        taken = seconds - had + overhead + cost * now.pictures * sum(v.scale**2 for v in views(now))
        row = row_of(segment, now, seconds, state=state, result={"cost": cost} if state == "done" else {})
        rows = [r for r in now.rows if r.name != segment.name]
        now = replace(now, used=now.used + taken, rows=(*rows, row))
        done.append((segment, seconds))
    return replace(now, used=now.used + search_seconds(now.deadline) + opinion_seconds(now)), done


@pytest.mark.parametrize("deadline", [120.0, 600.0, 3600.0])
def test_the_deadline_is_kept_and_not_left_unused(deadline):
    end, done = carried_out(standing(deadline))
    assert [s.name for s, _ in done] == ["trunk-256", "branch1-320", "branch2-384"]
    assert 0.0 <= end.left < max(0.03 * deadline, 15.0)


def test_the_trunk_has_half_of_the_training_and_the_branches_the_rest_alike():
    _, done = carried_out(standing())
    trunk, first, second = (seconds for _, seconds in done)
    assert trunk / (trunk + first + second) == pytest.approx(0.5, abs=0.02)
    assert first / second == pytest.approx(1, abs=0.05)


def test_branches_begin_where_the_trunk_ended_and_let_the_rate_fall():
    trunk, *branches = plan(standing(seed=3))
    assert (trunk.parent, trunk.recipe.decay_from) == (None, 1.0)
    assert {b.parent for b in branches} == {trunk.name}
    assert {b.recipe.decay_from for b in branches} == {0.0}
    assert {b.recipe.warmup for b in branches} == {0.0}
    assert [s.seed for s in (trunk, *branches)] == [3000, 3001, 3002]


def test_larger_pictures_come_fewer_at_a_time_and_never_alone():
    assert [s.recipe.batch_size for s in plan(standing())] == [8, 8, 6]
    small = replace(RECIPE, batch_size=2)
    assert [s.recipe.batch_size for s in plan(standing(recipe=small))] == [2, 2, 2]


def test_only_sizes_that_are_allowed_are_planned():
    assert [s.recipe.image_size for s in plan(standing(sizes=(320,)))] == [320, 320, 320]
    assert [s.recipe.image_size for s in plan(standing(sizes=(512, 256)))] == [256, 256, 256]
    assert len({s.name for s in plan(standing(sizes=(320,)))}) == 3


def test_a_killed_segment_goes_on_and_what_it_had_counts():
    fresh = standing()
    whole = trunk_and_branches(fresh)
    half = row_of(whole.segment, fresh, whole.seconds, state="running", seconds=whole.seconds / 2, result={})
    again = trunk_and_branches(replace(fresh, used=fresh.used + whole.seconds / 2, rows=(half,)))
    assert again.segment == whole.segment
    assert again.seconds == pytest.approx(whole.seconds), "nothing was lost but the kill itself"
    late = trunk_and_branches(replace(fresh, used=fresh.used + whole.seconds / 2 + 60, rows=(half,)))
    assert whole.seconds / 2 < late.seconds < whole.seconds, "the lost minute is shared with the branches"
    over = trunk_and_branches(replace(fresh, used=fresh.deadline, rows=(half,)))
    assert (over.segment, over.seconds) == (whole.segment, whole.seconds / 2), "what was learnt is delivered"


@pytest.mark.parametrize("state", ["trained", "done", "failed"])
def test_what_is_over_is_not_trained_again(state):
    fresh = standing()
    row = row_of(plan(fresh)[0], fresh, 200.0, state=state)
    coming = trunk_and_branches(replace(fresh, used=205.0, rows=(row,))).segment
    assert coming.name == "branch1-320"


def test_the_first_branch_takes_the_place_of_a_trunk_that_diverged():
    _, done = carried_out(standing(), diverge={"trunk-256"})
    first, second = done[1][0], done[2][0]
    assert (first.parent, first.recipe.decay_from, first.recipe.warmup) == (None, 1.0, RECIPE.warmup)
    assert (second.parent, second.recipe.decay_from) == ("branch1-320", 0.0)


def test_what_finds_no_time_is_named():
    fresh = standing(60.0, num_held=1, num_target=0)
    rows = (row_of(plan(fresh)[0], fresh, 20.0),)
    coming = trunk_and_branches(replace(fresh, used=45.0, rows=rows))
    assert coming.segment is None
    assert coming.left_out == ("branch1-320", "branch2-384")


def test_many_pictures_are_predicted_in_fewer_views_and_time_is_kept_for_them():
    few, many = standing(num_held=50, num_target=0), standing(num_held=50, num_target=3950)
    assert len(views(few)) == 3
    assert len(views(many)) == 1
    assert reserve(plan(many), many) > reserve(plan(few), few) + 100


def test_the_plan_adds_up_to_the_deadline_and_is_brought_up_to_date():
    fresh = standing()
    ahead = outlook(fresh)
    whole = fresh.used + sum(p.seconds for p in ahead.segments) + sum(ahead.reserved.values())
    assert whole == pytest.approx(fresh.deadline, abs=1)
    assert [p.state for p in ahead.segments] == ["planned"] * 3
    later = outlook(replace(fresh, used=300.0, rows=(row_of(plan(fresh)[0], fresh, 250.0),)))
    assert (later.segments[0].state, later.segments[0].seconds) == ("done", 250.0)
    assert sum(p.seconds for p in later.segments[1:]) + sum(later.reserved.values()) == pytest.approx(300, abs=1)


def test_slower_pictures_leave_less_for_training():
    assert outlook(standing(cost=0.2)).segments[0].seconds < outlook(standing(cost=0.02)).segments[0].seconds


def test_a_second_opinion_is_asked_for_where_it_takes_little_of_the_deadline():
    now = standing(600.0)
    assert 0 < opinion_seconds(now) <= 0.1 * 600
    assert opinion_seconds(replace(now, deadline=200.0)) == 0
    assert opinion_seconds(replace(now, num_target=100_000)) == 0
    assert reserve(plan(now)[:1], now) > opinion_seconds(now)
