"""The dataset doctor: finds the faults of a dataset before training, and makes a fixed copy."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from foldfuse.data.box_formats import AS_FOUND, Conventions
from foldfuse.data.checks import image_finding, walk
from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.findings import AnnotationRow, CategoryRow, Finding, ImageRow, Row
from foldfuse.data.judgement import is_project_class
from foldfuse.data.near_duplicates import near_duplicates
from foldfuse.data.readers.coco import dataset_of, load, require_layout
from foldfuse.data.readers.layouts import unread_annotations
from foldfuse.errors import InputError
from foldfuse.system.atomic_files import write_text
from foldfuse.system.host import usable_cores

ALL_LEFT_OUT = "all boxes of the image are left out: it would be learnt from as an image without objects"


@dataclass(frozen=True, eq=False)
class CheckReport:
    """The result of a check.

    Attributes:
        source: the checked file.
        findings: faults and notes, in the order of the document.
        fixed: the dataset with its faults fixed.
        document: the same as a COCO document.
        copy: the file that holds the fixed document, if one was written.
        copy_images: the folder to give as `--images` with the copy; None where the images lie below the folder of the copy.
    """

    source: Path
    findings: tuple[Finding, ...]
    fixed: Dataset
    document: Row = field(repr=False)
    copy: Path | None = None
    copy_images: Path | None = None

    @property
    def faults(self) -> tuple[Finding, ...]:
        """The findings that are more than notes."""
        return tuple(finding for finding in self.findings if finding.is_fault)

    @property
    def exit_status(self) -> int:
        """The exit status of the command: 0 without faults, 1 with faults."""
        return 1 if self.faults else 0

    def __str__(self) -> str:
        """One line for the end of the command's output."""
        num_faults = len(self.faults)
        copy = f" The fixed copy is {self.copy}." if self.copy else ""
        if self.copy_images:
            copy += f" Its images lie elsewhere: give --images {self.copy_images} with it."
        if not num_faults:
            return f"{self.source}: no faults.{copy}"
        hint = copy or " Add --fix --out FILE to write a fixed copy."
        for what, usable in (("image", self.document["images"]), ("category", self.document["categories"])):
            if not usable:
                hint = f" Not one usable {what} is left: {_counts(self.faults)}."
        return f"{self.source}: {num_faults} fault{'s' * (num_faults > 1)}.{hint}"


def _counts(findings: Sequence[Finding]) -> str:
    """The kinds of findings with their counts, the most frequent first."""
    kinds = Counter(finding.kind for finding in findings)
    return ", ".join(f"{kind} ({count} times)" for kind, count in kinds.most_common(3))


@dataclass(frozen=True)
class ClassStatistics:
    """The boxes of one class.

    Attributes:
        name: of the class.
        num_boxes: all boxes; `num_crowd` of them are crowd regions, which training and scoring ignore.
        num_images: images with such boxes.
        median_side_px: the median of the square roots of the boxes' areas; None without boxes.
    """

    name: str
    num_boxes: int
    num_crowd: int
    num_images: int
    median_side_px: float | None


def examine(
    data: Path,
    *,
    decode: bool = True,
    images: Path | None = None,
    conventions: Conventions = AS_FOUND,
    ignore_orientation: bool = False,
) -> CheckReport:
    """The report on a dataset: its faults and notes, and the dataset with its faults fixed.

    Args:
        data: any dataset that `read` takes.
        decode: also decode every image and look for near-duplicates.
        images: the folder of the images, where they are not found beside the annotations.
        conventions: how to read boxes and category ids that do not follow COCO.
        ignore_orientation: whether pixels are taken as stored, whatever an EXIF tag says.

    Raises:
        InputError: `data` is not a dataset.
    """
    kind = require_layout(data).kind
    asked = {"--box-format": conventions.box_format, "--category-ids": conventions.category_ids}
    for option, value in asked.items():
        if kind != "coco" and value is not None and not (kind == "yolo" and option == "--category-ids"):
            raise InputError(
                f"{option} {value}: tells how COCO JSON is meant, and {data} is a dataset of another layout."
            )
    loaded = load(data, images, annotated=kind != "images", ignore_orientation=ignore_orientation)
    document, source = loaded.document, loaded.source
    annotated = not isinstance(document, dict) or "annotations" in document  # a test set has none
    walked = walk(
        document,
        source,
        files=loaded.files,
        annotated=annotated,
        decode=decode,
        conventions=conventions,
        ignore_orientation=ignore_orientation,
    )
    has_images = document.get("images") != [] if isinstance(document, dict) else True
    if not has_images and any(finding.error for finding in loaded.findings):
        walked = iter(())  # the reader has said why no image is left
    items = [item for item in walked if not (isinstance(item, AnnotationRow) and item.is_repeat)]
    unread = unread_annotations(data) if kind == "images" else ""
    alone = [Finding("only images are found, and no annotations", unread, fix="")] if unread else []
    findings = [*alone, *loaded.findings, *(item for item in items if isinstance(item, Finding))]
    image_rows = [item for item in items if isinstance(item, ImageRow)]
    categories = [item for item in items if isinstance(item, CategoryRow)]
    annotations = [item for item in items if isinstance(item, AnnotationRow)]
    if annotated and image_rows:
        boxes_of_image = Counter(a.image_id for a in annotations)
        boxes_of_class = Counter(a.category_id for a in annotations)
        listed = document.get("annotations")
        described = (
            {str(row.get("image_id")) for row in listed if isinstance(row, dict)} if isinstance(listed, list) else ()
        )
        findings += [
            _note(ALL_LEFT_OUT if str(i.row["id"]) in described else "the image has no annotations", i.file_name)
            for i in image_rows
            if not boxes_of_image[i.id]
        ]
        findings += [_note("the class never occurs", c.name) for c in categories if not boxes_of_class[c.id]]
        kept = [c for c in categories if not is_project_class(c, categories, set(boxes_of_class))]
    else:
        kept = categories
    if decode:
        findings += [
            _note("images look almost the same", f"{image_rows[i].file_name} and {image_rows[j].file_name}")
            for i, j in near_duplicates([i.path for i in image_rows], [i.orientation for i in image_rows])
        ]
    fixed = document | {"images": [i.row for i in image_rows], "categories": [c.row for c in kept]}
    if annotated:
        fixed["annotations"] = [a.row for a in annotations]
    if conventions.box_format is not None:
        info = document.get("info")
        fixed["info"] = {**(info if isinstance(info, dict) else {}), "box_format": "xywh"}
    dataset = dataset_of([*image_rows, *kept, *annotations], source, annotated=annotated)
    return CheckReport(source, tuple(findings), dataset, fixed)


