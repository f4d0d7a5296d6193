"""Strategies on a fake clock: the time is kept, what was killed goes on, what diverged is gone round."""

from dataclasses import replace

import pytest

from campaign_samples import standing
from foldfuse.campaign.planning.allocation import (
    looks,
    opinion_seconds,
    outlook,
    owed_seconds,
    reserve,
    search_seconds,
    successive_halving,
    views,
)
from foldfuse.campaign.planning.segments import largest_side, plan, trunks
from foldfuse.recipes import load_recipe
from foldfuse.storage.ledger import SegmentRecord

RECIPE = load_recipe("efficientdet_lite0")


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
        "started": now.elapsed,
        "ended": now.elapsed + budget,
        "result": {"cost": 0.03 * (segment.recipe.image_size / 256) ** 2},
    }
    return SegmentRecord(segment.name, **values | changes)


def carried_out(now, strategy=successive_halving, *, overhead=2.0, diverge=()):
    """The standing at the end, and [(segment, seconds)], of a campaign whose work takes fake time."""
    done = []
    while (coming := strategy(now)).segment is not None:
        segment, seconds = coming.segment, coming.seconds
        before = now.row(segment.name)
        had = before.seconds if before else 0.0
        cost = 0.03 * (segment.recipe.image_size / 256) ** 2
        state = "failed" if segment.name in diverge else "done"
        taken = seconds - had + overhead + cost * (now.num_held * looks(now) + now.num_target)
        row = row_of(segment, now, seconds, state=state, result={"cost": cost} if state == "done" else {})
        rows = [r for r in now.rows if r.name != segment.name]
        now = replace(now, elapsed=now.elapsed + taken, rows=(*rows, row))
        done.append((segment, seconds))
    late = owed_seconds(now) + search_seconds(now.deadline) + opinion_seconds(now)
    return replace(now, elapsed=now.elapsed + late), done


@pytest.mark.parametrize("deadline", [120.0, 600.0, 3600.0])
def test_the_deadline_is_kept_and_not_left_unused(deadline):
    end, done = carried_out(standing(deadline))
    assert [s.name for s, _ in done] == ["trunk-256", "branch1-320", "branch2-384"]
    assert 0.0 <= end.remaining < max(0.03 * deadline, 15.0)


def test_the_trunk_has_half_of_the_training_and_the_branches_the_rest_alike():
    _, done = carried_out(standing())
    trunk, first, second = (seconds for _, seconds in done)
    assert trunk / (trunk + first + second) == pytest.approx(0.5, abs=0.02)
    assert first / second == pytest.approx(1, abs=0.05)


def test_branches_begin_where_the_trunk_ended_and_let_the_rate_fall():
    trunk, *branches = plan(standing(seed=3))
    assert (trunk.parent, trunk.recipe.lr_decay_start) == (None, 1.0)
    assert {b.parent for b in branches} == {trunk.name}
    assert {b.recipe.lr_decay_start for b in branches} == {0.0}
    assert {b.recipe.warmup_fraction for b in branches} == {0.0}
    assert [s.seed for s in (trunk, *branches)] == [3000, 3001, 3002]


def test_larger_pictures_come_fewer_at_a_time_and_never_alone():
    assert [s.recipe.batch_size for s in plan(standing())] == [8, 8, 6]
    small = replace(RECIPE, batch_size=2)
    assert [s.recipe.batch_size for s in plan(standing(recipes={"small": small}))] == [2, 2, 2]


def test_only_sizes_that_are_allowed_are_planned():
    assert [s.recipe.image_size for s in plan(standing(sizes=(320,)))] == [320, 320, 320]
    assert [s.recipe.image_size for s in plan(standing(sizes=(512, 256)))] == [256, 256, 256]
    assert len({s.name for s in plan(standing(sizes=(320,)))}) == 3


def test_a_killed_segment_goes_on_and_what_it_had_counts():
    fresh = standing()
    whole = successive_halving(fresh)
    half = row_of(whole.segment, fresh, whole.seconds, state="running", seconds=whole.seconds / 2, result={})
    again = successive_halving(replace(fresh, elapsed=fresh.elapsed + whole.seconds / 2, rows=(half,)))
    assert again.segment == whole.segment
    assert again.seconds == pytest.approx(whole.seconds), "nothing was lost but the kill itself"
    late = successive_halving(replace(fresh, elapsed=fresh.elapsed + whole.seconds / 2 + 60, rows=(half,)))
    assert whole.seconds / 2 < late.seconds < whole.seconds, "the lost minute is shared with the branches"
    over = successive_halving(replace(fresh, elapsed=fresh.deadline, rows=(half,)))
    assert (over.segment, over.seconds) == (whole.segment, whole.seconds / 2), "what was learnt is delivered"


