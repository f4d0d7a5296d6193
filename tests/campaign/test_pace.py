"""The pace of a segment on a simulated clock: lost throughput is noticed within 10 s, threads and plan are chosen anew."""

from __future__ import annotations

from dataclasses import replace

import pytest

from campaign_samples import campaign_state, image_seconds, record_of
from foldfuse.campaign import pace
from foldfuse.campaign.pace import CoreUse, SegmentWatch
from foldfuse.campaign.planning.allocation import affordable_views, reserved_seconds, successive_halving, view_cost
from foldfuse.campaign.planning.segments import plan_segments
from foldfuse.campaign.planning.slack import replanned_seconds
from foldfuse.training import threads
from foldfuse.training.budget import Budget
from foldfuse.training.throughput import Throughput


def noticed(times: list[float], watch: Throughput | None = None) -> list[float]:
    """When changes are noticed, in seconds, in steps of these lengths."""
    watch, now, found = watch or Throughput(), 0.0, []
    for seconds in times:
        now += seconds
        if watch.add(seconds):
            found.append(now)
    return found


@pytest.mark.parametrize("step", [0.05, 0.4, 1.0, 1.5])
@pytest.mark.parametrize("factor", [1.6, 2.0, 3.0])
def test_lost_throughput_is_noticed_within_10_seconds(step, factor):
    normal = [step] * round(60 / step)
    slow = [step * factor] * round(30 / step)
    (when, *more) = noticed(normal + slow)
    assert 60 <= when <= 70
    assert not more, "once"


def test_the_way_back_is_noticed_too_and_the_slowdown_is_of_the_first_steps():
    watch = Throughput()
    assert len(noticed([0.4] * 50 + [1.0] * 30 + [0.4] * 30, watch)) == 2
    assert watch.slowdown == pytest.approx(1.0)
    assert noticed([0.9] * 30, watch)
    assert watch.slowdown == pytest.approx(2.25)


def test_single_slow_steps_and_small_changes_are_no_loss():
    assert not noticed([0.4] * 30 + ([3.0] + [0.4] * 10) * 5), "a checkpoint is written"
    assert not noticed([0.4] * 30 + [0.52] * 100)
    assert not noticed([5.0, 0.4, 0.4, 0.4, 0.4] + [0.4] * 50), "the first step compiles"


def test_fewer_threads_are_taken_only_where_they_are_clearly_faster():
    assert threads.thread_counts(8) == [8, 4, 2, 1]
    assert threads.fastest({2: 0.010, 1: 0.018}) == 2
    assert threads.fastest({2: 0.020, 1: 0.018}) == 2
    assert threads.fastest({2: 0.170, 1: 0.025}) == 1
    assert threads.fastest({8: 0.3, 4: 0.1, 2: 0.05, 1: 0.048}) == 2


def test_threads_are_measured_set_and_kept_for_a_while(monkeypatch):
    numbers, times = [2], iter([{2: 0.2, 1: 0.02}, {2: 0.01, 1: 0.02}])
    monkeypatch.setattr(threads, "most_threads", lambda: 2)
    monkeypatch.setattr(threads, "_measured", None)
    monkeypatch.setattr(threads.torch, "get_num_threads", lambda: numbers[-1])
    monkeypatch.setattr(threads.torch, "set_num_threads", numbers.append)
    seconds = {}

    def measured(network, images):
        if not seconds:
            seconds.update(next(times))
        return seconds.pop(numbers[-1])

    monkeypatch.setattr(threads, "_seconds", measured)
    assert threads.choose_threads() == (2, 1)
    assert threads.choose_threads(max_age=60.0) == (1, 1), "not measured again"
    assert threads.choose_threads() == (1, 2)


class FakeLedger:
    """Keeps facts and sentences; its elapsed time is the test's."""

    def __init__(self) -> None:
        self.elapsed, self.facts, self.sentences = 0.0, {}, []

    def set(self, **facts: object) -> None:
        self.facts |= facts

    def log(self, sentence: str) -> None:
        self.sentences.append(sentence)


