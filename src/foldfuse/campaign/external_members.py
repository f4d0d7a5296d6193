"""External members of a campaign: runs trained elsewhere and other toolkits' predictions, which join the ensemble.

All external predictions must be out-of-fold: made without the held-out images of the campaign. A run and its predictions
remember the images that it has learnt from. The campaign cannot check another toolkit's predictions, and relies on the user.

An external member predicts the held-out images of all folds that the campaign trains. So a fold is trained beside fold 0 only
where each external run has learnt none of its images, and each file of external predictions has predicted them no better than
those of fold 0 (`free_folds`): a file by one model, which held out fold 0 alone, is not out-of-fold on the others.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from foldfuse.campaign import constants as c
from foldfuse.campaign.planning.segments import is_segment_name
from foldfuse.campaign.task import TEST, VAL, Task, predictions_path
from foldfuse.data.dataset import Dataset
from foldfuse.data.folds import Folds
from foldfuse.detections import Predictions
from foldfuse.errors import InputError
from foldfuse.evaluation.coco import score_predictions
from foldfuse.evaluation.matching import require_unlearnt
from foldfuse.formats.predictions import PredictionFile, read_prediction_file, write_predictions
from foldfuse.inference.learnt_images import learnt_ids
from foldfuse.storage.ledger import Ledger
from foldfuse.storage.run import Run
from foldfuse.storage.segments import Role, SegmentRecord
from foldfuse.system.records import to_plain

logger = logging.getLogger(__name__)
_RUN_FILES = ("recipe.json", "run.json", "weights.safetensors", "learnt_images.json", "log.jsonl")


def add_all(runs: Sequence[Path], predictions: Sequence[str], task: Task, ledger: Ledger) -> None:
    """Checks all external members, then gives each a folder and a segment in the ledger; once in a campaign.

    Args:
        runs: folders of trained runs.
        predictions: "VAL:TEST", files with predictions of the held-out and of the test images.
        task: says which images these are.
        ledger: the ledger of the campaign.

    Raises:
        InputError: one of them cannot be a member; none is then added.
    """
    if ledger.get("external_members_added") or not (runs or predictions):
        return
    pairs = [_split_pair(pair) for pair in predictions]
    checked = {folder.resolve().name: _check_run(Run(folder), task) for folder in runs}
    read = {Path(val).stem: _read_predictions(val, test, task) for val, test in pairs}
    names = [*checked, *read]
    if len(names) < len(runs) + len(pairs) or len({*names}) < len(names):
        raise InputError("two external members have the same name, that of their folder or file. Rename one.")
    for name in names:
        if is_segment_name(name):
            raise InputError(
                f"an external member cannot be called {name!r}: the campaign names its own members so. Rename it."
            )
    for name, run in checked.items():
        _add_run(name, run, ledger)
    for sentence in _likeness_warnings(checked, task):
        ledger.log(sentence)
    for name, (val, test) in read.items():
        _add_predictions(name, val, test, task, ledger)
    ledger.set(external_members_added=True)


def free_folds(
    runs: Sequence[Path], predictions: Sequence[str], task: Task, folds: Folds, available: Sequence[int]
) -> list[int]:
    """Of the folds that can be held out, the first, and those whose images all external members predict out-of-fold.

    Args:
        runs, predictions: see `add_all`, which checks the first fold.
        task: gives the annotated images.
        folds: their folds.
        available: the folds that can be held out.
    """
    labeled = task.labeled
    files = [_read_file(_split_pair(pair)[0], labeled).predictions for pair in predictions]
    learnt = {i for folder in runs for i in learnt_ids(Run(folder), labeled, strict=True)}
    learnt |= {i for file in files for i in file.learnt_ids}
    free = list(available[:1])
    first, *others = (labeled.subset(folds.val_ids(fold)) for fold in available)
    for fold, images in zip(available[1:], others, strict=True):
        if not learnt & {*images.image_ids} and all(_is_out_of_fold(file, images, first) for file in files):
            free.append(fold)
    return free


def _is_out_of_fold(predictions: Predictions, images: Dataset, first: Dataset) -> bool:
    """Whether the predictions hold all images of a fold, and are hardly better there than on the `first` fold."""
    if not (_coverage(predictions, images)[2] and _coverage(predictions, first)[2]):
        return False
    own, held_out = (score_predictions(predictions.select_images(one.image_ids), one) for one in (images, first))
    return (own.ap50 or 0.0) <= (held_out.ap50 or 0.0) + c.MAX_EXTERNAL_GAP


def _check_run(run: Run, task: Task) -> Run:
    """The run, if it trained on no held-out image, has the same classes and weights that fit."""
    from foldfuse.inference.detector import load_detector

    metadata = run.metadata
    if metadata.classes != task.train.classes:
        raise InputError(
            f"{run.folder}: was trained for the classes {', '.join(metadata.classes)}, but the data has "
            f"{', '.join(task.train.classes)}. A member needs the same classes in the same order."
        )
    load_detector(run, "cpu")
    seen = learnt_ids(run, task.val, strict=True)
    if seen:
        raise InputError(
            f"{run.folder}: has learnt from {len(seen)} of the campaign's {len(task.val)} held-out images, such as image id "
            f"{min(seen)}. Train it with --folds FILE --fold 0, and give the campaign the same --folds FILE."
        )
    return run


def _likeness_warnings(runs: Mapping[str, Run], task: Task) -> list[str]:
    """Sentences on runs whose first weights have learnt from images that look like held-out ones, by the member's name."""
    from foldfuse.inference.pretraining_images import likeness_warnings  # loads torch

    with suppress(InputError):  # the files that a run began from are not needed to join
        return likeness_warnings({name: run.recipe for name, run in runs.items()}, task.val)
    return []


