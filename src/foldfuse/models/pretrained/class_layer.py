"""The layer of a network whose rows belong to classes, and how rows are carried over from another network's layer.

Shapes: G groups, O rows of a group before its class rows, K classes, J classes of the other network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassLayer:
    """A layer with rows of classes.

    Attributes:
        name: its name in the state dict, without ".weight" and ".bias".
        groups: G.
        first: O.
        width: rows of a class, 4 where they are a box; O counts classes then.
    """

    name: str
    groups: int = 1
    first: int = 0
    width: int = 1

    def num_rows(self, num_classes: int) -> int:
        """The number of rows for so many classes."""
        return self.groups * (self.first + num_classes) * self.width

    @property
    def tensors(self) -> tuple[str, str]:
        """The names of its weight and its bias in the state dict."""
        return f"{self.name}.weight", f"{self.name}.bias"


def carry_rows(theirs: Tensor, ours: Tensor, layer: ClassLayer, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """(G (O + J), ...) and (G (O + K), ...) -> (G (O + K), ...): their first rows and the classes of `pairs`, our other rows.

    Args:
        theirs: weight or bias of the trained network's layer.
        ours: that of the new network.
        layer: how its rows are grouped.
        pairs: (our label, their label) of each class that both networks know.
    """
    grouped = ours.detach().clone().view(layer.groups, -1, layer.width, *ours.shape[1:])
    source = theirs.to(ours.dtype).reshape(layer.groups, -1, layer.width, *theirs.shape[1:])
    grouped[:, : layer.first] = source[:, : layer.first]
    if pairs:
        own, other = (torch.tensor(labels) + layer.first for labels in zip(*pairs, strict=True))
        grouped[:, own] = source[:, other]
    return grouped.view(ours.shape)
