"""The conductor with workers that train aside, on a fake clock: what is begun when, what is lost, diverged or interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from foldfuse.campaign import runner as stages
from foldfuse.campaign import submissions as delivery
from foldfuse.campaign.execution.jobs import Seen
from foldfuse.campaign.execution.workers import Assignment, End, Lost
from foldfuse.campaign.planning.allocation import VIEWS, successive_halving
from foldfuse.campaign.submissions import Found
from foldfuse.campaign.task import Task
from foldfuse.data.dataset import Dataset
from foldfuse.data.readers.coco import read
from foldfuse.detections import Detections, Predictions
from foldfuse.ensemble.ensemble import EnsembleReport
from foldfuse.errors import InputError
from foldfuse.formats.submission import validate_submission
from foldfuse.recipes import load_recipe
from foldfuse.storage import ledger as ledgers
from foldfuse.storage.ledger import Ledger
from learning_samples import write_dataset

DEADLINE = 100.0
TRUNK, BRANCHES = "trunk-160", ["branch1-192", "branch2-224"]


def noisy(dataset: Dataset, seed: int) -> Predictions:
    """The annotations with boxes moved about and scores drawn, so that members differ."""
    rng, found = np.random.default_rng(seed), {}
    for sample in dataset.samples:
        boxes = sample.annotations.boxes + rng.normal(0, 3, sample.annotations.boxes.shape)
        scores = rng.uniform(0.2, 0.9, len(boxes)).astype(np.float32)
        found[sample.id] = Detections(boxes.astype(np.float32), scores, sample.annotations.labels)
    return Predictions.of(found, dataset.classes)


@dataclass
class Crew:
    """Workers that train nothing: a segment takes the seconds that it is given, and comes to the end that it is told to.

    Attributes:
        task, ledger: of the campaign.
        now: the campaign's clock.
        capacities: {second: workers from then on}.
        fates: {segment: what becomes of it each time it is begun}: "lost" halfway, "diverged" halfway, or "hangs"; all
            others are trained. At the end of an "interrupted" one somebody presses Ctrl-C.
        begun: (segment, when, assignment), in this order.
    """

    task: Task
    ledger: Ledger
    now: float = 0.0
    capacities: dict[float, int] = field(default_factory=lambda: {0.0: 2})
    fates: dict[str, list[str]] = field(default_factory=dict)
    begun: list[tuple[str, float, Assignment]] = field(default_factory=list)
    under_way: dict[str, tuple[float, str, Assignment]] = field(default_factory=dict)
    aside = True

    @property
    def capacity(self) -> int:
        return [number for since, number in sorted(self.capacities.items()) if since <= self.now][-1]

    @property
    def busy(self) -> frozenset[str]:
        return frozenset(self.under_way)

    def prepare(self, longest: int) -> bool:
        return False

    def begin(self, assignment: Assignment) -> None:
        assert len(self.busy) < self.capacity, "there is nobody to train it"
        assert assignment.name not in self.busy
        fates = self.fates.get(assignment.name, [])
        fate = fates.pop(0) if fates else "trained"
        had = assignment.state["seconds"] if assignment.state is not None else 0.0
        share = {"trained": 1.0, "hangs": np.inf}.get(fate, 0.5)
        self.under_way[assignment.name] = self.now + (assignment.seconds - had) * share, fate, assignment
        self.begun.append((assignment.name, self.now, assignment))

    def ended(self, wait: float) -> list[End]:
        assert self.now < self.ledger.deadline + 60, "the campaign does not come to its end"
        soonest = min((end for end, _, _ in self.under_way.values()), default=np.inf)
        self.now = max(self.now, min(soonest, self.now + wait))
        over = [name for name, (end, _, _) in self.under_way.items() if end <= self.now]
        return [self._end(*self.under_way.pop(name)[1:]) for name in over]

    def close(self) -> None:
        self.under_way.clear()

    def _end(self, fate: str, assignment: Assignment) -> End:
        name, run = assignment.name, assignment.run
        if fate == "interrupted":
            raise KeyboardInterrupt
        if fate == "diverged":
            return End(name, error=FloatingPointError(f"{name}: the loss is not finite."))
        if fate == "lost":
            half = self.now - self.times(name)[-1]
            run.save_checkpoint({"seconds": half})
            return End(name, half, error=Lost("node 1 was lost."))
        run.write_metadata(replace(run.metadata, steps=7, seconds=assignment.seconds, images_per_second=8.0))
        seen = Seen({VIEWS[0]: noisy(self.task.held, run.metadata.seed)}, cost=0.001)
        return End(name, assignment.seconds, seen)

    def times(self, name: str) -> list[float]:
        """When a segment was begun, each time."""
        return [when for begun, when, _ in self.begun if begun == name]


@pytest.fixture
def crew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Crew]:
    """Two workers, and a campaign that has just begun; its page is not written."""
    whole = read(write_dataset(tmp_path / "d", 16))
    parts = (slice(6), slice(6, 12), slice(12, 16))
    train, held, truth = (whole.subset(whole.image_ids[part]) for part in parts)
    recipes = {"lite0_fpn": load_recipe("lite0_fpn", ["image_size=192"])}
    task = Task(train, held, truth.without_annotations(), frozenset(), recipes, (), 0, 3)
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(stages, "refresh_report", lambda ledger: None)

    def predict_target(built: EnsembleReport, task: Task, ledger: Ledger, found: Found) -> None:
        found.target |= {name: noisy(truth, len(name)) for name in built.ensemble.weights}

    monkeypatch.setattr(delivery, "predict_target", predict_target)
    with closing(ledgers.create(tmp_path / "out", {}, deadline=DEADLINE, start=0.0)) as ledger:
        crew = Crew(task, ledger)
        ledger.clock = lambda: crew.now
        yield crew


def conduct(crew: Crew) -> dict[str, str]:
    """{segment: its state} at the end of the campaign, and "notes" of all that was told."""
    stages.conduct(crew.task, crew.ledger, successive_halving, Found(), crew)
    assert validate_submission(crew.ledger.folder / "submission.csv", crew.task.target)
    assert crew.ledger.remaining >= 0
    return {row.name: row.state for row in crew.ledger.segments()} | {
        "notes": " ".join(ledgers.snapshot(crew.ledger.folder)["notes"])
    }


def several_trunks(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the four trunks that the campaign now begins with, and has time for."""
    crew.ledger.deadline = 4 * DEADLINE
    recipes = {"lite0_fpn": crew.task.recipes["lite0_fpn"], "yolov5n": load_recipe("yolov5n", ["image_size=192"])}
    crew.task = Task(**vars(crew.task) | {"recipes": recipes})
    monkeypatch.setattr("foldfuse.campaign.planning.segments.LEAST_STEPS", 1)
    monkeypatch.setattr("foldfuse.campaign.planning.allocation.SHORTEST", 0.1)
    crew.ledger.set(steps=dict.fromkeys(recipes, 0.1))
    return [f"trunk-{name}-{px}" for px in (160, 192) for name in recipes]


