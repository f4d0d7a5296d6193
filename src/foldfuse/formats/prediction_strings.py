"""Reads and writes CSV files of prediction strings: one row per image, all its boxes as words in one cell.

Layouts differ in the words before a box (label and score, in either order, or the score alone) and in the form of its four
numbers (see `box_forms`). The contest's header stands for the contest's layout. Under another header the numbers rule most
layouts out; the reader takes the only layout that is left, and asks the caller to choose if several are left.

A label is a position in the classes from 0, or the name of a class. Where a contest writes an image without boxes as one box of a
single pixel in a class of its own ("14 1 0 0 1 1", "none 1 0 0 1 1"), this box is no box.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.data.readers.csv_columns import plain
from foldfuse.detections import Array, Predictions
from foldfuse.errors import InputError, shown
from foldfuse.formats.box_forms import FORMS, BoxForm, look_normalized
from foldfuse.formats.box_table import BoxTable, image_sizes
from foldfuse.formats.class_keys import CategoryIds, class_table, look_up
from foldfuse.formats.coco_results import score_texts
from foldfuse.formats.csv_text import IMAGE_COLUMNS, STRING_COLUMNS, CsvFile
from foldfuse.formats.formulas import warn_of_formulas
from foldfuse.formats.image_keys import match_images
from foldfuse.formats.raw_boxes import RawBoxes, ReadAs, as_number, to_table
from foldfuse.formats.word_grid import Grid, make_grid
from foldfuse.system.atomic_files import write_text

HEADER = ("PredictionString", "image_id")
OTHER_HEADER = ("image_id", "PredictionString")  # of other layouts, to tell them from the contest's
NO_BOX = (0.0, 0.0, 1.0, 1.0)  # the numbers of the box that stands for no box, in a class that the data lacks
STUDY = "_study"  # ends the ids of rows that are about no image
EMPTY = {"", "nan", "none", "null"}


@dataclass(frozen=True)
class Layout:
    """The meaning of the words of one box.

    Attributes:
        before: the words before the box: "label_score", "score_label" or "score".
        form: the form of the four numbers.
    """

    before: str
    form: BoxForm

    @property
    def name(self) -> str:
        """The layout's name, such as "label_score_xyxy" or "score_xywh_normalized"."""
        return f"{self.before}_{self.form.name}"

    @property
    def num_words(self) -> int:
        """Number of words per box."""
        return 4 + len(self.before.split("_"))

    @property
    def score_column(self) -> int:
        """The position of the score among the words."""
        return self.before.split("_").index("score")

    @property
    def label_column(self) -> int | None:
        """The position of the label among the words; None for a layout without labels."""
        words = self.before.split("_")
        return words.index("label") if "label" in words else None

    def words(self, boxes: Array, scores: Sequence[str], labels: Sequence[str], sizes: Array) -> list[str]:
        """The words of each of n boxes as one text."""
        digits = 8 if self.form.normalized else 3
        numbers = self.form.from_xyxy(boxes, sizes).tolist()
        text = " ".join([f"{{:.{digits}f}}"] * 4)
        before = [{"score": scores, "label": labels}[word] for word in self.before.split("_")]
        return [" ".join([*words, text.format(*box)]) for *words, box in zip(*before, numbers, strict=True)]


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(before, FORMS[f"{box}{'_normalized' * normalized}"])
        for before, box, normalized in product(
            ("label_score", "score_label", "score"), ("xyxy", "xywh", "cxcywh"), (False, True)
        )
    )
}
CONTEST = LAYOUTS["label_score_xyxy"]


@dataclass(frozen=True, eq=False)
class Strings:
    """The rows of a CSV of prediction strings that are about images.

    Attributes:
        header: the names of the columns of strings and of images, in the file's order.
        image_keys: what names the image of each row.
        words: the words of each row.
        lines: the line number of each row in the file.
        notes: sentences for the user.
    """

    header: tuple[str, ...]
    image_keys: list[str]
    words: list[list[str]]
    lines: list[int]
    notes: tuple[str, ...]