def write_fixed(report: CheckReport, out: Path) -> CheckReport:
    """Write the fixed document as COCO JSON, and return the report with the path of that copy.

    Image file names are rewritten so that they lead to the images from the folder of `out`, or, where some lie outside of it,
    from the folder `copy_images` of the returned report.

    Raises:
        InputError: `out` is the checked file itself, or cannot be written; nothing in the dataset can be used; or the
            annotations can be read in several ways, and no option says in which.
    """
    for finding in report.findings:
        if finding.option:
            raise InputError(f"{report.source}: {finding.kind} ({finding.where}). Say which: add {finding.option}.")
    for what, usable in (("images", report.document["images"]), ("categories", report.document["categories"])):
        if not usable:
            raise InputError(f"{report.source}: none of its {what} can be used, so there is nothing to write.")
    if out.resolve() == report.source.resolve():
        raise InputError(f"{out}: is the dataset itself. Choose another file for the fixed copy.")
    paths = {sample.file_name: _absolute(sample.path) for sample in report.fixed.samples}
    folder, copy_images = _absolute(out).parent, None
    if not all(path.is_relative_to(folder) for path in paths.values()):
        own = _absolute(report.source) if report.source.is_dir() else _absolute(report.source).parent
        is_below = all(path.is_relative_to(own) for path in paths.values())
        folder = copy_images = own if is_below else Path(os.path.commonpath([path.parent for path in paths.values()]))
    rows = [
        row | {"file_name": paths[row["file_name"]].relative_to(folder).as_posix()} for row in report.document["images"]
    ]
    write_text(out, json.dumps(report.document | {"images": rows}))
    return replace(report, copy=out, copy_images=copy_images)


def _absolute(path: Path) -> Path:
    """An absolute path without "..", through the same links."""
    return Path(os.path.normpath(path.absolute()))


def class_statistics(dataset: Dataset) -> tuple[ClassStatistics, ...]:
    """The statistics of each class, in the order of the labels."""
    annotations = [s.annotations.clipped(s.width, s.height) for s in dataset.samples if s.annotations is not None]
    labels = np.concatenate([np.zeros(0, np.int64), *(a.labels for a in annotations)])
    crowd = np.concatenate([np.zeros(0, bool), *(a.crowd for a in annotations)])
    boxes = np.concatenate([np.zeros((0, 4)), *(a.boxes for a in annotations)])
    sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    return tuple(
        ClassStatistics(
            name,
            num_boxes=int((labels == label).sum()),
            num_crowd=int(crowd[labels == label].sum()),
            num_images=sum(bool((a.labels == label).any()) for a in annotations),
            median_side_px=float(np.median(sides[labels == label])) if (labels == label).any() else None,
        )
        for label, name in enumerate(dataset.classes)
    )


def unreadable_images(dataset: Dataset, *, ignore_orientation: bool = False) -> list[tuple[Sample, str]]:
    """The images that cannot be decoded or have another size than the annotations say, each with the reason."""

    def finding(sample: Sample) -> Finding | None:
        return image_finding(sample.path, sample.width, sample.height, ignore_orientation=ignore_orientation)

    with ThreadPoolExecutor(usable_cores()) as pool:
        found = list(pool.map(finding, dataset.samples))
    return [(sample, each.where) for sample, each in zip(dataset.samples, found, strict=True) if each]


def _note(kind: str, where: str) -> Finding:
    return Finding(kind, where, fix="", is_fault=False)
