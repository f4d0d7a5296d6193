"""Prediction strings: one CSV row a picture, all its boxes as words in one cell. The contest's own, and its many cousins.

The cousins differ in what stands before the box (label and score, in either order, or the score alone), in what the four
numbers mean (xyxy, xywh, cxcywh) and in their unit (pixels, or shares of the picture's sides). A `Layout` says which.
The contest's header stands for the contest's layout. Under another header the numbers rule most layouts out; the one that
is left is taken, and if several are left the caller has to choose.
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
from foldfuse.formats.box_table import Rows, names_of, sides_of, unknown_image
from foldfuse.system.atomic_files import write_text

HEADER = ("PredictionString", "image_id")
OTHER_HEADER = ("image_id", "PredictionString")  # of the cousins, so that none is taken for the contest's
STRING_COLUMNS = {"predictionstring", "prediction_string", "predictions", "prediction"}
IMAGE_COLUMNS = {"image_id", "imageid", "image", "id", "file_name", "filename", "patientid"}
SLACK = 0.02  # share of a side by which a plausible box may stick out of its picture
LARGEST_SHARE = 1.5  # coordinates that never pass this are shares of a side, not pixels


@dataclass(frozen=True)
class Layout:
    """What the words of one box mean.

    Attributes:
        before: the words before the box: "label_score", "score_label" or "score".
        box: "xyxy", "xywh" (left, top, width, height) or "cxcywh" (centre, width, height).
        share: whether coordinates are shares of the picture's sides instead of pixels.
    """

    before: str
    box: str
    share: bool

    @property
    def name(self) -> str:
        """Such as "label_score_xyxy" or "score_xywh_share"."""
        return f"{self.before}_{self.box}{'_share' if self.share else ''}"

    @property
    def num_words(self) -> int:
        """Words per box."""
        return 4 + len(self.before.split("_"))

    def rows(self, words: Array, sides: Array) -> tuple[Array, Array, Array]:
        """(n, num_words) numbers and (n, 2) widths and heights -> xyxy boxes in pixels, scores, labels (not checked)."""
        before = self.before.split("_")
        scores = words[:, before.index("score")]
        labels = words[:, before.index("label")] if "label" in before else np.zeros(len(words))
        boxes = words[:, len(before) :] * (np.tile(sides, 2) if self.share else 1)
        if self.box == "cxcywh":
            boxes = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], 1)
        return boxes if self.box == "xyxy" else xywh_to_xyxy(boxes), scores, labels

    def words(self, boxes: Array, scores: Array, labels: Array, sides: Array) -> Array:
        """The inverse of `rows`: (n, num_words) float64."""
        boxes = boxes.astype(np.float64)
        if self.box != "xyxy":
            boxes = xyxy_to_xywh(boxes)
        if self.box == "cxcywh":
            boxes = np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], 1)
        before = [{"score": scores, "label": labels}[word] for word in self.before.split("_")]
        return np.column_stack([*before, boxes / (np.tile(sides, 2) if self.share else 1)])

    @property
    def text(self) -> str:
        """How the words of one box are written: a string to call `format` of."""
        before = [{"score": "{:.6f}", "label": "{:.0f}"}[word] for word in self.before.split("_")]
        return " ".join([*before, *["{:.8f}" if self.share else "{:.3f}"] * 4])

    def fits(self, words: Array, sides: Array, num_classes: int) -> bool:
        """Whether every box could be meant so: labels and scores in range, boxes upright and on their pictures."""
        if "label" not in self.before and num_classes > 1:
            return False
        if len(words) and self.share != bool((words[:, -4:] <= LARGEST_SHARE).all()):
            return False
        boxes, scores, labels = self.rows(words, sides)
        slack = SLACK * np.tile(sides, 2)
        return bool(
            ((scores >= 0) & (scores <= 1)).all()
            and ((labels >= 0) & (labels < num_classes) & (labels % 1 == 0)).all()
            and (boxes[:, 2:] >= boxes[:, :2]).all()
            and ((boxes >= -slack) & (boxes <= np.tile(sides, 2) + slack)).all()
        )


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(before, box, share)
        for before, box, share in product(
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
        image_ids: of each row.
        words: of each row, (its words,) float64.
        lines: of each row, the number of its line in the file.
    """

    header: tuple[str, ...]
    image_ids: list[int]
    words: list[Array]
    lines: list[int]


