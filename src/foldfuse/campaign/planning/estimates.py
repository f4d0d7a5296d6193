"""The plan of a campaign, before it begins: what each candidate costs on this machine and these pictures, and what is tried."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from foldfuse.campaign.planning.allocation import Plan, outlook
from foldfuse.campaign.planning.segments import LEAST_STEPS, SCALES, plan, side, sized
from foldfuse.campaign.planning.state import CampaignState
from foldfuse.campaign.task import Task
from foldfuse.data.dataset import Dataset
from foldfuse.data.images import ImageCache, canvas_for
from foldfuse.models import make_detector
from foldfuse.recipes import Recipe
from foldfuse.system.durations import format_duration
from foldfuse.training.batches import Batches

STEPS = 2  # timed steps of a candidate, after one that is not timed; the faster counts
LOOKED_AT = 16  # pictures that a candidate is measured on


@dataclass(frozen=True)
class Cost:
    """What one candidate costs.

    Attributes:
        name: of the recipe.
        recipe: with its image size and batch size.
        step: seconds of a training step.
        picture: seconds that one picture takes in one view.
    """

    name: str
    recipe: Recipe
    step: float
    picture: float


def measured(name: str, recipe: Recipe, dataset: Dataset) -> Cost:
    """The Cost of training with `recipe`: a few steps and a prediction, on pictures of `dataset`."""
    samples = dataset.samples[:LOOKED_AT]
    model = make_detector(recipe.detector, len(dataset.classes), anchor_scale=recipe.anchor_scale, pretrained=False)
    canvas = canvas_for(samples, image_size=recipe.image_size, stride=model.stride)
    batches = Batches(samples, ImageCache.load(samples, longest=recipe.image_size), recipe, canvas, 0)
    model.to(memory_format=torch.channels_last)
    model.freeze(recipe.frozen_stages)
    times = []
    for step in range(1 + STEPS):
        began = time.perf_counter()
        images, targets = batches.batch(step, 0.0)
        raw = model(images.to(memory_format=torch.channels_last).float().div_(255))
        sum(model.loss(raw, targets).values()).backward()
        model.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - began)
    model.eval()
    with torch.inference_mode():
        shown = images.to(memory_format=torch.channels_last).float().div_(255)
        began = time.perf_counter()
        model.decode(model(shown))
        picture = (time.perf_counter() - began) / len(shown)
    return Cost(name, recipe, min(times[1:]), picture)


def costs(standing: CampaignState, dataset: Dataset) -> list[Cost]:
    """The Cost of each recipe at the side of a trunk."""
    return [
        measured(name, sized(recipe, side(recipe, SCALES[0], standing)), dataset)
        for name, recipe in standing.recipes.items()
    ]


def show(task: Task, deadline: float, console: Console) -> None:
    """Print what each candidate costs and the plan, and stop there."""
    standing = CampaignState(
        task.recipes, task.sizes, task.seed, deadline, 0.0, len(task.held), len(task.target), pseudo=task.pseudo
    )
    found = costs(standing, task.train)
    standing = replace(standing, steps={cost.name: cost.step for cost in found}, cost=found[0].picture)
    planned = plan(standing)
    tried = {part.recipe.detector for part in planned}
    table = Table(title="Candidates, measured here", title_justify="left")
    for head in ("recipe", "px", "batch", "s a step", "s a picture", f"{LEAST_STEPS} steps take", "verdict"):
        words = head in ("recipe", "verdict")
        table.add_column(head, justify="left" if words else "right", no_wrap=head == "recipe")
    for cost in found:
        table.add_row(
            escape(cost.name),
            str(cost.recipe.image_size),
            str(cost.recipe.batch_size),
            f"{cost.step:.2f}",
            f"{cost.picture:.3f}",
            format_duration(LEAST_STEPS * cost.step),
            "tried" if cost.recipe.detector in tried else "no time",
        )
    console.print(table)
    console.print(table_of(outlook(standing), f"The plan for {format_duration(deadline)}"))
    console.print(f"{len(planned)} members; fold 0 of {task.num_folds} is held back from all of them.")


def table_of(ahead: Plan, title: str) -> Table:
    """An outlook, to print."""
    table = Table(title=title, title_justify="left")
    for head in ("what", "px", "batch", "seconds"):
        table.add_column(head, justify="left" if head == "what" else "right")
    for part in ahead.segments:
        table.add_row(f"train {part.name}", str(part.image_size), str(part.batch_size), f"{part.seconds:.0f}")
    for name, seconds in ahead.reserved.items():
        table.add_row(name, "", "", f"{seconds:.0f}")
    return table
