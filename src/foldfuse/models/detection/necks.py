"""Necks by name: FPN, BiFPN, PAN and ViTDet's pyramid. A neck turns a backbone's levels into levels of one width.

Source: FPN, Lin et al., arXiv:1612.03144, section 3; the simple pyramid of a plain ViT, Li et al., "ViTDet", arXiv:2203.16527,
section 3. BiFPN and PAN are in `bifpn` and `pan`.
Where we differ: FPN has no levels beyond the backbone's; the ViT's pyramid has strides 8, 16 and 32, not 4.

Shapes: B images, C channels, H and W the height and width at a level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from foldfuse.models.detection.bifpn import BiFPN, batch_norm
from foldfuse.models.detection.pan import PAN


class FPN(nn.Module):
    """Lateral 1x1 convolutions, sums from coarse to fine, a 3x3 convolution on each level; all with a batch norm."""

    def __init__(self, channels: Sequence[int], *, width: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Sequential(nn.Conv2d(c, width, 1), batch_norm(width)) for c in channels)
        self.smooth = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), batch_norm(width)) for _ in channels
        )

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """(B, C_i, H_i, W_i) of each level, finest first -> (B, width, H_i, W_i) of each."""
        sums = [lateral(x) for lateral, x in zip(self.laterals, levels, strict=True)]
        for i in range(len(sums) - 2, -1, -1):
            sums[i] = sums[i] + F.interpolate(sums[i + 1], size=sums[i].shape[-2:], mode="nearest")
        return [smooth(x) for smooth, x in zip(self.smooth, sums, strict=True)]


class LayerNorm2d(nn.LayerNorm):
    """A layer norm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PlainPyramid(nn.Module):
    """Levels of strides 8, 16 and 32 from one map of stride 16: a transposed convolution, the map itself, a max-pool."""

    def __init__(self, channels: Sequence[int], *, width: int) -> None:
        super().__init__()
        (inputs,) = channels
        up, half = nn.ConvTranspose2d(inputs, inputs // 2, 2, 2), inputs // 2
        self.resize = nn.ModuleList([up, nn.Identity(), nn.MaxPool2d(2)])
        self.smooth = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(c, width, 1, bias=False),
                LayerNorm2d(width),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                LayerNorm2d(width),
            )
            for c in (half, inputs, inputs)
        )

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """[(B, C, H, W)] -> (B, width, 2 H, 2 W), (B, width, H, W), (B, width, H / 2, W / 2)."""
        (x,) = levels
        return [smooth(resize(x)) for resize, smooth in zip(self.resize, self.smooth, strict=True)]


def _pan(channels: Sequence[int], *, width: int) -> nn.Module:
    return PAN(channels, repeats=1, widths=[width] * len(channels))


def _bifpn(channels: Sequence[int], *, width: int) -> nn.Module:
    return BiFPN(channels, width=width, repeats=3, num_levels=len(channels))


NECKS: Mapping[str, Callable[..., nn.Module]] = {"fpn": FPN, "bifpn": _bifpn, "pan": _pan, "vitdet": PlainPyramid}
