"""Predictions of a trained detector on images, in pixels of the original images."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from foldfuse.data.dataset import Sample
from foldfuse.detections import Array, Detections, Predictions
from foldfuse.errors import InputError
from foldfuse.inference.engine import Engine
from foldfuse.inference.tta import View
from foldfuse.inference.views import BATCH_SIZE, predict_images
from foldfuse.models import make_detector
from foldfuse.models.cpu.fold_batch_norm import fold_batch_norms
from foldfuse.models.pretrained.state_dicts import load_exactly
from foldfuse.recipes import Recipe
from foldfuse.storage.run import Run
from foldfuse.system.device import choose_device, in_halves
from foldfuse.system.progress import Progress, no_progress


def load_detector(run: Run, device: str = "auto") -> tuple[Any, tuple[str, ...]]:
    """The detector of a run with its weights on a device, ready to predict, and the names of its classes.

    The detector is a network for letterboxed batches, as `predict_views` makes them. `foldfuse.load(run)` gives a predictor,
    which takes images and paths.

    Raises:
        InputError: the folder holds no trained run, or there is no such device.
    """
    classes, weights = run.metadata.classes, run.load_weights()
    if not classes:
        raise InputError(
            f"{run.folder / 'run.json'}: names no classes, so nothing can be predicted. Train the run again."
        )
    model = detector_with_weights(
        run.recipe, classes, weights, device=choose_device(device), source=f"{run.folder}/weights.safetensors"
    )
    return model, classes


def detector_with_weights(
    recipe: Recipe, classes: Sequence[str], weights: Mapping[str, Tensor], *, device: str, source: str = "the weights"
) -> Any:
    """A detector with `weights` on a device, ready to predict.

    Raises:
        InputError: the weights are of another network; the sentence begins with `source`.
    """
    model = make_detector(
        recipe.detector,
        len(classes),
        anchor_scale=recipe.anchor_scale,
        pretrained=False,
        numerics=recipe.numerics,
    )
    load_exactly(model, weights, source=source)
    model = fold_batch_norms(model)
    return model.to(device).to(memory_format=torch.channels_last).eval()


def detect(model: Any, images: Array) -> list[Detections]:
    """The detections in each of a batch of letterboxed images, in pixels of these.

    Args:
        model: a model with the detector contract, in eval mode. Images are moved to its device.
        images: (B, H, W, 3) uint8 RGB; H and W are multiples of the model's stride. Where they do not fit in memory together,
            fewer are computed at a time.

    Raises:
        InputError: the memory is too small for one image.
    """
    return in_halves(functools.partial(_detect, model), images)


def _detect(model: Any, images: Array) -> list[Detections]:
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2)
    with torch.inference_mode():
        found: list[Detections] = model.decode(model(inputs.to(next(model.parameters()).device).float().div_(255)))
    return found


def predict_views(
    model: Any,
    samples: Sequence[Sample],
    classes: Sequence[str],
    *,
    image_size: int,
    views: Sequence[View],
    batch_size: int = BATCH_SIZE,
    longest: int | None = None,
    engine: str = "eager",
    progress: Progress = no_progress,
) -> dict[View, Predictions]:
    """The predictions of a detector on every image in each of `views`; boxes in pixels of the original images.

    Args:
        model: a model with the detector contract, in eval mode. Images are moved to its device.
        samples: the images.
        classes: names of the model's classes.
        image_size: the longest side, in pixels, that the model was trained at.
        views: TTA views of each image.
        batch_size: images of 256 px at a time; fewer larger ones, so that memory stays the same.
        longest: see `predict_images`.
        engine: what runs the network on a CPU; one of `engine.ENGINES`.
        progress: gets the finished share of the work.

    Raises:
        InputError: an image is missing or cannot be decoded, or there is no such engine here.
    """
    eager = functools.partial(detect, model)
    chosen = None if engine == "eager" else Engine(model, eager, engine)
    return predict_images(
        eager if chosen is None else chosen,
        samples,
        classes,
        image_size=image_size,
        stride=model.stride,
        views=views,
        batch_size=batch_size,
        longest=longest,
        expect=None if chosen is None else chosen.expect,
        progress=progress,
    )
