"""Commands that combine predictions: fuse and ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from foldfuse.commands import options
from foldfuse.commands.image_sets import read_images
from foldfuse.commands.prediction_files import read_members
from foldfuse.commands.tables import text_table
from foldfuse.data.dataset import Dataset
from foldfuse.data.readers.coco import read
from foldfuse.detections import Predictions
from foldfuse.ensemble.build import EnsembleReport, build_ensemble
from foldfuse.ensemble.ensemble import Ensemble, apply_ensemble, read_ensemble
from foldfuse.errors import InputError
from foldfuse.evaluation.custom_metric import is_custom, metric_label
from foldfuse.evaluation.metrics import open_metric
from foldfuse.formats.predictions import write_predictions
from foldfuse.formats.raw_boxes import ReadAs
from foldfuse.fusion import methods
from foldfuse.system import printing

DEFAULT_FOLDS = 5


def fuse(
    predictions: tuple[Path, ...],
    *,
    data: Path,
    out: options.Out,
    method: methods.Method = "wbf",
    iou: options.Iou = 0.55,
    score_threshold: options.ScoreThreshold = 0.0,
    weight: options.Weights = (),
    ensemble: Path | None = None,
    input_format: options.InputFormat = None,
    image_ids: options.ImageIds = None,
    category_ids: options.CategoryIds = None,
    classes_from: options.ClassesFrom = None,
    images: options.Images = None,
    ignore_orientation: options.IgnoreOrientation = False,
    overwrite: options.Overwrite = False,
) -> Path:
    """Fuse several files of predictions into one and return its path.

    Args:
        predictions: files of the same images: Parquet, COCO results JSON, CSV or YOLO folders.
        data: the images: a dataset of any layout, or a folder of images; annotations are not read.
        out: file to write: .parquet (complete), .json (COCO results) or .csv (the contest's).
        method: wbf, nms, soft_nms or nmw.
        iou: boxes match where their IoU is above this.
        weight: the weight of each file, in the order of the files; equal by default.
        ensemble: an ensemble.json that decides method, thresholds and weights; a member is named after its file.

    Raises:
        InputError: a file cannot be used, or the files do not fit together.

    Examples:
        foldfuse fuse a.parquet b.parquet --data data/test.json --out fused.parquet
        foldfuse fuse a.parquet b.parquet --data data/test.json --weight 2,1 --iou 0.6 --out weighted.csv
        foldfuse fuse a.parquet b.parquet --data data/test.json --ensemble ensemble.json --out best.json
    """
    options.refuse_overwrite(out, overwrite, inputs=[*predictions, data, images, ensemble, classes_from])
    given = FusionOptions(method, iou, score_threshold, tuple(weight))
    chosen = chosen_ensemble(ensemble, given)
    dataset = read_images(
        data, classes_from=classes_from, predictions=predictions, images=images, ignore_orientation=ignore_orientation
    )
    read_as = ReadAs(input_format, image_ids, category_ids)
    names = () if chosen is None else tuple(chosen.weights)
    members = read_members(predictions, dataset, read_as, names=names)
    return write_predictions(fuse_members(members, given, chosen), out, dataset)


@dataclass(frozen=True)
class FusionOptions:
    """The options of `fuse` that say how members are fused."""

    method: methods.Method = "wbf"
    iou: float = 0.55
    score_threshold: float = 0.0
    weight: tuple[float, ...] = ()


def chosen_ensemble(path: Path | None, given: FusionOptions) -> Ensemble | None:
    """The ensemble in a file, which decides all options of the fusion; None without a file.

    Raises:
        InputError: the file cannot be read, or options that it decides are given.
    """
    if path is None:
        return None
    if given != FusionOptions():
        raise InputError(
            f"{path}: the ensemble decides method, IoU, score threshold and weights. Leave out these options, or the ensemble."
        )
    return read_ensemble(path)


def fuse_members(members: Mapping[str, Predictions], given: FusionOptions, chosen: Ensemble | None) -> Predictions:
    """The fused predictions of named members, by an ensemble, or without one by the options.

    Raises:
        InputError: the members do not fit together, or one that the ensemble names is missing.
    """
    if chosen is not None:
        return apply_ensemble(chosen, members)
    return methods.fuse(
        list(members.values()),
        method=given.method,
        iou=given.iou,
        score_threshold=given.score_threshold,
        weights=given.weight or None,
    )


def ensemble(
    predictions: tuple[Path, ...],
    *,
    data: Path,
    out: options.Out,
    metric: options.Metric = "ap50",
    budget: options.Duration = 60.0,
    folds: options.NumFolds = DEFAULT_FOLDS,
    seed: options.Seed = 0,
    input_format: options.InputFormat = None,
    image_ids: options.ImageIds = None,
    category_ids: options.CategoryIds = None,
    images: options.Images = None,
    ignore_orientation: options.IgnoreOrientation = False,
    overwrite: options.Overwrite = False,
) -> Path:
    """Choose members, weights and fusion on out-of-fold predictions, and write them for `foldfuse fuse --ensemble`.

    Args:
        predictions: out-of-fold predictions, one file per member; a member is named after its file.
        data: the annotated images, in any layout.
        out: JSON file to write.
        budget: time for the search.
        folds: the number of folds of the nested cross-validation; each fold is scored with an ensemble chosen on the others.
        seed: the random seed of the folds and of the bootstrap.

    Raises:
        InputError: a file cannot be used, or the files do not fit together.

    Examples:
        foldfuse ensemble a_oof.parquet b_oof.parquet --data data/train.json --budget 60s --out ensemble.json
    """
    open_metric(metric)
    options.refuse_overwrite(out, overwrite, is_file=True, inputs=[*predictions, data, images])
    dataset = read(data, images=images, ignore_orientation=ignore_orientation)
    if folds > max(len(dataset), DEFAULT_FOLDS):
        raise InputError(f"--folds {folds}: {data} has {len(dataset)} images. Ask for at most one fold an image.")
    dataset, members = _common_images(
        dataset, read_members(predictions, dataset, ReadAs(input_format, image_ids, category_ids))
    )
    report = build_ensemble(members, dataset, metric=metric, seconds=budget, folds=folds, seed=seed)
    report.ensemble.write(out)
    _print_report(report, printing.console())
    return out


def _common_images(dataset: Dataset, members: Mapping[str, Predictions]) -> tuple[Dataset, dict[str, Predictions]]:
    """The images that every member predicts, and the members on them: held-out predictions cover a part of the data.

    Raises:
        InputError: there is no such image.
    """
    common = [i for i in dataset.image_ids if all(i in member for member in members.values())]
    if len(common) == len(dataset):
        return dataset, dict(members)
    if not common:
        counts = ", ".join(f"{name} {len(member)}" for name, member in members.items())
        raise InputError(
            f"no image of {dataset.source} is predicted by every member ({counts} images). Give members that hold out the "
            "same fold, or out-of-fold predictions of all images."
        )
    note = f"the ensemble is chosen on the {len(common)} of {len(dataset)} images that every member predicts"
    printing.write(f"{dataset.source}: {note}.", to_stderr=True)
    return dataset.subset(common), {name: member.select_images(common) for name, member in members.items()}


def _print_report(report: EnsembleReport, console: Console) -> None:
    exponents = report.ensemble.score_exponents
    rows = [
        (
            row.name,
            "–" if row.single_score is None else f"{row.single_score:.4f}",
            f"{100 * row.weight:.0f} %" if row.weight else "–",
            f"{exponents.get(row.name, 1.0):g}" if row.weight else "–",
            "–" if row.leave_one_out_gain is None else f"{row.leave_one_out_gain:+.4f}",
        )
        for row in report.table
    ]
    heads = ("member", "single", "weight", "exponent", "leave-one-out gain")
    console.print(text_table(f"Members, {metric_label(report.metric)}", heads, rows))
    chosen, (name, score) = report.ensemble, report.best_single
    settings = f"{chosen.method.upper()}, IoU threshold {chosen.iou:g}"
    if chosen.score_threshold:
        settings += f", score threshold {chosen.score_threshold:g}"
    if chosen.learned:
        settings += f", {chosen.learned}"
    at_choice = f"{report.score:.4f} on the images that chose it"
    others = f"the best single member, {name}, has {score:.4f}, and WBF of all members {report.uniform_score:.4f}"
    lines = [f"Best of {report.num_candidates} candidates, {settings}: {at_choice}. There {others}."]
    if report.gain is not None:
        lines.append(report.gain.sentence(digits=4))
    elif report.nested_score is not None:
        lines.append(f"In nested cross-validation {report.nested_score:.4f}; there was no time for an interval.")
    elif is_custom(report.metric):
        lines.append(
            "There was no time for nested cross-validation, so the score is optimistic. Give a longer --budget."
        )
    console.print("\n".join(lines), soft_wrap=True)
