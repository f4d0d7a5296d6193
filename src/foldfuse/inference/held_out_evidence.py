"""What held-out images say of predictors: the AP of each class, the calibration of each member; and the images that are labelled.

A campaign's ledger holds its out-of-fold AP by class, a run's evaluation.json its own. Calibrations need the annotations, which
are read where the campaign or the run had them. What cannot be read is reported in a sentence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.data.readers.coco import locate, read
from foldfuse.ensemble.calibration import Calibration, bin_scores, fit_calibration
from foldfuse.errors import InputError
from foldfuse.evaluation.matching import MATCH_IOU, ground_truth, match_predictions
from foldfuse.evaluation.record import OOF, VAL, read_evaluation
from foldfuse.formats.parquet import read_parquet
from foldfuse.inference.base_predictor import Predictor
from foldfuse.inference.tta import PLAIN_VIEW
from foldfuse.storage.ledger import NAME as LEDGER
from foldfuse.storage.ledger import snapshot
from foldfuse.storage.run import Run

CAMPAIGN_VAL = f"val@{PLAIN_VIEW}.parquet"  # in the folder of a campaign's member


@dataclass(frozen=True, eq=False)
class HeldOutEvidence:
    """What is known of predictors.

    Attributes:
        average_precisions: {class: its out-of-fold AP; None where no held-out image has the class}; empty where nothing is known.
        calibrations: {run: the calibration of its scores}, of the runs whose held-out predictions and annotations are there.
        labelled: the annotated data of the campaigns and runs.
        notes: sentences on what is not known.
    """

    average_precisions: Mapping[str, float | None] = field(default_factory=dict)
    calibrations: Mapping[Run, Calibration] = field(default_factory=dict)
    labelled: tuple[Dataset, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Source:
    """Annotated data as a campaign or a run names them."""

    data: Path
    images: Path | None
    ignore_orientation: bool


def held_out_evidence(predictors: Sequence[Predictor]) -> HeldOutEvidence:
    """The evidence on predictors of campaigns, runs, ensembles and bundles, as far as their folders hold it."""
    precisions: dict[str, list[float]] = defaultdict(list)
    known: set[str] = set()
    datasets: dict[_Source, Dataset | None] = {}
    calibrations: dict[Run, Calibration] = {}
    notes: list[str] = []
    for predictor in predictors:
        folder = predictor.source
        of_campaign = (folder / LEDGER).is_file()
        facts: Mapping[str, Any] = snapshot(folder) if of_campaign else {}
        scores = list(_campaign_scores(facts)) if of_campaign else list(_run_scores(predictor.runs))
        known.update(name for name, _ in scores)
        for name, ap in scores:
            precisions[name] += [] if ap is None else [ap]
        for run in predictor.runs:
            sources = _campaign_sources(facts) if of_campaign else _run_sources(run)
            for file_name, source in sources.items():
                if source not in datasets:
                    datasets[source] = _read(source)
                dataset = datasets[source]
                if dataset is not None and run not in calibrations:
                    with suppress(InputError):  # predictions of other data, or none
                        calibrations[run] = _calibration(run.folder / file_name, dataset)
        if not scores:
            notes.append(f"{folder}: holds no out-of-fold AP by class, so all classes count as equally difficult.")
    gone = sorted(str(source.data) for source, dataset in datasets.items() if dataset is None)
    if gone:
        notes.append(
            f"{', '.join(gone)}: cannot be read any more, so only images that the members have learnt from are known as labelled."
        )
    return HeldOutEvidence(
        {name: mean(precisions[name]) if precisions[name] else None for name in sorted(known)},
        calibrations,
        tuple(dataset for dataset in datasets.values() if dataset is not None),
        tuple(notes),
    )


def _campaign_scores(facts: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """(class, out-of-fold AP) of a campaign's current submission."""
    for row in (facts.get("fused") or {}).get("per_class") or ():
        if isinstance(row, Mapping) and isinstance(row.get("name"), str):
            ap = row.get("ap")
            yield row["name"], float(ap) if isinstance(ap, int | float) else None


def _run_scores(runs: Iterable[Run]) -> Iterator[tuple[str, float | None]]:
    """(class, AP on held-out images) of runs that were evaluated."""
    for run in runs:
        with suppress(InputError):
            evaluation = read_evaluation(run.folder)
            for each in () if evaluation is None else evaluation.score.per_class:
                yield each.name, each.ap


def _campaign_sources(facts: Mapping[str, Any]) -> dict[str, _Source]:
    """{file of held-out predictions: its annotated data} of each member of a campaign."""
    request = facts.get("request") or {}
    if not isinstance(request.get("data"), str):
        return {}
    data, _ = locate(Path(request["data"]))
    images = request.get("images")
    return {
        CAMPAIGN_VAL: _Source(data, None if images is None else Path(images), bool(request.get("ignore_orientation")))
    }


def _run_sources(run: Run) -> dict[str, _Source]:
    """{file of held-out predictions: its annotated data} of a run."""
    with suppress(InputError):
        metadata = run.metadata
        images = None if metadata.images is None else Path(metadata.images)
        sources = {}
        if metadata.data:
            sources[OOF] = _Source(Path(metadata.data), images, metadata.ignore_orientation)
        if metadata.val:
            sources[VAL] = _Source(Path(metadata.val), images, metadata.ignore_orientation)
        return sources
    return {}


def _read(source: _Source) -> Dataset | None:
    """The annotated data; None where they cannot be read."""
    with suppress(InputError):
        return read(source.data, images=source.images, ignore_orientation=source.ignore_orientation)
    return None


def _calibration(path: Path, dataset: Dataset) -> Calibration:
    """The calibration of a member's scores to the chance that a box is right at IoU 0.5, from its held-out predictions.

    Raises:
        InputError: the file is missing, or its predictions are of other data or of images that the member has learnt from.
    """
    if not path.is_file():
        raise InputError(f"{path}: is missing.")
    predictions = read_parquet(path, dataset)
    held_out = [i for i in predictions if i not in predictions.learnt_ids and dataset[i].annotations is not None]
    if not held_out:
        raise InputError(f"{path}: holds no prediction of a held-out image.")
    truth = ground_truth(dataset.subset(held_out))
    matches = match_predictions(predictions.select_images(held_out), truth, ious=(MATCH_IOU,))
    return fit_calibration(bin_scores(matches, np.zeros(len(truth.image_ids), np.int64)), frozenset())
