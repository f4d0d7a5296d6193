"""Writes predictions as a folder for CVAT: annotations.xml ("CVAT for images 1.1") with scores, and labels.json of the project.

Source: https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/. CVAT finds an image by its name. The score is an
attribute of a box, which CVAT keeps where the labels of the project have this attribute, as those in labels.json do.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Predictions
from foldfuse.formats.coco_results import score_texts
from foldfuse.formats.tool_boxes import clipped_rows, xml_text
from foldfuse.system.atomic_files import atomic_folder

ANNOTATIONS, LABELS = "annotations.xml", "labels.json"
SCORE = "score"
_CORNERS = ("xtl", "ytl", "xbr", "ybr")
_SCORE_ATTRIBUTE = {"name": SCORE, "mutable": "False", "input_type": "text", "default_value": "", "values": ""}


def write_cvat(predictions: Predictions, path: Path, dataset: Dataset) -> None:
    """Write a folder with the boxes of all predicted images; boxes are clipped to their images.

    Args:
        predictions: of images of `dataset`.
        path: a folder, new or empty.
        dataset: the images.

    Raises:
        InputError: `path` is not new or empty, or a name cannot be written.
    """
    images = dataset.subset(predictions)
    predictions = predictions.select_images(images.image_ids)
    boxes, kept = clipped_rows(predictions, images)
    scores = score_texts(predictions)
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    labels = ET.SubElement(ET.SubElement(ET.SubElement(root, "meta"), "task"), "labels")
    for name in predictions.classes:
        label = ET.SubElement(labels, "label")
        ET.SubElement(label, "name").text = name
        attribute = ET.SubElement(ET.SubElement(label, "attributes"), "attribute")
        for tag, text in _SCORE_ATTRIBUTE.items():
            ET.SubElement(attribute, tag).text = text
    for number, (sample, (start, end)) in enumerate(
        zip(images.samples, pairwise(predictions.offsets.tolist()), strict=True)
    ):
        image = ET.SubElement(
            root, "image", id=str(number), name=sample.file_name, width=str(sample.width), height=str(sample.height)
        )
        for row in (np.flatnonzero(kept[start:end]) + start).tolist():
            corners = dict(zip(_CORNERS, (f"{value:.3f}" for value in boxes[row].tolist()), strict=True))
            name = predictions.classes[int(predictions.labels[row])]
            fields = {"label": name, "source": "auto", "occluded": "0", **corners, "z_order": "0"}
            box = ET.SubElement(image, "box", fields)
            ET.SubElement(box, "attribute", name=SCORE).text = scores[row]
    xml = xml_text(root, path)
    spec = {"name": SCORE, "input_type": "text", "mutable": False, "default_value": "", "values": [""]}
    with atomic_folder(path) as folder:
        (folder / ANNOTATIONS).write_text(xml, encoding="utf-8")
        document = [{"name": name, "attributes": [spec]} for name in predictions.classes]
        (folder / LABELS).write_text(json.dumps(document, indent=1), encoding="utf-8")
