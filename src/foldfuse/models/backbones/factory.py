"""Backbones by name. A network of several stages gives the levels P3, P4, P5; a ViT gives P4 alone.

A backbone takes images in 0..1 and normalises them. It has `channels` (of each level), `stride`, and `freeze(stages)`, which
freezes it up to the features of stride 2^stages (of a ViT, the first quarters of its blocks). The levels are named as in Lin et
al., "Feature Pyramid Networks", arXiv:1612.03144, section 3: P_i has a stride of 2^i.

Shapes: B images, H and W height and width, C_i channels of a level.
"""

from __future__ import annotations

from torch import Tensor, nn

from foldfuse.errors import unknown_name
from foldfuse.models.backbones import swin, vit
from foldfuse.models.backbones.timm_cnn import NotInParts, TimmBackbone
from foldfuse.models.backbones.timm_features import TimmFeatures
from foldfuse.models.pretrained.vit_swin import TIMM_NAMES, load_imagenet

TIMM = "timm:"  # prefix of the names of timm networks


class ViTBackbone(nn.Module):
    """One of our ViTs: (B, 3, H, W) in 0..1 -> [(B, D, H / 16, W / 16)], one level."""

    def __init__(self, name: str, *, pretrained: bool) -> None:
        super().__init__()
        self.net = vit.vit(name, 1)
        if pretrained:
            load_imagenet(self.net, name)
        self.net.head = nn.Identity()  # type: ignore[assignment]
        self.channels: tuple[int, ...] = (self.net.width,)
        self.stride = 2 * self.net.stride  # stride of the pyramid's coarsest level

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in 0..1 -> one level."""
        return self.net.features(images)

    def freeze(self, stages: int) -> None:
        """Training mode, except that patches, positions and the first `stages` quarters of the blocks are frozen."""
        self.train().requires_grad_(True)
        if stages:
            for parameter in self.net.embedding_parameters():
                parameter.requires_grad_(False)
            for block in self.net.blocks[: stages * len(self.net.blocks) // 4]:
                block.eval().requires_grad_(False)


class SwinBackbone(nn.Module):
    """One of our Swins: (B, 3, H, W) in 0..1 -> [(B, C_i, H / s, W / s)] for s in 8, 16, 32, each after a norm."""

    stride = 32

    def __init__(self, name: str, *, pretrained: bool) -> None:
        super().__init__()
        self.net = swin.swin(name, 1)
        if pretrained:
            load_imagenet(self.net, name)
        self.net.norm, self.net.head = nn.Identity(), nn.Identity()  # type: ignore[assignment]
        self.channels: tuple[int, ...] = tuple(self.net.widths[1:])
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in self.channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in 0..1 -> levels P3, P4, P5."""
        levels = self.net.features(images)[1:]
        return [norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for norm, x in zip(self.norms, levels, strict=True)]

    def freeze(self, stages: int) -> None:
        """Training mode, except that the parts up to the features of stride 2^stages are frozen."""
        self.train().requires_grad_(True)
        if stages:
            for part in [self.net.patch_embed, *self.net.layers[: stages - 1]]:
                part.eval().requires_grad_(False)


Backbone = TimmBackbone | TimmFeatures | ViTBackbone | SwinBackbone
TRANSFORMERS: tuple[str, ...] = (*(name for name, row in vit.SIZES.items() if row[3] == 16), *swin.SIZES)


def make_backbone(name: str, *, pretrained: bool) -> Backbone:
    """A new backbone: "timm:" and the name of a timm network, or one of `TRANSFORMERS`.

    Raises:
        InputError: there is no such backbone, or its weights are not available.
    """
    if name.startswith(TIMM):
        return make_timm_backbone(name.removeprefix(TIMM), pretrained=pretrained)
    if name not in TRANSFORMERS:
        raise unknown_name("backbone", name, (*TRANSFORMERS, f"{TIMM}tf_efficientnet_lite0"))
    return (SwinBackbone if name in swin.SIZES else ViTBackbone)(name, pretrained=pretrained)


def make_timm_backbone(name: str, *, pretrained: bool) -> TimmBackbone | TimmFeatures:
    """A new backbone of the timm network `name`: its stages where they are a plain stack, else timm's feature extractor."""
    try:
        return TimmBackbone(name, pretrained=pretrained)
    except NotInParts:
        pass  # not within `except`: a sentence of the other class would show this one as its cause
    return TimmFeatures(name, pretrained=pretrained)


def timm_name(backbone: str) -> str | None:
    """timm's name of the network whose ImageNet weights a backbone starts from; None where there are none."""
    return backbone.removeprefix(TIMM) if backbone.startswith(TIMM) else TIMM_NAMES.get(backbone)
