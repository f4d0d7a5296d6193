"""ViT and Swin by name, with ImageNet weights where timm's hub can be reached or has been.

Which weights: those that timm takes by default for the name on the right of `TIMM_NAMES`.

timm's networks as classifiers: any of them, by name, from their ImageNet weights.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foldfuse.errors import InputError
from foldfuse.models.backbones import swin, vit
from foldfuse.models.cpu.fast_layers import quicken
from foldfuse.models.pretrained.imagenet import load_backbone
from foldfuse.models.pretrained.vit_swin import SWIN, VIT, Table, load_imagenet


def _maker(name: str, make: Callable[[str, int], nn.Module], table: Table, what: str) -> Callable[..., nn.Module]:
    """The registry's maker of one network."""

    def maker(num_classes: int, *, pretrained: bool = True) -> nn.Module:
        model = make(name, num_classes)
        if pretrained:
            load_imagenet(model, name, table)
        return model

    maker.__name__ = maker.__qualname__ = name
    maker.__doc__ = what
    return maker


FAMILY: Mapping[str, Callable[..., nn.Module]] = {
    **{
        name: _maker(name, vit.vit, VIT, f"ViT: {depth} layers of width {width}, {heads} heads, patches of {patch} px.")
        for name, (width, depth, heads, patch) in vit.SIZES.items()
    },
    **{
        name: _maker(
            name, swin.swin, SWIN, f"Swin: stages of {'-'.join(map(str, depths))} blocks from width {channels}."
        )
        for name, (channels, depths, _) in swin.SIZES.items()
    },
}


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


class ClassifierWithLoss(nn.Module):
    """A classifier as `fit` trains it."""

    def __init__(self, net: nn.Module, smoothing: float) -> None:
        super().__init__()
        self.net = net
        self.smoothing = smoothing

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 -> (B, K) logits."""
        logits: Tensor = self.net(images)
        return logits

    def loss(self, raw: Tensor, targets: Sequence[int]) -> dict[str, Tensor]:
        """Cross-entropy with smoothed targets."""
        wanted = torch.tensor(targets, device=raw.device)
        return {"class": F.cross_entropy(raw.float(), wanted, label_smoothing=self.smoothing)}

    def freeze(self, stages: int) -> None:
        """Training mode, but for the first `stages` layers, which are not trained."""
        self.train()
        layer_of = layer_indices(self.net)
        for name, module in self.net.named_modules():
            own = [layer_of[f"{name}.{p}" if name else p] for p, _ in module.named_parameters()]
            if own and max(own) < stages:
                module.eval()
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(layer_of[name] >= stages)


_LAYER = re.compile(r"(?:\w+\.)*?[a-z_]\w*(?:\.\d+)+(?:\.blocks\.\d+)?(?=\.)")


def layer_indices(net: nn.Module) -> dict[str, int]:
    """{parameter: its layer}, from 0 nearest to the pixels; what is no block of a stack joins the first or a last layer."""
    names = [name for name, _ in net.named_parameters()]
    blocks = [match.group() if (match := _LAYER.match(name)) else None for name in names]
    order = {block: i + 1 for i, block in enumerate(dict.fromkeys(b for b in blocks if b is not None))}
    begun = next((i for i, block in enumerate(blocks) if block is not None), len(blocks))
    return {
        name: order[block] if block is not None else len(order) + 1 if i > begun else 0
        for i, (name, block) in enumerate(zip(names, blocks, strict=True))
    }
