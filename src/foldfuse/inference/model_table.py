"""Reads the table of `foldfuse models`: the size and cost of every detector and classifier.

The table is a file beside this module, since building all models and counting their FLOPs takes some 20 seconds and needs
PyTorch. A test compares the file with the models; `python tests/inference/test_model_table.py` writes the file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from foldfuse.system.records import from_plain

TABLE = Path(__file__).with_name("model_table.json")
NUM_CLASSES = {
    "detector": 80,
    "classifier": 1000,
}  # of COCO and of ImageNet; parameters are counted for this number of classes


@dataclass(frozen=True)
class ModelRow:
    """The size and cost of a model at its default image size.

    Attributes:
        name: the name that recipes take.
        kind: "detector" or "classifier".
        num_parameters: number of parameters with `NUM_CLASSES` classes.
        flops: FLOPs of the forward pass of one image; a multiply-add counts as two.
        image_size: pixels, the side of the square.
        stride: pixels; image height and width must be multiples of the stride.
        description: one line.
    """

    name: str
    kind: str
    num_parameters: int
    flops: int
    image_size: int
    stride: int
    description: str


@dataclass(frozen=True)
class _Table:
    models: tuple[ModelRow, ...]


def read_model_table() -> tuple[ModelRow, ...]:
    """The rows of all detectors, then of all classifiers."""
    value = json.loads(TABLE.read_text(encoding="utf-8"))
    return from_plain(value, _Table, where=TABLE.name, what="the table of models").models
