"""Reads the images that predictions are of. A test set may have no categories of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from foldfuse.data.dataset import Dataset
from foldfuse.data.readers.coco import read
from foldfuse.errors import InputError
from foldfuse.formats.parquet import is_parquet, parquet_classes
from foldfuse.storage.run import Run


def read_images(
    data: Path,
    *,
    classes_from: Path | None,
    predictions: Sequence[Path] = (),
    images: Path | None = None,
    ignore_orientation: bool = False,
) -> Dataset:
    """The images of `data`, without annotations; where `data` has no classes, with those of `classes_from` or `predictions`.

    Args:
        data: a dataset of any layout, or a folder or list of images.
        classes_from: training data, or the folder of a run.
        predictions: files of predictions, of which Parquet names the classes.
        images, ignore_orientation: see `data.readers.coco.read`.

    Raises:
        InputError: `data` cannot be read, or has no categories and `classes_from` is None, or has others than `classes_from`.
    """
    dataset = read(data, annotated=False, images=images, ignore_orientation=ignore_orientation)
    return with_known_classes(dataset, data, classes_from=classes_from, predictions=predictions)


def with_known_classes(
    dataset: Dataset, data: Path, *, classes_from: Path | None, predictions: Sequence[Path] = ()
) -> Dataset:
    """The images of `data`; where they have no classes, with those of `classes_from` or `predictions`. See `read_images`."""
    if classes_from is None:
        parquet = next((path for path in predictions if is_parquet(path)), None)
        if not dataset.classes and parquet is not None:
            names, ids = parquet_classes(parquet)
            return dataset.with_classes(names, ids or range(1, len(names) + 1))
        if not dataset.classes:
            raise InputError(
                f"{data}: has no categories, so the classes of the predictions are not known. Add --classes-from with the "
                "training data or the run."
            )
        return dataset
    classes, category_ids = _classes(classes_from)
    if not dataset.classes:
        return dataset.with_classes(classes, category_ids)
    if (dataset.classes, dataset.category_ids) != (classes, category_ids):
        raise InputError(
            f"--classes-from {classes_from}: has the classes {', '.join(classes)}, and {data} has its own: "
            f"{', '.join(dataset.classes)}. Leave out the option."
        )
    return dataset


def _classes(path: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """(class names, category ids) of a run or of training data."""
    if (path / "run.json").is_file():
        metadata = Run(path).metadata
        return tuple(metadata.classes), tuple(metadata.category_ids)
    dataset = read(path, annotated=False)
    if not dataset.classes:
        raise InputError(f"--classes-from {path}: has no categories either. Give the training data or a run.")
    return dataset.classes, dataset.category_ids
