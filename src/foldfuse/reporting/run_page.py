"""The HTML page on a run's folder: its score, its errors, its curves, and how it was trained; without network or script.

The page shows the folder at that moment. A section without data is left out, and warnings at the end name files that cannot be
read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from foldfuse.data.dataset import Dataset
from foldfuse.data.readers.coco import read
from foldfuse.detections import Predictions
from foldfuse.errors import InputError, counted
from foldfuse.evaluation.coco import SCORE_NAMES, Score
from foldfuse.evaluation.diagnosis import Diagnosis
from foldfuse.evaluation.record import OOF, VAL, Evaluation, read_evaluation
from foldfuse.evaluation.thresholds import Thresholds, choose_thresholds
from foldfuse.formats.predictions import read_predictions
from foldfuse.provenance import origins_text
from foldfuse.reporting.charts import Chart, duration_text
from foldfuse.reporting.dataset_stats import dataset_stats
from foldfuse.reporting.error_analysis import analyse_errors
from foldfuse.reporting.learning_charts import loss_chart, lr_chart, score_chart
from foldfuse.reporting.next_commands import next_commands
from foldfuse.reporting.page_template import installed_versions, template
from foldfuse.reporting.records import LearningCurves, read_object, read_or_warn, read_run_record
from foldfuse.storage.run import Run, RunMetadata
from foldfuse.storage.run_tensors import WEIGHTS
from foldfuse.system.atomic_files import write_text
from foldfuse.system.records import from_plain_tolerantly

_MEANINGS = {  # of the fields of a score
    "ap": "mean over IoU 0.50 to 0.95",
    "ap50": "at IoU 0.50",
    "ap75": "at IoU 0.75",
    "ap_small": "objects under 32 × 32 px",
    "ap_medium": "objects of 32 × 32 to 96 × 96 px",
    "ap_large": "objects over 96 × 96 px",
    "ar1": "recall with 1 box an image",
    "ar10": "recall with 10 boxes an image",
    "ar100": "recall with 100 boxes an image",
}


@dataclass(frozen=True, eq=False)
class Evaluated:
    """The images that a run was evaluated on, its predictions of them, and their score; diagnosis and thresholds if known."""

    dataset: Dataset
    predictions: Predictions
    record: Evaluation
    diagnosis: Diagnosis | None = None
    thresholds: Thresholds | None = None


@dataclass(frozen=True)
class ClassRow:
    """A class with its scores, and its best score threshold with precision and recall there; None where nothing is annotated."""

    name: str
    objects: int
    ap50: float | None
    ap: float | None
    threshold: float | None = None
    precision: float | None = None
    recall: float | None = None


def write_run_page(folder: Path, *, out: Path | None = None, evaluated: Evaluated | None = None) -> Path:
    """Write the page on a run's folder, and return its path.

    Args:
        folder: the folder of a run.
        out: HTML file to write; `report.html` in the folder by default.
        evaluated: what to show as the run's score; by default the run's own held-out images, from the files in its folder.

    Raises:
        InputError: the folder holds no run, or `out` cannot be written.
    """
    folder = Path(folder)
    out = folder / "report.html" if out is None else Path(out)
    record = read_run_record(folder)
    warnings = list(record.warnings)
    metadata = _metadata(folder, warnings)
    ignore_orientation = metadata.ignore_orientation
    read_data = partial(
        read, images=Path(metadata.images) if metadata.images else None, ignore_orientation=ignore_orientation
    )
    dataset = read_or_warn(read_data, Path(metadata.data) if metadata.data else None, warnings)
    stored = None
    if evaluated is None:
        stored = read_or_warn(read_evaluation, folder, warnings)
        evaluated = _stored_predictions(folder, stored, metadata, dataset, read_data, warnings)
    evaluation = evaluated.record if evaluated is not None else stored
    errors = thresholds = None
    if evaluated is not None:
        thresholds = evaluated.thresholds
        if thresholds is None and evaluated.dataset.num_boxes:
            thresholds = choose_thresholds(evaluated.predictions, evaluated.dataset)
        errors = analyse_errors(
            evaluated.dataset,
            evaluated.predictions,
            warnings,
            ignore_orientation=ignore_orientation,
            diagnosis=evaluated.diagnosis,
        )
    page = template("run.html").render(
        name=folder.resolve().name,
        is_trained=(folder / WEIGHTS).exists(),
        summary=_summary(evaluation, record.curves),
        evaluation=evaluation,
        metadata=metadata,
        scores=[(name, getattr(evaluation.score, field), _MEANINGS[field]) for field, name in SCORE_NAMES.items()]
        if evaluation
        else [],
        classes=_class_rows(evaluation.score, thresholds) if evaluation else [],
        thresholds=thresholds,
        errors=errors,
        curves=_curves(record.curves),
        data=dataset_stats(dataset, {}) if dataset is not None else None,
        next_commands=next_commands(
            folder,
            is_classifier="classifier" in record.recipe,
            has_held_out=bool(metadata.val or metadata.val_ids),
            budget=metadata.budget,
        ),
        recipe=record.recipe,
        facts=_facts(metadata, record.recipe),
        versions=installed_versions(),
        warnings=warnings,
    )
    write_text(out, page)
    return out


def _metadata(folder: Path, warnings: list[str]) -> RunMetadata:
    """The metadata in run.json; of a broken one as much as can be read."""
    if not (folder / "run.json").exists():
        return RunMetadata()
    try:
        return Run(folder).metadata
    except InputError as error:
        warnings.append(str(error))
    try:
        return from_plain_tolerantly(read_object(folder / "run.json", []), RunMetadata) or RunMetadata()
    except InputError:
        return RunMetadata()


def _stored_predictions(
    folder: Path,
    stored: Evaluation | None,
    metadata: RunMetadata,
    dataset: Dataset | None,
    read_data: partial[Dataset],
    warnings: list[str],
) -> Evaluated | None:
    """The predictions in the run's folder with the images that they are of; None without a score or one of them."""
    if stored is None or stored.predictions not in (OOF, VAL):
        return None
    if stored.predictions == VAL:
        dataset = read_or_warn(read_data, Path(metadata.val) if metadata.val else None, warnings)
    path = folder / stored.predictions
    if dataset is None or not path.exists():
        return None
    predictions = read_or_warn(partial(read_predictions, dataset=dataset), path, warnings)
    return None if predictions is None else Evaluated(dataset.subset(predictions), predictions, stored)


