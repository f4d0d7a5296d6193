"""Measures what a training step and a prediction of a recipe cost on this machine, in a few steps on images of the data."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from foldfuse.data.dataset import Dataset
from foldfuse.data.images import ImageCache, canvas_for
from foldfuse.models import make_detector
from foldfuse.recipes import Recipe
from foldfuse.system.device import choose_device
from foldfuse.training.batches import Batches

TIMED_STEPS = 2  # after one that is not timed; the fastest counts
TIMED_IMAGES = 16


@dataclass(frozen=True)
class StepCost:
    """Seconds of a training step, and of the prediction of one image in the plain view."""

    step_seconds: float
    image_seconds: float


def measure_step(recipe: Recipe, dataset: Dataset, *, device: str = "auto") -> StepCost:
    """The cost of a training step and of a prediction with `recipe`, from random weights, on images of `dataset`."""
    samples = dataset.samples[:TIMED_IMAGES]
    target = torch.device(choose_device(device))
    model = make_detector(recipe.detector, len(dataset.classes), anchor_scale=recipe.anchor_scale, pretrained=False)
    canvas = canvas_for(samples, image_size=recipe.image_size, stride=model.stride)
    batches = Batches(samples, ImageCache.load(samples, longest=recipe.image_size), recipe, canvas, 0)
    model.to(target, memory_format=torch.channels_last)
    model.freeze(recipe.frozen_stages)
    times = []
    for step in range(1 + TIMED_STEPS):
        start = time.perf_counter()
        images, targets = batches.batch(step)
        inputs = images.to(target, memory_format=torch.channels_last).float().div_(255)
        sum(model.loss(model(inputs), targets).values()).backward()
        model.zero_grad(set_to_none=True)
        _wait_for(target)
        times.append(time.perf_counter() - start)
    model.eval()
    with torch.inference_mode():
        start = time.perf_counter()
        model.decode(model(inputs))
        _wait_for(target)
        image_seconds = (time.perf_counter() - start) / len(inputs)
    return StepCost(min(times[1:]), image_seconds)


def _wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished its work, which is asynchronous."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
