"""Measures what a training step and a prediction of a recipe cost on this machine, in a few steps on images of the data.

On a card a step is computed in the precision of its trainings, and the next batch is made meanwhile, so the slower of the two
counts. Where a batch does not fit in memory, half of it is measured, which has half of the cost.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial

import torch

from foldfuse.data.dataset import Dataset
from foldfuse.data.images import ImageCache, canvas_for
from foldfuse.errors import InputError
from foldfuse.inference.detector import predict_views
from foldfuse.inference.tta import View
from foldfuse.models import make_detector
from foldfuse.models.cpu.fold_batch_norm import fold_batch_norms
from foldfuse.recipes import Recipe
from foldfuse.system.device import choose_device, current_device, is_out_of_memory, release_memory, synchronize
from foldfuse.training.batches import Batches
from foldfuse.training.precision import default_config

TIMED_STEPS = 2  # after one that is not timed; the fastest counts
TIMED_IMAGES, FEW_IMAGES = 16, 4  # whose prediction is timed; few where time is short
PLAIN_VIEW = View()


@dataclass(frozen=True)
class StepCost:
    """Seconds of a training step, and of the prediction of one image in the plain view."""

    step_seconds: float
    image_seconds: float


def measure_step(recipe: Recipe, dataset: Dataset, *, device: str = "auto", limit: float = math.inf) -> StepCost:
    """The cost of a training step and of a prediction with `recipe`, from random weights, on images of `dataset`.

    Args:
        recipe: the recipe, with its image size.
        dataset: annotated images.
        device: as `--device` takes it.
        limit: seconds after which no further step is measured. The first step, which takes longer than others, then counts, and
            the prediction is taken to cost a third of it.

    Raises:
        InputError: not even one image fits in memory.
    """
    device, until = choose_device(device), time.perf_counter() + limit
    whole, count = recipe.batch_size, recipe.batch_size
    while True:
        try:
            with current_device(device):
                cost = _measure(recipe, dataset, device, count, until=until)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        else:
            return StepCost(cost.step_seconds * whole / count, cost.image_seconds)
        finally:
            release_memory(device)
        count //= 2
        if not count:
            raise InputError(
                f"{recipe.detector} at {recipe.image_size} px: not even one image fits in the memory of {device}. Take smaller "
                "images with --image-size, or leave the recipe out with --forbid."
            )


def _measure(recipe: Recipe, dataset: Dataset, device: str, count: int, *, until: float) -> StepCost:
    """The cost of a step on the first `count` images of a batch, and of the prediction of one image."""
    samples = dataset.samples[:TIMED_IMAGES]
    target = torch.device(device)
    config = default_config(target, precision=recipe.precision)
    model = make_detector(recipe.detector, len(dataset.classes), anchor_scale=recipe.anchor_scale, pretrained=False)
    canvas = canvas_for(samples, image_size=recipe.image_size, stride=model.stride)
    batches = Batches(samples, ImageCache.load(samples, longest=recipe.image_size), recipe, canvas, 0)
    model.to(target, memory_format=config.memory_format)
    model.freeze(recipe.frozen_stages)
    times = []
    for step in range(1 + TIMED_STEPS):
        start = time.perf_counter()
        images, targets = batches.batch(step)
        loading, images, targets = time.perf_counter() - start, images[:count], targets[:count]
        inputs = config.network_input(images, target)
        with config.autocast(target):
            raw = model(inputs)
        sum(model.loss(raw, targets).values()).backward()
        model.zero_grad(set_to_none=True)
        synchronize(device)
        seconds = time.perf_counter() - start
        times.append(seconds if target.type == "cpu" else max(loading * count / recipe.batch_size, seconds - loading))
        if time.perf_counter() + seconds > until:
            break
    step_seconds = min(times[1:] or times)
    left = until - time.perf_counter()
    if left < 0:
        return StepCost(step_seconds, step_seconds / count / 3)
    model = fold_batch_norms(model.eval())
    predict = partial(predict_views, model, classes=dataset.classes, image_size=recipe.image_size, views=[PLAIN_VIEW])
    if target.type != "cpu":
        predict(samples)  # a card loads its libraries and kernels at the first image
    if left < len(samples) * step_seconds / count:
        samples = samples[:FEW_IMAGES]
    start = time.perf_counter()
    predict(samples)
    return StepCost(step_seconds, (time.perf_counter() - start) / len(samples))
