"""The runner with asynchronous workers on a fake clock: order of the segments, lost workers, divergence, interrupts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from campaign_samples import FakeWorkers
from foldfuse.campaign import constants as c
from foldfuse.campaign import runner, submissions
from foldfuse.campaign.planning.allocation import successive_halving
from foldfuse.campaign.submissions import MemberPredictions
from foldfuse.ensemble.build import EnsembleReport
from foldfuse.errors import InputError
from foldfuse.formats.submission import validate_submission
from foldfuse.storage import ledger as ledgers
from foldfuse.storage.segments import Role

BASE, COOLDOWNS = "base-160", ["cooldown1-192", "cooldown2-224"]


def run_segments(workers: FakeWorkers) -> dict[str, str]:
    """{segment: its state} at the end of the campaign, and "notes" with all log sentences."""
    runner.run_segments(workers.task, workers.ledger, successive_halving, MemberPredictions(), workers)
    assert validate_submission(workers.ledger.folder / "submission.csv", workers.task.test)
    assert workers.ledger.remaining >= 0
    return {record.name: record.state for record in workers.ledger.segments()} | {
        "notes": " ".join(ledgers.snapshot(workers.ledger.folder)["notes"])
    }


def test_segments_of_a_round_are_trained_side_by_side_after_the_round_before(workers):
    states = run_segments(workers)
    assert [states[name] for name in (BASE, *COOLDOWNS)] == ["done"] * 3
    base, *cooldowns = workers.started
    assert [name for name, _, _ in cooldowns] == COOLDOWNS
    assert {when for _, when, _ in cooldowns} == {base[2].seconds}
    assert {job.parent.folder.name for _, _, job in cooldowns} == {BASE}
    assert cooldowns[0][2].seconds == pytest.approx(cooldowns[1][2].seconds, abs=0.1)
    assert workers.now > 0.7 * workers.ledger.deadline


def test_the_ensemble_is_chosen_while_the_workers_are_busy(workers, monkeypatch):
    chosen = []

    def recorded(task, ledger, members, *, last, **options):
        chosen.append((sorted(members.val), sorted(workers.busy), last))
        return submit_best(task, ledger, members, last=last, **options)

    submit_best = runner.submit_best
    monkeypatch.setattr(runner, "submit_best", recorded)
    run_segments(workers)
    assert chosen[0] == ([(BASE, "1")], COOLDOWNS, False)
    assert chosen[-1] == (sorted((name, "1") for name in (BASE, *COOLDOWNS)), [], True)


def test_a_lost_segment_resumes_from_its_checkpoint(workers):
    workers.fates[COOLDOWNS[0]] = ["lost"]
    states = run_segments(workers)
    assert states[COOLDOWNS[0]] == "done"
    first, again = (job for name, _, job in workers.started if name == COOLDOWNS[0])
    assert (first.checkpoint, first.parent.folder.name) == (None, BASE)
    assert again.checkpoint["seconds"] == pytest.approx(first.seconds / 2)
    assert again.parent is None
    assert "node 1 was lost. It will be trained again, from its checkpoint" in states["notes"]


def test_a_segment_that_is_lost_too_often_is_left_out(workers):
    workers.fates[COOLDOWNS[0]] = ["lost"] * c.MAX_ATTEMPTS
    states = run_segments(workers)
    assert len(workers.times(COOLDOWNS[0])) == c.MAX_ATTEMPTS
    assert (states[COOLDOWNS[0]], states[COOLDOWNS[1]]) == ("failed", "done")
    assert f"{COOLDOWNS[0]} is left out: node 1 was lost." in states["notes"]


def test_a_cooldown_run_takes_the_place_of_a_base_run_that_is_lost_too_often(workers):
    workers.fates[BASE] = ["lost"] * c.MAX_ATTEMPTS
    states = run_segments(workers)
    assert [states[name] for name in (BASE, *COOLDOWNS)] == ["failed", "done", "done"]


def test_a_diverged_segment_is_left_out_while_the_others_continue(workers):
    workers.fates[COOLDOWNS[0]] = ["diverged"]
    states = run_segments(workers)
    assert [states[name] for name in (BASE, *COOLDOWNS)] == ["done", "failed", "done"]
    assert len(workers.times(COOLDOWNS[0])) == 1
    assert f"{COOLDOWNS[0]} is left out: {COOLDOWNS[0]}: the loss is not finite." in states["notes"]


def test_a_single_base_run_that_diverges_ends_the_campaign(workers):
    workers.fates[BASE] = ["diverged"]
    with pytest.raises(FloatingPointError, match=f"{BASE}: the loss is not finite"):
        run_segments(workers)
    assert [name for name, _, _ in workers.started] == [BASE]


def test_where_one_of_several_base_runs_diverges_the_others_continue(workers, compare_base_runs):
    first, *others = compare_base_runs
    workers.fates[first] = ["diverged"]
    states = run_segments(workers)
    assert states[first] == "failed"
    assert {states[name] for name in others} == {"done"}
    assert first not in workers.ledger.get("ranking")


def test_where_all_of_several_base_runs_diverge_the_campaign_ends(workers, compare_base_runs):
    workers.fates = {name: ["diverged"] for name in compare_base_runs}
    with pytest.raises(FloatingPointError, match="the loss is not finite"):
        run_segments(workers)
    assert sorted(name for name, _, _ in workers.started) == sorted(compare_base_runs)


def test_no_segment_of_a_later_round_starts_before_the_round_is_over(workers, compare_base_runs):
    workers.capacities = {0.0: 3}  # for four base runs: two workers are idle while the last one is trained
    workers.fates[compare_base_runs[1]] = ["lost"]
    run_segments(workers)
    roles = {record.name: record.role for record in workers.ledger.segments()}
    order = [list(Role).index(roles[name]) for name, _, _ in workers.started]
    assert order == sorted(order)
    assert set(roles.values()) == {Role.BASE, Role.EXTENDED, Role.COOLDOWN, Role.SOUP}


def test_with_one_worker_left_the_cooldown_runs_are_trained_one_after_another(workers):
    workers.capacities = {0.0: 2, 60.0: 1}
    workers.fates[COOLDOWNS[1]] = ["lost"]
    states = run_segments(workers)
    assert [states[name] for name in COOLDOWNS] == ["done", "done"]
    lost, again = workers.times(COOLDOWNS[1])
    assert again - lost > 25, "it waits for the end of the other one"


def test_the_cooldown_run_of_a_worker_that_left_is_trained_by_another(workers):
    workers.capacities = {0.0: 3, 60.0: 2}
    workers.fates["cooldown3-192"] = ["lost"]
    states = run_segments(workers)
    assert states["cooldown3-192"] == "done"
    assert len(workers.times("cooldown3-192")) == 2


def test_workers_that_join_get_cooldown_runs(workers):
    workers.capacities = {0.0: 1, 20.0: 3}
    states = run_segments(workers)
    names = [*COOLDOWNS, "cooldown3-192"]
    assert {states[name] for name in names} == {"done"}
    assert len({workers.times(name)[0] for name in names}) == 1


def test_at_the_deadline_a_busy_worker_is_abandoned_with_a_sentence(workers):
    workers.fates[COOLDOWNS[1]] = ["hangs"]
    states = run_segments(workers)
    assert f"{COOLDOWNS[1]} is left out: no time is left to train it." in states["notes"]
    assert states[COOLDOWNS[1]] == "failed"
    assert f"{COOLDOWNS[0]} is left out" not in states["notes"]
    assert workers.ledger.deadline - 20 < workers.now <= workers.ledger.deadline


def test_segments_without_a_worker_are_named(workers):
    workers.capacities = {0.0: 2, 60.0: 0}
    workers.fates = {name: ["lost"] for name in COOLDOWNS}
    states = run_segments(workers)
    for name in COOLDOWNS:
        assert f"{name} is left out: no time is left to train it." in states["notes"]


def test_a_campaign_without_workers_ends_at_its_deadline(workers):
    workers.capacities = {0.0: 2, 10.0: 0}
    workers.fates[BASE] = ["lost"]
    with pytest.raises(InputError, match="the time was over before a first member was trained"):
        run_segments(workers)
    assert workers.now <= workers.ledger.deadline


def test_workers_that_come_back_resume(workers):
    workers.capacities = {0.0: 2, 10.0: 0, 30.0: 1}
    workers.fates[BASE] = ["lost"]
    states = run_segments(workers)
    assert states[BASE] == "done"
    assert workers.times(BASE)[1] >= 30


def run(workers: FakeWorkers) -> dict[str, str]:
    """{segment: its state}, after a process that ran the campaign, and the "state" of the campaign."""
    runner.run(workers.task, workers.ledger, successive_halving, workers)
    states = {record.name: record.state for record in workers.ledger.segments()}
    return states | {"state": workers.ledger.get("state")}


def submitted(workers: FakeWorkers) -> int:
    """The number of the current submission, which is valid."""
    validate_submission(workers.ledger.folder / "submission.csv", workers.task.test)
    return workers.ledger.latest_submission()[0]


def test_a_campaign_without_a_member_is_recorded_as_failed(workers):
    workers.capacities = {0.0: 2, 10.0: 0}
    workers.fates[BASE] = ["lost"]
    with pytest.raises(InputError, match="the time was over before a first member"):
        run(workers)
    assert workers.ledger.get("state") == "failed"


def test_a_campaign_interrupted_before_its_first_member_can_be_resumed(workers):
    workers.fates[BASE] = ["interrupted"]
    with pytest.raises(KeyboardInterrupt):
        run(workers)
    assert workers.ledger.latest_submission() is None
    workers.close()
    states = run(workers)
    assert (states["state"], states[BASE], states[COOLDOWNS[0]]) == ("finished", "done", "done")


def test_a_later_interrupt_submits_with_the_members_so_far_and_the_rest_can_be_resumed(workers, caplog):
    workers.fates[COOLDOWNS[0]] = ["interrupted"]
    states = run(workers)
    assert [states[name] for name in ("state", BASE, *COOLDOWNS)] == ["interrupted", "done", "running", "running"]
    assert submitted(workers) == 1
    first, second = caplog.messages[-2:]
    assert first.endswith("Interrupted: submitting with the members so far; Ctrl-C again stops at once.")
    assert second.endswith(f"Resume with: foldfuse campaign --resume {workers.ledger.folder}")
    workers.close()
    states = run(workers)
    assert [states[name] for name in ("state", *COOLDOWNS)] == ["finished", "done", "done"]
    assert workers.times(BASE) == [0.0]


@pytest.fixture
def interrupted_choice(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether Ctrl-C is pressed in the next searches of an ensemble."""
    pressed: list[bool] = []

    def build_or_not(*arguments: object, **options: object) -> EnsembleReport:
        if pressed and pressed.pop(0):
            raise KeyboardInterrupt
        return build(*arguments, **options)

    build = submissions.build_ensemble
    monkeypatch.setattr(submissions, "build_ensemble", build_or_not)
    return pressed


