"""Boxes as a file has them, and their meaning in a dataset: which image, which class, which pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Array
from foldfuse.errors import InputError, shown
from foldfuse.formats import class_keys, image_keys
from foldfuse.formats.box_forms import FORMS, MIN_OTHER_FIT, BoxForm, check_form
from foldfuse.formats.box_table import BoxTable, image_sizes
from foldfuse.formats.class_keys import CategoryIds, match_classes
from foldfuse.formats.image_keys import ImageIds, match_images


@dataclass(frozen=True)
class ReadAs:
    """How the user says that a file is to be read; None leaves it to the content.

    Attributes:
        format: the format, such as "coco_json_xyxy".
        image_ids: what names an image.
        category_ids: what names a class.
    """

    format: str | None = None
    image_ids: ImageIds | None = None
    category_ids: CategoryIds | None = None


@dataclass(frozen=True, eq=False)
class RawBoxes:
    """The n boxes of a file, as it has them.

    Attributes:
        image_keys: (n) what names the image of each box.
        class_keys: (n) what names its class; None in a file without classes.
        numbers: (n, 4) the four numbers of each box.
        scores: (n,) float64.
        where: names the place of box i in the file.
        form: the form of the numbers.
        is_form_given: True where the user names the format, so that the form is not doubted.
        convention: what a number for a class means in this format.
        class_word: the name of the class in the file, such as "category_id".
        predicted_keys: what names the images that the file covers; None where it covers all of the dataset.
        where_predicted: names the place of predicted_keys[i].
        option: the name of the file's format with boxes of another form.
    """

    image_keys: Sequence[Any]
    class_keys: Sequence[Any] | None
    numbers: Array
    scores: Array
    where: Callable[[int], str]
    form: BoxForm
    is_form_given: bool
    convention: Literal["id", "from_zero"]
    class_word: str
    option: Callable[[BoxForm], str]
    predicted_keys: Sequence[Any] | None = None
    where_predicted: Callable[[int], str] | None = None


def to_table(raw: RawBoxes, path: Path, dataset: Dataset, read_as: ReadAs) -> BoxTable:
    """The boxes in pixels of the dataset's images, with its labels, not checked.

    Raises:
        InputError: an image or a class is unknown, or the file can be read in two ways that differ.
    """

    def fit(image_ids: Array) -> float:
        sizes = image_sizes(image_ids[: len(raw.numbers)], dataset)
        return float(raw.form.fits(raw.numbers, sizes).mean()) if len(raw.numbers) else 1.0

    n = len(raw.numbers)
    keys, where = list(raw.image_keys), raw.where
    if raw.predicted_keys is not None and raw.where_predicted is not None:
        keys += raw.predicted_keys
        after = raw.where_predicted
        where = lambda i: raw.where(i) if i < n else after(i - n)  # noqa: E731
    images = match_images(keys, dataset, where=where, reading=read_as.image_ids, fit=fit)
    image_ids = images.image_ids[:n]
    notes = [f"images by {image_keys.WORDS[images.reading]}{images.reason and ', ' + images.reason}"] if keys else []
    sizes = image_sizes(image_ids, dataset)
    warnings = [] if raw.is_form_given else [check_form(raw.numbers, sizes, raw.form, path, raw.option)]
    if raw.class_keys is None:
        if len(dataset.classes) > 1:
            raise InputError(
                f"{path}: names no classes, and {dataset.source} has {len(dataset.classes)}, expected one class. Add a column "
                "of classes to the file."
            )
        labels, others = np.zeros(n, np.int64), {}
    else:
        classes = match_classes(
            raw.class_keys,
            dataset,
            convention=raw.convention,
            where=raw.where,
            what=raw.class_word,
            reading=read_as.category_ids,
        )
        labels, others = classes.labels, classes.others
        warnings.append(classes.note)
        if n:
            notes.append(f"classes by {class_keys.WORDS[classes.reading]}")
    table = BoxTable(
        image_ids=image_ids,
        boxes=raw.form.to_xyxy(raw.numbers, sizes),
        scores=raw.scores,
        labels=labels,
        predicted=dataset.image_ids if raw.predicted_keys is None else np.unique(images.image_ids).tolist(),
        where=raw.where,
        how=tuple(notes),
        notes=tuple(warning for warning in warnings if warning),
    )
    alternatives: dict[str, Callable[[], BoxTable]] = {}
    for way, ids in images.others.items():
        alternatives[f"--image-ids {way}"] = partial(
            replace, table, image_ids=ids[:n], predicted=np.unique(ids).tolist()
        )
    for reading, other_labels in others.items():
        alternatives[f"--category-ids {reading}"] = partial(replace, table, labels=other_labels)
    for form in () if raw.is_form_given or not n else FORMS.values():
        if form != raw.form and form.fits(raw.numbers, sizes).mean() >= MIN_OTHER_FIT:
            alternatives[f"--input-format {raw.option(form)}"] = partial(_with_form, table, raw, form, sizes)
    return replace(table, alternatives=alternatives)


def _with_form(table: BoxTable, raw: RawBoxes, form: BoxForm, sizes: Array) -> BoxTable:
    return replace(table, boxes=form.to_xyxy(raw.numbers, sizes))


def parse_numbers(values: Sequence[Any], where: Callable[[int], str], what: str, expected: str, size: int) -> Array:
    """(n, size) float64 of n lists of `size` numbers, or (n,) of n numbers where `size` is 0; texts of numbers are read.

    Raises:
        InputError: a value is something else, such as true.
    """
    flat = [number for value in values if isinstance(value, list) for number in value] if size else values
    if set(map(type, flat)) <= {int, float} and all(isinstance(v, list) and len(v) == size for v in values if size):
        try:
            return np.array(values, np.float64).reshape((len(values), size) if size else len(values))
        except OverflowError:  # an integer beyond a float
            pass
    rows = []
    for i, value in enumerate(values):
        row = _row(value, size)
        if row is None:
            raise InputError(f"{where(i)}: {what} is {shown(value)}, expected {expected}.")
        rows.append(row)
    return np.array(rows, np.float64).reshape((len(values), size) if size else len(values))


def _row(value: Any, size: int) -> list[float] | None:
    if not size:
        number = as_number(value)
        return None if number is None else [number]
    if isinstance(value, str):
        value = value.strip().strip("[]()").replace(",", " ").split()
    if not isinstance(value, list) or len(value) != size:
        return None
    numbers = [as_number(item) for item in value]
    return None if None in numbers else [number for number in numbers if number is not None]


def as_number(value: Any) -> float | None:
    """A number, also one written as text ("0.9"), perhaps not finite; None for anything else, such as True."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, str) and (not value.strip() or "_" in value or len(value) > 400):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
