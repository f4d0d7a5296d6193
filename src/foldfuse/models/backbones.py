"""Backbones by name, each made to give levels: P3, P4, P5 of a convolutional network or of Swin, P4 alone of a ViT.

A backbone takes images in 0..1 and normalises them itself. Its attributes are `channels` (of each level) and `stride`;
`freeze(stages)` stops training up to the features of stride 2^stages (of a ViT, the first quarters of its blocks). The levels
are named as in Lin et al., "Feature Pyramid Networks", arXiv:1612.03144, section 3: P_i has a stride of 2^i.

Shapes: B images, H and W height and width, C_i channels of a level.
"""

from __future__ import annotations

import difflib

import timm
import torch
from timm.models import FeatureListNet
from torch import Tensor, nn

from foldfuse.errors import InputError, unknown_name
from foldfuse.models import swin, vit
from foldfuse.models.classifiers import load_imagenet
from foldfuse.models.folding import folded
from foldfuse.models.quicker import quicken
from foldfuse.models.transformer_weights import SWIN, VIT
from foldfuse.models.weights import load_backbone

LEVELS = (8, 16, 32)  # strides


class Hidden:
    """A module that its owner uses but does not own: it is in no state dict, and `train()` does not reach it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        found: Tensor = self.module(x)
        return found


class Convolutional(nn.Module):
    """Any of timm's convolutional networks: (B, 3, H, W) in 0..1 -> [(B, C_i, H / s, W / s)] for s in 8, 16, 32.

    Args:
        name: timm's.
        pretrained: begin with ImageNet weights.
        cut: stages left out at the end; the last that stays must have stride 32.

    Raises:
        InputError: timm has no such network, it has no such levels, or its weights are not at hand.
    """

    mean: Tensor
    std: Tensor
    stride = 32

    def __init__(self, name: str, *, pretrained: bool, cut: int = 0) -> None:
        super().__init__()
        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else " timm.list_models() names all."
            raise InputError(f"timm has no network called {name!r}.{hint}")
        try:
            net = timm.create_model(name, features_only=True)
        except (RuntimeError, AttributeError, TypeError) as error:
            raise InputError(f"timm/{name}: gives no features of its stages ({error}). Take another.") from None
        if not isinstance(net, FeatureListNet) and not hasattr(net, "conv_stem"):
            raise InputError(
                f"timm/{name}: is no stack of convolutional stages. Take another, or one of {', '.join(TRANSFORMERS)}."
            )
        if pretrained:
            _load(net, name)
        quicken(net)
        self.parts, channels = _cut(net, cut)
        self.ends = {i: stride for i, (stride, _) in channels.items()}  # position of a part: stride of what it gives
        missing = set(LEVELS) - set(self.ends.values())
        if missing:
            raise InputError(f"timm/{name}: has no features of stride {min(missing)}; all of {LEVELS} are needed.")
        self.channels = tuple(next(c for s, c in channels.values() if s == level) for level in LEVELS)
        told = timm.get_pretrained_cfg(name)
        self.register_buffer("mean", torch.tensor(told.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(told.std).view(1, 3, 1, 1), persistent=False)
        self._frozen: Hidden | None = None
        self._num_frozen = 0

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in 0..1 -> levels P3, P4, P5."""
        x, levels = (images - self.mean) / self.std, []
        if self._frozen is not None:
            with torch.no_grad():
                x = self._frozen(x)
        for i, part in enumerate(self.parts):
            if i >= self._num_frozen:
                x = part(x)
            if self.ends.get(i) in LEVELS and i >= self._num_frozen - 1:
                levels.append(x)
        return levels

    def freeze(self, stages: int) -> None:
        """Training mode, but for the parts up to the features of stride 2^stages (0..3), which run as one folded copy."""
        self.train().requires_grad_(True)
        within = [i for i, stride in self.ends.items() if stages and stride <= 2**stages]
        self._frozen, self._num_frozen = None, 1 + max(within, default=-1)
        if not within:
            return
        frozen = self.parts[: self._num_frozen]
        frozen.eval().requires_grad_(False)
        self._frozen = Hidden(folded(nn.Sequential(*frozen)))