@pytest.mark.parametrize("state", ["trained", "done", "failed"])
def test_what_is_over_is_not_trained_again(state):
    fresh = standing()
    row = row_of(plan(fresh)[0], fresh, 200.0, state=state)
    coming = successive_halving(replace(fresh, elapsed=205.0, rows=(row,))).segment
    assert coming.name == "branch1-320"


def test_the_first_branch_takes_the_place_of_a_trunk_that_diverged():
    _, done = carried_out(standing(), diverge={"trunk-256"})
    first, second = done[1][0], done[2][0]
    assert (first.parent, first.recipe.lr_decay_start, first.recipe.warmup_fraction) == (
        None,
        1.0,
        RECIPE.warmup_fraction,
    )
    assert (second.parent, second.recipe.lr_decay_start) == ("branch1-320", 0.0)


def test_what_finds_no_time_is_not_begun():
    fresh = standing(60.0, num_held=1, num_target=0)
    rows = (row_of(plan(fresh)[0], fresh, 20.0),)
    assert successive_halving(replace(fresh, elapsed=30.0, rows=rows)).segment.name == "branch1-320"
    assert successive_halving(replace(fresh, elapsed=45.0, rows=rows)).segment is None


@pytest.mark.parametrize(("used", "seen"), [(175.0, 3), (185.0, 2), (205.0, 1)])
def test_where_time_turns_out_short_a_segment_is_trained_and_looks_in_fewer_views(used, seen):
    fresh = standing(240.0, num_held=59, num_target=73)
    rows = tuple(row_of(part, fresh, 40.0, result={"cost": 0.03}) for part in plan(fresh)[:2])
    late = replace(fresh, elapsed=used, rows=rows)
    assert len(views(late)) == 3
    coming = successive_halving(late)
    assert (coming.segment.name, coming.views) == ("branch2-384", seen)
    assert coming.seconds >= 5
    kept = replace(late, most_views=coming.views)
    assert len(views(kept)) == seen
    assert successive_halving(kept) == coming, "from then on it stays so"
    assert kept.elapsed + coming.seconds + reserve((coming.segment,), kept) <= 240.0
    assert successive_halving(replace(late, elapsed=215.0)).segment is None


def test_many_pictures_are_predicted_in_fewer_views_and_time_is_kept_for_them():
    few, many = standing(num_held=50, num_target=0), standing(num_held=50, num_target=3950)
    assert len(views(few)) == 3
    assert len(views(many)) == 1
    assert reserve(plan(many), many) > reserve(plan(few), few) + 100


def test_the_plan_adds_up_to_the_deadline_and_is_brought_up_to_date():
    fresh = standing()
    ahead = outlook(fresh)
    whole = fresh.elapsed + sum(p.seconds for p in ahead.segments) + sum(ahead.reserved.values())
    assert whole == pytest.approx(fresh.deadline, abs=1)
    assert [p.state for p in ahead.segments] == ["planned"] * 3
    later = outlook(replace(fresh, elapsed=300.0, rows=(row_of(plan(fresh)[0], fresh, 250.0),)))
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


THREE = {"lite0_fpn": replace(RECIPE, detector="lite0_fpn"), "lite0": RECIPE, "yolov5n": load_recipe("yolov5n")}
QUICK = {"lite0_fpn": 0.4, "lite0": 0.5, "yolov5n": 0.3}  # seconds of a step


def ranked(now):
    """The strategy of a campaign that ranks its trunks backwards, as soon as they are over."""
    tried = [part.name for part in trunks(now)]
    over = all(now.states.get(name) in ("done", "failed") for name in tried)
    kept = [name for name in reversed(tried) if now.states.get(name) == "done"]
    return replace(now, ranking=tuple(kept)) if over and len(tried) > 1 else now


def test_with_time_several_trunks_are_compared_and_those_that_add_most_go_on():
    now = standing(4200.0, recipes=THREE, steps=QUICK)
    end, done = carried_out(now, lambda now: successive_halving(ranked(now)))
    names = [segment.name for segment, _ in done]
    assert names[:3] == ["trunk-lite0_fpn-256", "trunk-lite0-256", "trunk-yolov5n-256"]
    assert names[3:5] == ["grown-yolov5n-320", "grown-lite0-320"]
    assert names[5:] == ["branch1-yolov5n-320", "branch2-lite0-320", "branch3-yolov5n-384", "branch4-lite0-384"]
    for segment, _ in done[3:]:
        assert segment.recipe.detector == segment.name.split("-")[1].replace("lite0", "efficientdet_lite0")
        assert segment.parent.split("-")[1] == segment.name.split("-")[1]
    shares = [sum(s for segment, s in done if segment.rung == rung) for rung in range(3)]
    assert [share / sum(shares) for share in shares] == pytest.approx([0.15, 0.4, 0.45], abs=0.03)
    assert 0.0 <= end.remaining < 0.03 * 4200
    assert max(segment.recipe.image_size for segment, _ in done) <= largest_side(now)


