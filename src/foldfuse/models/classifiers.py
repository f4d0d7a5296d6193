"""Classifiers: ViT and Swin by name, any timm network, and a classifier with its loss, as training needs it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foldfuse.models.backbones import swin, vit
from foldfuse.models.backbones.timm_cnn import require_timm_model
from foldfuse.models.cpu.fast_layers import use_fast_cpu_layers
from foldfuse.models.pretrained.class_layer import ClassLayer
from foldfuse.models.pretrained.imagenet import load_backbone
from foldfuse.models.pretrained.timm_source import timm_config
from foldfuse.models.pretrained.vit_swin import load_imagenet
from foldfuse.models.registry import entry


def _make(make: Callable[[str, int], nn.Module], name: str, num_classes: int, *, pretrained: bool = True) -> nn.Module:
    """A new ViT or Swin, with ImageNet weights if `pretrained`."""
    model = make(name, num_classes)
    if pretrained:
        load_imagenet(model, name)
    return model


_VITS = {
    name: entry(
        partial(_make, vit.vit, name), f"ViT: {depth} layers of width {width}, {heads} heads, patches of {patch} px."
    )
    for name, (width, depth, heads, patch) in vit.SIZES.items()
}
_SWINS = {
    name: entry(
        partial(_make, swin.swin, name), f"Swin: stages of {'-'.join(map(str, depths))} blocks from width {channels}."
    )
    for name, (channels, depths, _) in swin.SIZES.items()
}
FAMILY: Mapping[str, Callable[..., nn.Module]] = {**_VITS, **_SWINS}


class TimmClassifier(nn.Module):
    """A timm network that takes images in 0..1 and normalises them.

    Args:
        name: timm's.
        num_classes: K.
        pretrained: begin with ImageNet weights.

    Attributes:
        stride: image height and width must be multiples of it.
        fixed_size: the only image size that the network takes, in pixels; None if it takes any.

    Raises:
        InputError: timm has no such network, or its weights are not available.
    """

    mean: Tensor
    std: Tensor
    stride = 1

    def __init__(self, name: str, num_classes: int, *, pretrained: bool = True) -> None:
        super().__init__()
        require_timm_model(name)
        timm_config(name)  # an unknown tag shows here
        self.net = timm.create_model(name)
        if pretrained:
            load_backbone(self.net, name)
        self.net.reset_classifier(num_classes)
        use_fast_cpu_layers(self.net)
        config = self.net.pretrained_cfg
        self.fixed_size: int | None = config["input_size"][-1] if config.get("fixed_input_size") else None
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 -> (B, K) logits."""
        logits: Tensor = self.net((images - self.mean) / self.std)
        return logits

    def class_layers(self) -> list[ClassLayer]:
        """The layers whose rows belong to classes: one, or two of a network that was distilled."""
        names = self.net.pretrained_cfg.get("classifier") or ()
        return [ClassLayer(f"net.{name}") for name in ([names] if isinstance(names, str) else names)]


class ClassifierWithLoss(nn.Module):
    """A classifier with its loss and `freeze`, as the training loop needs it.

    Args:
        net: (B, 3, H, W) in 0..1 -> (B, K) logits.
        label_smoothing: share of a target's probability that is spread over all classes.
    """

    def __init__(self, net: nn.Module, label_smoothing: float) -> None:
        super().__init__()
        self.net = net
        self.label_smoothing = label_smoothing

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 -> (B, K) logits."""
        logits: Tensor = self.net(images)
        return logits

    def loss(self, raw: Tensor, targets: Sequence[int]) -> dict[str, Tensor]:
        """Cross-entropy with smoothed targets."""
        labels = torch.tensor(targets, device=raw.device)
        return {"class": F.cross_entropy(raw.float(), labels, label_smoothing=self.label_smoothing)}

    def freeze(self, stages: int) -> None:
        """Training mode, except that the first `stages` layers are frozen."""
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
    """{parameter: its layer}, from 0 at the input; a parameter outside the stacked blocks joins the first or a last layer."""
    names = [name for name, _ in net.named_parameters()]
    blocks = [match.group() if (match := _LAYER.match(name)) else None for name in names]
    order = {block: i + 1 for i, block in enumerate(dict.fromkeys(b for b in blocks if b is not None))}
    first = next((i for i, block in enumerate(blocks) if block is not None), len(blocks))
    return {
        name: order[block] if block is not None else len(order) + 1 if i > first else 0
        for i, (name, block) in enumerate(zip(names, blocks, strict=True))
    }
