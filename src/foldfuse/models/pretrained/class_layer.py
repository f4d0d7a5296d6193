"""The layers of a network whose rows belong to classes, and how their rows are carried over from another network.

A module with such layers names them by its method `class_layers() -> list[ClassLayer]`. The rows are in groups: one group for the
anchor-free head and for classifiers, one per anchor of a cell for EfficientDet's head, and one per anchor behind five rows of box
and objectness for YOLOv5's.

Shapes: G groups, O rows of a group before its class rows, K classes, J classes of the other network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from foldfuse.models.pretrained.state_dicts import require_same_tensors


@dataclass(frozen=True)
class ClassLayer:
    """A layer with rows of classes.

    Attributes:
        name: its name in the state dict, without ".weight" and ".bias".
        groups: G.
        first: O.
        width: rows of a class, 4 where they are a box; O counts classes then.
        trains_single_class: whether a network of one class trains that class's row.
    """

    name: str
    groups: int = 1
    first: int = 0
    width: int = 1
    trains_single_class: bool = True

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


def class_layers(model: nn.Module) -> list[ClassLayer]:
    """The layers of a detector or classifier whose rows belong to classes, with their names in its state dict."""
    layers: list[ClassLayer] = []
    for name, module in model.named_modules():
        own: Any = getattr(module, "class_layers", None)
        if own is not None:
            layers += [replace(layer, name=f"{name}.{layer.name}" if name else layer.name) for layer in own()]
    return layers


def load_with_rows(
    model: nn.Module, state: Mapping[str, Tensor], pairs: Sequence[tuple[int, int]], *, num_known: int, source: str
) -> None:
    """Load the weights of a trained network into a `model` of perhaps other classes, in place.

    Args:
        model: a new network. Rows of classes that are not in `pairs` keep their values.
        state: the weights, with the model's tensor names.
        pairs: (label in the model, label in the weights) of each class that both know.
        num_known: J.
        source: the file or folder of the weights, for sentences.

    Raises:
        InputError: the weights are of another network.
    """
    own, found = model.state_dict(), dict(state)
    for layer in class_layers(model):
        for part in layer.tensors:
            if part not in own or part not in found:
                continue
            if found[part].shape != (layer.num_rows(num_known), *own[part].shape[1:]):
                continue  # `require_same_tensors` names it
            is_trained = layer.trains_single_class or num_known > 1 or own[part].shape == found[part].shape
            found[part] = carry_rows(found[part], own[part], layer, pairs if is_trained else [])
    require_same_tensors(found, own, source=source)
    model.load_state_dict(found)