def test_segments_of_a_rung_are_trained_side_by_side_once_the_rung_below_is_over(crew):
    states = conduct(crew)
    assert [states[name] for name in (TRUNK, *BRANCHES)] == ["done"] * 3
    trunk, *branches = crew.begun
    assert [name for name, _, _ in branches] == BRANCHES
    assert {when for _, when, _ in branches} == {trunk[2].seconds}
    assert {assignment.parent.folder.name for _, _, assignment in branches} == {TRUNK}
    assert branches[0][2].seconds == pytest.approx(branches[1][2].seconds, abs=0.1)
    assert crew.now > 0.7 * DEADLINE


def test_the_ensemble_is_chosen_while_the_workers_are_busy(crew, monkeypatch):
    chosen = []

    def recorded(task, ledger, found, *, last):
        chosen.append((sorted(found.held), sorted(crew.busy), last))
        return submit_best(task, ledger, found, last=last)

    submit_best = stages.submit_best
    monkeypatch.setattr(stages, "submit_best", recorded)
    conduct(crew)
    assert chosen[0] == ([f"{TRUNK}@1"], BRANCHES, False)
    assert chosen[-1] == (sorted(f"{name}@1" for name in (TRUNK, *BRANCHES)), [], True)


def test_a_lost_segment_goes_on_from_its_checkpoint(crew):
    crew.fates[BRANCHES[0]] = ["lost"]
    states = conduct(crew)
    assert states[BRANCHES[0]] == "done"
    first, again = (assignment for name, _, assignment in crew.begun if name == BRANCHES[0])
    assert (first.state, first.parent.folder.name) == (None, TRUNK)
    assert again.state["seconds"] == pytest.approx(first.seconds / 2)
    assert again.parent is None
    assert "node 1 was lost. It is to be trained again, from its checkpoint" in states["notes"]


