"""Commands on datasets: check and split."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np

from foldfuse.data.checks import Finding, examine
from foldfuse.data.dataset import Dataset, require_annotations
from foldfuse.data.doctor import Checkup, _moved
from foldfuse.data.folds import groups_of, make_folds
from foldfuse.data.near_duplicates import near_duplicates
from foldfuse.data.readers.coco import load, parse, read
from foldfuse.detections import Array
from foldfuse.errors import InputError
from foldfuse.system.atomic_files import write_text


def split(data: Path, out: Path, *, k: int = 5, seed: int = 0, group: str | None = None) -> Path:
    """Fold a dataset, show the folds, and write them as JSON; the path of that file comes back.

    Args:
        data: COCO JSON with annotations, or a folder with a train.json.
        out: JSON to write, for `foldfuse train --folds`.
        k: number of folds.
        seed: of the order among pictures that are alike.
        group: regular expression; pictures in whose file names it finds the same text go to one fold, such as "^[^_]+"
            for all up to the first underscore.

    Raises:
        InputError: the data cannot be used, or cannot be cut into so many folds.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    dataset = require_annotations(read(data))
    made = make_folds(dataset, num_folds=k, seed=seed, groups=None if group is None else groups_of(dataset, group))
    table = Table("fold", "pictures", "boxes", *map(escape, dataset.classes))
    for fold in range(k):
        part = dataset.subset(made.val_ids(fold))
        boxes = np.bincount(
            np.concatenate([s.annotations.labels for s in part.samples if s.annotations is not None]),
            minlength=len(dataset.classes),
        )
        table.add_row(str(fold), str(len(part)), str(boxes.sum()), *map(str, boxes))
    Console().print(table)
    made.write(out)
    return out


EXAMPLES = 2  # of each kind of finding, in the table


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
