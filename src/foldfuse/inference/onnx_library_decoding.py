"""Decodes boxes inside an exported network for the detectors of torchvision and transformers, as their `decode` does.

The one-stage detectors of torchvision and D-FINE take the steps of `onnx_decoding`. Faster R-CNN has its second stage in the
graph: the proposals of all images are padded to the same number, so that no shape depends on the data.

Shapes: B images, A candidates of all levels, K classes, P proposals of an image, L levels, N candidates after the top-k.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from foldfuse.inference.numpy_decoding import PER_CELL, Decoding
from foldfuse.inference.onnx_decoding import (
    BoxesOf,
    Decoded,
    DecodedNetwork,
    best_detections,
    clipped,
    corner_of,
    gathered,
    kept_by_nms,
)
from foldfuse.models.detection.torchvision_dense import TorchvisionDense
from foldfuse.models.detection.torchvision_faster_rcnn import FasterRCNNDetector

MIN_SIDE_PX = 1e-2  # of a detection of Faster R-CNN, as in torchvision


def decoded_network(net: Any, decoding: Decoding) -> Decoded:
    """A detector's network with its decoding in the graph."""
    if decoding.head in PER_CELL:
        return DecodedNetwork(net, decoding)
    if isinstance(net, FasterRCNNDetector):
        return TwoStageNetwork(net, decoding)
    return (AnchorNetwork if isinstance(net, TorchvisionDense) else QueryNetwork)(net, decoding)


class AnchorNetwork(Decoded):
    """A one-stage detector of torchvision, whose anchors and box coder the graph takes over."""

    @property
    def example_size(self) -> int:
        """See `Decoded.example_size`."""
        return _two_cells(self.net)

    def candidates(self, raw: Any, size: tuple[int, int]) -> tuple[Tensor, BoxesOf]:
        """See `Decoded.candidates`."""
        net: Any = self.net
        anchors = net.anchors(raw)

        def boxes_of(rows: Tensor) -> Tensor:
            deltas = gathered(raw.box_deltas, rows)
            boxes: Tensor = net.decode_boxes(deltas.flatten(0, 1), anchors[rows].flatten(0, 1))
            return boxes.reshape(deltas.shape)

        return net.scores(raw), boxes_of


class QueryNetwork(Decoded):
    """A DETR: its output are boxes, cxcywh as shares of the input, and their logits."""

    @property
    def example_size(self) -> int:
        """See `Decoded.example_size`."""
        return 2 * int(self.net.stride)  # type: ignore[arg-type]

    def candidates(self, raw: Any, size: tuple[int, int]) -> tuple[Tensor, BoxesOf]:
        """See `Decoded.candidates`."""
        centre, half = raw.boxes_cxcywh[..., :2], raw.boxes_cxcywh[..., 2:].clamp(min=0) / 2
        corners = torch.cat([centre - half, centre + half], -1) * corner_of(size)
        return raw.logits.sigmoid(), lambda rows: gathered(corners, rows)


