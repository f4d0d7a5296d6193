"""timm's networks as classifiers: any of them, by name, from their ImageNet weights."""

from __future__ import annotations

import difflib

import timm
import torch
from torch import Tensor, nn

from foldfuse.errors import InputError
from foldfuse.models.quicker import quicken
from foldfuse.models.weights import load_backbone


class TimmClassifier(nn.Module):
    """A network of timm's that normalises its pictures itself.

    Attributes:
        stride: image height and width must be multiples of it.
        fixed_size: the only image size that it takes, in pixels; None where any will do.
    """

    mean: Tensor
    std: Tensor
    stride = 1

    def __init__(self, name: str, num_classes: int, *, pretrained: bool = True) -> None:
        """Raises InputError where timm has no such network, or its weights are not at hand."""
        super().__init__()
        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else " timm.list_models() names all."
            raise InputError(f"timm has no network called {name!r}.{hint}")
        self.net = timm.create_model(name)
        if pretrained:
            load_backbone(self.net, name)
        self.net.reset_classifier(num_classes)
        quicken(self.net)
        told = self.net.pretrained_cfg
        self.fixed_size: int | None = told["input_size"][-1] if told.get("fixed_input_size") else None
        self.register_buffer("mean", torch.tensor(told["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(told["std"]).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 -> (B, K) logits."""
        logits: Tensor = self.net((images - self.mean) / self.std)
        return logits
