"""Reads and writes CSV files of prediction strings: one row per image, all its boxes as words in one cell.

Layouts differ in the words before a box (label and score, in either order, or the score alone), in the meaning of its four
numbers (xyxy, xywh, cxcywh) and in their unit (pixels, or fractions of the image's width and height: "normalized").
The contest's header stands for the contest's layout. Under another header the numbers rule most layouts out; the reader takes
the only layout that is left, and asks the caller to choose if several are left.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

import numpy as np

from foldfuse.boxes import xywh_to_xyxy, xyxy_to_xywh
from foldfuse.data.dataset import Dataset
from foldfuse.detections import Array, Predictions
from foldfuse.errors import InputError
from foldfuse.formats.box_table import BoxTable, image_names, image_sizes, unknown_image
from foldfuse.formats.formulas import tell_of_formulas
from foldfuse.system.atomic_files import write_text
from foldfuse.system.files import read_text

HEADER = ("PredictionString", "image_id")
OTHER_HEADER = ("image_id", "PredictionString")  # of other layouts, to tell them from the contest's
STRING_COLUMNS = {"predictionstring", "prediction_string", "predictions", "prediction"}
IMAGE_COLUMNS = {"image_id", "imageid", "image", "id", "file_name", "filename", "patientid"}
SLACK = 0.02  # fraction of the width or height by which a plausible box may reach beyond its image
MAX_NORMALIZED = 1.5  # coordinates that never exceed this are fractions, not pixels


@dataclass(frozen=True)
class Layout:
    """The meaning of the words of one box.

    Attributes:
        before: the words before the box: "label_score", "score_label" or "score".
        box: "xyxy", "xywh" (left, top, width, height) or "cxcywh" (centre, width, height).
        normalized: whether coordinates are fractions of the image's width and height instead of pixels.
    """

    before: str
    box: str
    normalized: bool

    @property
    def name(self) -> str:
        """The layout's name, such as "label_score_xyxy" or "score_xywh_normalized"."""
        return f"{self.before}_{self.box}{'_normalized' if self.normalized else ''}"

    @property
    def num_words(self) -> int:
        """Number of words per box."""
        return 4 + len(self.before.split("_"))

    def to_boxes(self, words: Array, sizes: Array) -> tuple[Array, Array, Array]:
        """(n, num_words) numbers and (n, 2) widths and heights -> xyxy boxes in pixels, scores, labels, not checked."""
        before = self.before.split("_")
        scores = words[:, before.index("score")]
        labels = words[:, before.index("label")] if "label" in before else np.zeros(len(words))
        boxes = words[:, len(before) :] * (np.tile(sizes, 2) if self.normalized else 1)
        if self.box == "cxcywh":
            boxes = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], 1)
        return boxes if self.box == "xyxy" else xywh_to_xyxy(boxes), scores, labels

    def to_words(self, boxes: Array, scores: Array, labels: Array, sizes: Array) -> Array:
        """The inverse of `to_boxes`: (n, num_words) float64."""
        boxes = boxes.astype(np.float64)
        if self.box != "xyxy":
            boxes = xyxy_to_xywh(boxes)
        if self.box == "cxcywh":
            boxes = np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], 1)
        before = [{"score": scores, "label": labels}[word] for word in self.before.split("_")]
        return np.column_stack([*before, boxes / (np.tile(sizes, 2) if self.normalized else 1)])

    @property
    def text(self) -> str:
        """A format string for the words of one box."""
        before = [{"score": "{:.6f}", "label": "{:.0f}"}[word] for word in self.before.split("_")]
        return " ".join([*before, *["{:.8f}" if self.normalized else "{:.3f}"] * 4])

    def fits(self, words: Array, sizes: Array, num_classes: int) -> bool:
        """Whether every box is plausible in this layout: labels and scores in range, x1 <= x2, y1 <= y2, inside its image."""
        if "label" not in self.before and num_classes > 1:
            return False
        if len(words) and self.normalized != bool((words[:, -4:] <= MAX_NORMALIZED).all()):
            return False
        boxes, scores, labels = self.to_boxes(words, sizes)
        slack = SLACK * np.tile(sizes, 2)
        return bool(
            ((scores >= 0) & (scores <= 1)).all()
            and ((labels >= 0) & (labels < num_classes) & (labels % 1 == 0)).all()
            and (boxes[:, 2:] >= boxes[:, :2]).all()
            and ((boxes >= -slack) & (boxes <= np.tile(sizes, 2) + slack)).all()
        )


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(before, box, normalized)
        for before, box, normalized in product(
            ("label_score", "score_label", "score"), ("xyxy", "xywh", "cxcywh"), (False, True)
        )
    )
}
CONTEST = LAYOUTS["label_score_xyxy"]


