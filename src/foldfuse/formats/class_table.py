"""Writes class probabilities as a table, one row per image or object."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from foldfuse.data.crops import Crops
from foldfuse.detections import Array
from foldfuse.formats.formulas import warn_of_formulas
from foldfuse.system.atomic_files import atomic


def write_table(probabilities: Array, crops: Crops, classes: Sequence[str], out: Path, *, boxes: bool) -> None:
    """Write (n, K) probabilities of `crops` as .csv or .parquet.

    Columns: image; x1, y1, x2, y2 where `boxes`; class, empty where it is unknown; predicted, the most probable class; and
    p(NAME) of each class.
    """
    names = [crops.samples[i].file_name for i in crops.image_index]
    columns: dict[str, Sequence[str] | Array] = {"image": names}
    if boxes:
        columns |= {name: crops.boxes[:, i] for i, name in enumerate(("x1", "y1", "x2", "y2"))}
    columns["class"] = [classes[label] if label >= 0 else "" for label in crops.labels]
    columns["predicted"] = [classes[label] for label in probabilities.argmax(1)]
    columns |= {f"p({name})": probabilities[:, k].astype(np.float64).round(6) for k, name in enumerate(classes)}
    table = pa.table(columns)
    if out.suffix == ".csv":
        warn_of_formulas(out, [*names, *classes])
    with atomic(out) as path:
        if out.suffix == ".csv":
            pyarrow.csv.write_csv(table, path)
        else:
            pyarrow.parquet.write_table(table, path)
