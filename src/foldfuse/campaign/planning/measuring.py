"""Measures what a campaign's plan rests on, as far as the clock allows: a short or busy campaign takes usual costs instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from foldfuse.campaign import constants as c
from foldfuse.campaign.compiling import compile_training_loops
from foldfuse.data.dataset import Dataset
from foldfuse.recipes import Recipe
from foldfuse.system.device import choose_device
from foldfuse.training.image_sizes import MIN_AUTO, ImageSizeChoice, choose_image_size


def measuring_seconds(deadline: float, elapsed: float) -> float:
    """Seconds that measuring a cost may take at this point of a campaign; 0 where there is no time for it."""
    seconds = c.MEASURING_SHARE * deadline
    in_time = seconds >= c.MIN_MEASURING_SECONDS and elapsed <= c.LATEST_MEASURING_SHARE * deadline
    return seconds if in_time else 0.0


def planned_pixel_seconds(image_seconds: float, image_size: int, *, num_images: int, device: str) -> float:
    """Seconds of one pixel's prediction to plan with, by the engine that a prediction of `num_images` images takes.

    Args:
        image_seconds: seconds of one image in PyTorch, as measured on a few.
        image_size: pixels, of the measured image.
        num_images: images that a member predicts together.
        device: as `--device` takes it.
    """
    from foldfuse.inference.engine import planned_seconds  # loads torch

    seconds = c.PREDICTION_SAFETY * image_seconds * num_images
    if choose_device(device) == "cpu":
        seconds = planned_seconds(seconds)
    return seconds / num_images / image_size**2


def choose_size_by_clock(
    recipe: Recipe,
    dataset: Dataset,
    *,
    seconds: float,
    deadline: float,
    elapsed: float,
    num_images: int,
    device: str,
    bounds: Mapping[str, int],
) -> tuple[ImageSizeChoice, float | None]:
    """The image size of a recipe that leaves it open, and the seconds of one pixel's prediction; None where not measured.

    Args:
        recipe: the recipe.
        dataset: the images to train on.
        seconds: of training.
        deadline, elapsed: of the campaign, in seconds: they decide whether a training step is measured.
        num_images: images that a member predicts together.
        device: as `--device` takes it.
        bounds: "smallest" and "largest", as `choose_image_size` takes them; empty on a CPU.
    """
    limit = measuring_seconds(deadline, elapsed)
    if not limit:
        on_cpu = not bounds
        step_seconds = c.DEFAULT_STEP_SECONDS if on_cpu else None
        choice = choose_image_size(dataset, recipe, seconds=seconds, step_seconds=step_seconds, **bounds)
        reason = f"{choice.reason} There is no time to measure a training step, so its usual cost was taken."
        return replace(choice, reason=reason), None
    from foldfuse.training.step_cost import measure_step

    compile_training_loops()  # else the first step would be measured with it
    cost = measure_step(replace(recipe, image_size=MIN_AUTO), dataset, device=device, limit=limit)
    choice = choose_image_size(dataset, recipe, seconds=seconds, step_seconds=cost.step_seconds, **bounds)
    return choice, planned_pixel_seconds(cost.image_seconds, MIN_AUTO, num_images=num_images, device=device)