def _summary(evaluation: Evaluation | None, curves: LearningCurves) -> str:
    """The result in one sentence."""
    if evaluation is not None and evaluation.score.ap50 is not None:
        score = evaluation.score
        return (
            f"AP50 {score.ap50:.3f} and AP {score.ap:.3f} on {counted(evaluation.num_images, 'image')} that the run has not "
            f"learnt from: {evaluation.held_out}."
        )
    if len(curves.scores):
        return f"At its last evaluation the run reached {curves.metric} {curves.scores[-1]:.3f}."
    return "No image was held out, or none was scored yet, so the run has no score."


def _class_rows(score: Score, thresholds: Thresholds | None) -> list[ClassRow]:
    """The classes, those with most objects first."""
    best = thresholds.by_class if thresholds is not None else ()
    rows = []
    for k, each in enumerate(score.per_class):
        threshold = best[k] if k < len(best) and best[k].objects else None
        numbers = (threshold.score, threshold.precision, threshold.recall) if threshold is not None else ()
        rows.append(ClassRow(each.name, each.boxes, each.ap50, each.ap, *numbers))
    return sorted(rows, key=lambda row: -row.objects)


def _curves(run: LearningCurves) -> list[Chart]:
    """Loss, learning rate and score over the training time, as far as they are known."""
    charts = (loss_chart([run]), lr_chart(run), score_chart([run]))
    return [chart for chart in charts if chart is not None]


def _facts(metadata: RunMetadata, recipe: Mapping[str, Any]) -> list[tuple[str, object]]:
    """(name, value) of how the run was trained, as far as it is known."""
    size = recipe.get("image_size")
    canvas = f"{metadata.canvas[1]} × {metadata.canvas[0]} px" if metadata.canvas else None
    rate = metadata.images_per_second
    values = {
        "data": metadata.data or None,
        "held out": f"fold {metadata.fold} of {metadata.folds}" if metadata.folds else metadata.val,
        "start": metadata.started_from or recipe.get("init_weights"),
        "initial weights": origins_text(metadata.weights),
        "image size": f"{size} px" if isinstance(size, int) else None,
        "why this size": metadata.image_size_reason,
        "network's input": canvas,
        "steps": f"{metadata.steps:,}" if metadata.steps is not None else None,
        "time": duration_text(metadata.seconds) if metadata.seconds is not None else None,
        "images per second": f"{rate:.3g}" if rate is not None else None,
        "device": metadata.trained_on or metadata.device,
        "processes": metadata.processes if (metadata.processes or 1) > 1 else None,
        "precision": (metadata.compute or {}).get("precision"),
        "seed": metadata.seed,
        "learning rates given later": "; ".join(
            f"{each.lr:g} from step {each.step:,} on" for each in metadata.lr_changes
        )
        or None,
        "origin": metadata.origin,
    }
    return [(name, value) for name, value in values.items() if value is not None]
