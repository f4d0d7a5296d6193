"""Writes predictions as a folder for Label Studio: tasks.json with pre-annotations, and config.xml, the labelling interface.

Source: https://labelstud.io/guide/predictions. Boxes are in percent of the image's sides. An image is named by its path below
the folder from which Label Studio serves local files.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.data.readers.image_rows import relative_names
from foldfuse.detections import Array, Predictions
from foldfuse.formats.coco_results import score_texts
from foldfuse.formats.tool_boxes import clipped_rows, xml_text
from foldfuse.system.atomic_files import atomic_folder

TASKS, CONFIG = "tasks.json", "config.xml"
LOCAL_FILES = "/data/local-files/?d="  # the address of a local file, before its path below the document root
IMAGE, LABEL = "image", "label"  # names of the two tags of the interface


def write_label_studio(predictions: Predictions, path: Path, dataset: Dataset, *, model_version: str) -> None:
    """Write a folder with a task for each predicted image: its address, its boxes in percent, and their scores.

    Boxes are clipped to their images. The score of a task is the mean of its boxes, by which Label Studio sorts tasks.

    Args:
        predictions: of images of `dataset`.
        path: a folder, new or empty.
        dataset: the images.
        model_version: what Label Studio calls the origin of the boxes.

    Raises:
        InputError: `path` is not new or empty, or a class name cannot be written.
    """
    images = dataset.subset(predictions)
    predictions = predictions.select_images(images.image_ids)
    addresses = image_addresses(dataset)
    boxes, kept = clipped_rows(predictions, images)
    scores = np.array(score_texts(predictions), object)
    tasks = []
    for sample, (start, end) in zip(images.samples, pairwise(predictions.offsets.tolist()), strict=True):
        rows = np.flatnonzero(kept[start:end]) + start
        size = (sample.width, sample.height)
        names = [predictions.classes[label] for label in predictions.labels[rows].tolist()]
        values = [float(text) for text in scores[rows].tolist()]
        result = [
            _region(number, box, size, name, score)
            for number, (box, name, score) in enumerate(zip(boxes[rows], names, values, strict=True), 1)
        ]
        prediction: dict[str, Any] = {"model_version": model_version, "result": result}
        if values:
            prediction["score"] = sum(values) / len(values)
        data = {IMAGE: addresses[sample.id], "image_id": sample.organiser_id}
        tasks.append({"data": data, "predictions": [prediction]})
    config = xml_text(_config(predictions.classes), path)
    with atomic_folder(path) as folder:
        (folder / TASKS).write_text(json.dumps(tasks, indent=1), encoding="utf-8")
        (folder / CONFIG).write_text(config, encoding="utf-8")


def document_root(dataset: Dataset) -> tuple[Path, Path]:
    """The folder from which Label Studio must serve files, and the folder in it that holds all images of a dataset.

    Label Studio wants the folder of a storage to lie below the document root, so the root is the folder above the images.
    """
    paths = [sample.path for sample in dataset.samples]
    names = relative_names(paths, paths[0].parent)
    shared = Path(paths[0].absolute().as_posix().removesuffix(names[paths[0]]))
    return shared.parent, shared


def image_addresses(dataset: Dataset) -> dict[int, str]:
    """{image id: the address of the image in Label Studio, percent-encoded}."""
    paths = [sample.path for sample in dataset.samples]
    names = relative_names(paths, paths[0].parent)
    folder = document_root(dataset)[1].name
    return {
        sample.id: LOCAL_FILES + quote(f"{folder}/{names[sample.path]}" if folder else names[sample.path])
        for sample in dataset.samples
    }


def _region(number: int, box: Array, size: tuple[int, int], name: str, score: float) -> dict[str, Any]:
    """One box (4,) xyxy in pixels as a region of Label Studio."""
    width, height = size
    x1, y1, x2, y2 = box.tolist()
    return {
        "id": f"box{number}",
        "type": "rectanglelabels",
        "from_name": LABEL,
        "to_name": IMAGE,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": score,
        "value": {
            "x": round(100 * x1 / width, 6),
            "y": round(100 * y1 / height, 6),
            "width": round(100 * (x2 - x1) / width, 6),
            "height": round(100 * (y2 - y1) / height, 6),
            "rotation": 0,
            "rectanglelabels": [name],
        },
    }


def _config(classes: Sequence[str]) -> ET.Element:
    """The labelling interface of a project with these classes."""
    view = ET.Element("View")
    ET.SubElement(view, "Image", name=IMAGE, value=f"${IMAGE}", zoom="true")
    labels = ET.SubElement(view, "RectangleLabels", name=LABEL, toName=IMAGE)
    for name in classes:
        ET.SubElement(labels, "Label", value=name)
    return view