def test_an_interrupt_during_the_search_submits_the_new_member(workers, interrupted_choice):
    interrupted_choice += [True]
    assert run(workers)["state"] == "interrupted"
    assert submitted(workers) == 1


def test_after_two_interrupts_the_last_submission_stays(workers, interrupted_choice):
    interrupted_choice += [False, True, True]
    with pytest.raises(KeyboardInterrupt):
        run(workers)
    assert submitted(workers) == 1
    workers.close()
    assert run(workers)["state"] == "finished"
    assert submitted(workers) >= 1


def test_a_submission_just_before_the_interrupt_is_not_replaced_by_a_worse_one(workers, monkeypatch):
    def interrupt(*arguments: object) -> None:
        monkeypatch.setattr(submissions, "log_ensemble", log_ensemble)
        monkeypatch.setattr(submissions, "build_ensemble", worse)
        raise KeyboardInterrupt

    def worse(*arguments: object, **options: object) -> EnsembleReport:
        report = build(*arguments, **options)
        return replace(report, score=report.score - 0.1)

    log_ensemble, build = submissions.log_ensemble, submissions.build_ensemble
    monkeypatch.setattr(submissions, "log_ensemble", interrupt)
    assert run(workers)["state"] == "interrupted"
    assert submitted(workers) == 1
