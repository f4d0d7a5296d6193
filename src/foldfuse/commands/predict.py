"""The predict command, for detectors and classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from foldfuse.data.crops import image_crops, object_crops
from foldfuse.data.readers.coco import read
from foldfuse.data.readers.image_folder import read_classification
from foldfuse.errors import InputError
from foldfuse.formats.class_table import write_table
from foldfuse.formats.predictions import write_predictions
from foldfuse.fusion.methods import wbf
from foldfuse.inference.classifier import accuracy, classify
from foldfuse.inference.detector import _joined, _relabelled, labels_by_name, load_detector, predict_views
from foldfuse.inference.tta import parse_views
from foldfuse.storage.run import Run
from foldfuse.system.processes import world
from foldfuse.system.progress import no_progress, progress_bar


def predict(
    run: Path,
    data: Path,
    out: Path,
    *,
    view: tuple[str, ...] = ("1",),
    batch_size: int = 16,
) -> Path:
    """Predict a dataset with a trained run; several views are fused by WBF. The path of the predictions comes back.

    The run of a classifier is given pictures in sub-folders by class, or in one folder, or a dataset whose annotated objects
    it is to tell apart; `out` is then a table of probabilities, .csv or .parquet, and `view` 1, 1+hflip or both.

    Under torchrun each process looks at its share of the pictures.

    Args:
        run: folder of a trained run.
        data: COCO JSON; its annotations, if it has any, are not read.
        out: file to write: .parquet (keeps all), or .json (COCO results).
        view: how each picture is shown: scales of the recipe's image size, with +hflip or +vflip; such as 1 1.25+hflip.
        batch_size: pictures of 256 px at a time; of larger ones accordingly fewer, so that memory stays the same.

    Raises:
        InputError: the run is not trained, its classes are not those of the data, or a picture cannot be decoded.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}, and must be 1 or more.")
    if Run(run).is_classifier:
        return predict_classes(run, data, out, view=view)
    views = parse_views(view)
    with world() as together:
        model, classes = load_detector(Run(run), together.device)
        dataset = read(data, annotated=False)
        labels = labels_by_name(classes, dataset, run)
        samples = dataset.samples[together.rank :: together.size]
        with (
            progress_bar(f"predicting {len(dataset)} pictures")
            if together.first
            else nullcontext(no_progress) as progress
        ):
            found = predict_views(
                model,
                samples,
                classes,
                image_size=Run(run).recipe.image_size,
                views=views,
                batch_size=batch_size,
                progress=progress,
            )
        shares = together.gathered(found)
        if together.first:
            parts = [_relabelled(_joined([share[v] for share in shares], dataset), labels, dataset) for v in views]
            write_predictions(parts[0] if len(parts) == 1 else wbf(parts), out, dataset)
    return out


VIEWS = ("1", "1+hflip")


def predict_classes(run: Path, data: Path, out: Path, *, view: Sequence[str]) -> Path:
    """As `predict`, with the run of a classifier; the path of the table comes back.

    Args:
        run: folder of a trained run.
        data: pictures in sub-folders by class, pictures in one folder, or a dataset whose annotated objects are classified.
        out: file to write: .csv or .parquet.
        view: 1, 1+hflip or both; of both, probabilities are averaged.

    Raises:
        InputError: the run is not trained, its classes are not those of the data, or a picture cannot be decoded.
    """
    if out.suffix not in (".csv", ".parquet"):
        raise InputError(f"{out}: what a classifier says is written as .csv or .parquet; choose one of these endings.")
    if unknown := set(view) - set(VIEWS):
        raise InputError(f"the view {min(unknown)!r} is none that a classifier knows: {' and '.join(VIEWS)}.")
    classes = Run(run).metadata.classes
    dataset, of_pictures = read_classification(data, classes=classes)
    crops = image_crops(dataset) if of_pictures else object_crops(dataset)
    if not len(crops):
        raise InputError(f"{data}: not one object is annotated, so there is no crop to classify.")
    with progress_bar(f"classifying {len(crops)} {'pictures' if of_pictures else 'objects'}") as progress:
        said = classify(Run(run), crops, views=tuple(view), progress=progress)
    write_table(said, crops, classes, out, boxes=not of_pictures)
    if (crops.labels >= 0).all():
        right = [accuracy(said[crops.labels == k], crops.labels[crops.labels == k]) for k in np.unique(crops.labels)]
        print(f"accuracy {accuracy(said, crops.labels):.4f} of {len(crops)}; mean of the classes {np.mean(right):.4f}")
    return out
