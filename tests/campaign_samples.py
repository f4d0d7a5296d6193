"""Campaign states, simulated campaigns and fake workers that several tests start from: no network, no real time."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from foldfuse.campaign import constants as c
from foldfuse.campaign.execution.jobs import HeldOutPredictions
from foldfuse.campaign.execution.workers import SegmentJob, SegmentResult, WorkerLost
from foldfuse.campaign.planning.allocation import (
    Decision,
    Strategy,
    pending_view_seconds,
    rescoring_seconds,
    search_seconds,
    successive_halving,
    view_cost,
)
from foldfuse.campaign.planning.segments import base_runs, compared_base_runs
from foldfuse.campaign.planning.soups import ready_soups
from foldfuse.campaign.planning.state import CampaignState, Segment
from foldfuse.campaign.task import Task
from foldfuse.data.dataset import Dataset
from foldfuse.detections import Detections, Predictions
from foldfuse.recipes import Recipe, load_recipe
from foldfuse.storage.ledger import Ledger
from foldfuse.storage.segments import SegmentRecord
from foldfuse.system.records import to_plain

RECIPE = load_recipe("efficientdet_lite0", ["image_size=320"])
THREE_RECIPES = {
    "lite0_fpn": replace(RECIPE, detector="lite0_fpn"),
    "lite0": RECIPE,
    "yolov5n": load_recipe("yolov5n", ["image_size=320"]),
}
STEP_SECONDS = {"lite0_fpn": 0.4, "lite0": 0.5, "yolov5n": 0.3}


def campaign_state(deadline: float = 600.0, **changes: Any) -> CampaignState:
    """A campaign three seconds after its start, with one recipe."""
    values: dict[str, Any] = {
        "recipes": {"lite0": RECIPE},
        "image_sizes": (),
        "seed": 0,
        "deadline": deadline,
        "elapsed": 3.0,
        "num_val": 50,
        "num_test": 70,
    }
    return CampaignState(**values | changes)


def image_seconds(recipe: Recipe) -> float:
    """Seconds of one image in the plain view, in a simulated campaign."""
    return 0.03 * (recipe.image_size / 256) ** 2


def record_of(segment: Segment, state: CampaignState, budget: float, /, **changes: Any) -> SegmentRecord:
    """The ledger's record of a segment that has finished its budget."""
    values: dict[str, Any] = {
        "role": segment.role,
        "recipe": to_plain(segment.recipe),
        "parent": segment.parent,
        "fold": segment.fold,
        "seed": segment.seed,
        "state": "done",
        "budget": budget,
        "seconds": budget,
        "started": state.elapsed,
        "ended": state.elapsed + budget,
        "result": {"image_seconds": image_seconds(segment.recipe)},
    }
    return SegmentRecord(segment.name, **values | changes)


def simulate(
    state: CampaignState,
    strategy: Strategy = successive_halving,
    *,
    overhead: float = 2.0,
    diverge: Collection[str] = (),
) -> tuple[CampaignState, list[Decision]]:
    """The state at the end, and the decisions, of a campaign whose work takes simulated time."""
    decisions = []
    while (decision := strategy(state)).segment is not None:
        segment, seconds = decision.segment, decision.seconds
        before = state.record(segment.name)
        trained = before.seconds if before else 0.0
        seconds_each = image_seconds(segment.recipe)
        done = segment.name not in diverge
        predicting = seconds_each * (state.num_val * view_cost(state) + state.num_test)
        record = record_of(
            segment,
            state,
            seconds,
            state="done" if done else "failed",
            result={"image_seconds": seconds_each} if done else {},
        )
        others = tuple(other for other in state.segments if other.name != segment.name)
        elapsed = state.elapsed + seconds - trained + overhead + predicting
        state = replace(state, elapsed=elapsed, segments=(*others, record))
        for soup, _ in ready_soups(state).values():
            seconds_each = image_seconds(soup.recipe)
            seconds = overhead + seconds_each * (state.num_val * view_cost(state) + state.num_test)
            record = record_of(soup, state, 0.0, result={"image_seconds": seconds_each})
            state = replace(state, elapsed=state.elapsed + seconds, segments=(*state.segments, record))
        decisions.append(decision)
    late = pending_view_seconds(state) + search_seconds(state.deadline) + rescoring_seconds(state)
    return replace(state, elapsed=state.elapsed + late), decisions