def read_strings(path: Path, dataset: Dataset, read_as: ReadAs, csv_file: CsvFile) -> tuple[BoxTable, Layout]:
    """The boxes of a CSV, and their layout: the given one, or the only one that the numbers allow.

    Raises:
        InputError: a row is broken, the numbers allow several layouts or none, or the file can be read in two ways.
    """
    table = _read_table(path, csv_file)
    where_row = lambda i: f"{path}: line {table.lines[i]}"  # noqa: E731
    matched = match_images(table.image_keys, dataset, where=where_row, reading=read_as.image_ids)
    _refuse_repeats(table, matched.image_ids, where_row)
    layout = (
        LAYOUTS[read_as.format] if read_as.format is not None else _only_layout(path, table, matched.image_ids, dataset)
    )
    for line, words in zip(table.lines, table.words, strict=True):
        if len(words) % layout.num_words:
            raise InputError(
                f"{path}: line {line} has {len(words)} words, expected {layout.num_words} a box, for {layout.name}."
            )
    grid = make_grid(table.words, layout.num_words)
    where = lambda i: f"{path}: line {table.lines[grid.rows[i]]}: a box"  # noqa: E731
    label_keys = None if layout.label_column is None else grid.keys(layout.label_column)
    numbers = np.column_stack([grid.finite(column, where) for column in range(layout.num_words - 4, layout.num_words)])
    scores = grid.finite(layout.score_column, where)
    kept = ~_stands_for_no_box(grid, layout.label_column, dataset, read_as.category_ids)
    boxes = np.flatnonzero(kept).tolist()
    notes = table.notes
    if not kept.all():
        notes += (f"{int((~kept).sum())} boxes of one pixel in a class that {dataset.source} lacks stand for no box.",)
    raw = RawBoxes(
        image_keys=[table.image_keys[row] for row in grid.rows[boxes].tolist()],
        class_keys=None if label_keys is None else [label_keys[i] for i in boxes],
        numbers=numbers[kept],
        scores=scores[kept],
        where=lambda i: f"{path}: line {table.lines[grid.rows[boxes[i]]]}: a box",
        form=layout.form,
        is_form_given=read_as.format is not None,
        convention="from_zero",
        class_word="label",
        option=lambda form: Layout(layout.before, form).name,
        predicted_keys=table.image_keys,
        where_predicted=where_row,
    )
    result = to_table(raw, path, dataset, read_as)
    return replace(result, notes=(*notes, *result.notes)), layout


