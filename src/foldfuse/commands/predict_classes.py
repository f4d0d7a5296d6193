"""Classifies images and annotated objects, for `predict`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from foldfuse.commands.learnt import unlearnt
from foldfuse.data.crops import image_crops, object_crops
from foldfuse.data.pixels import open_images
from foldfuse.data.readers.image_folder import read_classification
from foldfuse.errors import InputError
from foldfuse.formats.class_table import write_table
from foldfuse.inference.classifier import accuracy, classify
from foldfuse.inference.learnt_images import learnt_ids
from foldfuse.storage.run import Run
from foldfuse.system import printing
from foldfuse.system.progress import progress_bar

CLASSIFIER_VIEWS = ("1", "1+hflip")


def predict_classes(
    run: Run,
    data: Path,
    out: Path,
    *,
    views: Sequence[str],
    images: Path | None,
    device: str,
    all_: bool,
    ignore_orientation: bool,
) -> Path:
    """Classify a dataset with a classifier's run, and return the path of the table of probabilities."""
    if out.suffix not in (".csv", ".parquet"):
        raise InputError(
            f"{out}: a classifier's probabilities are written as .csv or .parquet; choose one of these endings."
        )
    if unknown := set(views) - set(CLASSIFIER_VIEWS):
        raise InputError(f"no view of a classifier is called {min(unknown)!r}. Known: {', '.join(CLASSIFIER_VIEWS)}.")
    classes = run.metadata.classes
    dataset, whole_images = read_classification(
        data, classes=classes, images=images, ignore_orientation=ignore_orientation
    )
    ranges = run.metadata.value_ranges
    dataset = open_images(dataset, ignore_orientation=ignore_orientation, value_ranges=ranges)
    dataset, learnt = unlearnt(run.folder, learnt_ids(run, dataset), dataset, all_=all_)
    crops = image_crops(dataset) if whole_images else object_crops(dataset)
    if not len(crops):
        raise InputError(f"{data}: no object is annotated, so there is no crop to classify.")
    with progress_bar(f"classifying {len(crops)} {'images' if whole_images else 'objects'}") as progress:
        probabilities = classify(run, crops, views=tuple(views), device=device, progress=progress)
    write_table(probabilities, crops, classes, out, boxes=not whole_images)
    if (crops.labels >= 0).all():
        labels = crops.labels
        by_class = [accuracy(probabilities[labels == k], labels[labels == k]) for k in np.unique(labels)]
        score = accuracy(probabilities, labels)
        printing.write(f"accuracy {score:.4f} of {len(crops)}; mean of the classes {np.mean(by_class):.4f}")
        if learnt and all_:
            printing.write("This accuracy is not of new images: the run has learnt from some of them.", to_stderr=True)
    return out
