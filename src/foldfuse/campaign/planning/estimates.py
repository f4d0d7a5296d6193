"""Estimates before a campaign begins: the measured cost of each candidate on this machine and these images, and the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from foldfuse.campaign import constants as c
from foldfuse.campaign.planning.allocation import Plan, make_plan
from foldfuse.campaign.planning.measuring import measuring_seconds, planned_pixel_seconds
from foldfuse.campaign.planning.segments import at_image_size, image_size_at, plan_segments
from foldfuse.campaign.planning.state import CampaignState
from foldfuse.campaign.task import Task
from foldfuse.data.dataset import Dataset
from foldfuse.recipes import Recipe
from foldfuse.storage.ledger import Ledger
from foldfuse.training.step_cost import measure_step


@dataclass(frozen=True)
class CandidateCost:
    """Measured cost of one candidate.

    Attributes:
        name: the name of the recipe.
        recipe: the recipe, with its image size and batch size.
        step_seconds: seconds of a training step.
        image_seconds: seconds to predict one image in the plain view.
    """

    name: str
    recipe: Recipe
    step_seconds: float
    image_seconds: float


@dataclass(frozen=True)
class CampaignPlan:
    """A plan with the measured costs that it rests on.

    Attributes:
        costs: the costs of the candidates.
        tried: names of the candidates that the plan uses.
        plan: the segments and the reserved time.
        deadline: seconds.
        num_folds: number of folds of the annotated images.
        image_size_reason: why the image size was chosen from the data; None where every recipe has its own.
        candidates_reason: why these candidates, where the machine's cards chose them; else None.
        num_trained: number of folds that are trained.
        folds_reason: why so many.
    """

    costs: Sequence[CandidateCost]
    tried: frozenset[str]
    plan: Plan
    deadline: float
    num_folds: int
    image_size_reason: str | None = None
    candidates_reason: str | None = None
    num_trained: int = 1
    folds_reason: str | None = None


def measure_candidate(name: str, recipe: Recipe, dataset: Dataset, *, device: str = "auto") -> CandidateCost:
    """Seconds of a training step and of a prediction with `recipe`, on images of `dataset`."""
    cost = measure_step(recipe, dataset, device=device)
    return CandidateCost(name, recipe, cost.step_seconds, cost.image_seconds)


def measure_candidates(state: CampaignState, dataset: Dataset, *, device: str = "auto") -> list[CandidateCost]:
    """The cost of each recipe at the image size of a base run."""
    return [
        measure_candidate(
            name, at_image_size(recipe, image_size_at(recipe, c.IMAGE_SCALES[0], state)), dataset, device=device
        )
        for name, recipe in state.recipes.items()
    ]


def measure_costs(task: Task, ledger: Ledger, state: CampaignState) -> None:
    """Measures and records what a training step and a prediction cost, as far as the plan needs it and the clock allows.

    Steps are measured where there is time to compare candidates, and the prediction where the choice of an image size has not
    measured it.
    """
    compared = ledger.deadline >= c.COMPARE_DEADLINE and len(task.recipes) > 1
    known = ledger.get("pixel_seconds") is not None or ledger.get("image_size_choice") is not None
    if not compared and (known or not measuring_seconds(ledger.deadline, ledger.elapsed)):
        return
    if not compared:
        state = replace(state, recipes=dict([next(iter(state.recipes.items()))]))
    with ledger.timed("measure the candidates", "setup"):
        costs = measure_candidates(state, task.train_in(task.folds[0]), device=task.device)
    ledger.set(pixel_seconds=pixel_seconds_of(costs[0], state, task.device))
    if not compared:
        return
    ledger.set(step_seconds={cost.name: round(cost.step_seconds, 4) for cost in costs})
    measured = ", ".join(f"{cost.name} {cost.step_seconds:.2f}" for cost in costs)
    ledger.log(f"Seconds of a step of a base run, measured here: {measured}.")


def pixel_seconds_of(cost: CandidateCost, state: CampaignState, device: str) -> float:
    """Seconds of one pixel's prediction to plan with, from a candidate's measured cost."""
    size = cost.recipe.image_size
    return planned_pixel_seconds(cost.image_seconds, size, num_images=state.num_images, device=device)


def estimate_campaign(task: Task, deadline: float) -> CampaignPlan:
    """The plan for a task under a deadline, after measuring its candidates."""
    state = CampaignState(
        recipes=task.recipes,
        image_sizes=task.image_sizes,
        seed=task.seed,
        deadline=deadline,
        elapsed=0.0,
        num_val=len(task.val_in(task.folds[0])),
        num_test=len(task.test),
        num_objects=task.labeled.num_boxes,
        crops_per_image=task.crops_per_image,
        pseudo_labels=task.pseudo_labels,
        auto_image_size=task.auto_image_size,
        folds=task.folds,
        tiles=task.offers_tiles,
    )
    costs = measure_candidates(state, task.train_in(task.folds[0]), device=task.device)
    step_seconds = {cost.name: cost.step_seconds for cost in costs}
    state = replace(state, step_seconds=step_seconds, pixel_seconds=pixel_seconds_of(costs[0], state, task.device))
    detectors = {segment.recipe.detector for segment in plan_segments(state)}
    tried = frozenset(cost.name for cost in costs if cost.recipe.detector in detectors)
    reason = None if task.image_size_choice is None else task.image_size_choice.reason
    return CampaignPlan(costs, tried, make_plan(state), deadline, task.num_folds, reason, num_trained=len(task.folds))