def _split_pair(pair: str) -> tuple[str, str]:
    val, colon, test = pair.rpartition(":")
    if not colon or not val or not test:
        raise InputError(f"--external-predictions is VAL:TEST, two files of predictions; got {pair!r}.")
    return val, test


def _read_predictions(val: str, test: str, task: Task) -> tuple[Predictions, Predictions]:
    """The predictions of the held-out images and of the test images."""
    out_of_fold = _logged(val, _read_file(val, task.labeled))  # an out-of-fold file may cover every labeled image
    val_predictions = out_of_fold.select_images([i for i in task.val.image_ids if i in out_of_fold])
    require_unlearnt(val_predictions, val, "the ensemble's weights would favour it")
    covered, with_objects, suffices = _coverage(val_predictions, task.val)
    if not suffices:
        raise InputError(
            f"{val}: finds something in {covered} of the {with_objects} held-out images that have objects, and has "
            f"{len(val_predictions)} of all {len(task.val)}. Predict the images of fold 0 of the campaign's folds with a "
            "model that was not trained on them."
        )
    test_predictions = _logged(test, _read_file(test, task.test))
    return val_predictions, test_predictions.select_images([sample.id for sample in task.test_samples])


def _coverage(predictions: Predictions, images: Dataset) -> tuple[int, int, bool]:
    """In how many images with objects something was found, their number, and whether that suffices and no image is missing."""
    with_objects = [s for s in images.samples if s.annotations is not None and len(s.annotations)]
    covered = sum(s.id in predictions and len(predictions[s.id]) > 0 for s in with_objects)
    every = all(image_id in predictions for image_id in images.image_ids)
    return covered, len(with_objects), every and covered >= c.MIN_EXTERNAL_COVERAGE * len(with_objects)


def _logged(path: str, file: PredictionFile) -> Predictions:
    """The predictions of a file; logs what may be wrong with it."""
    for note in file.warnings:
        logger.warning("%s: %s", path, note)
    return file.predictions


def _read_file(path: str, dataset: Dataset) -> PredictionFile:
    """The file of predictions. Raises InputError where it cannot be read."""
    try:
        return read_prediction_file(Path(path), dataset)
    except InputError as error:
        if not re.search(r"--(input-format|image-ids|category-ids)", str(error)):
            raise
        raise InputError(
            f"{error} Give the option to 'foldfuse convert', and the campaign the .parquet that it writes."
        ) from None


def _add_run(name: str, run: Run, ledger: Ledger) -> None:
    folder = ledger.folder / "members" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in _RUN_FILES:
        if (run.folder / file).exists():
            shutil.copyfile(run.folder / file, folder / file)
    metadata = run.metadata
    seconds = metadata.seconds or 0.0
    ledger.put_segment(
        SegmentRecord(
            name=name,
            role=Role.EXTERNAL_RUN,
            recipe=to_plain(run.recipe),
            parent=None,
            fold=0,
            seed=metadata.seed,
            state="trained",
            budget=seconds,
            seconds=seconds,
            started=ledger.elapsed,
            ended=None,
            result={},
        )
    )
    ledger.log(f"{name} joins as a member; it was trained elsewhere.")


def _add_predictions(name: str, val: Predictions, test: Predictions, task: Task, ledger: Ledger) -> None:
    folder = ledger.folder / "members" / name
    write_predictions(val, predictions_path(folder, VAL, str(c.PLAIN_VIEW)), task.val)
    write_predictions(test, predictions_path(folder, TEST, str(c.PLAIN_VIEW)), task.test)
    score = score_predictions(val, task.val)
    views = [str(c.PLAIN_VIEW)]
    ledger.put_segment(
        SegmentRecord(
            name=name,
            role=Role.EXTERNAL_PREDICTIONS,
            recipe={},
            parent=None,
            fold=0,
            seed=0,
            state="done",
            budget=0.0,
            seconds=0.0,
            started=ledger.elapsed,
            ended=ledger.elapsed,
            result={
                "name": name,
                "recipe": "another toolkit's",
                "fold": 0,
                "predicted_views": views,
                "views": views,
                "ap": score.ap,
                "ap50": score.ap50,
            },
        )
    )
    ledger.log(f"{name} joins as a member, predicted by another toolkit: AP50 {score.ap50:.3f} on the held-out images.")
