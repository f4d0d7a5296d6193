"""The loss and the decoding that dense detectors share: task-aligned assignment, quality focal loss, GIoU, NMS.

Source: task-aligned assignment (arXiv:2108.07755), the quality focal loss (arXiv:2006.04388, section 3) and GIoU
(arXiv:1902.09630). Matching by IoU > 0.5 with focal and Huber loss, as in EfficientDet's paper, needs hundreds of epochs; these
losses learn a few hundred images within minutes.

Shapes: B images, K classes, A priors of all levels, N objects, C candidates of an object. A prior gives one box: it is one of
nine anchors in a cell, or the cell itself if the head is anchor-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from foldfuse.detections import Annotations, Detections
from foldfuse.models.detection import anchors as A
from foldfuse.models.detection.assignment import task_aligned
from foldfuse.models.detection.normalizers import BatchTotal, at_least_float32, own_total
from foldfuse.models.detection.postprocess import select_detections

PRIOR = 0.01  # the score that an untrained class head gives (focal loss, arXiv:1708.02002, section 4.1)


class DenseOutput(NamedTuple):
    """Output of a dense detector's `forward`.

    Attributes:
        logits: (B, A, K).
        box_deltas: (B, A, 4), which `DensePrediction.decode_boxes` turns into boxes.
        sizes: (height, width) of each level.
        image: (height, width) of the network's input.
    """

    logits: Tensor
    box_deltas: Tensor
    sizes: tuple[tuple[int, int], ...]
    image: tuple[int, int]


class Targets(NamedTuple):
    """The N objects of a batch.

    Attributes:
        boxes: (N, 4) float32 xyxy in input pixels.
        labels: (N,) int64.
        image: (N,) int64, index of each object's image.
    """

    boxes: Tensor
    labels: Tensor
    image: Tensor


def gather_targets(targets: Sequence[Annotations], device: torch.device) -> Targets:
    """The objects of all images in one table."""
    lengths = [len(t) for t in targets]
    counts = torch.tensor(lengths, device=device)
    return Targets(
        torch.cat([torch.from_numpy(t.boxes) for t in targets]).to(device, torch.float32),
        torch.cat([torch.from_numpy(t.labels) for t in targets]).to(device),
        torch.arange(len(targets), device=device).repeat_interleave(counts, output_size=sum(lengths)),
    )


class DensePrediction:
    """Base of the modules that give `DenseOutput`: loss and decoding. The module defines its priors and box decoding.

    Attributes:
        num_classes: K.
        per_cell: priors in a cell.
        has_object_class: whether the last class means any object, and is a target of objects of all classes.
    """

    num_classes: int
    per_cell: int
    has_object_class: bool = False

    def priors(self, raw: DenseOutput) -> Tensor:
        """(A, 4): the priors, in the form that `decode_boxes` takes."""
        raise NotImplementedError

    def decode_boxes(self, box_deltas: Tensor, priors: Tensor) -> Tensor:
        """(..., 4) box deltas and (..., 4) priors -> (..., 4) xyxy in input pixels."""
        raise NotImplementedError

    def loss(
        self,
        raw: DenseOutput,
        targets: Sequence[Annotations],
        *,
        class_weights: Tensor | None = None,
        batch_total: BatchTotal = own_total,
    ) -> dict[str, Tensor]:
        """Terms to be summed, each a scalar: "class" (quality focal) and "box" (GIoU), per assigned object.

        Args:
            raw: the output of `forward` for B images.
            targets: B Annotations in input pixels, without crowd regions.
            class_weights: (B, K) weights of the classes in each image's loss, 0 for a class that was not annotated there. Its
                objects may be in the image without a box, so it counts only where a box shows an object of another class,
                with a weight of 1. None if all classes were annotated.
            batch_total: gives a count over the whole batch, where these B images are a share of it.
        """
        logits, box_deltas = at_least_float32(raw.logits), at_least_float32(raw.box_deltas)
        class_targets = torch.zeros_like(logits)
        if not sum(len(t) for t in targets):
            of_image = 1.0 if class_weights is None else class_weights[:, None]
            total = batch_total(logits.new_zeros(())).clamp(min=1)
            return {"class": _quality_focal(logits, class_targets, of_image) / total, "box": box_deltas.sum() * 0}

        boxes, labels, image = gather_targets(targets, logits.device)
        priors = self.priors(raw)
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        candidates, inside = A.nearest_cells(centres, raw.sizes, raw.image, per_cell=self.per_cell)  # (N, C)
        with torch.no_grad():
            candidate_boxes = self.decode_boxes(box_deltas[image[:, None], candidates], priors[candidates])  # (N, C, 4)
            candidate_scores = logits[image[:, None], candidates, labels[:, None]].sigmoid()
            overlap = _iou(candidate_boxes, boxes[:, None])
        positives = task_aligned(candidate_scores, overlap, candidates, inside, image, num_priors=len(priors))
        class_targets[positives.image, positives.prior, labels[positives.object]] = positives.target
        if self.has_object_class:
            class_targets[positives.image, positives.prior, -1] = positives.target
        weights: Tensor | float = 1.0
        if class_weights is not None:
            weights = class_weights[:, None].expand_as(logits).clone()
            own = class_weights[positives.image]
            weights[positives.image, positives.prior] = own.where(own > 0, 1.0)
        predicted = self.decode_boxes(box_deltas[positives.image, positives.prior], priors[positives.prior])
        box = (generalized_box_iou_loss(predicted, boxes[positives.object]) * positives.target).sum()
        total = batch_total(positives.target.sum()).clamp(min=1)
        return {"class": _quality_focal(logits, class_targets, weights) / total, "box": 2 * box / total}

    def _decode_rows(self, box_deltas: Tensor, priors: Tensor, rows: Tensor) -> Tensor:
        """(n,) indices of priors -> (n, 4) xyxy in input pixels, of one image."""
        return self.decode_boxes(box_deltas[rows], priors[rows])

    @torch.no_grad()
    def decode(
        self,
        raw: DenseOutput,
        *,
        score_threshold: float = 0.005,
        nms_iou: float = 0.6,
        max_detections: int = 100,
        pre_nms_topk: int = 1000,
    ) -> list[Detections]:
        """B Detections in input pixels; `select_detections` explains the options."""
        priors = self.priors(raw)
        return [
            select_detections(
                logits.sigmoid(),
                partial(self._decode_rows, deltas, priors),
                image=raw.image,
                score_threshold=score_threshold,
                nms_iou=nms_iou,
                max_detections=max_detections,
                pre_nms_topk=pre_nms_topk,
            )
            for logits, deltas in zip(raw.logits.float(), raw.box_deltas.float(), strict=True)
        ]


def _quality_focal(logits: Tensor, targets: Tensor, weights: Tensor | float) -> Tensor:
    """Sum over (B, A, K) of weights * |target - score|^2 * BCE: section 3 of arXiv:2006.04388 with beta = 2."""
    weight = (targets - logits.sigmoid()).square() * weights
    return (weight * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")).sum()


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """(..., 4), (..., 4) xyxy -> (...) IoU of the boxes at the same index."""
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    overlap = sides.prod(-1)
    areas = (a[..., 2:] - a[..., :2]).clamp(min=0).prod(-1) + (b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1)
    return overlap / (areas - overlap).clamp(min=1e-9)