def ranked(state: CampaignState) -> CampaignState:
    """The state with the base runs ranked backwards, as soon as they are over."""
    names = [segment.name for segment in base_runs(state)]
    over = all(state.state_of(segment.name) in ("done", "failed") for segment in compared_base_runs(state))
    ranking = tuple(name for name in reversed(names) if state.state_of(name) == "done")
    return replace(state, ranking=ranking) if over and len(names) > 1 else state


def ranking_strategy(promoted: int | None = None) -> Callable[[CampaignState], Decision]:
    """Successive halving that ranks the base runs backwards, and promotes some of them."""

    def strategy(state: CampaignState) -> Decision:
        state = ranked(state)
        return successive_halving(replace(state, ranking=state.ranking[:promoted]))

    return strategy


def noisy(dataset: Dataset, seed: int) -> Predictions:
    """The annotations with moved boxes and random scores, so that members differ."""
    rng, found = np.random.default_rng(seed), {}
    for sample in dataset.samples:
        assert sample.annotations is not None
        boxes = sample.annotations.boxes + rng.normal(0, 3, sample.annotations.boxes.shape)
        scores = rng.uniform(0.2, 0.9, len(boxes)).astype(np.float32)
        found[sample.id] = Detections(boxes.astype(np.float32), scores, sample.annotations.labels)
    return Predictions.of(found, dataset.classes)


@dataclass
class FakeWorkers:
    """Asynchronous workers that train nothing: each job takes its seconds on a fake clock, and ends as it is told to.

    Attributes:
        task, ledger: of the campaign.
        now: the campaign's clock.
        capacities: {second: workers from then on}.
        fates: {segment: how each of its jobs ends}: "lost" halfway, "diverged" halfway, "hangs", or "interrupted" (Ctrl-C
            at its end); all other jobs are trained.
        losses: {segment: the class losses of its steps}, which its log gets.
        started: (segment, second, job), in this order.
    """

    task: Task
    ledger: Ledger
    now: float = 0.0
    capacities: dict[float, int] = field(default_factory=lambda: {0.0: 2})
    fates: dict[str, list[str]] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    started: list[tuple[str, float, SegmentJob]] = field(default_factory=list)
    running: dict[str, tuple[float, str, SegmentJob]] = field(default_factory=dict)
    is_async = True

    @property
    def capacity(self) -> int:
        return [number for since, number in sorted(self.capacities.items()) if since <= self.now][-1]

    @property
    def busy(self) -> frozenset[str]:
        return frozenset(self.running)

    def prepare(self, longest: int) -> bool:
        return False

    def start(self, job: SegmentJob) -> None:
        assert len(self.busy) < self.capacity, "no worker is free"
        assert job.name not in self.busy
        fates = self.fates.get(job.name, [])
        fate = fates.pop(0) if fates else "trained"
        trained = job.checkpoint["seconds"] if job.checkpoint is not None else 0.0
        share = {"trained": 1.0, "hangs": np.inf}.get(fate, 0.5)
        self.running[job.name] = self.now + (job.seconds - trained) * share, fate, job
        self.started.append((job.name, self.now, job))

    def finished(self, wait: float) -> list[SegmentResult]:
        assert self.now < self.ledger.deadline + 60, "the campaign does not come to its end"
        soonest = min((end for end, _, _ in self.running.values()), default=np.inf)
        self.now = max(self.now, min(soonest, self.now + wait))
        over = [name for name, (end, _, _) in self.running.items() if end <= self.now]
        return [self._result(*self.running.pop(name)[1:]) for name in over]

    def close(self) -> None:
        self.running.clear()

    def _result(self, fate: str, job: SegmentJob) -> SegmentResult:
        name, run = job.name, job.run
        if fate == "interrupted":
            raise KeyboardInterrupt
        if fate == "diverged":
            return SegmentResult(name, error=FloatingPointError(f"{name}: the loss is not finite."))
        if fate == "lost":
            half = self.now - self.times(name)[-1]
            run.save_checkpoint({"seconds": half})
            return SegmentResult(name, half, error=WorkerLost("node 1 was lost."))
        run.write_metadata(replace(run.metadata, steps=7, seconds=job.seconds, images_per_second=8.0))
        run.write_log(
            [{"step": i, "loss": loss + 1.0, "class": loss} for i, loss in enumerate(self.losses.get(name, ()))]
        )
        views = {c.PLAIN_VIEW: noisy(self.task.val_in(job.fold), run.metadata.seed)}
        return SegmentResult(name, job.seconds, HeldOutPredictions(views, image_seconds=0.001))

    def times(self, name: str) -> list[float]:
        """When a segment was started, each time."""
        return [when for started, when, _ in self.started if started == name]
