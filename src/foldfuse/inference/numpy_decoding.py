"""Decodes the outputs of exported detectors with numpy, as the detectors' own `decode` does with torch.

The three kinds of head are those of `models.detection`: anchor-free, EfficientDet's anchors, YOLOv5's. Files of the detectors of
torchvision and transformers decode by themselves.

Shapes: A priors of all levels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from foldfuse.boxes import pairwise_iou
from foldfuse.detections import Array, Detections

Head = Literal["anchor_free", "anchors", "yolov5", "in_graph"]
PER_CELL: dict[Head, int] = {"anchor_free": 1, "anchors": 9, "yolov5": 3}
MAX_LOG = 4.0  # of a distance or side, in units
SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
ASPECTS = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))  # width, height


@dataclass(frozen=True)
class Decoding:
    """How the outputs of a detector become boxes.

    Attributes:
        head: the kind of the head; "in_graph" of a detector that the file alone decodes.
        score_threshold, nms_iou, max_detections, pre_nms_topk: see `models.detection.postprocess.select_detections`.
        anchor_scale: of the anchor-free head and of EfficientDet's anchors, in strides; 0 for YOLOv5's.
        anchors: (width, height) in pixels of each level's anchors of YOLOv5's head; else empty.
        nominal_sides: the sides of EfficientDet's anchors follow the nominal strides, as in files of earlier versions.
    """

    head: Head
    score_threshold: float
    nms_iou: float
    max_detections: int
    pre_nms_topk: int
    anchor_scale: float = 0.0
    anchors: tuple[tuple[tuple[float, float], ...], ...] = ()
    nominal_sides: bool = True  # of a file that does not say it


def decode(outputs: Sequence[Array], decoding: Decoding, canvas: tuple[int, int]) -> list[Detections]:
    """The detections of each image of a batch, in pixels of the network's input, clipped to it, best first.

    Args:
        outputs: the network's, with the batch first: logits (B, A, K) and box deltas (B, A, 4), or YOLOv5's logits (B, A, 5 + K).
        decoding: how to decode them.
        canvas: (height, width) of the network's input.

    Raises:
        ValueError: the outputs have other shapes.
    """
    sizes = level_sizes(outputs[0].shape[1], PER_CELL[decoding.head], canvas)
    found = []
    for i in range(len(outputs[0])):
        if decoding.head == "yolov5":
            scores, deltas = _yolov5_scores(outputs[0][i]), outputs[0][i][:, :4]
        else:
            scores, deltas = _sigmoid(outputs[0][i]), outputs[1][i]
        found.append(_select(scores, deltas, decoding, sizes, canvas))
    return found


def level_sizes(num_priors: int, per_cell: int, canvas: tuple[int, int]) -> list[tuple[int, int]]:
    """(height, width) of each level from stride 8 on, as many as give that number of priors. Raises ValueError if none do."""
    sizes: list[tuple[int, int]] = []
    stride, left = 8, num_priors
    while left > 0:
        sizes.append((-(-canvas[0] // stride), -(-canvas[1] // stride)))
        left -= sizes[-1][0] * sizes[-1][1] * per_cell
        stride *= 2
    if left < 0:
        raise ValueError(f"{num_priors} priors are not those of an input of {canvas[1]} x {canvas[0]} px")
    return sizes


def _select(
    scores: Array, deltas: Array, decoding: Decoding, sizes: Sequence[tuple[int, int]], canvas: tuple[int, int]
) -> Detections:
    """The detections of one image from its scores (A, K) and box deltas (A, 4)."""
    flat = scores.ravel()
    top = np.argsort(-flat, kind="stable")[: decoding.pre_nms_topk]
    top = top[flat[top] >= decoding.score_threshold]
    rows, labels = np.divmod(top, scores.shape[1])
    boxes = np.clip(_boxes(deltas[rows], rows, decoding, sizes, canvas), 0, [canvas[1], canvas[0]] * 2)
    kept = _nms(boxes, labels, decoding.nms_iou)[: decoding.max_detections]
    return Detections(boxes[kept].astype(np.float32), flat[top][kept], labels[kept].astype(np.int64))


def _boxes(
    deltas: Array, rows: Array, decoding: Decoding, sizes: Sequence[tuple[int, int]], canvas: tuple[int, int]
) -> Array:
    """(n, 4) xyxy of the priors `rows` with these deltas."""
    per_cell = PER_CELL[decoding.head]
    ends = np.cumsum([height * width * per_cell for height, width in sizes])
    level = np.searchsorted(ends, rows, "right")
    position, k = np.divmod(rows - np.concatenate([[0], ends])[level], per_cell)
    shape = np.array(sizes)[level]  # (n, 2) height, width
    y, x = np.divmod(position, shape[:, 1])
    stride = 8.0 * 2.0**level
    if decoding.head == "yolov5":
        s = 2 * _sigmoid(deltas)
        centre = (s[:, :2] - 0.5 + np.stack([x, y], 1)) * stride[:, None]
        half = s[:, 2:] ** 2 * np.array(decoding.anchors)[level, k] / 2
        return np.concatenate([centre - half, centre + half], 1)
    cell = np.array(canvas[::-1]) / shape[:, ::-1]  # (n, 2) width, height
    centre = (np.stack([x, y], 1) + 0.5) * cell
    unit = (stride * decoding.anchor_scale)[:, None]
    if decoding.head == "anchor_free":
        distances = np.exp(np.minimum(deltas, MAX_LOG)) * unit / 2
        return np.concatenate([centre - distances[:, :2], centre + distances[:, 2:]], 1)
    sides = np.array([(s * w, s * h) for s in SCALES for w, h in ASPECTS])[k]
    sides = sides * (unit if decoding.nominal_sides else cell * decoding.anchor_scale)
    centre = centre + deltas[:, [1, 0]] * sides
    half = np.exp(np.minimum(deltas[:, [3, 2]], MAX_LOG)) * sides / 2
    return np.concatenate([centre - half, centre + half], 1)


def _nms(boxes: Array, labels: Array, iou: float) -> Array:
    """Positions of the boxes that stay, best first; a box that overlaps a better one of its label by more than `iou` goes."""
    alive = np.ones(len(boxes), bool)
    for i in range(len(boxes)):
        if alive[i]:
            rest = i + 1 + np.flatnonzero(alive[i + 1 :] & (labels[i + 1 :] == labels[i]))
            alive[rest[pairwise_iou(boxes[i : i + 1], boxes[rest])[0] > iou]] = False
    return np.flatnonzero(alive)


def _yolov5_scores(logits: Array) -> Array:
    """(A, K): objectness x class probability; with a single class the objectness alone."""
    objectness = _sigmoid(logits[:, 4:5])
    return objectness if logits.shape[1] == 6 else objectness * _sigmoid(logits[:, 5:])


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        result: Array = 1 / (1 + np.exp(-x))
    return result
