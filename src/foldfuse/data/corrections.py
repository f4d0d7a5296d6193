"""Corrections of annotations: the file that the page of `review` downloads, and their application to a fixed copy.

The file is JSON: "kind", "format", "fingerprint" (of the data that were reviewed) and "corrections", a list of `Correction`. An
annotation is named by its image, its box and its class, so that the file can be read and changed by hand.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from foldfuse.boxes import xyxy_to_xywh_of_file
from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.doctor import CheckReport
from foldfuse.data.findings import Row
from foldfuse.detections import Annotations, Array
from foldfuse.errors import InputError, counted, shown, unknown_name
from foldfuse.system.records import read_record

FORMAT = 1
KIND = "foldfuse corrections"
Action = Literal["add", "change", "remove"]
Box = tuple[float, float, float, float]
_TOLERANCE = 1e-3  # px between a box in the file and its annotation: files may hold rounded numbers
_WORDS: dict[Action, str] = {"add": "added", "change": "changed", "remove": "removed"}


@dataclass(frozen=True)
class Correction:
    """One correction of one annotation.

    Attributes:
        action: "add" an annotation, "change" the box or the class of one, or "remove" one.
        image: the image's file name in the data.
        image_id: its id there, as a number or as text.
        annotation_class, annotation_box: class and [left, top, width, height] of the annotation to change or remove.
        new_class, new_box: class and box as they shall be; for a change, what is None stays.
        reason: why, in words; "" in files written by hand.
        score: of the suggestion.
    """

    action: Action
    image: str
    image_id: int | str
    annotation_class: str | None = None
    annotation_box: Box | None = None
    new_class: str | None = None
    new_box: Box | None = None
    reason: str = ""
    score: float | None = None


@dataclass(frozen=True)
class Corrections:
    """The content of a file of corrections.

    Attributes:
        kind: always KIND.
        fingerprint: of the data that were reviewed.
        data: their path, for people.
        corrections: the accepted corrections.
    """

    kind: str
    fingerprint: str
    corrections: tuple[Correction, ...]
    data: str = ""


def read_corrections(path: Path) -> Corrections:
    """The corrections in a file.

    Raises:
        InputError: the file is missing, or is no file of corrections.
    """
    hint = "Accept suggestions on the page of 'foldfuse review', and download the file there."
    found = read_record(path, Corrections, version=FORMAT, what="a file of corrections", hint=hint)
    if found.kind != KIND:
        raise InputError(f"{path}: 'kind' is {shown(found.kind)}, expected {KIND!r}. {hint}")
    for number, one in enumerate(found.corrections):
        _check(one, f"{path}: correction {number}")
    return found


def _check(one: Correction, where: str) -> None:
    """Raises InputError for a correction that lacks what its action needs."""
    needed = {
        "add": ("new_class", "new_box"),
        "change": ("annotation_class", "annotation_box"),
        "remove": ("annotation_class", "annotation_box"),
    }[one.action]
    missing = [name for name in needed if getattr(one, name) is None]
    if missing:
        raise InputError(f"{where}: has no {missing[0]!r}, which {shown(one.action)} needs. Download the file again.")
    if one.action == "change" and one.new_class is None and one.new_box is None:
        raise InputError(f"{where}: has neither 'new_class' nor 'new_box', so it changes nothing. Remove it.")
    if one.new_box is not None and min(one.new_box[2:]) <= 0:
        raise InputError(
            f"{where}: 'new_box' is {shown(list(one.new_box))}, expected [left, top, width, height] above 0."
        )


def apply_corrections(report: CheckReport, dataset: Dataset, path: Path) -> tuple[CheckReport, str]:
    """The report with the corrections made in its fixed document, and a sentence on what was done.

    Args:
        report: of `examine` on the data.
        dataset: the data as `read` returns them, whose fingerprint the file names.
        path: the file of corrections.

    Raises:
        InputError: the file belongs to other data, or an image, class or annotation of it is not in the fixed copy.
    """
    corrections = read_corrections(path)
    if not dataset.has_fingerprint(corrections.fingerprint):
        of = f" ({corrections.data})" if corrections.data else ""
        raise InputError(
            f"{path}: its corrections are of other data{of}: their fingerprint is {shown(corrections.fingerprint)}, and "
            f"{dataset.source} has {dataset.fingerprint!r}. Give the data that were reviewed, or review these."
        )
    editor = _Editor(report, path)
    for number, one in enumerate(corrections.corrections):
        editor.apply(one, f"{path}: correction {number}")
    counts = Counter(one.action for one in corrections.corrections)
    done = [f"{counts[action]:,} {word}" for action, word in _WORDS.items() if counts[action]]
    sentence = f"{counted(len(corrections.corrections), 'correction')} applied from {path}"
    return editor.report(), f"{sentence}: {', '.join(done)}." if done else f"{path}: holds no accepted correction."


class _Editor:
    """The fixed document and its dataset while corrections are made in them."""

    def __init__(self, report: CheckReport, path: Path) -> None:
        listed = report.document.get("annotations")
        if listed is None:
            raise InputError(f"{report.source}: has no annotations, so {path} has nothing to correct.")
        self.old = report
        self.samples = list(report.fixed.samples)
        self.image_rows: list[Any] = [row["id"] for row in report.document["images"]]
        self.places = {str(s.organiser_id): place for place, s in enumerate(self.samples)}
        self.labels = {name: label for label, name in reversed(list(enumerate(report.fixed.classes)))}
        self.listed: list[Row | None] = list(listed)
        place_of_row = {row_id: place for place, row_id in enumerate(self.image_rows)}
        self.rows: list[list[int]] = [
            [] for _ in self.samples
        ]  # of each image: the places of its annotations in the list
        for number, row in enumerate(listed):
            self.rows[place_of_row[row["image_id"]]].append(number)
        self.next_id = 1 + max((row["id"] for row in listed if isinstance(row.get("id"), int)), default=0)

    def apply(self, one: Correction, where: str) -> None:
        """Makes one correction. Raises InputError where its image, class or annotation is not there."""
        place = self.places.get(str(one.image_id))
        if place is None or self.samples[place].file_name != one.image:
            raise InputError(
                f"{where}: the image {shown(one.image)} with id {shown(one.image_id)} is not in {self.old.source}, or its file "
                "cannot be used. Review the data again."
            )
        sample = self.samples[place]
        is_removal = one.action == "remove"
        label = None if one.new_class is None or is_removal else self._label(one.new_class, where)
        box = None if one.new_box is None or is_removal else np.array(one.new_box, np.float64)
        if box is not None and (box[0] >= sample.width or box[1] >= sample.height or (box[:2] + box[2:]).min() <= 0):
            raise InputError(
                f"{where}: its box {shown(list(one.new_box or ()))} lies outside the image {shown(one.image)}."
            )
        row = None if one.action == "add" else self._find(one, sample, where)
        self.samples[place] = replace(sample, annotations=_edited(sample.annotations, row, box, label))
        rows = self.rows[place]
        if row is None:
            assert box is not None
            assert label is not None
            rows.append(len(self.listed))
            self.listed.append(self._new_row(self.image_rows[place], box, label))
        elif is_removal:
            self.listed[rows.pop(row)] = None
        else:
            old = self.listed[rows[row]]
            assert old is not None
            self.listed[rows[row]] = self._changed(old, box, label)

    def _find(self, one: Correction, sample: Sample, where: str) -> int:
        """The position of the annotation among those of its image."""
        annotations = sample.annotations or Annotations.empty()
        label = self._label(str(one.annotation_class), where)
        off = np.abs(xyxy_to_xywh_of_file(annotations.boxes) - np.array(one.annotation_box)).max(1, initial=0)
        found = np.flatnonzero((off <= _TOLERANCE) & (annotations.labels == label))
        if not len(found):
            raise InputError(
                f"{where}: no {shown(one.annotation_class)} is annotated at {shown(list(one.annotation_box or ()))} on "
                f"{shown(one.image)}: it is gone, or two corrections are of it. Review the data again."
            )
        return int(found[np.argmin(off[found])])

    def _label(self, name: str, where: str) -> int:
        if name not in self.labels:
            raise InputError(f"{where}: {unknown_name('class', name, self.labels)}")
        return self.labels[name]

    def _new_row(self, image_id: Any, box: Array, label: int) -> Row:
        row = {"id": self.next_id, "image_id": image_id, "category_id": self._category(label)}
        self.next_id += 1
        return {**row, "bbox": box.tolist(), "area": float(box[2] * box[3]), "iscrowd": 0}

    def _changed(self, row: Row, box: Array | None, label: int | None) -> Row:
        """The row with another box or class; a mask does not fit another box, and goes."""
        changed: Row = dict(row) if label is None else row | {"category_id": self._category(label)}
        if box is not None:
            changed.pop("segmentation", None)
            changed |= {"bbox": box.tolist(), "area": float(box[2] * box[3])}
        return changed

    def _category(self, label: int) -> Any:
        return self.old.fixed.organiser_category_ids[label]

    def report(self) -> CheckReport:
        """The report with the corrected document."""
        annotations = [row for row in self.listed if row is not None]
        fixed = replace(self.old.fixed, samples=tuple(self.samples))
        return replace(self.old, fixed=fixed, document=self.old.document | {"annotations": annotations})


def _edited(annotations: Annotations | None, row: int | None, box: Array | None, label: int | None) -> Annotations:
    """Annotations with one added (`row` None), changed, or removed (neither box nor label)."""
    own = annotations or Annotations.empty()
    corners = None if box is None else np.concatenate([box[:2], box[:2] + box[2:]])
    if row is None:
        assert corners is not None
        assert box is not None
        assert label is not None
        return Annotations(
            np.concatenate([own.boxes, corners[None]]),
            np.append(own.labels, label),
            np.append(own.crowd, False),
            np.append(own.area, box[2] * box[3]),
        )
    if box is None and label is None:
        return own[np.arange(len(own)) != row]
    boxes, labels, areas = own.boxes.copy(), own.labels.copy(), own.area.copy()
    if corners is not None and box is not None:
        boxes[row], areas[row] = corners, box[2] * box[3]
    if label is not None:
        labels[row] = label
    return Annotations(boxes, labels, own.crowd, areas)