def test_a_segment_that_is_lost_too_often_is_left_out(crew):
    crew.fates[BRANCHES[0]] = ["lost"] * stages.TRIES
    states = conduct(crew)
    assert len(crew.times(BRANCHES[0])) == stages.TRIES
    assert (states[BRANCHES[0]], states[BRANCHES[1]]) == ("failed", "done")
    assert f"{BRANCHES[0]} is left out: node 1 was lost." in states["notes"]


def test_a_trunk_that_is_lost_too_often_has_its_place_taken(crew):
    crew.fates[TRUNK] = ["lost"] * stages.TRIES
    states = conduct(crew)
    assert [states[name] for name in (TRUNK, *BRANCHES)] == ["failed", "done", "done"]


def test_a_diverged_segment_is_left_out_while_the_others_go_on(crew):
    crew.fates[BRANCHES[0]] = ["diverged"]
    states = conduct(crew)
    assert [states[name] for name in (TRUNK, *BRANCHES)] == ["done", "failed", "done"]
    assert len(crew.times(BRANCHES[0])) == 1
    assert f"{BRANCHES[0]} is left out: {BRANCHES[0]}: the loss is not finite." in states["notes"]


def test_a_lone_trunk_that_diverges_ends_the_campaign(crew):
    crew.fates[TRUNK] = ["diverged"]
    with pytest.raises(FloatingPointError, match=f"{TRUNK}: the loss is not finite"):
        conduct(crew)
    assert [name for name, _, _ in crew.begun] == [TRUNK]


def test_where_one_of_several_trunks_diverges_the_others_go_on(crew, monkeypatch):
    first, *others = several_trunks(crew, monkeypatch)
    crew.fates[first] = ["diverged"]
    states = conduct(crew)
    assert states[first] == "failed"
    assert {states[name] for name in others} == {"done"}
    assert first not in crew.ledger.get("ranking")


def test_where_all_of_several_trunks_diverge_the_campaign_ends(crew, monkeypatch):
    trunks = several_trunks(crew, monkeypatch)
    crew.fates = {name: ["diverged"] for name in trunks}
    with pytest.raises(FloatingPointError, match="the loss is not finite"):
        conduct(crew)
    assert sorted(name for name, _, _ in crew.begun) == sorted(trunks)


def test_nothing_of_a_higher_rung_is_begun_before_the_lower_is_over(crew, monkeypatch):
    trunks = several_trunks(crew, monkeypatch)
    crew.capacities = {0.0: 3}  # four trunks: two workers have nothing to do while the last one is trained
    crew.fates[trunks[1]] = ["lost"]
    conduct(crew)
    rung = {"trunk": 0, "grown": 1, "branch": 2}
    rungs = [rung[name.split("-")[0].rstrip("1234")] for name, _, _ in crew.begun]
    assert rungs == sorted(rungs)
    assert set(rungs) == {0, 1, 2}


def test_with_one_worker_left_the_branches_are_trained_one_after_another(crew):
    crew.capacities = {0.0: 2, 60.0: 1}
    crew.fates[BRANCHES[1]] = ["lost"]
    states = conduct(crew)
    assert [states[name] for name in BRANCHES] == ["done", "done"]
    lost, again = crew.times(BRANCHES[1])
    assert again - lost > 25, "it waits for the other's end"


def test_a_branch_that_was_begun_for_a_worker_that_is_gone_is_trained_by_another(crew):
    crew.capacities = {0.0: 3, 60.0: 2}
    crew.fates["branch3-192"] = ["lost"]
    states = conduct(crew)
    assert states["branch3-192"] == "done"
    assert len(crew.times("branch3-192")) == 2


def test_workers_that_join_are_given_branches(crew):
    crew.capacities = {0.0: 1, 20.0: 3}
    states = conduct(crew)
    names = [*BRANCHES, "branch3-192"]
    assert {states[name] for name in names} == {"done"}
    assert len({crew.times(name)[0] for name in names}) == 1


def test_out_of_time_a_busy_worker_is_left_with_a_note(crew):
    crew.fates[BRANCHES[1]] = ["hangs"]
    states = conduct(crew)
    assert f"{BRANCHES[1]} is left out: no time is left to train it." in states["notes"]
    assert states[BRANCHES[1]] == "failed"
    assert f"{BRANCHES[0]} is left out" not in states["notes"]
    assert DEADLINE - 20 < crew.now <= DEADLINE


def test_what_nobody_is_left_to_train_is_named(crew):
    crew.capacities = {0.0: 2, 60.0: 0}
    crew.fates = {name: ["lost"] for name in BRANCHES}
    states = conduct(crew)
    for name in BRANCHES:
        assert f"{name} is left out: no time is left to train it." in states["notes"]


