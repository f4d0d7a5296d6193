"""From a trained run and pictures to predictions, in pixels of the original pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.images import Letterbox, canvas_for, load_image
from foldfuse.detections import Array, Detections, Predictions
from foldfuse.errors import InputError
from foldfuse.inference.tta import View
from foldfuse.models import make_detector
from foldfuse.models.cpu.fold_batch_norm import fold_batch_norms
from foldfuse.recipes import Recipe
from foldfuse.storage.run import Run
from foldfuse.system.progress import Progress, no_progress


def load_detector(run: Run, device: str | torch.device = "cpu") -> tuple[Any, tuple[str, ...]]:
    """The detector of a run with its weights, ready to predict, and the names of its classes.

    Raises:
        InputError: the folder holds no trained run.
    """
    classes = run.metadata.classes
    return detector_of(run.recipe, classes, run.load_weights(), device), classes


def detector_of(
    recipe: Recipe, classes: Sequence[str], weights: Mapping[str, Tensor], device: str | torch.device
) -> Any:
    """A detector with `weights`, ready to predict."""
    model = make_detector(recipe.detector, len(classes), anchor_scale=recipe.anchor_scale, pretrained=False)
    model.load_state_dict(weights)
    model.backbone = fold_batch_norms(model.backbone)
    return model.to(device).to(memory_format=torch.channels_last).eval()


def predict_views(
    model: Any,
    samples: Sequence[Sample],
    classes: Sequence[str],
    *,
    image_size: int,
    views: Sequence[View],
    batch_size: int = 16,
    progress: Progress = no_progress,
) -> dict[View, Predictions]:
    """What a detector finds in each of `views` of every picture; boxes in pixels of the original pictures.

    Args:
        model: keeps the detector contract; in eval mode.
        samples: whose pictures to look at.
        classes: names of the model's classes.
        image_size: the longest side, in pixels, that the model was trained at.
        views: how each picture is shown.
        batch_size: pictures of 256 px at a time; of larger ones accordingly fewer, so that memory stays the same.
        progress: is told the share that is done.

    Raises:
        InputError: a picture is missing or cannot be decoded.
    """
    device = next(model.parameters()).device
    found: dict[View, dict[int, Detections]] = {view: {s.id: Detections.empty() for s in samples} for view in views}
    sides = [view.image_size(image_size, model.stride) for view in views]
    most = max(1, round(batch_size * (256 / max(sides)) ** 2))
    done = 0
    with ThreadPoolExecutor(2) as pool, torch.inference_mode():
        for part, canvases in _of_one_shape(samples, sides, model.stride, most):
            pictures = list(pool.map(lambda s: load_image(s.path, longest=max(sides)), part))
            for view, canvas in zip(views, canvases, strict=True):
                letterboxes = [Letterbox(s.width, s.height, canvas) for s in part]
                shown = view.apply(np.stack([box.apply(p) for box, p in zip(letterboxes, pictures, strict=True)]))
                images = torch.from_numpy(np.ascontiguousarray(shown)).permute(0, 3, 1, 2)
                raw = model(images.to(device).float().div_(255))
                for sample, letterbox, one in zip(part, letterboxes, model.decode(raw), strict=True):
                    found[view][sample.id] = letterbox.invert_boxes(view.invert(one, canvas))
            done += len(part)
            progress(done / len(samples))
    return {view: Predictions.of(parts, classes) for view, parts in found.items()}


def _of_one_shape(
    samples: Sequence[Sample], sides: Sequence[int], stride: int, most: int
) -> Iterator[tuple[list[Sample], list[tuple[int, int]]]]:
    """`samples` in batches of at most `most` whose own canvases are alike at each of `sides`; and those canvases.

    So what is found in a picture does not depend on which pictures are looked at beside it.
    """
    alike: dict[tuple[tuple[int, int], ...], list[Sample]] = {}
    for sample in samples:
        canvases = tuple(canvas_for([sample], image_size=side, stride=stride) for side in sides)
        alike.setdefault(canvases, []).append(sample)
    for canvases, group in alike.items():
        for start in range(0, len(group), most):
            yield group[start : start + most], list(canvases)


def _joined(shares: Sequence[Predictions], dataset: Dataset) -> Predictions:
    """Predictions of all pictures, in the dataset's order, from those of each process's share."""
    if len(shares) == 1:
        return shares[0]
    found = {i: share[i] for share in shares for i in share.image_ids}
    return Predictions.of({i: found[i] for i in dataset.image_ids}, shares[0].classes)


def labels_by_name(classes: Sequence[str], dataset: Dataset, run: Path) -> Array:
    """(K,) int64: the dataset's label of each of a run's classes, by name; -1 for classes that the data does not have.

    Raises:
        InputError: the run does not know all classes of the dataset.
    """
    unknown = [name for name in dataset.classes if name not in classes]
    if unknown:
        raise InputError(
            f"{run}: was trained for the classes {', '.join(classes)}, and does not know {', '.join(unknown)} of "
            f"{dataset.source}. Give data whose classes it knows, or train a run on this data."
        )
    return np.array([dataset.classes.index(name) if name in dataset.classes else -1 for name in classes])


def _relabelled(found: Predictions, labels: Array, dataset: Dataset) -> Predictions:
    """`found` with the dataset's labels; what is of a class that the dataset does not have is left out."""
    if found.classes == dataset.classes:
        return found
    told = {}
    for i in found.image_ids:
        one = found[i]
        own = labels[one.labels]
        told[i] = Detections(one.boxes[own >= 0], one.scores[own >= 0], own[own >= 0])
    return Predictions.of(told, dataset.classes)
