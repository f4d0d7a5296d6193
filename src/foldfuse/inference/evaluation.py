"""Evaluates the detector of a run: predicts annotated images that it has not learnt from, and scores the predictions.

A run's own held-out images are those of its fold, or the data that it was given as --val.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from foldfuse.data.dataset import Dataset, require_annotations
from foldfuse.data.pixels import open_images
from foldfuse.data.readers.coco import read
from foldfuse.detections import Predictions
from foldfuse.errors import InputError, counted
from foldfuse.evaluation.coco import Score, score_predictions
from foldfuse.evaluation.diagnosis import Diagnosis, diagnose
from foldfuse.evaluation.record import OOF, VAL, Evaluation, write_evaluation
from foldfuse.evaluation.thresholds import THRESHOLDS, Thresholds, choose_thresholds, write_thresholds
from foldfuse.formats.predictions import write_predictions
from foldfuse.inference.class_labels import labels_by_name, relabel
from foldfuse.inference.detector import load_detector, predict_views
from foldfuse.inference.learnt_images import learnt_ids
from foldfuse.inference.tta import PLAIN_VIEW
from foldfuse.inference.views import BATCH_SIZE
from foldfuse.storage.run import Run, RunMetadata
from foldfuse.system.progress import Progress, no_progress

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Annotated images to evaluate a run on.

    Attributes:
        dataset: the images, opened.
        data: the path that they were read from.
        words: which images they are, such as "fold 0 of folds.json".
        file_name: of their predictions in the run's folder; None for images that are not the run's own held-out ones.
        num_learnt: images that were left out, since the run has learnt from them.
    """

    dataset: Dataset
    data: Path
    words: str
    file_name: str | None = None
    num_learnt: int = 0


@dataclass(frozen=True, eq=False)
class RunEvaluation:
    """The predictions of a run on annotated images, and their score.

    Attributes:
        held_out: the images.
        predictions: of these images, with the dataset's labels.
        score: COCO's numbers; `score.ap`, `score.ap50`, `score.per_class`, ...
        record: what evaluation.json holds of it.
        beta: of the F score that the thresholds maximise.
    """

    held_out: HeldOut
    predictions: Predictions
    score: Score
    record: Evaluation
    beta: float = 1.0

    @cached_property
    def diagnosis(self) -> Diagnosis:
        """Best thresholds, confusion matrix, curves and types of error."""
        return diagnose(self.predictions, self.held_out.dataset)

    @cached_property
    def thresholds(self) -> Thresholds:
        """The best score thresholds by class; `thresholds.apply(predictions, "best-by-class")` leaves out boxes below them."""
        found = choose_thresholds(self.predictions, self.held_out.dataset, beta=self.beta)
        return replace(found, steps=self.record.steps)

    def __repr__(self) -> str:
        numbers = ", ".join(
            f"{name} {value:.4f}"
            for name, value in (("AP", self.score.ap), ("AP50", self.score.ap50))
            if value is not None
        )
        return f"RunEvaluation({numbers}, {counted(len(self.held_out.dataset), 'image')})"


def evaluate(
    run: Path | str,
    data: Path | str | None = None,
    *,
    images: Path | str | None = None,
    ignore_orientation: bool = False,
    device: str = "auto",
    engine: str = "auto",
    batch_size: int = BATCH_SIZE,
    beta: float = 1.0,
    progress: Progress = no_progress,
) -> RunEvaluation:
    """Predict annotated images with a trained run and score the predictions; nothing is written.

    Args:
        run: the folder of a trained detector.
        data: annotated images, in any layout; by default the run's own held-out images. Images that the run has learnt from
            are left out.
        images: the folder of the images, where they are not found beside the annotations.
        ignore_orientation: whether pixels are taken as stored, whatever an EXIF tag says; always so for a run trained that way.
        device: such as "auto", "cpu" or "cuda".
        engine: what runs the detector on a CPU; see `load`.
        batch_size: images of 256 px at a time; fewer larger ones.
        beta: of the F score that `thresholds` of the result maximise.
        progress: gets the finished share of the prediction.

    Raises:
        InputError: the run is not trained or held nothing out, the data do not fit it, or it has learnt from all of them.
    """
    folder = Run(Path(run))
    held_out = held_out_images(
        folder,
        None if data is None else Path(data),
        images=None if images is None else Path(images),
        ignore_orientation=ignore_orientation,
    )
    return evaluate_run(
        folder, held_out, device=device, engine=engine, batch_size=batch_size, beta=beta, progress=progress
    )


def evaluate_run(
    run: Run,
    held_out: HeldOut,
    *,
    device: str = "auto",
    engine: str = "auto",
    batch_size: int = BATCH_SIZE,
    beta: float = 1.0,
    progress: Progress = no_progress,
) -> RunEvaluation:
    """The predictions of a trained detector on annotated images, and their score.

    Raises:
        InputError: the run is not trained, does not know a class of the images, or an image cannot be decoded.
    """
    model, classes = load_detector(run, device)
    dataset = held_out.dataset
    labels = labels_by_name(classes, dataset, run.folder)
    found = predict_views(
        model,
        dataset.samples,
        classes,
        image_size=run.recipe.image_size,
        views=[PLAIN_VIEW],
        batch_size=batch_size,
        engine=engine,
        progress=progress,
    )
    predictions = relabel(found[PLAIN_VIEW], labels, dataset)
    score = score_predictions(predictions, dataset)
    record = Evaluation(
        held_out=held_out.words,
        data=str(held_out.data),
        num_images=len(dataset),
        num_objects=sum(each.boxes for each in score.per_class),
        num_learnt=held_out.num_learnt,
        steps=run.metadata.steps,
        predictions=held_out.file_name,
        score=score,
    )
    return RunEvaluation(held_out, predictions, score, record, beta)


