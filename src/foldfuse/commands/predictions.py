"""Commands on prediction files: convert, score and submit."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from foldfuse.data.dataset import Dataset
from foldfuse.data.readers.coco import read
from foldfuse.detections import Predictions
from foldfuse.evaluation.bootstrap import bootstrap_difference
from foldfuse.evaluation.coco import Score, score_predictions
from foldfuse.evaluation.diagnosis import ERRORS, Diagnosis, diagnose
from foldfuse.formats.predictions import read_told, write_predictions
from foldfuse.formats.submission import Format, write_submission


def convert(predictions: Path, data: Path, out: Path, *, format: str | None = None, read_as: str | None = None) -> Path:
    """Write predictions in another format; the path of what was written comes back.

    Args:
        predictions: Parquet, COCO results JSON, CSV of prediction strings or YOLO folder, of the pictures of `data`.
        data: COCO JSON of the pictures; its annotations, if it has any, are not read.
        out: file to write; for yolo a folder, new or empty.
        format: parquet, coco_json, yolo, or a layout of prediction strings, such as score_label_xywh_share. By default
            the ending of `out` says it: .parquet, .json (COCO results) or .csv (the contest's); an empty folder is yolo.
        read_as: what the file of predictions is, where its content leaves that open, such as score_xywh.

    Raises:
        InputError: a file cannot be used, or the format cannot hold these predictions.
    """
    dataset = read(data, annotated=False)
    return write_predictions(read_told(predictions, dataset, read_as=read_as), out, dataset, format=format)


def submit(
    predictions: Path,
    data: Path,
    out: Path,
    *,
    format: Format = "contest_csv",
    read_as: str | None = None,
    max_boxes: int | None = None,
) -> Path:
    """Write a submission from predictions, and read it back; its path comes back.

    Args:
        predictions: Parquet, COCO results JSON, CSV of prediction strings or YOLO folder, of the pictures of `data`.
        data: COCO JSON of the pictures that the organiser wants predicted; annotations are not read.
        out: file to write.
        format: contest_csv (`PredictionString,image_id`) or coco_json (COCO results).
        read_as: what the file of predictions is, where its content leaves that open, such as score_xywh.
        max_boxes: of each picture only so many are kept, those with the highest scores; all by default.

    Raises:
        InputError: a file cannot be used, or a picture of `data` has no row in the predictions.
    """
    dataset = read(data, annotated=False)
    found = read_told(predictions, dataset, read_as=read_as)
    return write_submission(found, dataset, out, format, max_boxes=max_boxes)


def score(predictions: Path, dataset: Path, *, other: Path | None = None, read_as: str | None = None) -> None:
    """Score predictions against annotations; print COCO's numbers, those of each class, and the kinds of error.

    Args:
        predictions: Parquet, COCO results JSON, or the contest's CSV.
        dataset: annotated COCO JSON, or a folder with a train.json.
        other: a second file of predictions, to compare with over resampled pictures.
        read_as: what the files of predictions are, where their content leaves that open, such as score_xywh.
    """
    truth = read(dataset)
    paths = [predictions] if other is None else [predictions, other]
    found = [read_told(path, truth, read_as=read_as) for path in paths]
    scores = [score_predictions(each, truth) for each in found]
    console = Console(highlight=False)
    names = ["score"] if other is None else _names(paths)
    console.print(_summary(scores, names))
    console.print(_per_class(scores, names))
    console.print(_errors(diagnose(found[0], truth)))
    if other is not None:
        console.print(_comparison(found, truth, names))


def _names(paths: list[Path]) -> list[str]:
    """The files' names, or their whole paths where the names are alike."""
    short = [path.name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def _summary(scores: list[Score], names: list[str]) -> Table:
    rows = {
        "AP": "ap",
        "AP50": "ap50",
        "AP75": "ap75",
        "AP small": "ap_small",
        "AP medium": "ap_medium",
        "AP large": "ap_large",
        "AR1": "ar1",
        "AR10": "ar10",
        "AR100": "ar100",
    }
    table = _table("COCO", ["", *names])
    for label, attribute in rows.items():
        table.add_row(label, *(_number(getattr(each, attribute)) for each in scores))
    return table


def _per_class(scores: list[Score], names: list[str]) -> Table:
    heads = [head if len(names) == 1 else f"{head} {name}" for name in names for head in ("AP", "AP50")]
    table = _table("By class", ["class", "boxes", *heads])
    for rows in zip(*(each.per_class for each in scores), strict=True):
        values = [_number(value) for row in rows for value in (row.ap, row.ap50)]
        table.add_row(rows[0].name, str(rows[0].boxes), *values)
    return table


def _errors(diagnosis: Diagnosis) -> Table:
    table = _table("What mending one kind of error would bring (TIDE)", ["error", "AP50", "count", "meaning"])
    table.columns[3].justify = "left"
    for kind, meaning in ERRORS.items():
        table.add_row(kind, f"+{diagnosis.tide_delta_ap[kind]:.4f}", str(diagnosis.tide_counts[kind]), meaning)
    return table


def _comparison(found: list[Predictions], dataset: Dataset, names: list[str]) -> Table:
    title = f"{names[0]} minus {names[1]}, pictures drawn anew 1000 times"
    table = _table(title, ["metric", "mean", "95 % of the draws", "above 0"])
    for metric in ("ap", "ap50"):
        gain = bootstrap_difference(found[0], found[1], dataset, metric)
        table.add_row(
            metric.upper(),
            f"{gain.mean:+.4f}",
            f"{gain.low:+.4f} to {gain.high:+.4f}",
            f"{100 * gain.prob_better:.1f} %",
        )
    return table


def _table(title: str, heads: list[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i == 0 else "right")
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