def test_trunks_are_only_compared_where_each_gets_enough_steps():
    assert len(trunks(standing(600.0, recipes=THREE, steps=QUICK))) == 1
    assert len(trunks(standing(3600.0, recipes=THREE, steps={}))) == 1, "nothing was measured"
    assert len(trunks(standing(3600.0, recipes=THREE, steps=dict.fromkeys(THREE, 4.0)))) == 1
    many = trunks(standing(20 * 3600.0, recipes=THREE, steps=QUICK))
    assert sorted({s.recipe.image_size for s in many}) == [256, 320], "then at a second size too"
    assert len({s.name for s in many}) == 6


def test_a_trunk_that_diverged_is_not_promoted():
    now = standing(4200.0, recipes=THREE, steps=QUICK)
    _, done = carried_out(now, lambda now: successive_halving(ranked(now)), diverge={"trunk-yolov5n-256"})
    names = [segment.name for segment, _ in done]
    assert names[3:5] == ["grown-lite0-320", "grown-lite0_fpn-320"]


def test_branches_are_trained_side_by_side_and_the_trunk_is_waited_for():
    now = standing(600.0, workers=2)
    trunk = successive_halving(now).segment
    assert successive_halving(replace(now, busy=frozenset({trunk.name}))).segment is None
    now = replace(now, elapsed=200.0, rows=(row_of(trunk, now, 190.0),))
    first = successive_halving(now)
    second = successive_halving(replace(now, busy=frozenset({first.segment.name})))
    assert {first.segment.name, second.segment.name} == {"branch1-320", "branch2-384"}
    alone = successive_halving(replace(now, workers=1))
    assert first.seconds == pytest.approx(second.seconds)
    assert first.seconds > 1.8 * alone.seconds
    both = frozenset({first.segment.name, second.segment.name})
    assert successive_halving(replace(now, busy=both)).segment is None
    five = standing(600.0, workers=5)
    assert len(plan(five)) == 6, "a branch for each worker"
    rows = tuple(row_of(part, five, 90.0, state="running") for part in plan(five))
    assert plan(replace(five, workers=2, rows=rows)) == plan(five), "those that have begun stay"


def test_where_one_trunk_adds_enough_it_has_all_of_the_rest():
    now = standing(4200.0, recipes=THREE, steps=QUICK)
    _, done = carried_out(now, lambda now: successive_halving(replace(ranked(now), ranking=ranked(now).ranking[:1])))
    assert [s.name for s, _ in done[3:]] == ["grown-yolov5n-320", "branch1-yolov5n-320", "branch2-yolov5n-384"]
    shares = [sum(s for segment, s in done if segment.rung == rung) for rung in range(3)]
    assert [share / sum(shares) for share in shares] == pytest.approx([0.15, 0.4, 0.45], abs=0.03)


def test_with_hours_there_are_more_branches_and_not_only_longer_ones():
    names = [s.name for s in plan(standing(2 * 3600.0))]
    assert names == ["trunk-256", "branch1-320", "branch2-384", "branch3-320", "branch4-384"]
    assert len({s.seed for s in plan(standing(2 * 3600.0))}) == 5
    alone = standing(2 * 3600.0, recipes=THREE, steps=QUICK)
    first = trunks(alone)[0].name
    branches = [s.name for s in plan(replace(alone, ranking=(first,))) if s.name.startswith("branch")]
    assert branches == [
        "branch1-lite0_fpn-320",
        "branch2-lite0_fpn-384",
        "branch3-lite0_fpn-320",
        "branch4-lite0_fpn-384",
    ]
    shares = [s.share for s in plan(replace(alone, ranking=(first,)))]
    assert sum(shares) == pytest.approx(1)


def test_no_two_segments_have_one_name():
    small = {name: replace(recipe, image_size=128) for name, recipe in THREE.items()}
    for changes in ({"recipes": small}, {"recipes": THREE, "sizes": (320,)}, {"recipes": THREE, "sizes": (256, 320)}):
        names = [s.name for s in plan(standing(20 * 3600.0, steps=QUICK, **changes))]
        assert len(set(names)) == len(names) > 3


def test_with_pseudo_labels_the_last_branches_wait_for_the_others_and_keep_their_share():
    plain, taught = plan(standing()), plan(standing(pseudo=True))
    assert [(s.name, s.share) for s in plain] == [(s.name, s.share) for s in taught]
    assert [(s.rung, s.pseudo) for s in taught] == [(0, False), (1, False), (2, True)]
    steps = dict.fromkeys("abc", 0.1)
    several = standing(3600.0, recipes=dict.fromkeys("abc", RECIPE), steps=steps, pseudo=True)
    names = {s.name: (s.rung, s.pseudo) for s in plan(several) if s.name.startswith("branch")}
    half = len(names) // 2
    assert list(names.values()) == [(2, False)] * half + [(3, True)] * half
    end, done = carried_out(standing(pseudo=True))
    assert [s.name for s, _ in done] == [s.name for s in taught]
    assert end.remaining >= 0
