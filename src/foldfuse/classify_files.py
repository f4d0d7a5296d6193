"""What a trained classifier says of pictures or objects, as a table on disk: a row each, with a probability for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from foldfuse.classify import accuracy, classify, read_labelled
from foldfuse.crops import Crops, objects, whole
from foldfuse.detections import Array
from foldfuse.errors import InputError
from foldfuse.files import atomic
from foldfuse.progress import bar
from foldfuse.run import Run

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
    classes = tuple(Run(run).facts["classes"])
    dataset, of_pictures = read_labelled(data, classes=classes)
    crops = whole(dataset) if of_pictures else objects(dataset)
    if not len(crops):
        raise InputError(f"{data}: not one object is annotated, so there is no crop to classify.")
    with bar(f"classifying {len(crops)} {'pictures' if of_pictures else 'objects'}") as progress:
        said = classify(Run(run), crops, views=tuple(view), progress=progress)
    write_table(said, crops, classes, out, boxes=not of_pictures)
    if (crops.labels >= 0).all():
        right = [accuracy(said[crops.labels == k], crops.labels[crops.labels == k]) for k in np.unique(crops.labels)]
        print(f"accuracy {accuracy(said, crops.labels):.4f} of {len(crops)}; mean of the classes {np.mean(right):.4f}")
    return out


def write_table(said: Array, crops: Crops, classes: Sequence[str], out: Path, *, boxes: bool) -> None:
    """Write (n, K) probabilities of `crops` as .csv or .parquet.

    Columns: picture; x1, y1, x2, y2 where `boxes`; class, empty where it is not known; said, the most probable class; and
    p(NAME) of each class.
    """
    columns: dict[str, Sequence[str] | Array] = {"picture": [crops.samples[i].file_name for i in crops.image]}
    if boxes:
        columns |= {name: crops.boxes[:, i] for i, name in enumerate(("x1", "y1", "x2", "y2"))}
    columns["class"] = [classes[label] if label >= 0 else "" for label in crops.labels]
    columns["said"] = [classes[label] for label in said.argmax(1)]
    columns |= {f"p({name})": said[:, k].astype(np.float64).round(6) for k, name in enumerate(classes)}
    table = pa.table(columns)
    with atomic(out) as path:
        if out.suffix == ".csv":
            pyarrow.csv.write_csv(table, path)
        else:
            pyarrow.parquet.write_table(table, path)
