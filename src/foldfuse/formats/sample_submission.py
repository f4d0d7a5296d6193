"""Reads the sample submission of a contest: everything that a submission must share with it.

A sample is a CSV with one row an image (prediction strings) or one row a box. It shows the columns and their order, the ids of
the images and their order, the words of classes, the form of the boxes, and what stands for an image without boxes. Whatever it
leaves open is never guessed: the sentence names the option that settles it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.errors import InputError, shown, unknown_name
from foldfuse.formats import box_rows, prediction_strings
from foldfuse.formats.box_forms import FORMS, MAX_NORMALIZED, BoxForm
from foldfuse.formats.box_rows import find_box_columns, is_box_rows
from foldfuse.formats.class_keys import CategoryIds
from foldfuse.formats.csv_text import CLASS_COLUMNS, IMAGE_COLUMNS, SCORE_COLUMNS, STRING_COLUMNS, CsvFile, read_csv
from foldfuse.formats.image_keys import ImageIds, match_images
from foldfuse.formats.prediction_strings import HEADER, LAYOUTS, STUDY, Layout
from foldfuse.formats.raw_boxes import as_number
from foldfuse.formats.sample_contents import find_labels, find_layout, is_no_box
from foldfuse.system.files import read_start

EMPTY = {"", "nan", "none", "null", "na"}
FEW = 0.5  # a sample of rows for boxes that names fewer of the images is an example, and does not list them


@dataclass(frozen=True, eq=False)
class SampleSubmission:
    """What a submission must share with a sample.

    Attributes:
        path: the sample.
        csv_file: its cells.
        kind: "strings" for a row an image, "boxes" for a row a box.
        image_column: index of the column of images.
        value_columns: indices of the other columns that the submission fills: the strings; or class (-1 where there is none),
            score and the one or four of the box.
        image_ids: the dataset's id of the image of each row, 0 for a row that is copied.
        copied: whether each row is about no image of the dataset, and is copied.
        reading: how the sample names images.
        layout: the words of a box; of rows for boxes, their form alone counts.
        labels: the word of each class.
        labels_are: what the words are.
        empty: the cells of `value_columns` for an image without boxes; None where such an image has no row.
        ends_with_blank: whether a string of boxes ends with a blank.
        is_list: whether the one column of a box has its numbers in brackets, with commas.
        notes: sentences for the user on what the sample does not show.
    """

    path: Path
    csv_file: CsvFile
    kind: Literal["strings", "boxes"]
    image_column: int
    value_columns: tuple[int, ...]
    image_ids: tuple[int, ...]
    copied: tuple[bool, ...]
    reading: ImageIds
    layout: Layout
    labels: tuple[str, ...]
    labels_are: CategoryIds
    empty: tuple[str, ...] | None
    ends_with_blank: bool
    is_list: bool
    notes: tuple[str, ...]


def read_sample(
    path: Path,
    dataset: Dataset,
    *,
    format: str | None = None,
    labels: CategoryIds | None = None,
    names: ImageIds | None = None,
) -> SampleSubmission:
    """The SampleSubmission in a CSV.

    Args:
        path: the sample.
        dataset: the test images.
        format: the layout of the boxes, such as "label_score_xyxy" or "csv_boxes_xywh", where the sample leaves it open.
        labels: what a label is, where the sample leaves it open.
        names: whether the sample names images by "id" or by "name", where it leaves this open.

    Raises:
        InputError: the file is no such sample, its images are not those of `dataset`, or it leaves open what no option settles.
    """
    if read_start(path, what="a sample submission").lstrip()[:1] in (b"[", b"{"):
        raise InputError(f"{path}: is JSON. COCO results need no sample: leave out --like, and end --out in .json.")
    csv_file = read_csv(path, what="a sample submission")
    if format is not None and format not in (known := (*LAYOUTS, *box_rows.FORMATS)):
        raise unknown_name("layout of boxes", format, known)
    images = csv_file.column(IMAGE_COLUMNS)
    strings = csv_file.column(STRING_COLUMNS)
    if images is None or (strings is None and not is_box_rows(csv_file)):
        raise InputError(
            f"{path}: line 1: the columns {shown(','.join(csv_file.header))} are no sample of a submission of boxes, expected "
            f"{','.join(HEADER)!r}, or a row for each box with columns such as {','.join(box_rows.HEADER)}."
        )
    if not csv_file.rows:
        raise InputError(f"{path}: has a header and no rows, expected a row for each test image.")
    if strings is not None:
        return _sample_of_strings(path, csv_file, images, strings, dataset, format, labels, names)
    return _sample_of_boxes(path, csv_file, images, dataset, format, labels, names)


def _sample_of_strings(
    path: Path,
    csv_file: CsvFile,
    images: int,
    strings: int,
    dataset: Dataset,
    format: str | None,
    labels: CategoryIds | None,
    names: ImageIds | None,
) -> SampleSubmission:
    if format is not None and format not in LAYOUTS:
        raise InputError(f"{path}: has one row an image, so --format is one of {', '.join(LAYOUTS)}; got {format}.")
    keys = [row[images].strip() for row in csv_file.rows]
    copied = [key.endswith(STUDY) for key in keys]
    image_ids, reading = _images(path, csv_file, keys, copied, dataset, names)
    _refuse_repeats(path, csv_file, keys, image_ids)
    _refuse_lacking(path, image_ids, dataset)
    cells = [row[strings] for row, is_copied in zip(csv_file.rows, copied, strict=True) if not is_copied]
    ids = np.array([i for i, is_copied in zip(image_ids, copied, strict=True) if not is_copied], np.int64)
    words = [[] if cell.strip().lower() in EMPTY else cell.split() for cell in cells]
    no_box = [is_no_box(each, dataset) for each in words]
    shown_boxes = [w for w, is_no in zip(words, no_box, strict=True) if w and not is_no]
    notes = [f"{sum(copied)} rows about studies are copied from the sample."] if any(copied) else []
    layout = LAYOUTS[format] if format is not None else find_layout(path, csv_file, words, no_box, ids, dataset)
    prediction_strings.check_labels(layout, dataset, path)
    blank = Counter(cell for cell, w in zip(cells, words, strict=True) if not w)
    standing = Counter(cell for cell, is_no in zip(cells, no_box, strict=True) if is_no)
    if blank or standing:
        empty = (blank or standing).most_common(1)[0][0]
    else:
        empty = ""
        notes.append("the sample shows no image without boxes: such an image gets an empty string.")
    label_words: set[str] = set()
    if layout.label_column is not None:
        label_words = {w[i + layout.label_column] for w in shown_boxes for i in range(0, len(w), layout.num_words)}
    standing_word = (
        empty.split()[layout.label_column] if layout.label_column is not None and len(empty.split()) == 6 else None
    )
    chosen, texts = find_labels(
        path, label_words, standing_word, layout.label_column is None, dataset, labels, csv_file
    )
    return SampleSubmission(
        path=path,
        csv_file=csv_file,
        kind="strings",
        image_column=images,
        value_columns=(strings,),
        image_ids=tuple(image_ids),
        copied=tuple(copied),
        reading=reading,
        layout=layout,
        labels=texts,
        labels_are=chosen,
        empty=(empty,),
        ends_with_blank=any(cell.endswith(" ") for cell, w in zip(cells, words, strict=True) if w),
        is_list=False,
        notes=tuple(notes),
    )


def _sample_of_boxes(
    path: Path,
    csv_file: CsvFile,
    images: int,
    dataset: Dataset,
    format: str | None,
    labels: CategoryIds | None,
    names: ImageIds | None,
) -> SampleSubmission:
    if format is not None and format not in box_rows.FORMATS:
        raise InputError(
            f"{path}: has one row a box, so --format is one of {', '.join(box_rows.FORMATS)}; got {format}."
        )
    found = find_box_columns(csv_file)
    score, label = csv_file.column(SCORE_COLUMNS), csv_file.column(CLASS_COLUMNS)
    assert found is not None, "the caller looks for the columns of the box"
    form, boxes = found
    if score is None:
        raise InputError(f"{path}: line 1: no column of {shown(','.join(csv_file.header))} is the score of a box.")
    if label is None and len(dataset.classes) > 1:
        raise InputError(
            f"{path}: line 1: no column of {shown(','.join(csv_file.header))} is the class, and {dataset.source} has "
            f"{len(dataset.classes)} classes."
        )
    others = set(range(len(csv_file.header))) - {images, score, label, *boxes}
    for column in sorted(others):
        if len({row[column] for row in csv_file.rows}) > 1:
            raise InputError(
                f"{path}: line 1: the meaning of the column {shown(csv_file.header[column])} is not known, and its cells differ. "
                "Leave it out of the sample, or fill it after the submission is written."
            )
    keys = [row[images].strip() for row in csv_file.rows]
    image_ids, reading = _images(path, csv_file, keys, [False] * len(keys), dataset, names)
    notes = []
    if len(set(image_ids)) >= FEW * len(dataset):
        _refuse_lacking(path, image_ids, dataset)
    else:
        notes.append(
            f"the sample names {len(set(image_ids))} of {len(dataset)} images: the others follow in the order of the data."
        )
    values = (-1 if label is None else label, score, *boxes)
    known = box_rows.known_words(dataset)
    is_empty = [box_rows.is_empty(row, [row[c].strip() for c in boxes], label, known) for row in csv_file.rows]
    empty = None
    if any(is_empty):
        row = csv_file.rows[is_empty.index(True)]
        empty = tuple("" if c < 0 else row[c] for c in values)
    else:
        notes.append("the sample shows no image without boxes: such an image gets no row.")
    given = box_rows.FORMATS[format] if format is not None else None
    numbers = [
        [as_number(word) for word in " ".join(row[c] for c in boxes).replace(",", " ").strip(" []()").split()]
        for row, is_no in zip(csv_file.rows, is_empty, strict=True)
        if not is_no
    ]
    if given is None and form is None:
        raise InputError(
            f"{path}: line 1: {shown(csv_file.header[boxes[0]])} does not say what its four numbers are. Add --format "
            f"{' or '.join(f'csv_boxes_{name}' for name in FORMS if not name.endswith('normalized'))}, or one of these with "
            "_normalized for shares of the image's sides."
        )
    flat = [number for row in numbers for number in row if number is not None]
    shares = form is not None and bool(flat) and 0 < max(flat) <= MAX_NORMALIZED
    chosen_form = given or BoxForm(form.box if form is not None else "xyxy", shares)
    words = (
        {row[label].strip() for row, is_no in zip(csv_file.rows, is_empty, strict=True) if not is_no}
        if label is not None
        else set()
    )
    standing = None if empty is None or label is None else empty[0].strip()
    chosen, texts = find_labels(path, words, standing, label is None, dataset, labels, csv_file)
    return SampleSubmission(
        path=path,
        csv_file=csv_file,
        kind="boxes",
        image_column=images,
        value_columns=values,
        image_ids=tuple(image_ids),
        copied=(False,) * len(keys),
        reading=reading,
        layout=Layout("score_label", chosen_form),
        labels=texts,
        labels_are=chosen,
        empty=empty,
        ends_with_blank=False,
        is_list=len(boxes) == 1 and any("[" in row[boxes[0]] for row in csv_file.rows),
        notes=tuple(notes),
    )


def _images(
    path: Path,
    csv_file: CsvFile,
    keys: Sequence[str],
    copied: Sequence[bool],
    dataset: Dataset,
    names: ImageIds | None,
) -> tuple[list[int], ImageIds]:
    """The image id of each row, 0 for a copied row, and how the sample names images."""
    rows = [i for i, is_copied in enumerate(copied) if not is_copied]
    where = lambda i: f"{path}: line {csv_file.lines[rows[i]]}"  # noqa: E731
    try:
        found = match_images([keys[i] for i in rows], dataset, where=where, reading=names)
    except InputError as error:
        raise InputError(
            str(error).replace("--image-ids", "--image-names").replace("data that was predicted", "test images")
        ) from None
    image_ids = [0] * len(keys)
    for i, image_id in zip(rows, found.image_ids.tolist(), strict=True):
        image_ids[i] = image_id
    return image_ids, found.reading


def _refuse_repeats(path: Path, csv_file: CsvFile, keys: Sequence[str], image_ids: Sequence[int]) -> None:
    seen: set[tuple[int, bool]] = set()
    for key, image_id, line in zip(keys, image_ids, csv_file.lines, strict=True):
        if key.endswith(STUDY):
            continue
        if (image_id, False) in seen:
            raise InputError(f"{path}: line {line}: {shown(key)} has two rows, expected one row an image.")
        seen.add((image_id, False))


def _refuse_lacking(path: Path, image_ids: Sequence[int], dataset: Dataset) -> None:
    """Raises InputError where the dataset has images that the sample does not name."""
    lacking = [s for s in dataset.samples if s.id not in set(image_ids)] if len(set(image_ids)) < len(dataset) else []
    if lacking:
        raise InputError(
            f"{path}: names {len(dataset) - len(lacking)} of the {len(dataset)} images of {dataset.source}, and lacks "
            f"{len(lacking)}, such as {shown(lacking[0].file_name)}. Give the sample and the test images of one contest."
        )


def image_texts(sample: SampleSubmission, dataset: Dataset) -> dict[int, str]:
    """{image id: the text that names the image in a submission}, in the order of the sample.

    Images that the sample does not name follow in the data's order; they are named as the first image of the sample is.

    Raises:
        InputError: the sample does not show the name of an image.
    """
    texts: dict[int, str] = {}
    for row, image_id, is_copied in zip(sample.csv_file.rows, sample.image_ids, sample.copied, strict=True):
        if not is_copied:
            texts.setdefault(image_id, row[sample.image_column])
    first = next(iter(texts))
    example = next(s for s in dataset.samples if s.id == first)
    for other in dataset.samples:
        if other.id in texts:
            continue
        kinds = {
            str(example.organiser_id): str(other.organiser_id),
            Path(example.file_name).stem: Path(other.file_name).stem,
            Path(example.file_name).name: Path(other.file_name).name,
            example.file_name: other.file_name,
        }
        if texts[first] not in kinds:
            raise InputError(
                f"{sample.path}: names {shown(example.file_name)} as {shown(texts[first])}, and does not show the name of "
                f"{shown(other.file_name)}. Give a sample with all test images."
            )
        texts[other.id] = kinds[texts[first]]
    return texts