def _cut(net: nn.Module, cut: int) -> tuple[nn.ModuleList, dict[int, tuple[int, int]]]:
    """A network of timm's as parts to be run one after the other; {position: (stride, channels)} of the last of each stride.

    Args:
        net: made with features_only.
        cut: parts left out at the end.
    """
    parts = dict(net.named_children())
    if "blocks" in parts:
        blocks = parts.pop("blocks")
        assert isinstance(blocks, nn.Sequential)
        parts |= {f"blocks.{i}": block for i, block in enumerate(blocks)}
    kept = list(parts)[: len(parts) - cut]
    found: dict[int, tuple[int, int]] = {}
    stride, x = 0, torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        net.eval()
        for i, name in enumerate(kept):
            x = parts[name](x)
            if i and 64 // x.shape[-1] == stride:
                found.pop(i - 1)
            stride = 64 // x.shape[-1]
            found[i] = (stride, x.shape[1])
    return nn.ModuleList(parts[name] for name in kept), found


def _load(net: nn.Module, name: str) -> None:
    """ImageNet weights for a network made with features_only, some of whose parts timm has given flat names."""
    if hasattr(net, "conv_stem"):
        load_backbone(net, name)
        return
    whole = timm.create_model(name)
    load_backbone(whole, name)
    weights = whole.state_dict()
    for key in net.state_dict():
        first, _, rest = key.partition(".")
        if key not in weights:  # stages_0.x was stages.0.x
            weights[key] = weights[f"{'.'.join(first.rsplit('_', 1))}.{rest}"]
    net.load_state_dict({key: weights[key] for key in net.state_dict()})


class ViTBackbone(nn.Module):
    """One of our ViTs: (B, 3, H, W) in 0..1 -> [(B, D, H / 16, W / 16)], one level."""

    def __init__(self, name: str, *, pretrained: bool) -> None:
        super().__init__()
        self.net = vit.vit(name, 1)
        if pretrained:
            load_imagenet(self.net, name, VIT)
        self.net.head = nn.Identity()  # type: ignore[assignment]
        self.channels: tuple[int, ...] = (self.net.width,)
        self.stride = 2 * self.net.stride  # the pyramid's coarsest level is half as fine
        self._num_frozen = 0

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in 0..1 -> one level."""
        return self.net.features(images)

    def freeze(self, stages: int) -> None:
        """Training mode, but for the patches and the first `stages` quarters of the blocks."""
        self.train().requires_grad_(True)
        if stages:
            frozen = [self.net.patches, self.net.positions, *self.net.blocks[: stages * len(self.net.blocks) // 4]]
            self.net.class_token.requires_grad_(False)
            for part in frozen:
                part.eval().requires_grad_(False)


class SwinBackbone(nn.Module):
    """One of our Swins: (B, 3, H, W) in 0..1 -> [(B, C_i, H / s, W / s)] for s in 8, 16, 32, each behind a norm."""

    stride = 32

    def __init__(self, name: str, *, pretrained: bool) -> None:
        super().__init__()
        self.net = swin.swin(name, 1)
        if pretrained:
            load_imagenet(self.net, name, SWIN)
        self.net.norm, self.net.head = nn.Identity(), nn.Identity()  # type: ignore[assignment]
        self.channels: tuple[int, ...] = tuple(self.net.widths[1:])
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in self.channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in 0..1 -> levels P3, P4, P5."""
        levels = self.net.features(images)[1:]
        return [norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for norm, x in zip(self.norms, levels, strict=True)]

    def freeze(self, stages: int) -> None:
        """Training mode, but for the parts up to the features of stride 2^stages."""
        self.train().requires_grad_(True)
        if stages:
            for part in [self.net.patches, self.net.patch_norm, *self.net.stages[: stages - 1]]:
                part.eval().requires_grad_(False)


TRANSFORMERS: tuple[str, ...] = (*(name for name, row in vit.SIZES.items() if row[3] == 16), *swin.SIZES)


def make_backbone(name: str, *, pretrained: bool) -> Convolutional | ViTBackbone | SwinBackbone:
    """The backbone called `name`: "timm/" and one of timm's convolutional networks, or one of `TRANSFORMERS`.

    Raises:
        InputError: there is none, or its weights are not at hand.
    """
    if name.startswith("timm/"):
        return Convolutional(name.removeprefix("timm/"), pretrained=pretrained)
    if name not in TRANSFORMERS:
        raise unknown_name("backbone", name, (*TRANSFORMERS, "timm/tf_efficientnet_lite0"))
    return (SwinBackbone if name in swin.SIZES else ViTBackbone)(name, pretrained=pretrained)
