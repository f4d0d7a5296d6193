"""Brings predictions with the labels of a network to those of a dataset, and joins the shares of several processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Array, Detections, Predictions
from foldfuse.errors import InputError


def concat_shards(shards: Sequence[Predictions], image_ids: Sequence[int]) -> Predictions:
    """The predictions on all images, in the order of `image_ids`, from each process's predictions on its share of the images."""
    if len(shards) == 1:
        return shards[0]
    by_image = {i: shard[i] for shard in shards for i in shard.image_ids}
    return Predictions.of({i: by_image[i] for i in image_ids}, shards[0].classes)


def labels_by_name(classes: Sequence[str], dataset: Dataset, owner: Path | str) -> Array:
    """(K,) int64: the dataset's label of each of K known classes, by name; -1 for a class that the data does not have.

    Args:
        classes: names of the classes that a run knows.
        dataset: images whose classes are some of these.
        owner: the run, or the data that it is trained on, for errors.

    Raises:
        InputError: a class of the dataset is not among `classes`, or two classes have one name.
    """
    if tuple(classes) == dataset.classes:
        return np.arange(len(classes))
    repeated = [name for names in (classes, dataset.classes) for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise InputError(
            f"{dataset.source}: its classes are not the same as those of {owner}, and cannot be matched by name: two are called "
            f"{repeated[0]!r}. Rename one of them."
        )
    unknown = [name for name in dataset.classes if name not in classes]
    if unknown:
        raise InputError(
            f"{dataset.source}: has the class{'es' if len(unknown) > 1 else ''} {', '.join(unknown)}, not among the classes of "
            f"{owner} ({', '.join(classes)}). Give data whose classes are some of these, or train a run on this data."
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
