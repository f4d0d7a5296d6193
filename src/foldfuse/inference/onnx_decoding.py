"""Decodes boxes inside an exported network: scores, top-k, boxes and non-maximum suppression as nodes of the ONNX graph.

`DecodedNetwork` gives what `numpy_decoding.decode` gives, for a batch of any size: its arithmetic follows that module line by
line, and its rows beyond the last detection of an image are padding. `onnx_library_decoding` has the detectors of torchvision and
transformers. Non-maximum suppression is one operation of PyTorch here, so that no shape depends on the data; in ONNX it becomes
the operation NonMaxSuppression.

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

BoxesOf = Callable[[Tensor], Tensor]  # (B, N) rows of each image's candidates -> (B, N, 4) xyxy in input pixels


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
    """{operation of PyTorch or torchvision: its form in ONNX}, for `torch.onnx.export`."""
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

    def pooled(features: Any, rois: Any, scale: float, height: int, width: int, samples: int, aligned: bool) -> Any:
        """torchvision's RoIAlign in ONNX; the first column of `rois` (R, 5) is the image."""
        image = op.Gather(rois, op.Constant(value_int=0), axis=1)
        return op.RoiAlign(
            features,
            op.Gather(rois, op.Constant(value_ints=[1, 2, 3, 4]), axis=1),
            op.Cast(image, to=7),  # INT64
            coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
            mode="avg",
            output_height=height,
            output_width=width,
            sampling_ratio=samples,
            spatial_scale=scale,
        )

    return {torch.ops.foldfuse.kept_by_nms.default: kept, torch.ops.torchvision.roi_align.default: pooled}


class Decoded(nn.Module):
    """Base of the networks with their decoding: top-k, boxes, non-maximum suppression.

    Args:
        net: a detector's network, whose `forward` gives a NamedTuple.
        decoding: how to decode its output.
    """

    def __init__(self, net: nn.Module, decoding: Decoding) -> None:
        super().__init__()
        self.net, self.decoding = net, decoding

    @property
    def example_size(self) -> int:
        """A side in pixels at which every level has two cells and more: the exporter takes a single cell for a constant."""
        raise NotImplementedError

    def candidates(self, raw: Any, size: tuple[int, int]) -> tuple[Tensor, BoxesOf]:
        """(B, A, K) scores, and a function that gives the boxes of some rows, for an input of this height and width."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) in 0..1 -> the tensors in the network's output, then boxes, scores and labels; see `OUTPUTS`."""
        raw, chosen = self.net(images), self.decoding
        size = (images.shape[2], images.shape[3])
        scores, boxes_of = self.candidates(raw, size)
        num_classes = scores.shape[2]
        padding = scores.new_zeros(scores.shape[0], chosen.pre_nms_topk)  # so that there are as many pairs
        top, pairs = torch.cat([scores.flatten(1), padding], 1).topk(chosen.pre_nms_topk, 1)  # (B, N)
        pairs = torch.minimum(pairs, torch.full_like(pairs, scores.shape[1] * num_classes - 1))
        rows, labels = pairs // num_classes, pairs % num_classes
        boxes = clipped(boxes_of(rows), size)

        top = torch.where(top >= chosen.score_threshold, top, 0.0)
        if chosen.nms_iou < 1:
            is_own = labels[:, None] == torch.arange(num_classes)[:, None]  # (B, K, N)
            kept = kept_by_nms(boxes, torch.where(is_own, top[:, None], 0.0), chosen.nms_iou)
            top = torch.where(kept, top, 0.0)
        tensors = tuple(part for part in raw if isinstance(part, Tensor))
        return *tensors, *best_detections(boxes, top, labels, chosen.max_detections)


class DecodedNetwork(Decoded):
    """A detector's network with its decoding, for the heads of this package.

    Args:
        net: its `forward` gives a NamedTuple of logits (B, A, K) and box deltas (B, A, 4), or of YOLOv5's logits (B, A, 5 + K),
            with the sizes of the levels.
        decoding: how to decode them.
    """

    anchors: Tensor  # (9, 2) sides in units, or (3, 3, 2) YOLOv5's in pixels, or none

    def __init__(self, net: nn.Module, decoding: Decoding) -> None:
        super().__init__(net, decoding)
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
        """See `Decoded.example_size`."""
        return 16 * 2 ** (self.num_levels - 1)

    def candidates(self, raw: Any, size: tuple[int, int]) -> tuple[Tensor, BoxesOf]:
        """See `Decoded.candidates`."""
        scores, deltas = self._scores_and_deltas(raw)
        priors = self._priors(*size)  # (A, 5)

        def boxes_of(rows: Tensor) -> Tensor:
            return self._boxes(gathered(deltas, rows), priors[rows])

        return scores, boxes_of

    def _scores_and_deltas(self, raw: Any) -> tuple[Tensor, Tensor]:
        """(B, A, K) and (B, A, 4) of the network's output."""
        logits: Tensor = raw[0]
        if self.decoding.head != "yolov5":
            return logits.sigmoid(), raw[1]
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


def gathered(boxes: Tensor, rows: Tensor) -> Tensor:
    """(B, A, 4) and (B, N) rows of each image -> (B, N, 4)."""
    return boxes.gather(1, rows[..., None].expand(-1, -1, 4))


def clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., 4) xyxy, clipped to an input of this height and width."""
    return torch.minimum(boxes.clamp(min=0), corner_of(size))


def corner_of(size: tuple[int, int]) -> Tensor:
    """(4,) float32: width, height, width, height; as a tensor, so that an export keeps it for any size."""
    height, width = size
    return torch.stack([torch.full((), side, dtype=torch.float32) for side in (width, height, width, height)])


def best_detections(boxes: Tensor, scores: Tensor, labels: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """The detections with the highest scores of each image; a score of 0 is none. See `OUTPUTS`.

    Args:
        boxes: (B, N, 4).
        scores, labels: (B, N).
        number: M, at most N.
    """
    best, order = scores.topk(number, 1)  # (B, M)
    return gathered(boxes, order), best, torch.where(best > 0, labels.gather(1, order), -1)
