"""Backbones by name, each made to give levels: P3, P4, P5 of a convolutional network or of Swin, P4 alone of a ViT.

A backbone takes images in 0..1 and normalises them itself. Its attributes are `channels` (of each level) and `stride`;
`freeze(stages)` stops training up to the features of stride 2^stages (of a ViT, the first quarters of its blocks). The levels
are named as in Lin et al., "Feature Pyramid Networks", arXiv:1612.03144, section 3: P_i has a stride of 2^i.

Shapes: B images, H and W height and width, C_i channels of a level.
"""

from __future__ import annotations

from torch import Tensor, nn

from foldfuse.errors import unknown_name
from foldfuse.models.backbones import swin, vit
from foldfuse.models.backbones.timm_cnn import Convolutional
from foldfuse.models.pretrained.vit_swin import SWIN, VIT, load_imagenet


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
    """The backbone called `name`: "timm:" and one of timm's convolutional networks, or one of `TRANSFORMERS`.

    Raises:
        InputError: there is none, or its weights are not at hand.
    """
    if name.startswith("timm:"):
        return Convolutional(name.removeprefix("timm:"), pretrained=pretrained)
    if name not in TRANSFORMERS:
        raise unknown_name("backbone", name, (*TRANSFORMERS, "timm:tf_efficientnet_lite0"))
    return (SwinBackbone if name in swin.SIZES else ViTBackbone)(name, pretrained=pretrained)
