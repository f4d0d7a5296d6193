"""Normalizers of losses: counts over the whole batch, for a loss that sees one process's share of it.

A loss that is a sum over objects, divided by their number, must divide by the number in the whole batch, as DETR does with its
`num_boxes` (arXiv:2005.12872). Several processes then compute what one computes, however the objects are spread.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Turns counts over these images, a tensor of floats, into the counts over the whole batch. All processes must call it equally
# often, whatever their images hold.
BatchTotal = Callable[[Tensor], Tensor]


def own_total(counts: Tensor) -> Tensor:
    """`counts` as they are: these images are the whole batch."""
    return counts


def at_least_float32(x: Tensor) -> Tensor:
    """`x`, or its float32 copy where `x` is half precision, which is too coarse for losses and for sums over many pixels."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
