"""Predictions of a trained detector on images, in pixels of the original images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.images import Letterbox, canvas_for, load_sample
from foldfuse.detections import Array, Detections, Predictions
from foldfuse.errors import InputError
from foldfuse.inference.tta import View
from foldfuse.models import make_detector
from foldfuse.models.cpu.fold_batch_norm import fold_batch_norms
from foldfuse.models.pretrained.state_dicts import load_exactly
from foldfuse.recipes import Recipe
from foldfuse.storage.run import Run
from foldfuse.system.device import choose_device
from foldfuse.system.progress import Progress, no_progress


def load_detector(run: Run, device: str = "auto") -> tuple[Any, tuple[str, ...]]:
    """The detector of a run with its weights on a device, ready to predict, and the names of its classes.

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
    model = make_detector(recipe.detector, len(classes), anchor_scale=recipe.anchor_scale, pretrained=False)
    load_exactly(model, weights, source=source)
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
    """The predictions of a detector on every image in each of `views`; boxes in pixels of the original images.

    Args:
        model: a model with the detector contract, in eval mode. Images are moved to its device.
        samples: the images.
        classes: names of the model's classes.
        image_size: the longest side, in pixels, that the model was trained at.
        views: TTA views of each image.
        batch_size: images of 256 px at a time; fewer larger ones, so that memory stays the same.
        progress: gets the finished share of the work.

    Raises:
        InputError: an image is missing or cannot be decoded.
    """
    device = next(model.parameters()).device
    detections: dict[View, dict[int, Detections]] = {
        view: {s.id: Detections.empty() for s in samples} for view in views
    }
    sizes = [view.image_size(image_size, model.stride) for view in views]
    max_batch = max(1, round(batch_size * (256 / max(sizes)) ** 2))
    done = 0
    with ThreadPoolExecutor(2) as pool, torch.inference_mode():
        for batch, canvases in _batches_of_one_shape(samples, sizes, model.stride, max_batch):
            images = list(pool.map(lambda s: load_sample(s, longest=max(sizes)), batch))
            for view, canvas in zip(views, canvases, strict=True):
                letterboxes = [Letterbox(s.width, s.height, canvas) for s in batch]
                shown = view.apply(np.stack([box.apply(i) for box, i in zip(letterboxes, images, strict=True)]))
                inputs = torch.from_numpy(np.ascontiguousarray(shown)).permute(0, 3, 1, 2)
                raw = model(inputs.to(device).float().div_(255))
                for sample, letterbox, one in zip(batch, letterboxes, model.decode(raw), strict=True):
                    detections[view][sample.id] = letterbox.invert_boxes(view.invert(one, canvas))
            done += len(batch)
            progress(done / len(samples))
    return {view: Predictions.of(by_image, classes) for view, by_image in detections.items()}


def _batches_of_one_shape(
    samples: Sequence[Sample], sizes: Sequence[int], stride: int, max_batch: int
) -> Iterator[tuple[list[Sample], list[tuple[int, int]]]]:
    """Batches of samples that have the same canvas at each of `sizes`, and those canvases.

    The detections in an image thus do not depend on the other images of its batch.
    """
    groups: dict[tuple[tuple[int, int], ...], list[Sample]] = {}
    for sample in samples:
        canvases = tuple(canvas_for([sample], image_size=size, stride=stride) for size in sizes)
        groups.setdefault(canvases, []).append(sample)
    for canvases, group in groups.items():
        for start in range(0, len(group), max_batch):
            yield group[start : start + max_batch], list(canvases)


def concat_shards(shards: Sequence[Predictions], image_ids: Sequence[int]) -> Predictions:
    """The predictions on all images, in the order of `image_ids`, from each process's predictions on its share of the images."""
    if len(shards) == 1:
        return shards[0]
    by_image = {i: shard[i] for shard in shards for i in shard.image_ids}
    return Predictions.of({i: by_image[i] for i in image_ids}, shards[0].classes)


def labels_by_name(classes: Sequence[str], dataset: Dataset, run: Path) -> Array:
    """(K,) int64: the dataset's label of each of a run's classes, by name; -1 for a class that the data does not have.

    Raises:
        InputError: the run does not know all classes of the dataset, or two classes have one name.
    """
    if tuple(classes) == dataset.classes:
        return np.arange(len(classes))
    repeated = [name for names in (classes, dataset.classes) for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise InputError(
            f"{dataset.source}: its classes are not the same as those of {run}, and cannot be matched by name: two are called "
            f"{repeated[0]!r}. Rename one of them."
        )
    unknown = [name for name in dataset.classes if name not in classes]
    if unknown:
        raise InputError(
            f"{run}: was trained for the classes {', '.join(classes)}, and does not know {', '.join(unknown)} of "
            f"{dataset.source}. Give data whose classes it knows, or train a run on this data."
        )
    label_of = {name: label for label, name in enumerate(dataset.classes)}
    return np.array([label_of.get(name, -1) for name in classes])


def relabel(predictions: Predictions, labels: Array, dataset: Dataset) -> Predictions:
    """`predictions` with the dataset's labels; boxes of a class that the dataset does not have are left out.

    Args:
        predictions: predictions with a run's labels.
        labels: the dataset's label of each of the run's classes; see `labels_by_name`.
        dataset: the dataset whose classes to use.
    """
    if predictions.classes == dataset.classes:
        return predictions
    relabeled = {}
    for i in predictions.image_ids:
        one = predictions[i]
        own = labels[one.labels]
        relabeled[i] = Detections(one.boxes[own >= 0], one.scores[own >= 0], own[own >= 0])
    return Predictions.of(relabeled, dataset.classes)
