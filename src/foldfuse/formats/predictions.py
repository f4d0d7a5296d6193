"""Reads and writes prediction files. The content decides the format of a file that is read, unless the caller names it.

Parquet (Foldfuse's own) is complete: a row for each predicted image, images without boxes too, and the class names.
COCO results JSON, YOLO folders and CSV files with a row for each box may leave out images without boxes, so an image of the
dataset that they lack counts as predicted, without boxes. A CSV of prediction strings has a row for each image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Predictions
from foldfuse.errors import InputError, shown, unknown_name
from foldfuse.formats import box_rows, coco_results
from foldfuse.formats.box_forms import FORMS as FORMS_OF_BOXES
from foldfuse.formats.box_rows import is_box_rows, read_box_rows, write_box_rows
from foldfuse.formats.box_table import BoxTable, to_predictions
from foldfuse.formats.class_keys import CategoryIds
from foldfuse.formats.coco_results import read_coco, write_coco, write_coco_dataset
from foldfuse.formats.csv_text import is_csv_header, read_csv
from foldfuse.formats.cvat import write_cvat
from foldfuse.formats.image_keys import ImageIds
from foldfuse.formats.label_studio import write_label_studio
from foldfuse.formats.parquet import check_classes, read_parquet, write_parquet
from foldfuse.formats.prediction_strings import CONTEST, LAYOUTS, read_strings, write_strings
from foldfuse.formats.raw_boxes import ReadAs
from foldfuse.formats.yolo_labels import read_yolo, write_yolo
from foldfuse.system.files import read_start

OF_TOOLS = ("coco_dataset", "cvat", "label_studio")  # what FiftyOne, CVAT and Label Studio import; only written
FOLDERS = ("yolo", "cvat", "label_studio")  # formats that are a folder
FORMATS = ("parquet", "coco_json", "yolo", "csv_boxes", *OF_TOOLS, *LAYOUTS)  # of files to write
INPUT_FORMATS = tuple(
    dict.fromkeys(name for name in (*FORMATS, *coco_results.FORMATS, *box_rows.FORMATS) if name not in OF_TOOLS)
)
ENDINGS = {".parquet": "parquet", ".json": "coco_json", ".csv": CONTEST.name}  # default formats of new files


@dataclass(frozen=True, eq=False)
class PredictionFile:
    """The content of a prediction file, and how it was read.

    Attributes:
        predictions: the predictions, in the order of the dataset.
        format: one of FORMATS.
        reason: the reason for the format, in words.
        how: how images and classes were read, in words.
        warnings: sentences on what may be wrong.
        alternatives: {option: makes the boxes as they would be with it} of the other readings that are possible for the file.
    """

    predictions: Predictions
    format: str
    reason: str
    how: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    alternatives: Mapping[str, Callable[[], BoxTable]] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """Sentences for the user: how the file was read, where there are several ways, and what may be wrong with it."""
        notes = (
            [f"read as {'; '.join((f'{self.format}: {self.reason}', *self.how))}."] if self.format != "parquet" else []
        )
        notes += self.warnings
        p = self.predictions
        without = int((np.diff(p.offsets) == 0).sum())
        if len(p.boxes) and without and self.format not in ("parquet", *LAYOUTS):
            notes.append(f"{without} of {len(p)} images have no box in it, and are taken as predicted, without boxes.")
        if not len(p.boxes):
            notes.append(f"holds no box: {len(p)} images are taken as predicted, without boxes.")
        columns = p.image_index, p.labels, p.scores, *p.boxes.T
        first = np.unique(np.stack(columns, 1), axis=0, return_index=True)[1]
        repeated = np.setdiff1d(np.arange(len(p.boxes)), first)
        if len(repeated):
            image_id = p.image_ids[p.image_index[repeated[0]]]
            notes.append(
                f"{len(repeated)} of {len(p.boxes)} boxes repeat another box of the same class and score, such as in image "
                f"id {image_id}. They are kept; if two files were joined, give them one by one."
            )
        return notes


def read_predictions(
    path: Path,
    dataset: Dataset,
    *,
    format: str | None = None,
    image_ids: ImageIds | None = None,
    category_ids: CategoryIds | None = None,
) -> Predictions:
    """The predictions in a file of any format in INPUT_FORMATS, in the order of `dataset`.

    Args:
        path: a file, or a YOLO folder.
        dataset: the dataset whose images, classes and category ids the file uses.
        format: one of INPUT_FORMATS, needed where the content fits several formats.
        image_ids: what names an image: "id", "name" or "position"; needed where several are possible.
        category_ids: what names a class: "id", "name", "from_zero" or "from_one"; needed where several are possible.

    Raises:
        InputError: the file is missing or of no known format, its content can be read in several ways, or a row is broken.
    """
    return read_prediction_file(path, dataset, ReadAs(format, image_ids, category_ids)).predictions


def read_prediction_file(path: Path, dataset: Dataset, read_as: ReadAs | None = None) -> PredictionFile:
    """The PredictionFile at `path`: its predictions, its format and how it was read; see `read_predictions`."""
    path, read_as = Path(path), read_as or ReadAs()
    format = read_as.format
    if format is not None and format not in INPUT_FORMATS:
        raise unknown_name("format of predictions", format, INPUT_FORMATS)
    kind, reason = _detect_format(path) if format is None else (format, "the format was given")
    if kind == "parquet":
        return PredictionFile(read_parquet(path, dataset, by_name=True), kind, reason)
    if kind in coco_results.FORMATS:
        table = read_coco(path, dataset, read_as)
    elif kind == "yolo":
        table = read_yolo(path, dataset, read_as)
    else:
        csv_file = read_csv(path, what="a CSV of predictions")
        if kind in box_rows.FORMATS or (kind == "csv" and is_box_rows(csv_file)):
            table, kind = read_box_rows(path, dataset, read_as, csv_file), "csv_boxes"
        else:
            table, layout = read_strings(path, dataset, read_as, csv_file)
            kind = layout.name
    return PredictionFile(to_predictions(table, dataset), kind, reason, table.how, table.notes, table.alternatives)


def write_predictions(
    predictions: Predictions,
    path: Path,
    dataset: Dataset,
    *,
    format: str | None = None,
    names: Sequence[str] | None = None,
    model_version: str = "foldfuse",
) -> Path:
    """Write predictions and return the path.

    Args:
        predictions: the predictions of the images of `dataset`; only Parquet, COCO results and the formats of annotation tools
            may lack some images.
        path: a file; for YOLO, CVAT and Label Studio a folder, new or empty.
        dataset: the dataset whose file names, classes and category ids the file will use.
        format: one of FORMATS. By default the ending decides: .parquet (complete), .json (COCO results), .csv (the
            contest's); an existing folder becomes a YOLO folder.
        names: what names each image of `dataset` in a CSV; the file name by default.
        model_version: what Label Studio calls the origin of the boxes.

    Raises:
        InputError: the format or ending is unknown, predictions and dataset differ in their classes, or the format
            cannot hold these predictions.
    """
    path = Path(path)
    if format is None:
        format = "yolo" if path.is_dir() else ENDINGS.get(path.suffix.lower())
    if format is None:
        raise InputError(
            f"{path}: predictions are written as {', '.join(ENDINGS)}; choose one of these endings, or name the format."
        )
    if format not in FORMATS:
        raise unknown_name("format of predictions", format, FORMATS)
    if format not in FOLDERS and path.is_dir():
        raise InputError(f"{path}: is a folder, expected the name of a file for {format}.")
    check_classes(predictions.classes, dataset, str(path))
    if format == "parquet":
        write_parquet(predictions, path, dataset)
    elif format == "coco_json":
        write_coco(predictions, path, dataset)
    elif format == "yolo":
        write_yolo(predictions, path, dataset)
    elif format == "coco_dataset":
        write_coco_dataset(predictions, path, dataset)
    elif format == "cvat":
        write_cvat(predictions, path, dataset)
    elif format == "label_studio":
        write_label_studio(predictions, path, dataset, model_version=model_version)
    elif format == "csv_boxes":
        write_box_rows(predictions, path, dataset, form=FORMS_OF_BOXES["xyxy"], names=names)
    else:
        write_strings(predictions, path, dataset, layout=LAYOUTS[format], names=names)
    return path


def _detect_format(path: Path) -> tuple[str, str]:
    """The format that the first bytes show ("csv" for prediction strings of any layout), and the reason."""
    if path.is_dir():
        if any(path.rglob("*.txt")):
            return "yolo", "a folder of .txt files"
        raise InputError(f"{path}: is a folder without .txt files. Give a file of predictions, or a YOLO folder.")
    start = read_start(path, what="predictions", hint="Give a .parquet, .json or .csv of predictions.")
    if start.startswith(b"PAR1"):
        return "parquet", "the file starts with Parquet's mark"
    text = _as_text(start).lstrip()
    if text.startswith("["):
        return "coco_json", "the file is a JSON list"
    if text.startswith("{"):
        return "coco_json", "the file is a JSON object"
    header = text.partition("\n")[0].strip()
    if is_csv_header(header):
        return "csv", f"by the header {shown(header)} and the numbers"
    raise InputError(
        f"{path}: is no prediction file of a known format. Expected Foldfuse's Parquet, COCO results JSON (a list), or a "
        "CSV with a header such as PredictionString,image_id or image_id,class,confidence,xmin,ymin,xmax,ymax."
    )


def _as_text(start: bytes) -> str:
    """The first bytes of a file as text; a file that is no text gives anything."""
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return start[: len(start) // 2 * 2].decode(encoding, "replace")