def test_where_all_workers_are_gone_for_good_the_campaign_ends_with_its_time(crew):
    crew.capacities = {0.0: 2, 10.0: 0}
    crew.fates[TRUNK] = ["lost"]
    with pytest.raises(InputError, match="the time was over before a first member was trained"):
        conduct(crew)
    assert crew.now <= DEADLINE


def test_workers_that_come_back_go_on(crew):
    crew.capacities = {0.0: 2, 10.0: 0, 30.0: 1}
    crew.fates[TRUNK] = ["lost"]
    states = conduct(crew)
    assert states[TRUNK] == "done"
    assert crew.times(TRUNK)[1] >= 30


def carry_out(crew: Crew) -> dict[str, str]:
    """{segment: its state}, after a process that carried the campaign out, and "state" of the campaign."""
    stages.carry_out(crew.task, crew.ledger, successive_halving, crew)
    states = {row.name: row.state for row in crew.ledger.segments()}
    return states | {"state": crew.ledger.get("state")}


def submitted(crew: Crew) -> int:
    """The number of the submission that holds, which lies whole in the folder."""
    validate_submission(crew.ledger.folder / "submission.csv", crew.task.target)
    return crew.ledger.latest_submission()[0]


def test_a_campaign_without_a_member_has_failed_and_is_not_taken_for_one_under_way(crew):
    crew.capacities = {0.0: 2, 10.0: 0}
    crew.fates[TRUNK] = ["lost"]
    with pytest.raises(InputError, match="the time was over before a first member"):
        carry_out(crew)
    assert crew.ledger.get("state") == "failed"


def test_an_interrupt_before_there_is_a_member_goes_on_and_nothing_is_lost(crew):
    crew.fates[TRUNK] = ["interrupted"]
    with pytest.raises(KeyboardInterrupt):
        carry_out(crew)
    assert crew.ledger.latest_submission() is None
    crew.close()
    states = carry_out(crew)
    assert (states["state"], states[TRUNK], states[BRANCHES[0]]) == ("finished", "done", "done")


def test_an_interrupt_later_delivers_what_there_is_and_the_rest_can_be_made(crew, capsys):
    crew.fates[BRANCHES[0]] = ["interrupted"]
    states = carry_out(crew)
    assert [states[name] for name in ("state", TRUNK, *BRANCHES)] == ["interrupted", "done", "running", "running"]
    assert submitted(crew) == 1
    told = capsys.readouterr().err.splitlines()[-2:]
    assert told[0].endswith("Interrupted: delivering what there is; Ctrl-C again stops at once.")
    assert told[1].endswith(f"Go on with: foldfuse campaign --resume {crew.ledger.folder}")
    crew.close()
    states = carry_out(crew)
    assert [states[name] for name in ("state", *BRANCHES)] == ["finished", "done", "done"]
    assert crew.times(TRUNK) == [0.0]


@pytest.fixture
def interrupted_choice(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether Ctrl-C is pressed in the next choices of an ensemble."""
    pressed: list[bool] = []

    def build_or_not(*arguments: object, **options: object) -> EnsembleReport:
        if pressed and pressed.pop(0):
            raise KeyboardInterrupt
        return build(*arguments, **options)

    build = delivery.build_ensemble
    monkeypatch.setattr(delivery, "build_ensemble", build_or_not)
    return pressed


def test_a_member_that_was_being_joined_is_delivered(crew, interrupted_choice):
    interrupted_choice += [True]
    assert carry_out(crew)["state"] == "interrupted"
    assert submitted(crew) == 1


def test_interrupted_twice_what_was_submitted_before_stays(crew, interrupted_choice):
    interrupted_choice += [False, True, True]
    with pytest.raises(KeyboardInterrupt):
        carry_out(crew)
    assert submitted(crew) == 1
    crew.close()
    assert carry_out(crew)["state"] == "finished"
    assert submitted(crew) >= 1


def test_a_submission_made_just_before_the_interrupt_is_not_replaced_by_a_lesser_one(crew, monkeypatch):
    def describe(*arguments: object) -> None:
        monkeypatch.setattr(delivery, "describe", described)
        monkeypatch.setattr(delivery, "build_ensemble", lesser)
        raise KeyboardInterrupt

    def lesser(*arguments: object, **options: object) -> EnsembleReport:
        made = build(*arguments, **options)
        return replace(made, score=made.score - 0.1)

    described, build = delivery.describe, delivery.build_ensemble
    monkeypatch.setattr(delivery, "describe", describe)
    assert carry_out(crew)["state"] == "interrupted"
    assert submitted(crew) == 1
