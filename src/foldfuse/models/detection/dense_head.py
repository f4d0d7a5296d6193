"""How a dense detector learns and decides: task-aligned assignment, quality focal loss, GIoU, non-maximum suppression.

Source: task-aligned assignment (arXiv:2108.07755), the quality focal loss (arXiv:2006.04388, section 3) and GIoU
(arXiv:1902.09630). Matching by IoU > 0.5 with focal and Huber loss, as in EfficientDet's paper, wants hundreds of epochs; these
learn a few hundred pictures within minutes.

Shapes: B images, K classes, A anchors of all levels, N objects, C candidates of an object. An anchor is a place that gives one
box: one of nine in a cell of EfficientDet's, a cell itself where there is one box a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms, generalized_box_iou_loss

from foldfuse.detections import Annotations, Detections
from foldfuse.models.detection import anchors as A
from foldfuse.models.detection.assignment import task_aligned

PRIOR = 0.01  # the score that an untrained class head gives (focal loss, arXiv:1708.02002, section 4.1)


class Raw(NamedTuple):
    """What `forward` gives.

    Attributes:
        logits: (B, A, K).
        codes: (B, A, 4), what `Aligned.boxes` makes boxes of.
        sizes: (L, 2) int64, height and width of each level.
        image: (2,) int64, height and width of the network's input.
    """

    logits: Tensor
    codes: Tensor
    sizes: tuple[tuple[int, int], ...]
    image: tuple[int, int]


class Aligned:
    """What a module that gives `Raw` inherits: its loss and its decoding. It says itself where its anchors are.

    Attributes:
        num_classes: K.
        per_cell: anchors in a cell.
    """

    num_classes: int
    per_cell: int

    def places(self, raw: Raw) -> Tensor:
        """(A, 4): each anchor, in the form that `boxes` takes."""
        raise NotImplementedError

    def boxes(self, codes: Tensor, places: Tensor) -> Tensor:
        """(..., 4) codes and (..., 4) places -> (..., 4) xyxy in input pixels."""
        raise NotImplementedError

    def loss(self, raw: Raw, targets: Sequence[Annotations]) -> dict[str, Tensor]:
        """Terms to be summed, each a scalar: "class" (quality focal) and "box" (GIoU), per object found.

        Args:
            raw: of B images.
            targets: B Annotations in input pixels; crowd regions must have been left out.
        """
        device = raw.logits.device
        logits, codes = raw.logits.float(), raw.codes.float()
        counts = [len(t) for t in targets]
        want = torch.zeros_like(logits)
        if not sum(counts):
            return {"class": self._quality_focal(logits, want), "box": codes.sum() * 0}

        boxes = torch.cat([torch.from_numpy(t.boxes) for t in targets]).to(device, torch.float32)  # (N, 4)
        labels = torch.cat([torch.from_numpy(t.labels) for t in targets]).to(device)  # (N,)
        image = torch.arange(len(targets), device=device).repeat_interleave(torch.tensor(counts, device=device))
        anchor = self.places(raw)
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        candidates, inside = A.nearest_cells(centres, raw.sizes, raw.image, per_cell=self.per_cell)  # (N, C)
        with torch.no_grad():
            boxes_there = self.boxes(codes[image[:, None], candidates], anchor[candidates])  # (N, C, 4)
            scores_there = logits[image[:, None], candidates, labels[:, None]].sigmoid()
            overlap = _iou(boxes_there, boxes[:, None])
        found = task_aligned(scores_there, overlap, candidates, inside, image, num_anchors=len(anchor))
        want[found.image, found.anchor, labels[found.object]] = found.target
        there = self.boxes(codes[found.image, found.anchor], anchor[found.anchor])
        box = (generalized_box_iou_loss(there, boxes[found.object]) * found.target).sum()
        total = found.target.sum().clamp(min=1)
        return {"class": self._quality_focal(logits, want) / total, "box": 2 * box / total}

    @staticmethod
    def _quality_focal(logits: Tensor, want: Tensor) -> Tensor:
        """Sum over (B, A, K) of |want - score|^2 * BCE: section 3 of arXiv:2006.04388 with beta = 2."""
        weight = (want - logits.sigmoid()).square()
        return (weight * F.binary_cross_entropy_with_logits(logits, want, reduction="none")).sum()

    @torch.no_grad()
    def decode(
        self, raw: Raw, *, floor: float = 0.005, nms_iou: float = 0.6, most: int = 100, before_nms: int = 1000
    ) -> list[Detections]:
        """B Detections in input pixels, cut to the input, best first.

        Args:
            raw: of B images.
            floor: scores below it are left out. Low ones matter: AP falls when they are cut.
            nms_iou: boxes of a class that overlap a better one by more than this are left out.
            most: boxes of an image at the most.
            before_nms: the best (anchor, class) pairs that non-maximum suppression looks at.
        """
        anchor = self.places(raw)
        height, width = raw.image
        limit = torch.tensor([width, height, width, height], device=anchor.device)
        found = []
        for logits, codes in zip(raw.logits.float(), raw.codes.float(), strict=True):
            scores, place = logits.sigmoid().flatten().topk(min(before_nms, logits.numel()))
            place = place[scores >= floor]
            scores = scores[scores >= floor]
            rows, labels = place // self.num_classes, place % self.num_classes
            boxes = torch.minimum(self.boxes(codes[rows], anchor[rows]).clamp(min=0), limit)
            kept = batched_nms(boxes, scores, labels, nms_iou)[:most]
            found.append(Detections(boxes[kept].cpu().numpy(), scores[kept].cpu().numpy(), labels[kept].cpu().numpy()))
        return found


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """(..., 4), (..., 4) xyxy -> (...) IoU of boxes in the same place."""
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    overlap = sides.prod(-1)
    areas = (a[..., 2:] - a[..., :2]).clamp(min=0).prod(-1) + (b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1)
    return overlap / (areas - overlap).clamp(min=1e-9)