def read_strings(path: Path, dataset: Dataset, *, layout: Layout | None) -> tuple[Rows, Layout]:
    """The boxes of a CSV, and the layout in which they were read: the one given, or the one that its numbers allow.

    Raises:
        InputError: a row cannot be, or the numbers allow more than one layout, or none.
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
    boxes, scores, labels = layout.rows(words, sides_of(image_ids, dataset))
    lines = np.array(table.lines, np.int64)[rows]
    if (wrong := labels % 1 != 0).any():
        i = int(np.argmax(wrong))
        raise InputError(f"{path}: line {lines[i]} has the label {labels[i]:g}, expected a whole number.")
    where = lambda i: f"{path}: line {lines[i]}: a box"  # noqa: E731
    return Rows(image_ids, boxes, scores, labels.astype(np.int64), table.image_ids, where), layout


def write_strings(predictions: Predictions, path: Path, dataset: Dataset, *, layout: Layout = CONTEST) -> None:
    """Write a CSV of prediction strings, a row for every picture of `dataset`, also the empty ones.

    image_id is the file name. The contest's string repeats `label score xmin ymin xmax ymax ` with 0-based labels in
    pixels, under the header `PredictionString,image_id`; other layouts have the columns the other way round.

    Raises:
        InputError: a picture of `dataset` was not predicted, or the layout has no labels and there are several classes.
    """
    if "label" not in layout.before and len(dataset.classes) > 1:
        raise InputError(
            f"{path}: {layout.name} has no labels, and {dataset.source} has {len(dataset.classes)} classes, expected one; "
            f"choose a layout with labels, such as label_{layout.name}."
        )
    predictions = predictions.select_images(dataset.image_ids)
    sides = sides_of(predictions.image_ids[predictions.image_index], dataset)
    words = layout.words(predictions.boxes, predictions.scores, predictions.labels, sides).tolist()
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


def _read_table(path: Path, dataset: Dataset) -> Table:
    id_of = names_of(dataset)
    label_of = {name: str(label) for label, name in enumerate(dataset.classes)}
    image_ids: list[int] = []
    words: list[Array] = []
    lines: list[int] = []
    seen: set[int] = set()
    csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
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
                    raise InputError(f"{where}: {row[image_column]!r} stands there twice. Keep one row a picture.")
                seen.add(image_id)
                image_ids.append(image_id)
                words.append(_numbers(row[string_column].split(), label_of, where))
                lines.append(reader.line_num)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: is not a CSV in UTF-8 ({error}).") from None
    return Table(header, image_ids, words, lines)


def _columns(path: Path, header: tuple[str, ...]) -> tuple[int, int]:
    """Positions of the column of strings and of the column of pictures."""
    names = [name.strip().lower() for name in header]
    strings = [i for i, name in enumerate(names) if name in STRING_COLUMNS]
    pictures = [i for i, name in enumerate(names) if name in IMAGE_COLUMNS]
    if len(header) != 2 or len(strings) != 1 or len(pictures) != 1:
        extra = " An index column slipped in: write the file without one." if "" in names else ""
        raise InputError(f"{path}: line 1: the header is {','.join(header)!r}, expected {','.join(HEADER)!r}.{extra}")
    return strings[0], pictures[0]


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
    """The contest's layout under the contest's header, the one that the numbers allow under another."""
    if table.header == HEADER or counts <= {0}:  # where nothing was found anywhere, every layout says so alike
        return CONTEST
    possible = []
    for layout in LAYOUTS.values():
        if not any(count % layout.num_words for count in counts):
            words, image_ids, _ = _stack(table, layout.num_words)
            if layout.fits(words, sides_of(image_ids, dataset), len(dataset.classes)):
                possible.append(layout)
    if len(possible) == 1:
        return possible[0]
    if not possible:
        raise InputError(
            f"{path}: its numbers fit no layout known here: labels, scores or boxes are out of range, or a row is cut "
            f"short. Say which layout it is, with format= or --read-as, one of {', '.join(LAYOUTS)}."
        )
    raise InputError(
        f"{path}: its numbers could be meant as {' or '.join(layout.name for layout in possible)}. "
        "Say which with format=, in a command with --read-as."
    )


def _stack(table: Table, num_words: int) -> tuple[Array, Array, Array]:
    """All words as (n, num_words), and of each box the image id and the row; every row must hold whole boxes."""
    counts = np.array([len(words) // num_words for words in table.words], np.int64)
    words = np.concatenate([np.zeros(0), *table.words]).reshape(-1, num_words)
    rows = np.repeat(np.arange(len(counts)), counts)
    return words, np.array(table.image_ids, np.int64)[rows], rows
