"""Commands on datasets: check, split and join."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter
from rich.table import Table

from foldfuse.commands import options
from foldfuse.data import joining
from foldfuse.data.box_formats import BoxFormat, CategoryIds, Conventions
from foldfuse.data.corrections import apply_corrections
from foldfuse.data.dataset import Dataset, require_annotations
from foldfuse.data.doctor import CheckReport, class_statistics, examine, write_fixed
from foldfuse.data.findings import Finding
from foldfuse.data.folds import Folds, groups_of, make_folds
from foldfuse.data.pixels import open_images
from foldfuse.data.readers.coco import read, write
from foldfuse.errors import InputError, counted
from foldfuse.system import printing

EXAMPLES = 2  # of each kind of finding, in the table


def split(
    data: Path,
    *,
    out: options.Out,
    folds: options.NumFolds = 5,
    seed: options.Seed = 0,
    group: str | None = None,
    ignore_near_duplicates: bool = False,
    images: options.Images = None,
    ignore_orientation: options.IgnoreOrientation = False,
    overwrite: options.Overwrite = False,
) -> Path:
    """Cut a dataset into folds, show them, and write them as JSON; returns the path of that file.

    Every fold has about the same number of images and of boxes of each class. Near-duplicate images stay in one fold,
    unless more than half of all images are near-duplicates of each other, as of a fixed camera: these are cut into blocks of
    consecutive file names.

    Args:
        data: the annotated images: COCO JSON, YOLO, VOC, CVAT or CSV, or a folder with one of them.
        out: JSON to write, for `foldfuse train --folds`.
        folds: number of folds.
        seed: the random seed of the order among similar images.
        group: regular expression; images go to one fold where it matches the same text in their file names, such as
            "^[^_]+" for the text before the first underscore.
        ignore_near_duplicates: let near-duplicate images fall into different folds.

    Raises:
        InputError: the data cannot be used, or cannot be cut into so many folds, or `out` exists.

    Examples:
        foldfuse split data --out folds.json
        foldfuse split data/train.json --folds 3 --group "^[^_]+" --out folds3.json
    """
    options.refuse_overwrite(out, overwrite, is_file=True, inputs=[data, images])
    dataset = require_annotations(read(data, images=images, ignore_orientation=ignore_orientation))
    dataset = open_images(dataset, ignore_orientation=ignore_orientation)
    groups = None if group is None else groups_of(dataset, group)
    made = make_folds(
        dataset, num_folds=folds, seed=seed, groups=groups, keep_near_duplicates=not ignore_near_duplicates
    )
    printing.console().print(_folds_table(dataset, made))
    made.write(out)
    return out


def check(
    data: Path,
    *,
    fix: bool = False,
    out: options.OptionalOut = None,
    corrections: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    json_only: bool = False,
    box_format: BoxFormat | None = None,
    category_ids: CategoryIds | None = None,
    ignore_crowd: bool = False,
    images: options.Images = None,
    ignore_orientation: options.IgnoreOrientation = False,
    overwrite: options.Overwrite = False,
) -> CheckReport:
    """Find the faults of a dataset and show them; the exit status is 1 with faults, 0 without.

    Faults are broken rows, boxes without a size, outside their image or annotated twice, repeated ids and class names, images
    that are missing, cannot be decoded or have another size than the JSON says, and whatever holds for most of the dataset and
    should not: boxes in another format than COCO's, crowd regions only, images without annotations, boxes that stick out, are
    tiny, or are all of one size. Notes are near-duplicate images, single images without annotations, classes that never
    occur, numbers written as text, and EXIF tags.

    Args:
        data: a dataset in any layout: COCO JSON, YOLO, VOC, CVAT or CSV, or a folder with one of them.
        fix: write a fixed copy as COCO JSON to `out`; rows that cannot be fixed are left out.
        out: the file of the fixed copy.
        corrections: the file that the page of `foldfuse review` downloaded: its corrections are made in the fixed copy.
        json_only: check the rows alone; by default every image is decoded, and near-duplicates are found.
        box_format: read `bbox` in this format instead of COCO's xywh, and write the fixed copy in COCO's. Shares are of the
            image's width and height. With xywh, boxes that look otherwise are taken as they are.
        category_ids: from_zero or from_one where annotations count the classes in the order of their ids instead of naming
            an id; as_given where the ids are meant as they are.
        ignore_crowd: take crowd regions and objects marked difficult for ordinary objects.

    Raises:
        InputError: the file is not a dataset, nothing in it can be used, the copy would replace the original, or the corrections
            are of other data.

    Examples:
        foldfuse check data
        foldfuse check data/train.json --fix --out data/train.fixed.json
        foldfuse check data/train.json --fix --corrections corrections.json --out data/train.fixed.json
    """
    if fix != (out is not None):
        raise InputError("--fix and --out go together: give both to write a fixed copy, or neither to check alone.")
    if corrections is not None and out is None:
        raise InputError(f"--corrections {corrections}: is applied to a fixed copy. Add --fix --out FILE.")
    if out is not None:
        inputs = [data, images, corrections]
        options.refuse_overwrite(out, overwrite, is_file=True, inputs=inputs, may_be_dataset=True)
    conventions = Conventions(box_format, category_ids, ignore_crowd)
    report = examine(
        data, decode=not json_only, images=images, conventions=conventions, ignore_orientation=ignore_orientation
    )
    if corrections is not None:
        dataset = read(data, images=images, ignore_orientation=ignore_orientation)
        report, sentence = apply_corrections(report, dataset, corrections)
        printing.write(sentence, to_stderr=True)
    console = printing.console()
    if report.findings:
        console.print(_findings_table(report))
    console.print(_classes_table(report.fixed))
    return report if out is None else write_fixed(report, out)


def join(
    data: tuple[Path, ...],
    *,
    out: options.Out,
    ignore_orientation: options.IgnoreOrientation = False,
    overwrite: options.Overwrite = False,
) -> Path:
    """Join annotated datasets of the same classes into one, and return the path of its COCO JSON.

    Images are numbered anew and stay where they are: the file names in the joined JSON lead from its folder to them. Classes are
    matched by name, and have the order and the ids of the first dataset.

    Args:
        data: two or more annotated datasets in any layout.
        out: COCO JSON to write, in a folder that holds all images, perhaps deeper.

    Raises:
        InputError: a dataset cannot be used, or has a class that the first lacks; two hold the same image; an image lies outside
            the folder of `out`; or `out` exists.

    Examples:
        foldfuse join data/train.json more/labelled.json --out joined.json
    """
    options.refuse_overwrite(out, overwrite, is_file=True, inputs=data, may_be_dataset=True)
    datasets = [read(path, ignore_orientation=ignore_orientation) for path in data]
    joined, sentences = joining.join(datasets, folder=out.parent)
    for sentence in sentences:
        printing.write(sentence, to_stderr=True)
    write(joined, out)
    parts = " + ".join(counted(len(dataset), "image") for dataset in datasets)
    printing.write(f"{out}: {parts}, {joined.num_boxes:,} boxes.", to_stderr=True)
    return out


def _folds_table(dataset: Dataset, folds: Folds) -> Table:
    """A column for each fold, since a table with a column for each class of ten does not fit into a terminal."""
    parts = [dataset.subset(folds.val_ids(fold)) for fold in range(folds.num_folds)]
    labels = [[s.annotations.labels for s in part.samples if s.annotations is not None] for part in parts]
    boxes = [np.bincount(np.concatenate(each), minlength=len(dataset.classes)) for each in labels]
    table = Table("fold", *map(str, range(folds.num_folds)))
    table.add_row("images", *(str(len(part)) for part in parts))
    table.add_row("boxes", *(str(each.sum()) for each in boxes), end_section=True)
    for name, counts in zip(dataset.classes, zip(*boxes, strict=True), strict=True):
        table.add_row(name, *map(str, counts))
    return table


def _importance(kind: tuple[tuple[str, bool, str], list[Finding]]) -> tuple[bool, bool, int]:
    """The order of kinds of findings: faults, those first without whose option no copy is written, then the most frequent."""
    (_, is_fault, _), findings = kind
    return not is_fault, not findings[0].option, -len(findings)


def _findings_table(report: CheckReport) -> Table:
    """A row for each kind of finding: faults first, then the most frequent kinds."""
    table = Table("", "finding", "times", "fixed copy", "such as", title="Findings")
    found = defaultdict(list)
    for finding in report.findings:
        fix = f"only with {finding.option}" if finding.option else finding.fix or "as it is"
        found[finding.kind, finding.is_fault, fix].append(finding)
    for (kind, is_fault, fix), same in sorted(found.items(), key=_importance):
        examples = [finding.where for finding in same[:EXAMPLES]]
        kind_of_row = "fault" if is_fault else "note"
        table.add_row(kind_of_row, kind, str(len(same)), fix, "\n".join(examples))
    return table


def _classes_table(dataset: Dataset) -> Table:
    title = f"{len(dataset)} images, {dataset.num_boxes} boxes"
    rows = class_statistics(dataset)
    crowd = ("crowd",) if any(row.num_crowd for row in rows) else ()
    table = Table("class", "boxes", *crowd, "images", "median side, px", title=title)
    for row in rows:
        side = "" if row.median_side_px is None else f"{row.median_side_px:.0f}"
        num_crowd = (str(row.num_crowd),) if crowd else ()
        table.add_row(row.name, str(row.num_boxes), *num_crowd, str(row.num_images), side)
    return table
