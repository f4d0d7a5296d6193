"""Task-aligned assignment of priors to objects, over few candidates.

Source: Feng et al., "TOOD: Task-aligned One-stage Object Detection", arXiv:2108.07755, section 3.2:
t = score^alpha * IoU^beta ranks the candidates of an object; the best `top` are its positives, and their class target
is t scaled so that the object's largest target equals its largest IoU.
Where we differ: the candidates are the priors of the 3x3 cells around the object's centre on every level, not all priors
inside the object. So the cost grows with the objects, not with objects x priors.

Shapes: B images, A priors, K classes, N objects of the whole batch, C candidates of each, M positives.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Positives(NamedTuple):
    """Priors that are assigned to an object.

    Attributes:
        image, prior: (M,) int64, indices into (B, A).
        object: (M,) int64, index among the batch's N objects.
        target: (M,) float32 in [0, 1], the score of the object's class to be learned.
    """

    image: Tensor
    prior: Tensor
    object: Tensor
    target: Tensor


@torch.no_grad()
def task_aligned(
    scores: Tensor,
    iou: Tensor,
    candidates: Tensor,
    inside: Tensor,
    image: Tensor,
    *,
    num_priors: int,
    top: int = 9,
    alpha: float = 1.0,
    beta: float = 6.0,
) -> Positives:
    """The positives of a batch.

    Args:
        scores: (N, C) each candidate's score for its object's class, in [0, 1].
        iou: (N, C) of each candidate's box with its object.
        candidates: (N, C) int64, index of the prior.
        inside: (N, C) bool, False if the candidate lies outside the image.
        image: (N,) int64, the image of each object.
        num_priors: A.
        top: largest number of positives of one object.
        alpha, beta: the exponents of section 3.2.
    """
    alignment = scores.clamp(min=1e-8) ** alpha * iou**beta * inside  # (N, C)
    top = min(top, alignment.shape[1])
    best, column = alignment.topk(top, dim=1)  # (N, top)
    objects = torch.arange(len(iou), device=iou.device)[:, None].expand(-1, top)
    keep = best > 0
    best_iou = iou.gather(1, column)
    picked, owner = candidates.gather(1, column)[keep], objects[keep]
    ious, aligned = best_iou[keep], best[keep]

    # A prior among the best of several objects is assigned to the object that it overlaps most.
    grid = image[owner] * num_priors + picked  # (M,)
    order = ious.argsort(descending=True, stable=True)
    _, first = _first_of_each(grid[order])
    won = order[first]
    owner, picked, ious, aligned = owner[won], picked[won], ious[won], aligned[won]

    largest_iou = ious.new_zeros(len(iou)).scatter_reduce(0, owner, ious, "amax")
    largest = aligned.new_zeros(len(iou)).scatter_reduce(0, owner, aligned, "amax")
    target = aligned / largest[owner].clamp(min=1e-30) * largest_iou[owner]
    return Positives(image[owner], picked, owner, target.clamp(0, 1))


def _first_of_each(values: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct values, and the position of the first occurrence of each."""
    distinct, inverse = torch.unique(values, return_inverse=True)
    first = torch.full((len(distinct),), len(values), dtype=torch.int64, device=values.device)
    first.scatter_reduce_(0, inverse, torch.arange(len(values), device=values.device), "amin")
    return distinct, first