def write_strings(
    predictions: Predictions,
    path: Path,
    dataset: Dataset,
    *,
    layout: Layout = CONTEST,
    names: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Write a CSV of prediction strings, a row for every image of `dataset`, images without boxes too.

    The contest's string repeats `label score xmin ymin xmax ymax ` with 0-based labels in pixels, under the header
    `PredictionString,image_id`; other layouts have the columns in the other order.

    Args:
        predictions: of all images of `dataset`.
        path: the file.
        dataset: the images.
        layout: the layout of the words.
        names: image_id of each image; the file name by default.
        labels: the word of each class; its position from 0 by default.

    Raises:
        InputError: an image of `dataset` was not predicted, or the layout has no labels and there are several classes.
    """
    check_labels(layout, dataset, path)
    predictions = predictions.select_images(dataset.image_ids)
    header = HEADER if layout == CONTEST else OTHER_HEADER
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(header)
    names = [sample.file_name for sample in dataset.samples] if names is None else names
    for name, words in zip(names, box_words(predictions, dataset, layout, labels), strict=True):
        row = {"PredictionString": "".join(f"{box} " for box in words), "image_id": name}
        writer.writerow([row[column] for column in header])
    write_text(path, lines.getvalue())
    warn_of_formulas(path, names)


def check_labels(layout: Layout, dataset: Dataset, path: Path) -> None:
    """Raises InputError where a layout has no labels and there are several classes."""
    if layout.label_column is None and len(dataset.classes) > 1:
        raise InputError(
            f"{path}: {layout.name} has no labels, and {dataset.source} has {len(dataset.classes)} classes, expected one; "
            f"choose a layout with labels, such as label_{layout.name}."
        )


def box_words(
    predictions: Predictions, dataset: Dataset, layout: Layout, labels: Sequence[str] | None = None
) -> list[list[str]]:
    """For each image of the predictions, the words of each of its boxes as one text."""
    sizes = image_sizes(predictions.image_ids[predictions.image_index], dataset)
    texts = [str(label) for label in range(len(dataset.classes))] if labels is None else labels
    words = layout.words(
        predictions.boxes, score_texts(predictions), [texts[k] for k in predictions.labels.tolist()], sizes
    )
    return [words[start:end] for start, end in pairwise(predictions.offsets.tolist())]


def _read_table(path: Path, csv_file: CsvFile) -> Strings:
    strings, images = _columns(path, csv_file)
    keys, words, lines, studies = [], [], [], 0
    for row, line in zip(csv_file.rows, csv_file.lines, strict=True):
        key = row[images].strip()
        if key.endswith(STUDY):
            studies += 1
            continue
        text = row[strings].strip()
        keys.append(key)
        words.append([] if text.lower() in EMPTY else text.split())
        lines.append(line)
    notes = (f"{studies} rows about studies (their ids end in {STUDY}) are left out.",) if studies else ()
    return Strings(tuple(csv_file.header[i] for i in sorted((strings, images))), keys, words, lines, notes)


def _columns(path: Path, csv_file: CsvFile) -> tuple[int, int]:
    """Indices of the column of strings and of the column of images."""
    strings, images = csv_file.column(STRING_COLUMNS), csv_file.column(IMAGE_COLUMNS)
    if strings is None or images is None or "" in csv_file.names:
        extra = " There is an index column: write the file without one." if "" in csv_file.names else ""
        raise InputError(
            f"{path}: line 1: the header is {shown(','.join(csv_file.header))}, expected {','.join(HEADER)!r}, or a row for "
            f"each box with columns such as image_id,class,confidence,xmin,ymin,xmax,ymax.{extra}"
        )
    return strings, images


def _refuse_repeats(table: Strings, image_ids: Array, where: Callable[[int], str]) -> None:
    seen: set[int] = set()
    for i, image_id in enumerate(image_ids.tolist()):
        if image_id in seen:
            raise InputError(f"{where(i)}: {shown(table.image_keys[i])} has two rows. Keep one row per image.")
        seen.add(image_id)


def _stands_for_no_box(grid: Grid, column: int | None, dataset: Dataset, reading: CategoryIds | None = None) -> Array:
    """(n,) bool: the boxes of one pixel in the corner of the image whose label, in `column`, is no class."""
    if column is None:
        return np.zeros(len(grid.numbers), bool)
    result: Array = (grid.numbers[:, -4:] == NO_BOX).all(1)
    tables = {way: class_table(dataset, way) for way in ("name", reading or "from_zero")}
    for i in np.flatnonzero(result).tolist():
        result[i] = all(look_up(grid.word(i, column), way, table) is None for way, table in tables.items())
    return result


def _only_layout(path: Path, table: Strings, image_ids: Array, dataset: Dataset) -> Layout:
    """The layout of a CSV: the contest's for the contest's header, else the only layout that the numbers allow."""
    counts = {len(words) for words in table.words}
    is_contest = tuple(map(plain, table.header)) == tuple(map(plain, HEADER))
    if counts <= {0}:  # without a single box, all layouts are the same
        return CONTEST
    if is_contest and not any(count % CONTEST.num_words for count in counts):
        grid = make_grid(table.words, CONTEST.num_words)
        if layout_fits(CONTEST, grid, image_sizes(image_ids[grid.rows], dataset), dataset):
            return CONTEST
    possible = []
    for num_words in (5, 6):
        if any(count % num_words for count in counts):
            continue
        grid = make_grid(table.words, num_words)
        sizes = image_sizes(image_ids[grid.rows], dataset)
        possible += [
            each for each in LAYOUTS.values() if each.num_words == num_words and layout_fits(each, grid, sizes, dataset)
        ]
    if is_contest and not possible:
        return CONTEST
    names = " or ".join(layout.name for layout in possible)
    if is_contest:
        raise InputError(
            f"{path}: the header stands for {CONTEST.name}, and the numbers fit {names} alone. Read them with "
            f"--input-format {possible[0].name}; if they are right as they are, with --input-format {CONTEST.name}."
        )
    if len(possible) == 1:
        return possible[0]
    if not possible:
        _refuse_unknown_word(path, table, dataset)
        one_class = replace(dataset, classes=dataset.classes[:1])
        if not any(count % 5 for count in counts) and len(dataset.classes) > 1:
            grid = make_grid(table.words, 5)
            if any(
                layout_fits(LAYOUTS[f"score_{box}"], grid, image_sizes(image_ids[grid.rows], dataset), one_class)
                for box in ("xyxy", "xywh")
            ):
                raise InputError(
                    f"{path}: its boxes have a score and no class, and {dataset.source} has {len(dataset.classes)} classes. "
                    "Give data of one class, or predictions with classes."
                )
        raise InputError(
            f"{path}: its numbers fit no known layout: labels, scores or boxes are out of range, or a row is cut "
            f"short. Name the layout with format= or --input-format, one of {', '.join(LAYOUTS)}."
        )
    raise InputError(
        f"{path}: its numbers fit the layouts {names}. Name the right one with format=, in a command with --input-format."
    )


def _refuse_unknown_word(path: Path, table: Strings, dataset: Dataset) -> None:
    """Raises InputError at the first word that is neither a number nor a class, but for those of boxes that stand for none."""
    names = {name.casefold() for name in dataset.classes}
    for words, line in zip(table.words, table.lines, strict=True):
        for i, word in enumerate(words):
            if (
                as_number(word) is None
                and word.casefold() not in names
                and words[i + 2 : i + 6] != ["0", "0", "1", "1"]
            ):
                raise InputError(
                    f"{path}: line {line}: {shown(word)} is neither a number nor a class of {dataset.source} (known: "
                    f"{', '.join(dataset.classes[:20])})."
                )


def layout_fits(layout: Layout, grid: Grid, sizes: Array, dataset: Dataset) -> bool:
    """Whether every box is plausible in a layout: labels and scores in range, x1 <= x2, y1 <= y2, inside its image."""
    if layout.label_column is None and len(dataset.classes) > 1:
        return False
    numbers, scores = grid.numbers[:, -4:], grid.numbers[:, layout.score_column]
    if not (np.isfinite(numbers).all() and ((scores >= 0) & (scores <= 1)).all()):
        return False
    kept = ~_stands_for_no_box(grid, layout.label_column, dataset)
    if layout.label_column is not None:
        names = {name.casefold() for name in dataset.classes}
        labels, whole = grid.numbers[:, layout.label_column], grid.is_whole(layout.label_column)
        # 1..K may be labels that count from 1: `match_classes` judges them.
        for i in np.flatnonzero(kept & ~(whole & (labels >= 0) & (labels <= len(dataset.classes)))).tolist():
            if whole[i] or grid.word(i, layout.label_column).casefold() not in names:
                return False
    numbers, sizes = numbers[kept], sizes[kept]
    if len(numbers) and layout.form.normalized != look_normalized(numbers, sizes):
        return False
    return bool(layout.form.fits(numbers, sizes).all())
