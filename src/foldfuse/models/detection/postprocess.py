"""From a detector's scores and boxes to Detections: score threshold, top-k, non-maximum suppression.

Shapes: A anchors of all levels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from foldfuse.detections import Detections


def select_detections(
    scores: Tensor,
    decode_rows: Callable[[Tensor], Tensor],
    *,
    image: tuple[int, int],
    score_threshold: float,
    nms_iou: float,
    max_detections: int,
    pre_nms_topk: int,
) -> Detections:
    """Detections of one image in input pixels, clipped to the input, best first.

    Args:
        scores: (A, K) in [0, 1].
        decode_rows: (n,) int64 anchors -> (n, 4) xyxy boxes in input pixels; only boxes that pass the top-k are decoded.
        image: (height, width) of the network's input.
        score_threshold: detections with lower scores are left out. Low scores matter: AP falls when they are cut.
        nms_iou: a box that overlaps a better one of its class by more than this is left out.
        max_detections: the largest number of detections in the image.
        pre_nms_topk: the best (anchor, class) pairs that non-maximum suppression looks at.
    """
    num_classes = scores.shape[1]
    top, pairs = scores.flatten().topk(min(pre_nms_topk, scores.numel()))
    pairs, top = pairs[top >= score_threshold], top[top >= score_threshold]
    labels = pairs % num_classes
    height, width = image
    limit = torch.tensor([width, height, width, height], device=scores.device)
    boxes = torch.minimum(decode_rows(pairs // num_classes).clamp(min=0), limit)
    kept = batched_nms(boxes, top, labels, nms_iou)[:max_detections]
    return Detections(boxes[kept].cpu().numpy(), top[kept].cpu().numpy(), labels[kept].cpu().numpy())