@dataclass(frozen=True, eq=False)
class Table:
    """A CSV of prediction strings, its words as numbers.

    Attributes:
        header: the names of the two columns, in the file's order.
        image_ids: the image id of each row.
        words: the words of each row, (number of words,) float64.
        lines: the line number of each row in the file.
    """

    header: tuple[str, ...]
    image_ids: list[int]
    words: list[Array]
    lines: list[int]


def read_strings(path: Path, dataset: Dataset, *, layout: Layout | None) -> tuple[BoxTable, Layout]:
    """The boxes of a CSV, and their layout: the given one, or the only one that the numbers allow.

    Raises:
        InputError: a row is broken, or the numbers allow several layouts or none.
    """
    table = _read_table(path, dataset)
    counts = {len(words) for words in table.words}
    if layout is None:
        layout = _only_layout(path, table, counts, dataset)
    for line, words in zip(table.lines, table.words, strict=True):
        if len(words) % layout.num_words:
            raise InputError(
                f"{path}: line {line} has {len(words)} words, expected {layout.num_words} a box, for {layout.name}."
            )
    words, image_ids, rows = _stack(table, layout.num_words)
    boxes, scores, labels = layout.to_boxes(words, image_sizes(image_ids, dataset))
    lines = np.array(table.lines, np.int64)[rows]
    if (wrong := labels % 1 != 0).any():
        i = int(np.argmax(wrong))
        raise InputError(f"{path}: line {lines[i]} has the label {labels[i]:g}, expected a whole number.")
    where = lambda i: f"{path}: line {lines[i]}: a box"  # noqa: E731
    return BoxTable(image_ids, boxes, scores, labels.astype(np.int64), table.image_ids, where), layout


def write_strings(predictions: Predictions, path: Path, dataset: Dataset, *, layout: Layout = CONTEST) -> None:
    """Write a CSV of prediction strings, a row for every image of `dataset`, images without boxes too.

    image_id is the file name. The contest's string repeats `label score xmin ymin xmax ymax ` with 0-based labels in
    pixels, under the header `PredictionString,image_id`; other layouts have the columns in the other order.

    Raises:
        InputError: an image of `dataset` was not predicted, or the layout has no labels and there are several classes.
    """
    if "label" not in layout.before and len(dataset.classes) > 1:
        raise InputError(
            f"{path}: {layout.name} has no labels, and {dataset.source} has {len(dataset.classes)} classes, expected one; "
            f"choose a layout with labels, such as label_{layout.name}."
        )
    predictions = predictions.select_images(dataset.image_ids)
    sizes = image_sizes(predictions.image_ids[predictions.image_index], dataset)
    words = layout.to_words(predictions.boxes, predictions.scores, predictions.labels, sizes).tolist()
    header = HEADER if layout == CONTEST else OTHER_HEADER
    box_text = layout.text + " "
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(header)
    for sample, (start, end) in zip(dataset.samples, pairwise(predictions.offsets.tolist()), strict=True):
        string = "".join(box_text.format(*box) for box in words[start:end])
        row = {"PredictionString": string, "image_id": sample.file_name}
        writer.writerow([row[column] for column in header])
    write_text(path, lines.getvalue())
    tell_of_formulas(path, [sample.file_name for sample in dataset.samples])


