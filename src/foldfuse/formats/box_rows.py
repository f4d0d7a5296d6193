"""CSV files with one row for each box: columns for the image, the class, the score and the box, known by their names."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Array, Predictions
from foldfuse.errors import InputError, shown
from foldfuse.formats.box_forms import FORMS, BoxForm
from foldfuse.formats.box_table import BoxTable, image_sizes
from foldfuse.formats.class_keys import CategoryIds, class_table
from foldfuse.formats.coco_results import score_texts
from foldfuse.formats.csv_text import (
    BOX_COLUMNS,
    CLASS_COLUMNS,
    IMAGE_COLUMNS,
    LIST_COLUMNS,
    SCORE_COLUMNS,
    CsvFile,
)
from foldfuse.formats.formulas import warn_of_formulas
from foldfuse.formats.image_keys import match_images
from foldfuse.formats.raw_boxes import RawBoxes, ReadAs, as_number, parse_numbers, to_table
from foldfuse.system.atomic_files import write_text

HEADER = ("image_id", "class", "confidence", "xmin", "ymin", "xmax", "ymax")
FORMATS = {"csv_boxes": None, **{f"csv_boxes_{form.name}": form for form in FORMS.values()}}  # None: by the header
EMPTY = {"", "nan", "none", "null"}


def find_box_columns(csv_file: CsvFile) -> tuple[BoxForm | None, tuple[int, ...]] | None:
    """The form of the boxes as the header says (None for one column of all four) and their columns; None without any."""
    for box, known in BOX_COLUMNS.items():
        for names in known:
            if set(names) <= set(csv_file.names):
                return FORMS[box], tuple(csv_file.names.index(name) for name in names)
    column = csv_file.column(LIST_COLUMNS)
    return None if column is None else (None, (column,))


def is_box_rows(csv_file: CsvFile) -> bool:
    """Whether a CSV has a row for each box, by its header."""
    return find_box_columns(csv_file) is not None


def read_box_rows(path: Path, dataset: Dataset, read_as: ReadAs, csv_file: CsvFile) -> BoxTable:
    """The boxes of a CSV; an image of `dataset` without a row counts as predicted, without boxes.

    A row whose box has no extent, in a class that is none of the dataset's or without a class, stands for an image without boxes.

    Raises:
        InputError: a column is missing, a row is broken, or the file can be read in two ways that differ.
    """
    found = find_box_columns(csv_file)
    images, score, label = (csv_file.column(known) for known in (IMAGE_COLUMNS, SCORE_COLUMNS, CLASS_COLUMNS))
    if found is None or images is None or score is None:
        lacking = "box" if found is None else "image" if images is None else "score"
        raise InputError(
            f"{path}: line 1: no column, or more than one, is the {lacking} in {shown(','.join(csv_file.header))}, expected "
            f"columns such as {','.join(HEADER)}."
        )
    header_form, columns = found
    cells = [[row[c].strip() for c in columns] for row in csv_file.rows]
    known = known_words(dataset, read_as.category_ids)
    kept = [i for i, row in enumerate(csv_file.rows) if not is_empty(row, cells[i], label, known)]
    where: Callable[[int], str] = lambda i: f"{path}: line {csv_file.lines[kept[i]]}"  # noqa: E731
    expected = ", ".join(csv_file.header[c] for c in columns)
    if len(columns) == 1:
        numbers = parse_numbers([cells[i][0] for i in kept], where, "the box", "four numbers", 4)
    else:
        numbers = parse_numbers([cells[i] for i in kept], where, "the box", f"the numbers {expected}", 4)
    scores = parse_numbers([csv_file.rows[i][score] for i in kept], where, "the score", "a number", 0)
    image_keys = [csv_file.rows[i][images].strip() for i in kept]
    form = FORMATS[read_as.format] if read_as.format is not None else None
    form = form or header_form or _only_form(path, numbers, image_keys, dataset, read_as)
    raw = RawBoxes(
        image_keys=image_keys,
        class_keys=None if label is None else [_class_key(csv_file.rows[i][label]) for i in kept],
        numbers=numbers,
        scores=scores,
        where=where,
        form=form,
        is_form_given=read_as.format is not None,
        convention="id",
        class_word=csv_file.header[label] if label is not None else "class",
        option=lambda form: f"csv_boxes_{form.name}",
    )
    table = to_table(raw, path, dataset, read_as)
    return replace(table, how=(f"boxes as {form.name}", *table.how))


def write_box_rows(
    predictions: Predictions, path: Path, dataset: Dataset, *, form: BoxForm, names: Sequence[str] | None = None
) -> None:
    """Write a CSV with a row for each box: the image's name, the class name, the score and the box.

    Args:
        predictions: of images of `dataset`.
        path: the file.
        dataset: the images and classes.
        form: the form of the boxes.
        names: what names each image of `dataset`; the file name by default.
    """
    sizes = image_sizes(predictions.image_ids[predictions.image_index], dataset)
    texts = [s.file_name for s in dataset.samples] if names is None else names
    name_of = dict(zip(dataset.image_ids, texts, strict=True))
    digits = 8 if form.normalized else 3
    box_names = {"xyxy": HEADER[3:], "xywh": ("x", "y", "width", "height"), "cxcywh": ("cx", "cy", "w", "h")}[form.box]
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow([*HEADER[:3], *box_names])
    for image_id, label, score, box in zip(
        predictions.image_ids[predictions.image_index].tolist(),
        predictions.labels.tolist(),
        score_texts(predictions),
        form.from_xyxy(predictions.boxes, sizes).tolist(),
        strict=True,
    ):
        writer.writerow([name_of[image_id], dataset.classes[label], score, *(f"{v:.{digits}f}" for v in box)])
    write_text(path, lines.getvalue())
    warn_of_formulas(path, [*texts, *dataset.classes])


def is_empty(row: list[str], cells: list[str], label: int | None, known: set[str]) -> bool:
    """Whether a row says that its image has no boxes; `known` are the words of classes."""
    if all(cell.lower() in EMPTY for cell in cells):
        return True
    numbers = [as_number(cell) for cell in cells]
    is_point = len(cells) == 4 and numbers in ([0.0] * 4, [0.0, 0.0, 1.0, 1.0])
    return is_point and label is not None and row[label].strip().casefold().removesuffix(".0") not in known


def known_words(dataset: Dataset, reading: CategoryIds | None = None) -> set[str]:
    """The words of classes, in lower case: names, and the numbers of a reading; of every reading where it is not known."""
    readings: tuple[CategoryIds, ...] = ("id", "from_zero", "from_one") if reading is None else (reading,)
    return {str(key).casefold() for way in ("name", *readings) for key in class_table(dataset, way)}


def _class_key(cell: str) -> Any:
    """A class as a whole number where it is one, else as text."""
    number = as_number(cell)
    return int(number) if number is not None and np.isfinite(number) and number % 1 == 0 else cell.strip()


def _only_form(path: Path, numbers: Array, image_keys: list[str], dataset: Dataset, read_as: ReadAs) -> BoxForm:
    """The only form that the numbers of one column allow."""
    ids = match_images(image_keys, dataset, where=lambda i: str(path), reading=read_as.image_ids).image_ids
    sizes = image_sizes(ids, dataset)
    possible = [
        form
        for form in FORMS.values()
        if form.fits(numbers, sizes).all() and form.normalized == bool(len(numbers) and (numbers <= 1.5).all())
    ]
    if len(possible) == 1 or (possible and not len(numbers)):
        return possible[0]
    ways = " or ".join(f"--input-format csv_boxes_{form.name}" for form in possible or FORMS.values())
    raise InputError(f"{path}: the header does not say what the four numbers of a box are. Add {ways}.")
