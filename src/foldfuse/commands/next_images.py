"""The next command: the unlabelled images that are worth labelling next."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter
from rich.table import Table

from foldfuse.commands import options
from foldfuse.commands.browse import title_of
from foldfuse.commands.score_tables import threshold_sentence
from foldfuse.commands.tables import text_table
from foldfuse.data.dataset import Dataset
from foldfuse.data.image_inputs import read_paths
from foldfuse.data.pixels import inspect_images, open_images
from foldfuse.detections import Predictions
from foldfuse.errors import InputError, counted
from foldfuse.evaluation.thresholds import BEST, Choice
from foldfuse.inference.base_predictor import Predictor
from foldfuse.inference.held_out_evidence import HeldOutEvidence, held_out_evidence
from foldfuse.inference.next_images import NextChoice, choose_next, unlabelled_images, without_unusable
from foldfuse.inference.predictor import load
from foldfuse.inference.stored_thresholds import stored_thresholds
from foldfuse.inference.views import BATCH_SIZE
from foldfuse.reporting.next_folder import ANNOTATIONS, PAGE, expected_words, refuse_labels, write_next_folder
from foldfuse.storage.next_images import RECORD, NextImages
from foldfuse.system import printing
from foldfuse.system.progress import progress_bar

TABLE_ROWS = 10  # of the first images, on the terminal
OFFERED_SCORE = 0.3  # boxes of lower score are not offered as annotations where no threshold is stored


def next_images(
    unlabelled: Path,
    campaign: Annotated[tuple[Path, ...], Parameter(metavar="CAMPAIGN|RUN...")],
    *,
    number: options.Count = 50,
    out: options.Out = Path("next"),
    score_threshold: options.ThresholdOrBest = None,
    batch_size: options.BatchSize = None,
    images: options.Images = None,
    ignore_orientation: options.IgnoreOrientation = False,
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    overwrite: options.Overwrite = False,
) -> Path:
    """Pick the unlabelled images that are worth labelling next, and write a folder with them.

    Each member of the campaign predicts each image. Images come first where the members disagree most, objects of classes with a
    low out-of-fold AP count more, and images that look alike are not picked together. Images that are labelled already, by
    their content, are left out.

    The folder holds copies of the images, annotations.json (COCO JSON: the ensemble's boxes with their scores, to be corrected
    in an annotation tool), next.csv with the score, the expected objects and the reason of each image, and next.html to look at
    them.

    Args:
        unlabelled: the images to choose from: a folder, a pattern in quotes such as 'photos/*.jpg', or a dataset of any layout,
            whose annotations are not read.
        campaign: the folder of a campaign; or runs of the same classes, whose disagreement counts. A single run is compared with
            its prediction of the mirrored image.
        number: pick N images.
        out: folder to write.
        score_threshold: boxes of lower scores are not offered as annotations. By default the stored threshold with the best F1,
            or 0.3. best or best-by-class: the stored threshold with the best F, of all classes or of each.
        batch_size: images of 256 px at a time, 16 by default; fewer larger ones, so that memory stays the same.

    Raises:
        InputError: nothing trained is there, all images are labelled already, none can be decoded, or `out` exists.

    Examples:
        foldfuse next photos/ campaign1 --number 2 --out next1
        foldfuse next 'photos/*.png' run1 run2 --number 3 --out next2
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("next works in one process. Give the command without torchrun.")
    options.refuse_overwrite(out, overwrite, inputs=[unlabelled, images, *campaign], made_by=(RECORD,))
    refuse_labels(out)
    predictors = [load(path, device=device, engine=engine) for path in _checked(campaign)]
    first = predictors[0]
    ignore_orientation = ignore_orientation or first.ignore_orientation
    predictors = [replace(each, ignore_orientation=ignore_orientation) for each in predictors]
    given = read_paths([unlabelled], images=images, ignore_orientation=ignore_orientation)
    category_ids = first.category_ids or tuple(range(1, len(first.classes) + 1))
    dataset = given.dataset.with_classes(first.classes, category_ids)
    inspections = inspect_images(dataset, ignore_orientation=ignore_orientation)
    problems = {s.id: i.error for s, i in zip(dataset.samples, inspections, strict=True) if i.error}
    dataset = without_unusable(dataset, problems)
    evidence = held_out_evidence(predictors)
    for sentence in evidence.notes:
        printing.write(sentence, to_stderr=True)
    left = unlabelled_images(dataset, predictors, evidence)
    if str(left):
        printing.write(left, to_stderr=True)
    dataset = open_images(
        left.dataset,
        ignore_orientation=ignore_orientation,
        value_ranges=first.value_ranges,
        measured=given.measured,
    )
    with progress_bar(f"predicting {counted(len(dataset), 'image')}", num_images=len(dataset)) as progress:
        choice = choose_next(
            predictors,
            dataset,
            evidence,
            number=number,
            device=device,
            batch_size=batch_size or BATCH_SIZE,
            progress=progress,
        )
    _report_broken([*problems.values(), *choice.broken.values()])
    offered = _offered(choice, predictors, score_threshold)
    with progress_bar(f"writing {counted(len(choice.samples), 'image')}") as progress:
        record = write_next_folder(
            choice,
            dataset,
            out,
            pre_annotations=offered,
            predictors=campaign,
            title=title_of(unlabelled),
            progress=progress,
        )
    console = printing.console()
    console.print(_classes_table(choice, evidence, dataset))
    console.print(_images_table(record))
    boxes = "1 box" if len(offered.boxes) == 1 else f"{len(offered.boxes):,} boxes"
    printing.write(
        f"{out}: {counted(len(record.images), 'image')} of {choice.num_images:,} to label next, with {boxes} to correct in "
        f"{ANNOTATIONS}. Look at them: {out / PAGE}",
        to_stderr=True,
    )
    return out