def _read_table(path: Path, dataset: Dataset) -> Table:
    id_of = image_names(dataset)
    label_of = {name: str(label) for label, name in enumerate(dataset.classes)}
    image_ids: list[int] = []
    words: list[Array] = []
    lines: list[int] = []
    seen: set[int] = set()
    csv.field_size_limit(2**31 - 1)
    try:
        reader = csv.reader(io.StringIO(read_text(path, what="a CSV of predictions"), newline=""), strict=True)
        header = tuple(next(reader, ()))
        string_column, image_column = _columns(path, header)
        for row in reader:
            where = f"{path}: line {reader.line_num}"
            if len(row) != 2:
                raise InputError(f"{where} has {len(row)} columns, expected 2: {','.join(header)}.")
            image_id = id_of.get(row[image_column])
            if image_id is None:
                raise unknown_image(where, row[image_column], dataset)
            if image_id in seen:
                raise InputError(f"{where}: {row[image_column]!r} has two rows. Keep one row per image.")
            seen.add(image_id)
            image_ids.append(image_id)
            words.append(_numbers(row[string_column].split(), label_of, where))
            lines.append(reader.line_num)
    except csv.Error as error:
        raise InputError(f"{path}: is not a CSV ({error}).") from None
    return Table(header, image_ids, words, lines)


def _columns(path: Path, header: tuple[str, ...]) -> tuple[int, int]:
    """Indices of the column of strings and of the column of images."""
    names = [name.strip().lower() for name in header]
    strings = [i for i, name in enumerate(names) if name in STRING_COLUMNS]
    images = [i for i, name in enumerate(names) if name in IMAGE_COLUMNS]
    if len(header) != 2 or len(strings) != 1 or len(images) != 1:
        extra = " There is an index column: write the file without one." if "" in names else ""
        raise InputError(f"{path}: line 1: the header is {','.join(header)!r}, expected {','.join(HEADER)!r}.{extra}")
    return strings[0], images[0]


def _numbers(words: Iterable[str], label_of: dict[str, str], where: str) -> Array:
    """The words as numbers, class names as labels."""
    words = list(words)
    try:
        numbers = np.array(words, np.float64)
    except ValueError:
        try:
            numbers = np.array([label_of.get(word, word) for word in words], np.float64)
        except ValueError as error:
            raise InputError(f"{where}: a word is neither a number nor a class name ({error}).") from None
    if not np.isfinite(numbers).all():
        raise InputError(f"{where}: holds {words[int(np.argmin(np.isfinite(numbers)))]}, expected finite numbers.")
    return numbers


def _only_layout(path: Path, table: Table, counts: set[int], dataset: Dataset) -> Layout:
    """The layout of a CSV: the contest's for the contest's header, else the only layout that the numbers allow."""
    if table.header == HEADER or counts <= {0}:  # without a single box, all layouts are the same
        return CONTEST
    possible = []
    for layout in LAYOUTS.values():
        if not any(count % layout.num_words for count in counts):
            words, image_ids, _ = _stack(table, layout.num_words)
            if layout.fits(words, image_sizes(image_ids, dataset), len(dataset.classes)):
                possible.append(layout)
    if len(possible) == 1:
        return possible[0]
    if not possible:
        raise InputError(
            f"{path}: its numbers fit no known layout: labels, scores or boxes are out of range, or a row is cut "
            f"short. Name the layout with format= or --input-format, one of {', '.join(LAYOUTS)}."
        )
    raise InputError(
        f"{path}: its numbers fit the layouts {' or '.join(layout.name for layout in possible)}. "
        "Name the right one with format=, in a command with --input-format."
    )


def _stack(table: Table, num_words: int) -> tuple[Array, Array, Array]:
    """All words as (n, num_words), and the image id and the row of each box; every row must hold whole boxes."""
    counts = np.array([len(words) // num_words for words in table.words], np.int64)
    words = np.concatenate([np.zeros(0), *table.words]).reshape(-1, num_words)
    rows = np.repeat(np.arange(len(counts)), counts)
    return words, np.array(table.image_ids, np.int64)[rows], rows
