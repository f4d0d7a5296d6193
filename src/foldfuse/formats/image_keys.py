"""Finds the images that a prediction file means: by the dataset's ids, by names or the numbers in them, or by positions.

An id is read in the only way that is possible for all rows. Where the dataset's ids and the numbers in the file names are both
possible and mean different images, the boxes may decide: they fit into the images of one reading and not into those of the other.
Otherwise the file is refused with the option that settles it. Positions are never guessed: a file that only they explain is
refused with their option.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, get_args
from urllib.parse import unquote

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.data.readers.image_names import IMAGE_FOLDERS, IMAGE_SUFFIXES, name_parts
from foldfuse.detections import Array
from foldfuse.errors import InputError, shown
from foldfuse.formats.box_forms import MIN_FIT, MIN_OTHER_FIT

ImageIds = Literal["id", "name", "position"]
READINGS: tuple[ImageIds, ...] = get_args(ImageIds)
WORDS = {
    "id": "the dataset's image ids",
    "name": "file names",
    "position": "positions in the dataset's list of images, from 0",
}
ENDINGS = (*IMAGE_SUFFIXES, ".dcm", ".dicom", ".heic", ".npy", ".npz", ".nii", ".txt", ".xml", ".json", ".csv")
PLAIN_FOLDERS = frozenset(name.casefold() for name in IMAGE_FOLDERS)  # their names say nothing about the images
SUFFIX = "_image"  # of the ids of images where a contest also has ids of studies

# image ids of all rows under a reading -> the share of boxes that fit into their images; None where this is unknown
Fit = Callable[[Array], float]


@dataclass(frozen=True, eq=False)
class ImageKeys:
    """The images that a file's rows mean.

    Attributes:
        image_ids: (n,) int64, an id of the dataset for each row.
        reading: how the rows name their images.
        reason: the evidence for the reading, where another was possible; else "".
        others: {reading: (n,) image ids} of the further readings that are possible for all rows and mean other images.
    """

    image_ids: Array
    reading: ImageIds
    reason: str
    others: dict[ImageIds, Array]


class ImageNames:
    """The names under which a file may name the images of a dataset."""

    def __init__(self, dataset: Dataset) -> None:
        self._exact = {sample.file_name: sample.id for sample in dataset.samples}
        self._by_stem: dict[str, list[tuple[list[str], int]]] = defaultdict(list)
        numbers: dict[int, set[int]] = defaultdict(set)
        for sample in dataset.samples:
            parts = _parts(sample.file_name)
            self._by_stem[_stem(parts[-1])].append((parts, sample.id))
            number = number_in(parts[-1])
            if number is not None:
                numbers[number].add(sample.id)
        self._by_number = {number: next(iter(ids)) for number, ids in numbers.items() if len(ids) == 1}
        self._ids: dict[Any, int] = {}
        for sample in dataset.samples:
            self._ids[str(sample.organiser_id)] = sample.id
            self._ids[sample.organiser_id] = sample.id
        self._in_order = dataset.image_ids

    def look_up(self, key: Any, reading: ImageIds) -> int | None:
        """The id of the image that `key` means under a reading; None where it means none, or several."""
        if reading == "name":
            if isinstance(key, str):
                found = self.of_name(key)
                return self._by_number.get(int(key)) if found is None and _is_number(key) else found
            whole = _whole(key)
            return None if whole is None else self._by_number.get(whole)
        if reading == "id":
            if isinstance(key, str):
                return self._ids.get(key, self._ids.get(key.strip().removesuffix(".0")))
            whole = _whole(key)
            return None if whole is None else self._ids.get(whole)
        whole = int(key) if isinstance(key, str) and _is_number(key) else _whole(key)
        return self._in_order[whole] if whole is not None and 0 <= whole < len(self._in_order) else None

    def of_name(self, name: str) -> int | None:
        """The id of the image of this name or path, with or without its ending; None where none or several have it.

        Names are compared whatever the case, the slashes and the Unicode normalisation. Of two paths the longer one must end
        like the other: a bare name means the only image of this name, but b/x.jpg never means a/x.jpg.
        """
        if name in self._exact:
            return self._exact[name]
        parts = _parts(name)
        found = self._matching(parts)
        if found is None and parts[-1].endswith(SUFFIX):
            found = self._matching([*parts[:-1], parts[-1].removesuffix(SUFFIX)])
        return found

    def _matching(self, parts: list[str]) -> int | None:
        fitting = [(theirs, i) for theirs, i in self._by_stem.get(_stem(parts[-1]), ()) if _same_folders(theirs, parts)]
        ids = (
            [i for theirs, i in fitting if theirs == parts]
            or [i for theirs, i in fitting if theirs[-1] == parts[-1]]
            or [i for theirs, i in fitting if theirs[:-1] == parts[:-1]]
            or [i for _, i in fitting]
        )
        return ids[0] if len(ids) == 1 else None


def distinct(keys: Sequence[Any]) -> tuple[dict[Any, None], bool]:
    """The different keys in their order, without lists and objects, and whether there were none of these."""
    try:
        return dict.fromkeys(keys), True
    except TypeError:
        return dict.fromkeys(key for key in keys if isinstance(key, Hashable)), False


def number_in(name: str) -> int | None:
    """The number in a bare file name: the whole stem, or its last group of digits; None where it has no digits."""
    stem = _stem(name)
    if _is_number(stem):
        return int(stem)
    digits = re.findall(r"[0-9]+", stem)
    return int(digits[-1]) if digits and len(digits[-1]) <= 40 else None


def match_images(
    keys: Sequence[Any],
    dataset: Dataset,
    *,
    where: Callable[[int], str],
    reading: ImageIds | None = None,
    fit: Fit | None = None,
) -> ImageKeys:
    """The images that `keys` mean, one of each row.

    Args:
        keys: ids, names or positions as the file has them.
        dataset: the images.
        where: names the place of row i in the file.
        reading: the reading that the user names.
        fit: judges a reading by the boxes, where these are known.

    Raises:
        InputError: a key means no image, or all keys can be read in two ways that differ.
    """
    unique, hashable = distinct(keys)
    names = ImageNames(dataset)
    tables = {way: {key: names.look_up(key, way) for key in unique} for way in READINGS}
    if reading is not None:
        _refuse_unknown(keys, tables[reading], reading, dataset, where)
        return ImageKeys(_column(keys, tables[reading]), reading, "as the option says", {})
    possible = {way: table for way, table in tables.items() if hashable and None not in table.values()}
    if not possible or (len(unique) and list(possible) == ["position"]):
        best = max(READINGS[:2], key=lambda way: sum(found is not None for found in tables[way].values()))
        hint = ""
        if possible and not any(isinstance(key, str) and not _is_number(key) for key in unique):
            hint = " They could be positions in the list of images, from 0: if they are, add --image-ids position."
        _refuse_unknown(keys, tables[best], best, dataset, where, hint)
    columns = {way: _column(keys, table) for way, table in possible.items()}
    chosen: ImageIds = next(way for way in READINGS if way in columns)
    others = {way: ids for way, ids in columns.items() if not np.array_equal(ids, columns[chosen])}
    reason = ""
    if others:
        chosen, reason = _decide(columns, chosen, others, keys, fit, dataset, where)
        others = {way: ids for way, ids in columns.items() if not np.array_equal(ids, columns[chosen])}
    return ImageKeys(columns[chosen], chosen, reason, others)


def _decide(
    columns: dict[ImageIds, Array],
    first: ImageIds,
    others: dict[ImageIds, Array],
    keys: Sequence[Any],
    fit: Fit | None,
    dataset: Dataset,
    where: Callable[[int], str],
) -> tuple[ImageIds, str]:
    """The reading that the boxes leave, and this reason."""
    fits = {way: fit(ids) for way, ids in columns.items()} if fit is not None else {}
    doubtful = bool(fits) and fits[first] < MIN_FIT and any(fits[way] >= MIN_OTHER_FIT for way in others)
    rivals = [way for way in others if way != "position" or doubtful or (first == "name" and not _are_texts(keys))]
    if not rivals:
        return first, ""
    fitting = [way for way in (first, *rivals) if fits and fits[way] >= MIN_OTHER_FIT]
    poor = [way for way in (first, *rivals) if fits and fits[way] < MIN_FIT]
    if len(fitting) == 1 and len(poor) == len(rivals) and fitting != ["position"]:
        return fitting[0], f"only so {fits[fitting[0]]:.0%} of the boxes fit into their images"
    rival = rivals[0]
    i = int(np.argmax(columns[first] != columns[rival]))
    name_of = {sample.id: sample.file_name for sample in dataset.samples}
    raise InputError(
        f"{where(i)}: image {shown(keys[i])} can be read in two ways: among {WORDS[first]} it is "
        f"{shown(name_of[int(columns[first][i])])}, among {_words(rival)} {shown(name_of[int(columns[rival][i])])}. "
        f"Add --image-ids {first} or --image-ids {rival}."
    )


def _are_texts(keys: Sequence[Any]) -> bool:
    return all(isinstance(key, str) for key in keys)


def _words(reading: ImageIds) -> str:
    return "the numbers in the file names" if reading == "name" else WORDS[reading]


def _refuse_unknown(
    keys: Sequence[Any],
    table: dict[Any, int | None],
    reading: ImageIds,
    dataset: Dataset,
    where: Callable[[int], str],
    hint: str = "",
) -> None:
    """Raises InputError at the first key that means no image."""
    for i, key in enumerate(keys):
        if not isinstance(key, Hashable) or table[key] is None:
            unknown = sum(found is None for found in table.values())
            count = f" ({unknown} of the file's {len(table)} images are unknown)" if unknown > 1 else ""
            sample = dataset.samples[0]
            raise InputError(
                f"{where(i)}: {shown(key)} names no image of {dataset.source}, or more than one{count}. Its images are like "
                f"{sample.file_name!r} with id {shown(sample.organiser_id)}; give the data that was predicted.{hint}"
            )


def _column(keys: Sequence[Any], table: dict[Any, int | None]) -> Array:
    return np.array([table[key] for key in keys], np.int64)


def _whole(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return int(value) if not isinstance(value, float) or value.is_integer() else None


def _is_number(text: str) -> bool:
    return len(text) <= 40 and text.isascii() and text.isdigit()


def _parts(name: str) -> list[str]:
    """The folders and the file in a name, spelled for comparison, without folders such as images/."""
    parts = [part.casefold() for part in name_parts(unicodedata.normalize("NFC", unquote(name.strip())))[0]] or [""]
    return [part for part in parts[:-1] if part not in PLAIN_FOLDERS] + parts[-1:]


def _ending(name: str) -> str:
    ending = PurePosixPath(name).suffix.lower()
    return ending if ending in ENDINGS else ""


def _stem(name: str) -> str:
    ending = _ending(name)
    return name[: len(name) - len(ending)] if ending else name


def _same_folders(a: list[str], b: list[str]) -> bool:
    """Whether the folders of the shorter path are those that the longer path ends with."""
    length = min(len(a), len(b)) - 1
    return length == 0 or a[-1 - length : -1] == b[-1 - length : -1]
