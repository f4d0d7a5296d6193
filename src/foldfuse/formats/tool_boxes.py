"""Boxes as annotation tools take them: within their images; and XML with names that XML can hold."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Array, Predictions
from foldfuse.errors import InputError, shown
from foldfuse.formats.box_table import image_sizes

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def clipped_rows(predictions: Predictions, dataset: Dataset) -> tuple[Array, Array]:
    """The boxes clipped to their images (n, 4) float64 xyxy, and (n,) bool: which of them have a size then."""
    sizes = image_sizes(predictions.image_ids[predictions.image_index], dataset)
    boxes = predictions.boxes.astype(np.float64)
    clipped = np.clip(boxes, 0, np.tile(sizes, 2))
    return clipped, np.asarray((clipped[:, 2:] > clipped[:, :2]).all(axis=1))


def xml_text(root: ET.Element, path: Path) -> str:
    """An indented XML document.

    Raises:
        InputError: a name holds a character that XML cannot hold.
    """
    for element in root.iter():
        for text in (element.text or "", *element.attrib.values()):
            if found := _NOT_XML.search(text):
                raise InputError(
                    f"{path}: the name {shown(text)} holds the character {found[0]!r}, which XML cannot hold. Rename what has "
                    "that name."
                )
    ET.indent(root, " ")
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"
