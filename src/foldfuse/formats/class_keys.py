"""Finds the classes that a prediction file means: by the organiser's category ids, by names, or by positions from 0 or 1.

COCO results mean category ids, CSV files and YOLO folders mean positions from 0; texts that are no numbers are class names. A
number that is impossible so is refused with the option that reads it. A file is refused, too, where all of its numbers could be
shifted by one: the first class is never predicted, and one less is a class for each number. It is not where the first class is
the project's name, which Roboflow adds.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Array
from foldfuse.errors import InputError, shown
from foldfuse.formats.image_keys import distinct

CategoryIds = Literal["id", "name", "from_zero", "from_one"]
READINGS: tuple[CategoryIds, ...] = get_args(CategoryIds)
WORDS = {
    "id": "the dataset's category ids",
    "name": "class names",
    "from_zero": "positions in the classes, from 0",
    "from_one": "positions in the classes, from 1",
}
# The fewest boxes of a file that is refused where its classes could be shifted by one; of fewer boxes there is a note.
MIN_BOXES = {"id": 1, "from_zero": 10}


@dataclass(frozen=True, eq=False)
class ClassKeys:
    """The classes that a file's rows mean.

    Attributes:
        labels: (n,) int64 in 0..K-1.
        reading: how the rows name their classes.
        note: a sentence for the user; "" where there is nothing to say.
        others: {reading: (n,) labels} of the further readings that are possible for all rows and mean other classes.
    """

    labels: Array
    reading: CategoryIds
    note: str
    others: dict[CategoryIds, Array]


def class_table(dataset: Dataset, reading: CategoryIds) -> dict[Any, int]:
    """{number or text: label} of a reading."""
    if reading == "name":
        by_name: dict[Any, int] = {}
        for names in ([name.casefold() for name in dataset.classes], list(dataset.classes)):
            by_name |= {name: label for label, name in enumerate(names) if names.count(name) == 1}
        return by_name
    if reading == "id":
        table: dict[Any, int] = {category_id: label for label, category_id in enumerate(dataset.category_ids)}
        for label, organiser_id in enumerate(dataset.organiser_category_ids):
            table[organiser_id] = label
        return table | {str(key): label for key, label in table.items()}
    first = 0 if reading == "from_zero" else 1
    table = {label + first: label for label in range(len(dataset.classes))}
    return table | {str(key): label for key, label in table.items()}


def look_up(key: Any, reading: CategoryIds, table: dict[Any, int]) -> int | None:
    """The label that `key` means in the table of a reading; None where it means none."""
    if isinstance(key, str):
        text = key.strip()
        label = table.get(text, table.get(text.casefold()) if reading == "name" else None)
        if label is None and reading != "name" and text.endswith(".0"):
            label = table.get(text.removesuffix(".0"))
        return label
    if isinstance(key, bool) or not isinstance(key, (int, float)) or reading == "name":
        return None
    return table.get(key)


def match_classes(
    keys: Sequence[Any],
    dataset: Dataset,
    *,
    convention: Literal["id", "from_zero"],
    where: Callable[[int], str],
    what: str,
    reading: CategoryIds | None = None,
) -> ClassKeys:
    """The classes that `keys` mean, one of each row.

    Args:
        keys: ids, names or positions as the file has them.
        dataset: the classes.
        convention: what numbers mean in this format.
        where: names the place of row i in the file.
        what: the name of the key in the file, such as "category_id".
        reading: the reading that the user names.

    Raises:
        InputError: a key means no class, or all keys can be read in two ways that differ.
    """
    unique, hashable = distinct(keys)
    tables = {}
    for way in READINGS:
        table = class_table(dataset, way)
        tables[way] = {key: look_up(key, way, table) for key in unique}
    possible = {way: table for way, table in tables.items() if hashable and None not in table.values()}
    is_logged = False
    if reading is None and unique:
        reading = _read(keys, tables, possible, convention, dataset, where, what)
        is_logged = True
    chosen = reading or convention
    if chosen not in possible:
        _refuse_unknown(keys, tables, chosen, possible, dataset, where, what)
    columns = {way: np.array([table[key] for key in keys], np.int64) for way, table in possible.items()}
    others = {way: labels for way, labels in columns.items() if not np.array_equal(labels, columns[chosen])}
    note = _shift_note(columns[chosen], convention, others, dataset, what) if is_logged and chosen == convention else ""
    return ClassKeys(columns[chosen], chosen, note, others)


def _read(
    keys: Sequence[Any],
    tables: dict[CategoryIds, dict[Any, int | None]],
    possible: dict[CategoryIds, dict[Any, int | None]],
    convention: Literal["id", "from_zero"],
    dataset: Dataset,
    where: Callable[[int], str],
    what: str,
) -> CategoryIds:
    """The reading of keys that no option settles."""
    if convention not in possible:
        if "name" in possible:
            return "name"
        is_text = any(isinstance(key, str) and not _is_number(key) for key in keys)
        _refuse_unknown(keys, tables, "name" if is_text else convention, possible, dataset, where, what)
    if "name" in possible and possible["name"] != possible[convention]:
        raise InputError(
            f"{where(0)}: {what} {shown(keys[0])} can be read in two ways, as one of {WORDS[convention]} or of {WORDS['name']}. "
            f"Add --category-ids {convention} or --category-ids name."
        )
    if (
        not dataset.has_project_class
        and _may_be_shifted(convention, possible, dataset)
        and len(keys) >= MIN_BOXES[convention]
    ):
        first = _first(convention, dataset)
        raise InputError(
            f"{where(0)}: {what} may count from {first + 1} where {dataset.source} counts from {first}: no box has {first} "
            f"({dataset.classes[0]}), and every number less one is a class. Add --category-ids from_one if it does, and "
            f"--category-ids {convention} if it does not."
        )
    return convention


def _may_be_shifted(
    convention: Literal["id", "from_zero"], possible: dict[CategoryIds, dict[Any, int | None]], dataset: Dataset
) -> bool:
    """Whether all keys count from 1 as well as from 0, and the second class is meant but never the first."""
    numbered = convention == "from_zero" or tuple(dataset.category_ids) == tuple(range(len(dataset.classes)))
    used = set(possible[convention].values())
    return numbered and "from_one" in possible and 0 not in used and 1 in used


def _is_number(text: str) -> bool:
    return text.strip().lstrip("+-").replace(".", "", 1).isdecimal()


def _first(convention: str, dataset: Dataset) -> int:
    return 0 if convention == "from_zero" else dataset.category_ids[0]


def _shift_note(labels: Array, convention: str, others: dict[CategoryIds, Array], dataset: Dataset, what: str) -> str:
    """A sentence where the numbers, read as usual, could be shifted by one."""
    last = len(dataset.classes) - 1
    ids = dataset.category_ids
    if convention == "id" and ids != tuple(range(ids[0], ids[0] + len(ids))):
        return ""
    used = set(np.unique(labels).tolist())
    for other, unused, neighbour in (("from_one", 0, 1), ("from_zero", last, last - 1)):
        if other in others and unused not in used and neighbour in used:
            number = unused if convention == "from_zero" else dataset.category_ids[unused]
            return (
                f"no box has the {what} {number} ({dataset.classes[unused]}); if the file counts from "
                f"{1 - int(other == 'from_zero')}, add --category-ids {other}."
            )
    return ""


def _refuse_unknown(
    keys: Sequence[Any],
    tables: dict[CategoryIds, dict[Any, int | None]],
    reading: CategoryIds,
    possible: dict[CategoryIds, dict[Any, int | None]],
    dataset: Dataset,
    where: Callable[[int], str],
    what: str,
) -> None:
    """Raises InputError at the first key that means no class under a reading."""
    i, key = next((i, k) for i, k in enumerate(keys) if not isinstance(k, Hashable) or tables[reading].get(k) is None)
    known: Sequence[Any] = {
        "id": dataset.organiser_category_ids,
        "name": dataset.classes,
        "from_zero": range(len(dataset.classes)),
        "from_one": range(1, len(dataset.classes) + 1),
    }[reading]
    listed = ", ".join(map(str, known[:20])) + (", ..." if len(known) > 20 else "")
    ways = [way for way in ("id", "from_zero", "from_one") if way in possible]
    hint = ""
    if ways:
        meant = " or ".join(f"{WORDS[way]} (--category-ids {way})" for way in ways)
        hint = f" All of the file's are {meant}."
    raise InputError(f"{where(i)}: {what} {shown(key)} is not in {dataset.source} (known: {listed}).{hint}")
