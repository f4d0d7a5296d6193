"""Decodes boxes inside an exported network: scores, top-k, boxes and non-maximum suppression as nodes of the ONNX graph.

`DecodedNetwork` gives what `numpy_decoding.decode` gives, for a batch of any size: its arithmetic follows that module line by
line, and its rows beyond the last detection of an image are padding. Non-maximum suppression is one operation of PyTorch here, so
that no shape depends on the data; in ONNX it becomes the operation NonMaxSuppression.

Shapes: B images, A priors of all levels, K classes, N = pre_nms_topk candidates, M = max_detections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from foldfuse.inference.numpy_decoding import ASPECTS, MAX_LOG, PER_CELL, SCALES, Decoding
from foldfuse.inference.onnx_predictor import DECODED

OUTPUTS = DECODED  # (B, M, 4) xyxy in input pixels, (B, M), (B, M); padding has score 0 and label -1
SMALLEST_SCORE = 0.0  # NonMaxSuppression takes scores above it


@torch.library.custom_op("foldfuse::kept_by_nms", mutates_args=())
def kept_by_nms(boxes: Tensor, class_scores: Tensor, iou: float) -> Tensor:
    """(B, N) bool: the boxes that stay; a box that overlaps a better one of its class by more than `iou` goes.

    Args:
        boxes: (B, N, 4) xyxy.
        class_scores: (B, K, N), above 0 for the class of a box alone; nowhere for a box that is no candidate.
        iou: the limit.
    """
    kept = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    best, labels = class_scores.max(1)  # (B, N)
    for i in range(len(boxes)):
        rows = torch.nonzero(best[i] > SMALLEST_SCORE).squeeze(1)
        kept[i, rows[batched_nms(boxes[i, rows], best[i, rows], labels[i, rows], iou)]] = True
    return kept


@kept_by_nms.register_fake
def _(boxes: Tensor, class_scores: Tensor, iou: float) -> Tensor:
    return torch.empty(boxes.shape[:2], dtype=torch.bool, device=boxes.device)


def onnx_operations() -> Mapping[Callable[..., Any], Callable[..., Any]]:
    """{operation of PyTorch: its form in ONNX}, for `torch.onnx.export`."""
    from onnxscript import opset18

    op: Any = opset18

    def kept(boxes: Any, class_scores: Any, iou: float) -> Any:
        """The operation in ONNX: the (batch, class, box) of each box that stays, scattered into (B, N)."""
        number = op.Constant(value_ints=[2**31 - 1])
        limit = op.Constant(value_floats=[iou])
        least = op.Constant(value_floats=[SMALLEST_SCORE])
        chosen = op.NonMaxSuppression(boxes, class_scores, number, limit, least)  # (n, 3)
        places = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)  # (n, 2)
        shape = op.Gather(op.Shape(class_scores), op.Constant(value_ints=[0, 2]), axis=0)
        nothing = op.Expand(op.Constant(value_int=0), shape)
        ones = op.Expand(
            op.Constant(value_int=1),
            op.Gather(op.Shape(chosen), op.Constant(value_ints=[0]), axis=0),
        )
        return op.Cast(op.ScatterND(nothing, places, ones), to=9)  # BOOL

    return {torch.ops.foldfuse.kept_by_nms.default: kept}


class DecodedNetwork(nn.Module):
    """A detector's network with its decoding.

    Args:
        net: its `forward` gives a NamedTuple of logits (B, A, K) and box deltas (B, A, 4), or of YOLOv5's logits (B, A, 5 + K),
            with the sizes of the levels.
        decoding: how to decode them.
    """

    anchors: Tensor  # (9, 2) sides in units, or (3, 3, 2) YOLOv5's in pixels, or none

    def __init__(self, net: nn.Module, decoding: Decoding) -> None:
        super().__init__()
        self.net, self.decoding = net, decoding
        side = int(net.stride)  # type: ignore[arg-type]
        with torch.no_grad():
            self.num_levels = len(net(torch.zeros(1, 3, side, side)).sizes)
        if decoding.head == "anchors":
            anchors = torch.tensor([(scale * w, scale * h) for scale in SCALES for w, h in ASPECTS])
        else:
            anchors = torch.tensor(decoding.anchors)
        self.register_buffer("anchors", anchors, persistent=False)

    @property
    def example_size(self) -> int:
        """A side in pixels at which every level has two cells and more: the exporter takes a single cell for a constant."""
        return 16 * 2 ** (self.num_levels - 1)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) in 0..1 -> the tensors in the network's output, then boxes, scores and labels; see `OUTPUTS`."""
        raw = self.net(images)
        tensors = tuple(part for part in raw if isinstance(part, Tensor))
        scores, deltas = self._scores_and_deltas(tensors)
        num_classes, (height, width) = scores.shape[2], (images.shape[2], images.shape[3])
        padding = scores.new_zeros(scores.shape[0], self.decoding.pre_nms_topk)  # so that there are as many pairs
        top, pairs = torch.cat([scores.flatten(1), padding], 1).topk(self.decoding.pre_nms_topk, 1)  # (B, N)
        pairs = torch.minimum(pairs, torch.full_like(pairs, scores.shape[1] * num_classes - 1))
        rows, labels = pairs // num_classes, pairs % num_classes
        deltas = deltas.gather(1, rows[..., None].expand(-1, -1, 4))
        priors = self._priors(height, width)[rows]  # (B, N, 5)
        limit = torch.stack([torch.full((), side, dtype=torch.float32) for side in (width, height, width, height)])
        boxes = torch.minimum(self._boxes(deltas, priors).clamp(min=0), limit)

        top = torch.where(top >= self.decoding.score_threshold, top, 0.0)
        is_own = labels[:, None] == torch.arange(num_classes)[:, None]  # (B, K, N)
        kept = kept_by_nms(boxes, torch.where(is_own, top[:, None], 0.0), self.decoding.nms_iou)
        best, order = torch.where(kept, top, 0.0).topk(self.decoding.max_detections, 1)  # (B, M)
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        return *tensors, boxes, best, torch.where(best > 0, labels.gather(1, order), -1)

    def _scores_and_deltas(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """(B, A, K) and (B, A, 4) of the network's output."""
        logits = tensors[0]
        if self.decoding.head != "yolov5":
            return logits.sigmoid(), tensors[1]
        scores = logits[..., 4:5].sigmoid()
        return scores if logits.shape[2] == 6 else scores * logits[..., 5:].sigmoid(), logits[..., :4]

    def _priors(self, height: int, width: int) -> Tensor:
        """(A, 5): centre (YOLOv5: the cell's corner), width and height that a unit of a side has, and stride, in pixels."""
        chosen, levels = self.decoding, []
        for level in range(self.num_levels):
            stride = 8 * 2**level
            rows, columns = (height + stride - 1) // stride, (width + stride - 1) // stride
            y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            cell = torch.stack([x.flatten(), y.flatten()], 1).float()  # (H W, 2)
            size = torch.stack([torch.full((), side, dtype=torch.float32) for side in (width / columns, height / rows)])
            unit = stride * chosen.anchor_scale
            if chosen.head == "yolov5":
                start, sides = cell * stride, self.anchors[level]
            elif chosen.head == "anchors":
                start, sides = (
                    (cell + 0.5) * size,
                    self.anchors * (unit if chosen.nominal_sides else size * chosen.anchor_scale),
                )
            else:
                start, sides = (cell + 0.5) * size, torch.full((1, 2), unit)
            per_cell = PER_CELL[chosen.head]
            start = start[:, None].expand(-1, per_cell, -1)
            sides = sides[None].expand(start.shape[0], -1, -1)
            strides = torch.full_like(start[..., :1], stride)
            levels.append(torch.cat([start, sides, strides], 2).flatten(0, 1))
        return torch.cat(levels)

    def _boxes(self, deltas: Tensor, priors: Tensor) -> Tensor:
        """(B, N, 4) xyxy of priors with these deltas."""
        centre, sides, stride = priors[..., :2], priors[..., 2:4], priors[..., 4:]
        if self.decoding.head == "yolov5":
            s = 2 * deltas.sigmoid()
            centre = centre + (s[..., :2] - 0.5) * stride
            half = s[..., 2:].square() * sides / 2
        elif self.decoding.head == "anchors":
            centre = centre + deltas[..., [1, 0]] * sides
            half = deltas[..., [3, 2]].clamp(max=MAX_LOG).exp() * sides / 2
        else:
            distances = deltas.clamp(max=MAX_LOG).exp() * sides.repeat(1, 1, 2) / 2
            return torch.cat([centre - distances[..., :2], centre + distances[..., 2:]], -1)
        return torch.cat([centre - half, centre + half], -1)