def _checked(campaign: Sequence[Path]) -> tuple[Path, ...]:
    """The campaign or the runs.

    Raises:
        InputError: one is given twice, or is an image, as where a shell has expanded a pattern.
    """
    for i, path in enumerate(campaign):
        if (
            path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
            and path.is_file()
        ):
            raise InputError(
                f"{path}: is an image, expected a campaign or a run. Put a pattern of images in quotes: 'photos/*.jpg'."
            )
        if any(path.resolve() == other.resolve() for other in campaign[:i]):
            raise InputError(f"{path}: is given twice. Give each run once.")
    return tuple(campaign)


def _report_broken(reasons: Sequence[str]) -> None:
    """Prints how many images cannot be used, and why the first cannot."""
    if reasons:
        is_are = "is" if len(reasons) == 1 else "are"
        printing.write(f"{counted(len(reasons), 'image')} {is_are} left out: {reasons[0]}", to_stderr=True)


def _offered(choice: NextChoice, predictors: Sequence[Predictor], asked: float | str | None) -> Predictions:
    """The boxes of the ensemble that are offered as annotations."""
    if isinstance(asked, float | int):
        return choice.fused.filter(choice.fused.scores >= asked)
    if isinstance(asked, str) and len(predictors) > 1:
        raise InputError(
            f"--score-threshold {asked}: several runs together have no stored threshold. Give a number, or one campaign."
        )
    kind: Choice = "best-by-class" if asked not in (None, BEST) else "best"
    try:
        best = stored_thresholds(predictors[0]) if len(predictors) == 1 else None
    except InputError:
        if asked is not None:
            raise
        best = None
    if best is None:
        return choice.fused.filter(choice.fused.scores >= OFFERED_SCORE)
    printing.write(threshold_sentence(best, kind), to_stderr=True)
    return best.apply(choice.fused, kind)


def _classes_table(choice: NextChoice, evidence: HeldOutEvidence, dataset: Dataset) -> Table:
    """The out-of-fold AP of each class, and the objects of it that the picked images are expected to hold."""
    sums = np.zeros(len(dataset.classes))
    for one in choice.candidates:
        sums += np.bincount(one.labels, weights=one.means, minlength=len(sums))
    rows = []
    for k in np.argsort(-choice.difficulties, kind="stable"):
        ap = evidence.average_precisions.get(dataset.classes[k])
        rows.append([dataset.classes[k], "–" if ap is None else f"{ap:.3f}", f"{sums[k]:.1f}"])
    return text_table("Classes, the most difficult first", ["class", "out-of-fold AP", "expected objects"], rows)


def _images_table(record: NextImages) -> Table:
    """The first images to label."""
    rows = [
        [str(rank), one.image, f"{one.score:.2f}", expected_words(one.expected), one.reason]
        for rank, one in enumerate(record.images[:TABLE_ROWS], 1)
    ]
    heads = ["", "image", "bits", "expected objects", "reason"]
    return text_table("The first images to label", heads, rows, words=["image", "expected objects", "reason"])
