"""The command rescore: crop rescoring of prediction files of any tool."""

from __future__ import annotations

from pathlib import Path

from foldfuse.commands import options
from foldfuse.commands.prediction_files import read_file
from foldfuse.data.dataset import Dataset
from foldfuse.data.folds import fit_folds, read_folds
from foldfuse.data.pixels import open_images
from foldfuse.data.readers.coco import read
from foldfuse.detections import Predictions
from foldfuse.ensemble.gain import interval_text
from foldfuse.errors import InputError
from foldfuse.evaluation.metrics import open_metric
from foldfuse.formats.predictions import write_predictions
from foldfuse.formats.raw_boxes import ReadAs
from foldfuse.inference.classifier import crop_encoder
from foldfuse.inference.crop_encoder import CropEncoder
from foldfuse.inference.crop_features import imagenet_encoder
from foldfuse.inference.learnt_images import learnt_ids
from foldfuse.inference.rescorer import apply_rescorer
from foldfuse.inference.rescoring import RescoringResult, fit_rescorer
from foldfuse.storage.run import Run
from foldfuse.system import printing
from foldfuse.system.atomic_files import atomic_folder
from foldfuse.system.device import choose_device
from foldfuse.system.progress import progress_bar
from foldfuse.system.records import write_record

FACTS_VERSION = 1


def rescore(
    predictions: Path,
    *,
    data: Path,
    out: options.Out,
    folds: options.FoldsFile = None,
    test_predictions: Path | None = None,
    test: Path | None = None,
    run: Path | None = None,
    metric: options.Metric = "ap50",
    seed: options.Seed = 0,
    device: options.Device = "auto",
    input_format: options.InputFormat = None,
    image_ids: options.ImageIds = None,
    category_ids: options.CategoryIds = None,
    images: options.Images = None,
    ignore_orientation: options.IgnoreOrientation = False,
    overwrite: options.Overwrite = False,
) -> Path:
    """Score the crop of each detection by a classifier, and blend its probability into the score where that helps.

    The folder holds oof.parquet, the out-of-fold predictions, each image rescored by a classifier trained without it;
    test.parquet, the test predictions; and rescore.json, the gain. Where a gain is not likely, scores are unchanged.

    Args:
        predictions: out-of-fold predictions of annotated images, all or some: Parquet, COCO results JSON or a CSV. Images
            that a Parquet file lacks are not rescored.
        data: the annotated images, in any layout.
        out: folder to make.
        folds: JSON of `foldfuse split`: the cross-validation leaves out one fold at a time where the predictions cover several.
        test_predictions: predictions of the images of `test`, by the same detectors; `test` must be given as well.
        test: the test images: COCO JSON; annotations are not read.
        run: folder of a trained classifier that held out the predicted images; by default a frozen ImageNet-pretrained
            EfficientNet-Lite1.
        seed: the seed of all random choices.

    Raises:
        InputError: a file cannot be used, or the files do not fit together.

    Examples:
        foldfuse rescore a_oof.parquet --data data/train.json --folds folds.json --out rescored
        foldfuse rescore a_oof.parquet --data data --test-predictions a.parquet --test data/test.json --out both
    """
    open_metric(metric)
    inputs = [predictions, data, images, folds, test_predictions, test, run]
    options.refuse_overwrite(out, overwrite, inputs=inputs, made_by=["rescore.json"])
    if (test_predictions is None) != (test is None):
        raise InputError("--test-predictions and --test belong together: give both, or neither.")
    dataset = read(data, images=images, ignore_orientation=ignore_orientation)
    oof = read_file(predictions, dataset, ReadAs(input_format, image_ids, category_ids))
    given_folds = None if folds is None else fit_folds(read_folds(folds), dataset.subset(oof), where=str(folds))
    test_data = (
        None if test is None else read(test, annotated=False, images=images, ignore_orientation=ignore_orientation)
    )
    if test_data is not None and not test_data.classes:
        test_data = test_data.with_classes(dataset.classes, dataset.organiser_category_ids)
    test_boxes = None
    if test_data is not None and test_predictions is not None:
        test_boxes = read_file(test_predictions, test_data, ReadAs(input_format, image_ids, category_ids))
    dataset = open_images(dataset, ignore_orientation=ignore_orientation)
    if test_data is not None:
        test_data = open_images(test_data, ignore_orientation=ignore_orientation, value_ranges=dataset.value_ranges)
    device = choose_device(device)
    encoder = imagenet_encoder(device=device) if run is None else _run_encoder(Run(run), oof, dataset, device)
    with progress_bar("rescoring detections") as progress:
        result = fit_rescorer(
            oof, dataset, folds=given_folds, encoder=encoder, metric=metric, seed=seed, progress=progress
        )
    options.remove_old(out, overwrite)
    with atomic_folder(out) as folder:
        write_predictions(result.predictions, folder / "oof.parquet", dataset)
        if test_boxes is not None and test_data is not None:
            with progress_bar("rescoring test detections") as progress:
                rescored = apply_rescorer(result.rescorer, test_boxes, test_data.samples, progress=progress)
            write_predictions(rescored, folder / "test.parquet", test_data)
        write_record(folder / "rescore.json", result.facts, version=FACTS_VERSION)
    printing.console().print(summary(result), soft_wrap=True)
    return out


def _run_encoder(run: Run, predictions: Predictions, dataset: Dataset, device: str) -> CropEncoder:
    """The classifier of a run as crop encoder. Raises InputError where it was trained on a predicted image."""
    trained = learnt_ids(run, dataset.subset(predictions), strict=True) & set(predictions)
    if trained:
        raise InputError(
            f"{run.folder}: was trained on {len(trained)} of the {len(predictions)} images to rescore, such as image id "
            f"{min(trained)}. Train it with --folds and the --fold that was predicted."
        )
    return crop_encoder(run, device)


def summary(result: RescoringResult) -> str:
    """The gain of crop rescoring in two sentences."""
    facts, gain = result.facts, result.facts.gain
    nested = f"nested cross-validation: {interval_text(gain.value, gain.low, gain.high, digits=4)}"
    accuracy = f"Accuracy of the classifier on boxes that match an object, cross-validated: {facts.accuracy:.0%}. "
    if not facts.accepted:
        return accuracy + f"A gain in {facts.metric} is not likely, and scores are unchanged; {nested}."
    given = "the background included" if facts.background else "given an object"
    return accuracy + (
        f"Blended with alpha {facts.alpha:g} (probability of the class, {given}): {facts.metric} {facts.before:.4f} -> "
        f"{facts.after:.4f} on the images that chose alpha; {nested}."
    )
