"""Commands on prediction files: convert, score and submit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from foldfuse.commands import options
from foldfuse.commands.image_sets import read_images
from foldfuse.commands.prediction_files import read_and_report, read_file, warn_of_better_reading
from foldfuse.commands.score_tables import (
    class_table,
    confusion_table,
    error_table,
    print_thresholds,
    scores_table,
    threshold_sentence,
)
from foldfuse.commands.tables import text_table
from foldfuse.data.dataset import Dataset
from foldfuse.data.readers.coco import read
from foldfuse.detections import Predictions
from foldfuse.errors import InputError
from foldfuse.evaluation.bootstrap import SAMPLES, bootstrap_difference
from foldfuse.evaluation.coco import SCORE_NAMES, score_predictions
from foldfuse.evaluation.custom_metric import metric_label
from foldfuse.evaluation.diagnosis import diagnose
from foldfuse.evaluation.matching import require_unlearnt
from foldfuse.evaluation.metrics import beta_of, measure, open_metric
from foldfuse.evaluation.thresholds import (
    BEST,
    THRESHOLDS,
    Choice,
    choose_thresholds,
    read_thresholds,
    write_thresholds,
)
from foldfuse.formats import cvat, label_studio
from foldfuse.formats.predictions import OF_TOOLS, write_predictions
from foldfuse.formats.raw_boxes import ReadAs
from foldfuse.formats.sample_submission import read_sample
from foldfuse.formats.submission import image_texts, reading_of, submission_format, write_submission
from foldfuse.system import printing

MANY_WITHOUT_BOXES = 0.25  # of the images with objects: more are reported


def convert(
    predictions: Path,
    data: Path,
    *,
    out: options.Out,
    format: str | None = None,
    image_names: options.ImageNames = None,
    score_threshold: options.ScoreThreshold = 0.0,
    input_format: options.InputFormat = None,
    image_ids: options.ImageIds = None,
    category_ids: options.CategoryIds = None,
    classes_from: options.ClassesFrom = None,
    images: options.Images = None,
    ignore_orientation: options.IgnoreOrientation = False,
    overwrite: options.Overwrite = False,
) -> Path:
    """Write predictions in another format, or as pre-annotations for FiftyOne, CVAT or Label Studio, and return the path.

    Args:
        predictions: Parquet, COCO results JSON, a CSV or a YOLO folder, of the images of `data`.
        data: the images: a dataset of any layout, or a folder of images; annotations are not read.
        out: file to write; for yolo, cvat and label_studio a folder.
        format: parquet, coco_json, yolo, csv_boxes (a row for each box), or a layout of prediction strings, such as
            score_label_xywh_normalized. By default the ending of `out` decides: .parquet, .json (COCO results) or .csv (the
            contest's); an empty folder becomes yolo. For tools: coco_dataset (COCO with images, classes and scores, for
            FiftyOne), cvat and label_studio (pre-annotations, to be corrected there).

    Raises:
        InputError: a file cannot be used, or the format cannot hold these predictions.

    Examples:
        foldfuse convert a.parquet data/test.json --out a.json
        foldfuse convert a.json data/test.json --format yolo --out labels
        foldfuse convert a.parquet data/test.json --format label_studio --score-threshold 0.3 --out studio
    """
    options.refuse_overwrite(out, overwrite, inputs=[predictions, data, images, classes_from])
    dataset = read_images(
        data, classes_from=classes_from, predictions=[predictions], images=images, ignore_orientation=ignore_orientation
    )
    found = read_file(predictions, dataset, ReadAs(input_format, image_ids, category_ids))
    if score_threshold:
        found = found.filter(found.scores >= score_threshold)
    names = None if image_names is None else image_texts(dataset, image_names)
    write_predictions(found, out, dataset, format=format, names=names, model_version=predictions.stem)
    if format in OF_TOOLS:
        printing.write(_import_hint(format, out, dataset), to_stderr=True)
    return out


def _import_hint(format: str, out: Path, dataset: Dataset) -> str:
    """How a tool imports what was written for it."""
    if format == "cvat":
        return (
            f"{out}: make a CVAT task with the labels in {out / cvat.LABELS} (Constructor, Raw) and the images, then upload "
            f"{out / cvat.ANNOTATIONS} as CVAT 1.1."
        )
    if format == "label_studio":
        root, shared = label_studio.document_root(dataset)
        return (
            f"{out}: start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
            f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root}, make a project with the code in {out / label_studio.CONFIG}, add "
            f"the local storage {shared}, and import {out / label_studio.TASKS}."
        )
    return f"{out}: FiftyOne reads it as COCODetectionDataset, with labels_path this file and data_path the images' folder."


def submit(
    predictions: Path,
    data: Path,
    *,
    out: options.Out,
    like: options.Like = None,
    format: str | None = None,
    labels: options.Labels = None,
    image_names: options.ImageNames = None,
    score_threshold: options.ThresholdOrBest = None,
    thresholds: Annotated[Path | None, Parameter(metavar="FILE|FOLDER")] = None,
    max_detections: options.MaxDetections = None,
    input_format: options.InputFormat = None,
    image_ids: options.ImageIds = None,
    category_ids: options.CategoryIds = None,
    classes_from: options.ClassesFrom = None,
    images: options.Images = None,
    ignore_orientation: options.IgnoreOrientation = False,
    overwrite: options.Overwrite = False,
) -> Path:
    """Write a submission from predictions, read it back, and return its path.

    Args:
        predictions: Parquet, COCO results JSON, a CSV or a YOLO folder, of the images of `data`.
        data: the test images: a dataset of any layout, or a folder of images; annotations are not read.
        out: file to write.
        format: contest_csv (`PredictionString,image_id`), coco_json (COCO results), csv_boxes (a row for each box) or a layout of
            prediction strings, such as score_xywh; by default the ending of `out` decides: .csv (the contest's) or .json.
            With --like the layout of the boxes, where the sample leaves it open.
        score_threshold: leave out boxes whose score is lower; all are kept by default, since AP gains from them. best or
            best-by-class: the threshold with the best F on out-of-fold predictions, one for all classes or one for each.
        thresholds: where best is taken from: the file of `foldfuse score --thresholds`, or the folder of a campaign or a run; by
            default thresholds.json beside the predictions.

    Raises:
        InputError: a file cannot be used, an image of `data` was not predicted, or the sample names other images.

    Examples:
        foldfuse submit a.parquet data/test.json --out submission.csv
        foldfuse submit a.parquet data/test.json --like sample_submission.csv --out submission.csv
        foldfuse submit a.parquet data/test.json --max-detections 100 --out submission.json
        foldfuse submit a.parquet data/test.json --score-threshold best --thresholds night1 --out best.csv
    """
    inputs = [predictions, data, images, like, classes_from, thresholds]
    options.refuse_overwrite(out, overwrite, is_file=True, inputs=inputs)
    if thresholds is not None and not isinstance(score_threshold, str):
        raise InputError(f"--thresholds {thresholds}: is for --score-threshold best or best-by-class. Add one of them.")
    best = _thresholds_file(predictions, thresholds) if isinstance(score_threshold, str) else None
    if like is None and labels is not None:
        raise InputError(
            "--labels says what a label is in a submission like a sample. Add --like SAMPLE, or leave it out."
        )
    if like is None:
        submission_format(out, format)
    dataset = read_images(
        data, classes_from=classes_from, predictions=[predictions], images=images, ignore_orientation=ignore_orientation
    )
    sample = None
    if like is not None:
        names = None if image_names is None else reading_of(image_names)
        sample = read_sample(like, dataset, format=format, labels=labels, names=names)
    detections = read_file(predictions, dataset, ReadAs(input_format, image_ids, category_ids))
    if best is not None:
        choice: Choice = "best" if score_threshold == BEST else "best-by-class"
        chosen = read_thresholds(best)
        detections = chosen.apply(detections, choice)
        printing.write(f"{best}: {threshold_sentence(chosen, choice)}", to_stderr=True)
    elif score_threshold is not None:
        detections = detections.filter(detections.scores >= float(score_threshold))
    if sample is not None:
        for note in sample.notes:
            printing.write(f"{like}: {note}", to_stderr=True)
    return write_submission(
        detections,
        dataset,
        out,
        format,
        max_detections=max_detections,
        like=sample,
        image_names=image_names or "file_name",
    )


def score(
    predictions: Path,
    data: Path,
    *,
    other: Path | None = None,
    metric: options.Metric = "ap50",
    thresholds: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    input_format: options.InputFormat = None,
    image_ids: options.ImageIds = None,
    category_ids: options.CategoryIds = None,
    images: options.Images = None,
    ignore_orientation: options.IgnoreOrientation = False,
    overwrite: Annotated[bool, Parameter(help="replace an existing --thresholds.")] = False,
) -> None:
    """Score predictions against annotations: COCO's numbers, each class, best thresholds, confusion and types of error.

    Args:
        predictions: Parquet, COCO results JSON, a CSV or a YOLO folder.
        data: the annotated images, in any layout.
        other: a second file of predictions, to compare with over bootstrap resamples of the images.
        thresholds: JSON file to write the best score thresholds to, for submit: best for F1, or for another F that --metric
            names, such as f2.

    Raises:
        InputError: a file cannot be used, or the predictions do not fit the data.

    Examples:
        foldfuse score a_oof.parquet data/train.json
        foldfuse score a_oof.parquet data/train.json --other b_oof.parquet --metric f2
    """
    open_metric(metric)
    if thresholds is not None:
        options.check_ending(thresholds, ".json")
        options.refuse_overwrite(thresholds, overwrite, is_file=True, inputs=[predictions, data, other, images])
    dataset = read(data, images=images, ignore_orientation=ignore_orientation)
    paths = [predictions] if other is None else [predictions, other]
    read_files = [read_and_report(path, dataset, ReadAs(input_format, image_ids, category_ids)) for path in paths]
    for path, file in zip(paths, read_files, strict=True):
        warn_of_better_reading(path, file, dataset)
    files = [file.predictions for file in read_files]
    dataset = scored_images(dataset, dict(zip(paths, files, strict=True)))
    files = [each.select_images(dataset.image_ids) for each in files]
    names = ["score"] if other is None else _file_names(paths)
    scores = [score_predictions(each, dataset) for each in files]
    diagnoses = [diagnose(each, dataset) for each in files]
    chosen = [choose_thresholds(each, dataset, beta=beta_of(metric) or 1.0) for each in files]
    if thresholds is not None:
        require_unlearnt(files[0], str(predictions), "thresholds chosen on them would be too high for new images")
        write_thresholds(thresholds, chosen[0])
    console = printing.console()
    summary = [(head, *(getattr(each, field) for each in scores)) for field, head in SCORE_NAMES.items()]
    if metric not in SCORE_NAMES:
        summary.append((metric_label(metric), *(measure(each, dataset, metric=metric) for each in files)))
    console.print(scores_table("COCO scores", ["", *names], summary))
    by_iou = [(f"IoU {iou:.2f}", *(d.ap_by_iou[iou] for d in diagnoses)) for iou in diagnoses[0].ap_by_iou]
    console.print(scores_table("AP by IoU threshold", ["", *names], by_iou))
    console.print(class_table(scores, names))
    if other is not None:
        console.print(_comparison_table(files, dataset, names, metric))
    for name, diagnosis, best in zip(names, diagnoses, chosen, strict=True):
        of = "" if other is None else f" of {name}"
        print_thresholds(console, best, of)
        console.print(confusion_table(diagnosis, of))
        console.print(error_table(diagnosis, of))


def _thresholds_file(predictions: Path, given: Path | None) -> Path:
    """The file with the thresholds of these predictions: as given, or beside them. Raises InputError where there is none."""
    path = predictions.parent / THRESHOLDS if given is None else given / THRESHOLDS if given.is_dir() else given
    if not path.is_file():
        where = f"no {THRESHOLDS} lies beside it" if given is None else f"{given} holds no {THRESHOLDS}"
        raise InputError(
            f"{predictions}: its best score thresholds are not known: {where}. Give --thresholds FILE, which 'foldfuse score "
            f"OOF.parquet DATA --thresholds {THRESHOLDS}' writes, or the folder of a campaign or a run that was evaluated."
        )
    return path


def scored_images(dataset: Dataset, files: Mapping[Path, Predictions]) -> Dataset:
    """The images that every file predicts; warns of images that are not scored, and of images that a run has learnt from.

    Raises:
        InputError: there is no such image.
    """
    scored = set(dataset.image_ids)
    for path, predictions in files.items():
        scored &= set(predictions)
        if learnt := predictions.learnt_ids & set(predictions):
            warning = (
                f"its run has learnt from {len(learnt)} of the {len(predictions)} images, so that the score is too good"
            )
            printing.write(
                f"WARNING: {path}: {warning} for new images. Predict without --all to leave them out.", to_stderr=True
            )
        if note := _images_without_boxes(dataset, predictions):
            printing.write(f"{path}: {note}", to_stderr=True)
    if not scored:
        raise InputError(f"{', '.join(map(str, files))}: no image of {dataset.source} is predicted by every file.")
    if len(scored) == len(dataset):
        return dataset
    absent = set(dataset.image_ids) - scored
    learnt_absent = {image_id for p in files.values() for image_id in p.learnt_ids & absent}
    reason = f": the run has learnt from {len(learnt_absent)} of the others" if learnt_absent else ""
    printing.write(f"scored on the {len(scored)} of {len(dataset)} images that are predicted{reason}.", to_stderr=True)
    return dataset.subset(scored)


def _images_without_boxes(dataset: Dataset, predictions: Predictions) -> str:
    """A sentence on images that count as images without detections, where they are many of the images with objects; else ""."""
    with_objects = [
        s.id for s in dataset.samples if s.id in predictions and s.annotations is not None and len(s.annotations)
    ]
    number = sum(not len(predictions[i]) for i in with_objects)
    if number < MANY_WITHOUT_BOXES * len(with_objects) or not number:
        return ""
    return (
        f"has no box on {number} of the {len(with_objects)} images with objects; they count as images without detections. If "
        "they were not predicted, score against the predicted images alone."
    )


def _file_names(paths: Sequence[Path]) -> list[str]:
    """The names of the files, or their whole paths where the names are the same."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _comparison_table(files: Sequence[Predictions], dataset: Dataset, names: Sequence[str], metric: str) -> Table:
    rows, samples = [], SAMPLES
    for name in dict.fromkeys((metric, "ap", "ap50")):
        gain = bootstrap_difference(files[0], files[1], dataset, name)
        samples = min(samples, gain.samples)
        interval = f"{gain.low:+.4f} to {gain.high:+.4f}"
        rows.append([metric_label(name), f"{gain.value:+.4f}", interval, f"{100 * gain.prob_better:.1f} %"])
    title = f"{names[0]} minus {names[1]}, {samples} bootstrap resamples of the images"
    return text_table(title, ["metric", "difference", "95 % interval", "better in"], rows)