def train(monkeypatch, step_seconds, *, name="cooldown1-320"):
    """(seconds of training of a cooldown run, ledger, calls for threads) where `step_seconds` tells the time of a step."""
    ledger, asked = FakeLedger(), []
    monkeypatch.setattr(
        pace, "settle_threads", lambda device, ledger, *, max_age: asked.append(ledger.elapsed) or False
    )
    monkeypatch.setattr(threads, "most_threads", lambda: 1)
    state = campaign_state()
    base, *_ = plan_segments(state)
    state = replace(state, elapsed=250.0, segments=(record_of(base, state, 230.0),))
    decision = successive_halving(state)
    assert decision.segment.name == name
    running = record_of(decision.segment, state, decision.seconds, state="running", seconds=0.0, result={})
    state = replace(state, segments=(*state.segments, running))
    budget = Budget(seconds=decision.seconds, clock=lambda: ledger.elapsed)
    ledger.elapsed = state.elapsed
    watch = SegmentWatch(name, state, budget, ledger, "cpu", clock=lambda: ledger.elapsed)
    step = 0
    while budget.spent(step) < 1:
        ledger.elapsed += step_seconds(ledger.elapsed)
        step += 1
        watch.after_step()
    return ledger.elapsed - 250.0, decision.seconds, ledger, asked, state


def test_a_segment_whose_machine_slows_down_is_planned_anew_so_that_the_rest_ends_in_time(monkeypatch):
    seconds, planned, ledger, asked, state = train(monkeypatch, lambda now: 0.4 if now < 300 else 1.0)
    assert len(asked) == 1
    assert 300 < asked[0] <= 310
    assert ledger.facts["slowdown"] == pytest.approx(2.5)
    assert seconds < 0.97 * planned
    assert "cooldown1-320: a step now takes 2.5 times as long as at first" in ledger.sentences[0]
    _, own, last = plan_segments(state)
    num_views = ledger.facts["max_views"]
    assert num_views < len(affordable_views(state)), "views are given up before a quarter of the training is"
    cost = view_cost(replace(state, max_views=num_views))
    predictions = 2.5 * image_seconds(own.recipe) * (state.num_test + state.num_val * cost)
    done = (state.segments[0], record_of(own, state, seconds))
    after = replace(state, elapsed=ledger.elapsed + 4 + predictions, slowdown=2.5, segments=done, max_views=num_views)
    left = after.remaining - reserved_seconds([last], after)
    assert 0.45 * seconds < left < seconds, "the other cooldown run loses its part too"


def test_a_segment_whose_machine_keeps_its_pace_is_left_alone(monkeypatch):
    seconds, planned, ledger, asked, _ = train(monkeypatch, lambda now: 0.4)
    assert seconds == pytest.approx(planned, abs=0.5)
    assert not asked + ledger.sentences
    assert not ledger.facts


def test_where_the_pace_comes_back_the_segment_gets_its_time_back(monkeypatch):
    seconds, planned, ledger, _, _ = train(monkeypatch, lambda now: 1.0 if 270 < now < 290 else 0.4)
    assert ledger.facts["slowdown"] == pytest.approx(1.0)
    assert ledger.facts["max_views"] is None, "as before"
    assert seconds == pytest.approx(planned, rel=0.03)


def test_a_first_member_is_trained_to_its_own_end_where_no_other_has_time():
    state = campaign_state(75.0, num_val=10, num_test=10, pixel_seconds=0.8 / 256**2)
    decision = successive_halving(state)
    running = record_of(decision.segment, state, decision.seconds, state="running", seconds=5.0, result={})
    now = replace(state, elapsed=state.elapsed + 5.0, segments=(running,))
    assert replanned_seconds(now, running.name)[0] == pytest.approx(decision.seconds, abs=0.1)
    slow = replace(now, slowdown=3.0)
    assert replanned_seconds(slow, running.name) == (5.0, 1), "predictions need all of the rest"


@pytest.mark.parametrize("slowdown", [1.0, 1.2, 1.5])
def test_near_its_end_a_first_member_leaves_the_others_their_time(slowdown):
    state = campaign_state()
    decision = successive_halving(state)
    trained = 0.98 * decision.seconds
    running = record_of(decision.segment, state, decision.seconds, state="running", seconds=trained, result={})
    now = replace(state, elapsed=state.elapsed + trained, segments=(running,), slowdown=slowdown)
    seconds, _ = replanned_seconds(now, running.name)
    assert trained <= seconds < 1.05 * decision.seconds


def test_the_share_of_the_cores():
    wall, cpu = iter([100.0, 160.0]), iter([10.0, 100.0])
    use = CoreUse.start(cores=2, wall=lambda: next(wall), cpu=lambda: next(cpu))
    assert use.share == 0.75
