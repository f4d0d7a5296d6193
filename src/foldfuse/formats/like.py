"""Writes submissions like a contest's sample, and reads them back."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Predictions
from foldfuse.formats.box_rows import read_box_rows
from foldfuse.formats.box_table import image_sizes, to_predictions
from foldfuse.formats.coco_results import score_texts
from foldfuse.formats.csv_text import read_csv
from foldfuse.formats.formulas import warn_of_formulas
from foldfuse.formats.prediction_strings import box_words, read_strings
from foldfuse.formats.raw_boxes import ReadAs
from foldfuse.formats.sample_submission import SampleSubmission, image_texts
from foldfuse.system.atomic_files import write_text


def write_like(predictions: Predictions, sample: SampleSubmission, path: Path, dataset: Dataset) -> None:
    """Write the predictions of all images of `dataset` in the columns, ids, order, words and quotes of a sample."""
    csv_file = sample.csv_file
    lines = io.StringIO()
    writer = csv.writer(
        lines,
        lineterminator=csv_file.newline,
        delimiter=csv_file.separator,
        quoting=csv.QUOTE_ALL if csv_file.is_all_quoted else csv.QUOTE_MINIMAL,
    )
    writer.writerow(csv_file.header)
    rows = _rows_of_strings if sample.kind == "strings" else _rows_of_boxes
    writer.writerows(rows(predictions, sample, dataset))
    text = lines.getvalue()
    write_text(path, text if csv_file.ends_with_newline else text.removesuffix(csv_file.newline))
    warn_of_formulas(path, [row[sample.image_column] for row in csv_file.rows])


def read_like(path: Path, sample: SampleSubmission, dataset: Dataset) -> Predictions:
    """The predictions in a submission that `write_like` wrote, of the images that it has rows for."""
    csv_file = read_csv(path, what="a submission")
    if sample.kind == "strings":
        assert sample.empty is not None, "a string stands for an image without boxes"
        column = sample.value_columns[0]
        for row in csv_file.rows:  # what stands for no box may be a box of a class of the data
            row[column] = "" if row[column] == sample.empty[0] else row[column]
        table, _ = read_strings(path, dataset, ReadAs(sample.layout.name, sample.reading, sample.labels_are), csv_file)
    else:
        format = f"csv_boxes_{sample.layout.form.name}"
        table = read_box_rows(path, dataset, ReadAs(format, sample.reading, sample.labels_are), csv_file)
    return to_predictions(table, dataset)


def _rows_of_strings(predictions: Predictions, sample: SampleSubmission, dataset: Dataset) -> Iterator[list[str]]:
    words = dict(
        zip(predictions.image_ids.tolist(), box_words(predictions, dataset, sample.layout, sample.labels), strict=True)
    )
    assert sample.empty is not None, "a string stands for an image without boxes"
    end = " " if sample.ends_with_blank else ""
    for row, image_id, is_copied in zip(sample.csv_file.rows, sample.image_ids, sample.copied, strict=True):
        filled = list(row)
        if not is_copied:
            boxes = words[image_id]
            filled[sample.value_columns[0]] = " ".join(boxes) + end if boxes else sample.empty[0]
        yield filled


def _rows_of_boxes(predictions: Predictions, sample: SampleSubmission, dataset: Dataset) -> Iterator[list[str]]:
    form = sample.layout.form
    sizes = image_sizes(predictions.image_ids[predictions.image_index], dataset)
    digits = 8 if form.normalized else 3
    numbers = form.from_xyxy(predictions.boxes, sizes).tolist()
    scores, labels = score_texts(predictions), predictions.labels.tolist()
    spans = dict(zip(predictions.image_ids.tolist(), pairwise(predictions.offsets.tolist()), strict=True))
    label_column, score_column, *box_columns = sample.value_columns
    for image_id, name in image_texts(sample, dataset).items():
        start, end = spans[image_id]
        filled = list(sample.csv_file.rows[0])  # a column of no known meaning has the same cell in all rows
        filled[sample.image_column] = name
        if start == end and sample.empty is not None:
            for column, cell in zip(sample.value_columns, sample.empty, strict=True):
                if column >= 0:
                    filled[column] = cell
            yield filled
        for i in sorted(range(start, end), key=lambda i: -float(scores[i])):
            row = list(filled)
            if label_column >= 0:
                row[label_column] = sample.labels[labels[i]]
            row[score_column] = scores[i]
            words = [f"{value:.{digits}f}" for value in numbers[i]]
            if len(box_columns) == 1:
                words = [f"[{', '.join(words)}]" if sample.is_list else " ".join(words)]
            for column, word in zip(box_columns, words, strict=True):
                row[column] = word
            yield row
