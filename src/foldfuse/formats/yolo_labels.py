"""Reads and writes predictions as a folder of YOLO text files: one `.txt` per image, one line `class cx cy w h score` per box.

Centre, width and height are fractions of the image's width and height; classes count from 0. A file has the name of its image
with another ending. Where two images would share a file, each file is in a sub-folder named as its image's sub-folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Predictions
from foldfuse.errors import InputError
from foldfuse.formats.box_table import BoxTable, image_names, image_sizes, unknown_image
from foldfuse.formats.prediction_strings import LAYOUTS
from foldfuse.system.atomic_files import atomic_folder
from foldfuse.system.files import read_text

WORDS = LAYOUTS["label_score_cxcywh_normalized"]  # the same six numbers as a YOLO line, with the score second
LINE = "{:.0f} {:.8f} {:.8f} {:.8f} {:.8f} {:.6f}\n"


def read_yolo(path: Path, dataset: Dataset) -> BoxTable:
    """The boxes in a folder; an image of `dataset` without a file counts as predicted, without boxes.

    Raises:
        InputError: a file belongs to no image, or a line is not six numbers.
    """
    # A file name may equal another image's id: the name wins.
    id_of = image_names(dataset) | _named(dataset, _stem) | _named(dataset, _stem_in_folder)
    words: list[list[float]] = []
    image_ids: list[int] = []
    places: list[str] = []
    for file in sorted(path.rglob("*.txt")):
        name = _stem_in_folder(file.relative_to(path))
        if name not in id_of:
            raise unknown_image(str(file), name, dataset)
        for number, line in enumerate(_lines(file), 1):
            try:
                row = [float(word) for word in line.split()]
            except ValueError:
                raise InputError(f"{file}: line {number}: {line[:60]!r} is not numbers.") from None
            if len(row) != 6 or not np.isfinite(row).all() or row[0] % 1:
                raise InputError(
                    f"{file}: line {number} is {line[:80]!r}, expected six numbers: class cx cy w h score. "
                    "A file of labels has no scores: predict with confidences saved."
                )
            words.append(row)
            image_ids.append(id_of[name])
            places.append(f"{file}: line {number}")
    table = np.array(words, np.float64).reshape(-1, 6)
    ids = np.array(image_ids, np.int64)
    boxes, scores, labels = WORDS.to_boxes(table[:, [0, 5, 1, 2, 3, 4]], image_sizes(ids, dataset))
    return BoxTable(ids, boxes, scores, labels.astype(np.int64), dataset.image_ids, places.__getitem__)


def write_yolo(predictions: Predictions, path: Path, dataset: Dataset) -> None:
    """Write a folder with a file for every image of `dataset`, an empty one for an image without boxes.

    Raises:
        InputError: an image of `dataset` was not predicted, two have the same name, or `path` is not new or empty.
    """
    predictions = predictions.select_images(dataset.image_ids)
    names = _file_names(dataset, path)
    sizes = image_sizes(predictions.image_ids[predictions.image_index], dataset)
    words = WORDS.to_words(predictions.boxes, predictions.scores, predictions.labels, sizes)
    lines = [LINE.format(*row) for row in words[:, [0, 2, 3, 4, 5, 1]].tolist()]
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
