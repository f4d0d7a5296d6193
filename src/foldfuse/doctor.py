"""The dataset doctor: what is wrong with a dataset before anybody trains on it, and a mended copy."""

from __future__ import annotations

import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foldfuse.checkup import Finding, examine, picture_trouble
from foldfuse.data import Dataset, Sample, find_picture, load, parse
from foldfuse.detections import Array
from foldfuse.errors import InputError
from foldfuse.files import write_text
from foldfuse.near import near_duplicates

EXAMPLES = 2  # of each kind of finding, in the table


@dataclass(frozen=True)
class Checkup:
    """What a checkup came to.

    Attributes:
        source: the JSON that was looked at.
        findings: all of them, faults and notes.
        mended: the dataset with its faults mended, of which the statistics are.
        copy: where the mended JSON was written, if it was.
    """

    source: Path
    findings: tuple[Finding, ...]
    mended: Dataset
    copy: Path | None

    @property
    def faults(self) -> tuple[Finding, ...]:
        """The findings that are more than notes."""
        return tuple(finding for finding in self.findings if finding.fault)

    @property
    def exit_status(self) -> int:
        """Of the command: 0 where there are no faults, 1 where there are."""
        return 1 if self.faults else 0

    def __str__(self) -> str:
        """One line for the end of the command's output."""
        num_faults = len(self.faults)
        if not num_faults:
            return f"{self.source}: no faults."
        copy = f"The mended copy is {self.copy}." if self.copy else "Give --mend for a mended copy."
        return f"{self.source}: {num_faults} fault{'s' * (num_faults > 1)}. {copy}"


def check(data: Path, *, mend: Path | None = None, pictures: bool = True) -> Checkup:
    """Find all that is wrong with a dataset and show it; the exit status is 1 where there are faults, 0 where none.

    Faults are what training cannot use: broken rows, boxes of no size, outside or drawn twice, repeated ids, pictures that
    are missing, cannot be decoded or have another size than the JSON says. Notes are worth knowing: near-duplicate and
    empty pictures, tiny boxes, boxes that stick out, classes that never occur, EXIF tags.

    Args:
        data: COCO JSON with annotations, a folder with a train.json, or a YOLO or VOC dataset.
        mend: COCO JSON to write, with the faults mended and what cannot be mended left out.
        pictures: also decode every picture and look for near-duplicates.

    Raises:
        InputError: the file is no COCO JSON, nothing in it can be used, or the copy would replace the original.
    """
    document, source = load(Path(data))
    if mend is not None and mend.resolve() == source.resolve():
        raise InputError(f"{mend}: is the dataset itself. Choose another file for the mended copy.")
    seen = examine(document, source, pictures=pictures)
    mended = parse(seen.mended, source)
    findings = list(seen.findings)
    if pictures:
        findings += [
            Finding("pictures look almost the same", f"{a.file_name} and {b.file_name}", False, "")
            for a, b in (
                (mended.samples[i], mended.samples[j]) for i, j in near_duplicates([s.path for s in mended.samples])
            )
        ]
    if mend is not None:
        write_text(mend, json.dumps(_moved(seen.mended, source, mend)))
    checkup = Checkup(source, tuple(findings), mended, mend)
    _show(checkup)
    return checkup


def undecodable(dataset: Dataset) -> list[tuple[Sample, str]]:
    """The pictures that cannot be decoded, or are not of the size that the JSON says, each with the reason."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        troubles = list(pool.map(lambda s: picture_trouble(s.path, s.width, s.height), dataset.samples))
    return [
        (sample, trouble.reason)
        for sample, trouble in zip(dataset.samples, troubles, strict=True)
        if trouble is not None
    ]


def _moved(document: dict[str, Any], source: Path, target: Path) -> dict[str, Any]:
    """The document with file names that lead to the pictures from the folder of `target`."""
    if target.resolve().parent == source.resolve().parent:
        return document
    images = []
    for row in document["images"]:
        path = find_picture(source, row["file_name"])
        assert path is not None
        images.append(row | {"file_name": os.path.relpath(path.resolve(), target.resolve().parent)})
    return document | {"images": images}


def _show(checkup: Checkup) -> None:
    """Print the findings by kind, and what the classes and boxes are like."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if checkup.findings:
        table = Table("", "finding", "times", "mended copy", "such as", title="Findings")
        kinds = Counter((f.kind, f.fault, f.mended) for f in checkup.findings)
        for (kind, fault, mended), times in sorted(kinds.items(), key=lambda item: (not item[0][1], -item[1])):
            such = [escape(f.where) for f in checkup.findings if f.kind == kind][:EXAMPLES]
            table.add_row("fault" if fault else "note", kind, str(times), mended or "as it is", "\n".join(such))
        console.print(table)
    dataset = checkup.mended
    pictures, boxes, sides = _statistics(dataset)
    table = Table(
        "class", "boxes", "pictures", "median side, px", title=f"{len(dataset)} pictures, {dataset.num_boxes} boxes"
    )
    for label, name in enumerate(dataset.classes):
        table.add_row(
            escape(name), str(boxes[label]), str(pictures[label]), f"{sides[label]:.0f}" if boxes[label] else ""
        )
    console.print(table)


def _statistics(dataset: Dataset) -> tuple[Array, Array, Array]:
    """Of each class: pictures it is on, boxes, and the median of the square roots of their areas (NaN for none)."""
    drawn = [s.annotations for s in dataset.samples if s.annotations is not None]
    num_classes = len(dataset.classes)
    labels = np.concatenate([a.labels for a in drawn])
    boxes = np.concatenate([a.boxes for a in drawn])
    sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    pictures = np.sum([np.bincount(a.labels, minlength=num_classes) > 0 for a in drawn], axis=0)
    medians = [np.median(sides[labels == k]) if (labels == k).any() else np.nan for k in range(num_classes)]
    return pictures, np.bincount(labels, minlength=num_classes), np.array(medians)
