"""Matches the queries of a DETR with the objects of an image, one to one, for all decoder layers at once.

Source: Carion et al., "DETR", arXiv:2005.12872, section 3.1; the class cost is the focal loss's, as in Deformable DETR
(arXiv:2010.04159, appendix A.3). The costs are those of transformers' `RTDetrHungarianMatcher`, and a test compares the two. That
one copies the costs of every layer to the CPU by themselves, between all queries of a batch and all of its objects; here one copy
holds the costs of all layers, of each object with the queries of its own image.

Shapes: L layers, B images, Q queries, K classes, N objects of all images, n of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Pairs = list[tuple[Tensor, Tensor]]  # of each image: (m,) queries and (m,) objects, int64 on the device of the costs


@dataclass(frozen=True)
class CostWeights:
    """The weights of the costs, and the focal loss of the class cost."""

    label: float = 2.0
    box: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0


@torch.no_grad()
def match_layers(
    logits: Tensor, boxes: Tensor, labels: Sequence[Tensor], objects: Sequence[Tensor], weights: CostWeights
) -> list[Pairs]:
    """The matches of each layer: L lists of B pairs; every query and every object is in at most one.

    Args:
        logits: (L, B, Q, K).
        boxes: (L, B, Q, 4) cxcywh, as shares of the input.
        labels: B times (n,) int64.
        objects: B times (n, 4) cxcywh, as shares of the input.
        weights: of the costs.
    """
    counts = [len(each) for each in labels]
    costs = _costs(logits, boxes, labels, objects, weights).cpu().numpy()  # (L, N, Q)
    found = [[linear_sum_assignment(cost.T) for cost in np.split(layer, np.cumsum(counts)[:-1])] for layer in costs]
    flat = [array for layer in found for pair in layer for array in pair]
    parts = torch.split(torch.from_numpy(np.concatenate(flat)).to(logits.device), [len(array) for array in flat])
    pairs = list(zip(parts[::2], parts[1::2], strict=True))
    return [pairs[i : i + len(counts)] for i in range(0, len(pairs), len(counts))]


def _costs(
    logits: Tensor, boxes: Tensor, labels: Sequence[Tensor], objects: Sequence[Tensor], weights: CostWeights
) -> Tensor:
    """(L, N, Q): the cost of each object with each query of its image."""
    lengths = [len(each) for each in labels]
    device = logits.device
    image = torch.arange(len(lengths), device=device).repeat_interleave(
        torch.tensor(lengths, device=device), output_size=sum(lengths)
    )
    label, wanted = torch.cat(list(labels)), torch.cat(list(objects))[:, None]  # (N,), (N, 1, 4)
    score = logits[:, image, :, label].sigmoid().movedim(0, 1)  # (N, L, Q) -> (L, N, Q)
    missed = weights.alpha * (1 - score) ** weights.gamma * -(score + 1e-8).log()
    wrong = (1 - weights.alpha) * score**weights.gamma * -(1 - score + 1e-8).log()
    found = boxes[:, image]  # (L, N, Q, 4)
    distance = (found - wanted).abs().sum(-1)
    total = weights.label * (missed - wrong) + weights.box * distance - weights.giou * _giou(found, wanted)
    largest = torch.finfo(total.dtype).max
    return total.nan_to_num(largest, largest, largest)


def _giou(a: Tensor, b: Tensor) -> Tensor:
    """The generalized IoU of boxes cxcywh, (..., 4) -> (...)."""
    low_a, high_a = a[..., :2] - a[..., 2:] / 2, a[..., :2] + a[..., 2:] / 2
    low_b, high_b = b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2
    shared = (torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(min=0).prod(-1)
    union = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - shared
    hull = (torch.maximum(high_a, high_b) - torch.minimum(low_a, low_b)).clamp(min=0).prod(-1)
    return shared / union - (hull - union) / hull
