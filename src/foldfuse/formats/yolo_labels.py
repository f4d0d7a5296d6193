"""Reads and writes predictions as a folder of YOLO text files: one `.txt` per image, one line `class cx cy w h score` per box.

Centre, width and height are fractions of the image's width and height; classes count from 0. A file has the name of its image
with another ending. Where two images would share a file, each file is in a sub-folder named as its image's sub-folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Array, Predictions
from foldfuse.errors import InputError, shown
from foldfuse.formats.box_forms import FORMS, MAX_NORMALIZED
from foldfuse.formats.box_table import BoxTable, image_sizes
from foldfuse.formats.coco_results import score_texts
from foldfuse.formats.image_keys import ImageNames
from foldfuse.formats.raw_boxes import RawBoxes, ReadAs, to_table
from foldfuse.system.atomic_files import atomic_folder
from foldfuse.system.files import read_text

FORM = FORMS["cxcywh_normalized"]
FEWEST = 5  # boxes that show in which order their numbers are
SLIP = 0.02  # share of the image's side by which a box may stick out without being counted


def read_yolo(path: Path, dataset: Dataset, read_as: ReadAs) -> BoxTable:
    """The boxes in a folder; an image of `dataset` without a file counts as predicted, without boxes.

    Raises:
        InputError: a file belongs to no image, or a line is not six numbers.
    """
    files = sorted(path.rglob("*.txt"))
    keys = [_stem_in_folder(file.relative_to(path)) for file in files]
    rows: list[list[float]] = []
    row_keys: list[str] = []
    places: list[str] = []
    for file, key in zip(files, keys, strict=True):
        for number, line in enumerate(_lines(file), 1):
            try:
                row = [float(word) for word in line.split()]
            except ValueError:
                raise InputError(f"{file}: line {number}: {shown(line)} is not numbers.") from None
            if len(row) != 6 or not np.isfinite(row).all() or row[0] % 1:
                raise InputError(
                    f"{file}: line {number} is {shown(line)}, expected six numbers: class cx cy w h score. "
                    "A file of labels has no scores: predict with confidences saved."
                )
            rows.append(row)
            row_keys.append(key)
            places.append(f"{file}: line {number}")
    table = np.array(rows, np.float64).reshape(-1, 6)
    large = table[:, 1:5].max(1) > MAX_NORMALIZED
    if 2 * large.sum() > len(table):
        i = int(np.argmax(large))
        raise InputError(
            f"{places[i]}: the box {' '.join(f'{v:g}' for v in table[i, 1:5])} is no share of the image's sides, expected "
            "centre, width and height as numbers in 0..1. Divide pixels by the image's width and height."
        )
    if _is_score_first(table):
        raise InputError(
            f"{places[0]}: the lines look like class, score, cx, cy, w, h: so read, every box lies in its image, and as class, "
            "cx, cy, w, h, score most do not. Write the score last."
        )
    names = ImageNames(dataset)
    is_named = all(names.look_up(key, "name") is not None for key in keys)  # a file's name may equal another image's id
    raw = RawBoxes(
        image_keys=row_keys,
        class_keys=table[:, 0].astype(np.int64).tolist(),
        numbers=table[:, 1:5],
        scores=table[:, 5],
        where=places.__getitem__,
        form=FORM,
        is_form_given=True,
        convention="from_zero",
        class_word="class",
        option=lambda form: "yolo",
        predicted_keys=keys,
        where_predicted=lambda i: str(files[i]),
    )
    image_ids = read_as.image_ids or ("name" if is_named else None)
    result = to_table(raw, path, dataset, ReadAs("yolo", image_ids, read_as.category_ids))
    how = tuple(text.removesuffix(", as the option says") if read_as.image_ids is None else text for text in result.how)
    return replace(result, predicted=dataset.image_ids, how=how)


def _is_score_first(table: Array) -> bool:
    """Whether most boxes lie in their images only if the second of the six numbers (n, 6) is the score."""
    out = _sticks_out(table[:, 1:5])
    return len(table) >= FEWEST and 2 * out.sum() > len(table) and not _sticks_out(table[:, 2:6]).any()


def _sticks_out(shares: Array) -> Array:
    """(n,) bool of boxes (n, 4) cx cy w h in shares: whether the box sticks out of its image by more than a slip."""
    centre, half = shares[:, :2], shares[:, 2:] / 2
    return np.asarray(((centre - half < -SLIP) | (centre + half > 1 + SLIP)).any(axis=1))


def write_yolo(predictions: Predictions, path: Path, dataset: Dataset) -> None:
    """Write a folder with a file for every image of `dataset`, an empty one for an image without boxes.

    Raises:
        InputError: an image of `dataset` was not predicted, two have the same name, or `path` is not new or empty.
    """
    predictions = predictions.select_images(dataset.image_ids)
    names = _file_names(dataset, path)
    sizes = image_sizes(predictions.image_ids[predictions.image_index], dataset)
    lines = [
        f"{label} {x:.8f} {y:.8f} {w:.8f} {h:.8f} {score}\n"
        for label, (x, y, w, h), score in zip(
            predictions.labels.tolist(),
            FORM.from_xyxy(predictions.boxes, sizes).tolist(),
            score_texts(predictions),
            strict=True,
        )
    ]
    with atomic_folder(path) as folder:
        for name, (start, end) in zip(names, pairwise(predictions.offsets.tolist()), strict=True):
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(lines[start:end]), encoding="utf-8", newline="")


def _lines(file: Path) -> list[str]:
    return read_text(file, what="YOLO labels").splitlines()


def _file_names(dataset: Dataset, path: Path) -> list[str]:
    """The file name of each image in the folder; with sub-folders only where the names are not unique without them."""
    for name in (_stem, _stem_in_folder):
        if len(_named(dataset, name)) == len(dataset):
            names = [name(Path(sample.file_name)) for sample in dataset.samples]
            if not any(Path(n).is_absolute() or ".." in Path(n).parts for n in names):
                return [f"{n}.txt" for n in names]
    raise InputError(
        f"{path}: images of {dataset.source} differ only in their endings or lie outside its folder, expected a unique "
        "name for each file of a YOLO folder. Choose another format."
    )


def _stem(file_name: Path) -> str:
    return file_name.stem


def _stem_in_folder(file_name: Path) -> str:
    return file_name.with_suffix("").as_posix()


def _named(dataset: Dataset, name: Callable[[Path], str]) -> dict[str, int]:
    """{`name` of an image's file name: its image id}, without names that two images share."""
    names = [name(Path(sample.file_name)) for sample in dataset.samples]
    count = Counter(names)
    return {n: i for n, i in zip(names, dataset.image_ids, strict=True) if count[n] == 1}
