"""Rescoring files of predictions: any tool's, of the kinds that `formats` reads."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from foldfuse.data.folds import read_folds
from foldfuse.data.readers.coco import read
from foldfuse.detections import Predictions
from foldfuse.errors import InputError
from foldfuse.formats.predictions import read_told, write_predictions
from foldfuse.inference.classifier import crop_encoder
from foldfuse.inference.crop_features import CropEncoder, imagenet
from foldfuse.inference.rescoring import RescoringResult, apply_rescorer, fit_rescorer
from foldfuse.storage.run import Run
from foldfuse.system.atomic_files import atomic_folder, write_text
from foldfuse.system.progress import progress_bar


def rescore(
    predictions: Path,
    *,
    data: Path,
    out: Path,
    folds: Path | None = None,
    test_predictions: Path | None = None,
    test: Path | None = None,
    run: Path | None = None,
    metric: str = "ap50",
    seed: int = 0,
    read_as: str | None = None,
) -> Path:
    """Have a crop classifier look at each detection, and blend its word into the scores where that helps; the folder comes back.

    The folder holds oof.parquet, the out-of-fold predictions, each rescored by a classifier that has not seen its picture;
    test.parquet, the test predictions; and rescore.json, which tells what it was worth. Where there is no gain to be
    believed, scores are as they were.

    Args:
        predictions: out-of-fold predictions of annotated pictures, all or some: Parquet, COCO results JSON or a CSV. Pictures
            that a Parquet file lacks are not rescored.
        data: the annotated pictures: COCO JSON, or a folder with a train.json.
        out: folder to make.
        folds: JSON that `foldfuse split` wrote: pictures of one fold are rescored together, where the predictions cover several.
        test_predictions: of the pictures of `test`, by the same detectors; `test` must be given as well.
        test: the pictures to submit: COCO JSON; its annotations, if it has any, are not read.
        run: folder of a trained classifier, which must have been trained with the predicted pictures held back; by default
            crops are looked at with EfficientNet-Lite0 as ImageNet left it.
        metric: ap50, ap, f2 or wheat: what must gain.
        seed: of what is drawn at random.
        read_as: what the files of predictions are, where their content leaves that open, such as score_xywh.

    Raises:
        InputError: a file cannot be used, or they do not fit together.
    """
    if (test_predictions is None) != (test is None):
        raise InputError("--test-predictions and --test belong together: give both, or neither.")
    dataset = read(data)
    oof = read_told(predictions, dataset, read_as=read_as)
    known = None if folds is None else read_folds(folds)
    target = test if test is None else read(test, annotated=False)
    found = None if target is None or test_predictions is None else read_told(test_predictions, target, read_as=read_as)
    look = imagenet() if run is None else _look_held_back(Run(run), oof)
    with atomic_folder(out) as folder:
        with progress_bar("looking at the detections") as progress:
            fitted = fit_rescorer(oof, dataset, folds=known, look=look, metric=metric, seed=seed, progress=progress)
        write_predictions(fitted.predictions, folder / "oof.parquet", dataset)
        if found is not None and target is not None:
            with progress_bar("looking at the test detections") as progress:
                rescored = apply_rescorer(fitted.rescorer, found, target.samples, progress=progress)
            write_predictions(rescored, folder / "test.parquet", target)
        write_text(folder / "rescore.json", json.dumps({"metric": metric, **fitted.to_dict()}, indent=1) + "\n")
    Console(highlight=False).print(told(fitted, metric), soft_wrap=True)
    return out


def _look_held_back(run: Run, predictions: Predictions) -> CropEncoder:
    """The classifier of a run as a look at crops, if it has learnt from none of the predicted pictures."""
    learnt = set(predictions) - set(run.metadata.val_ids)
    if learnt:
        raise InputError(
            f"{run.folder}: has learnt from {len(learnt)} of the {len(predictions)} pictures to rescore, such as image id "
            f"{min(learnt)}. Train it with --folds and the --fold that was predicted."
        )
    return crop_encoder(run)


def told(fitted: RescoringResult, metric: str) -> str:
    """What the second opinion was worth, in sentences."""
    gain, blend = fitted.gain, fitted.rescorer.blend
    measured = f"{gain.mean:+.4f} (95 % of the draws: {gain.low:+.4f} to {gain.high:+.4f})"
    begin = f"The classifier tells {fitted.accuracy:.0%} of the boxes on objects right that it has not seen. "
    if not fitted.accepted:
        return begin + f"It does not help {metric}: {measured}. Scores are left as they were."
    of = "class, background counted" if blend.background else "class given an object"
    return begin + (
        f"It counts with {blend.alpha:g} (p of the {of}): {metric} {fitted.before:.4f} -> {fitted.after:.4f} on the pictures "
        f"it was chosen on; chosen on others: {measured}."
    )