def keep_evaluation(run: Run, evaluation: RunEvaluation) -> None:
    """Write the predictions of a run's own held-out images, their score, and a row of the log with it into its folder.

    Raises:
        InputError: another process trains in the folder.
    """
    record, score = evaluation.record, evaluation.score
    assert record.predictions is not None
    with run.exclusive():
        write_predictions(evaluation.predictions, run.folder / record.predictions, evaluation.held_out.dataset)
        write_evaluation(run.folder, record)
        write_thresholds(run.folder / THRESHOLDS, evaluation.thresholds)
        metadata = run.metadata
        if metadata.steps is None or metadata.seconds is None or score.ap50 is None:
            return
        rows = [row for row in run.log if "loss" in row or row["step"] != metadata.steps]
        row = {"step": metadata.steps, "seconds": metadata.seconds, "ap": score.ap, "ap50": score.ap50}
        run.write_log([*rows, row])


def held_out_images(
    run: Run, data: Path | None = None, *, images: Path | None = None, ignore_orientation: bool = False
) -> HeldOut:
    """The images to evaluate a run on, without those that it has learnt from, which are logged.

    Args:
        run: the run of a detector.
        data: annotated data; by default the run's own held-out images.
        images: the folder of the images; by default the one that the run was trained with, for its own data.
        ignore_orientation: see `evaluate`.

    Raises:
        InputError: the run held nothing out, its data have changed or cannot be read, or it has learnt from all images.
    """
    metadata = run.metadata
    if run.is_classifier:
        raise InputError(
            f"{run.folder}: is a run of a classifier, and AP is a score of boxes. Its accuracy is shown by: foldfuse predict "
            f"{run.folder} DATA --out classes.csv"
        )
    own = data is None
    source = _own_data(run, metadata) if data is None else data
    stored = Path(metadata.images) if own and metadata.images is not None else None
    ignore_orientation = ignore_orientation or metadata.ignore_orientation
    dataset = read(source, images=images or stored, ignore_orientation=ignore_orientation)
    if own and metadata.val is None:
        dataset = _own_fold(run, metadata, dataset)
    dataset = open_images(
        require_annotations(dataset), ignore_orientation=ignore_orientation, value_ranges=metadata.value_ranges
    )
    if own:
        return own_held_out(run, dataset)
    return _without_learnt(run, HeldOut(dataset, source, source.name))


def own_held_out(run: Run, dataset: Dataset, *, num_learnt: int = 0) -> HeldOut:
    """The run's own held-out images, without those that it has learnt from, which are logged.

    Args:
        run: the run of a detector.
        dataset: its held-out images, opened.
        num_learnt: images that are left out of `dataset` already.

    Raises:
        InputError: it has learnt from all of them.
    """
    metadata = run.metadata
    data, file_name = (Path(metadata.data), OOF) if metadata.val is None else (Path(metadata.val), VAL)
    return _without_learnt(run, HeldOut(dataset, data, held_out_words(metadata), file_name, num_learnt))


def _without_learnt(run: Run, held_out: HeldOut) -> HeldOut:
    """`held_out` without the images that a run has learnt from; logs how many these are."""
    dataset = held_out.dataset
    learnt = learnt_ids(run, dataset)
    if not learnt:
        return held_out
    if len(learnt) == len(dataset):
        raise InputError(
            f"{run.folder}: has learnt from all {len(dataset)} images of {held_out.data}, so a score on them says nothing about "
            "new images. Give other images, or train with --folds or --val to hold some out."
        )
    others = dataset.subset(set(dataset.image_ids) - learnt)
    log.warning(
        f"{run.folder}: has learnt from {len(learnt)} of the {len(dataset)} images ({held_out.words}). They are left out, and "
        f"the score is of the {len(others)} others."
    )
    return replace(held_out, dataset=require_annotations(others), num_learnt=held_out.num_learnt + len(learnt))


def held_out_words(metadata: RunMetadata) -> str:
    """Which images a run held out, in words, such as "fold 0 of folds.json"; "" where it held out none."""
    if metadata.val is not None:
        return Path(metadata.val).name
    if metadata.folds is not None:
        return f"fold {metadata.fold} of {Path(metadata.folds).name}"
    return f"held-out images of {Path(metadata.data).name}" if metadata.val_ids else ""


def _own_data(run: Run, metadata: RunMetadata) -> Path:
    """The data that hold the run's own held-out images."""
    if metadata.val is not None:
        return Path(metadata.val)
    if metadata.val_ids and metadata.data:
        return Path(metadata.data)
    raise InputError(
        f"{run.folder}: held out no image when it was trained. Give annotated images that it has not learnt from: foldfuse "
        f"evaluate {run.folder} DATA. Or train with --folds FILE or --val DATA."
    )


def _own_fold(run: Run, metadata: RunMetadata, dataset: Dataset) -> Dataset:
    """The held-out images of a run in its data."""
    missing = set(metadata.val_ids) - set(dataset.image_ids)
    if missing:
        raise InputError(
            f"{metadata.data}: lacks {len(missing)} of the {len(metadata.val_ids)} images that {run.folder} held out: the data "
            f"have changed. Restore them, or give the images to score: foldfuse evaluate {run.folder} DATA"
        )
    return dataset.subset(metadata.val_ids)