class TwoStageNetwork(Decoded):
    """Faster R-CNN with both of its stages; `torchvision.models.detection` has the same steps for one image at a time."""

    of_level: Tensor  # (L, L N): 1 where a candidate is of the level

    def __init__(self, net: FasterRCNNDetector, decoding: Decoding) -> None:
        super().__init__(net, decoding)
        with torch.no_grad():
            net.decode(net(torch.zeros(1, 3, 2 * net.stride, 2 * net.stride)))  # sets the scales of RoIAlign
        rpn: Any = net.rpn
        levels = torch.eye(len(rpn.anchor_generator.cell_anchors)).repeat_interleave(rpn.pre_nms_top_n(), 1)
        self.register_buffer("of_level", levels, persistent=False)

    @property
    def example_size(self) -> int:
        """See `Decoded.example_size`."""
        return _two_cells(self.net)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See `Decoded.forward`."""
        net: Any = self.net
        raw, size, roi = net(images), (images.shape[2], images.shape[3]), net.roi_heads
        proposals, is_real = self._proposals(raw, size)  # (B, P, 4), (B, P)
        batch, number = raw.objectness.shape[0], proposals.shape[1]
        image = torch.arange(batch)[:, None].expand(-1, number)
        rois = torch.cat([image[..., None].float(), proposals], -1).flatten(0, 1)  # (B P, 5)
        logits, deltas = roi.box_predictor(roi.box_head(self._pooled(raw.features, rois)))
        num_classes = logits.shape[1] - 1
        scores = logits.softmax(-1)[:, 1:].reshape(batch, number, num_classes)
        boxes = roi.box_coder.decode_single(deltas, rois[:, 1:])  # (B P, 4 (K + 1))
        boxes = clipped(boxes.reshape(batch, number, num_classes + 1, 4)[:, :, 1:], size)
        is_box = is_real[..., None] & _is_at_least(boxes, MIN_SIDE_PX)
        scores = torch.where(is_box & (scores > self.decoding.score_threshold), scores, 0.0)

        boxes = boxes.transpose(1, 2).flatten(0, 1)  # (B K, P, 4)
        scores = scores.transpose(1, 2).flatten(0, 1)  # (B K, P)
        kept = kept_by_nms(boxes, scores[:, None], self.decoding.nms_iou)
        scores = torch.where(kept, scores, 0.0).reshape(batch, -1)  # (B, K P)
        padding = scores.new_zeros(batch, self.decoding.max_detections)  # so that there are as many
        boxes = torch.cat([boxes.reshape(batch, -1, 4), padding[..., None].expand(-1, -1, 4)], 1)
        labels = torch.arange(num_classes)[:, None].expand(-1, number).flatten()
        labels = torch.cat([labels, labels.new_zeros(self.decoding.max_detections)]).expand(batch, -1)
        found = best_detections(boxes, torch.cat([scores, padding], 1), labels, self.decoding.max_detections)
        return raw.objectness, raw.box_deltas, *raw.features, *found

    def _proposals(self, raw: Any, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(B, P, 4) xyxy in input pixels, best first, and (B, P) whether there is such a proposal, of the first stage."""
        net: Any = self.net
        rpn, anchors = net.rpn, net.anchors(raw)
        most, start = rpn.pre_nms_top_n(), 0
        all_boxes, all_scores = [], []
        for (height, width), per_cell in zip(raw.sizes, rpn.anchor_generator.num_anchors_per_location(), strict=True):
            end = start + height * width * per_cell
            objectness = raw.objectness[:, start:end, 0]
            padding = torch.full_like(objectness[:, :1], -torch.inf).expand(-1, most)  # so that there are as many
            top, rows = torch.cat([objectness, padding], 1).topk(most, 1)  # (B, N)
            rows = start + torch.minimum(rows, torch.full_like(rows, end - start - 1))
            deltas = gathered(raw.box_deltas, rows)
            boxes = rpn.box_coder.decode_single(deltas.flatten(0, 1), anchors[rows].flatten(0, 1))
            boxes = clipped(boxes.reshape(deltas.shape), size)
            scores = top.sigmoid()
            is_good = _is_at_least(boxes, rpn.min_size) & (scores >= rpn.score_thresh)
            all_boxes.append(boxes)
            all_scores.append(torch.where(is_good, scores, 0.0))
            start = end
        boxes, scores = torch.cat(all_boxes, 1), torch.cat(all_scores, 1)
        kept = kept_by_nms(boxes, scores[:, None] * self.of_level, rpn.nms_thresh)
        best, order = torch.where(kept, scores, 0.0).topk(rpn.post_nms_top_n(), 1)
        return gathered(boxes, order), best > 0

    def _pooled(self, features: tuple[Tensor, ...], rois: Tensor) -> Tensor:
        """(B P, C, 7, 7): each of the (B P, 5) regions from the level of its size."""
        net: Any = self.net
        pool = net.roi_heads.box_roi_pool
        mapper = pool.map_levels
        pooled = roi_align(features[0], rois, pool.output_size, pool.scales[0], pool.sampling_ratio)
        for i in range(1, mapper.k_max - mapper.k_min + 1):
            other = roi_align(features[i], rois, pool.output_size, pool.scales[i], pool.sampling_ratio)
            pooled = torch.where((mapper([rois[:, 1:]]) == i)[:, None, None, None], other, pooled)
        return pooled


def _is_at_least(boxes: Tensor, side: float) -> Tensor:
    """(..., 4) xyxy -> (...) whether both sides are as long."""
    return (boxes[..., 2] - boxes[..., 0] >= side) & (boxes[..., 3] - boxes[..., 1] >= side)


@torch.no_grad()
def _two_cells(net: nn.Module) -> int:
    """A side in pixels at which the coarsest level has two cells."""
    rows, _ = min(net(torch.zeros(1, 3, 512, 512)).sizes)
    return 2 * (512 // rows)
