"""The CSP backbone of the YOLOv5-style detector: C3 blocks and the fast spatial pyramid pooling.

Source: CSPNet, Wang et al., arXiv:1911.11929; see `models.detection.yolov5` for the provenance of the whole network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

WIDTHS, REPEATS = (64, 128, 256, 512, 1024), (3, 6, 9, 3)


class Conv(nn.Sequential):
    """Convolution, batch norm, SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, padding: int | None = None) -> None:
        padding = kernel // 2 if padding is None else padding
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03), nn.SiLU(inplace=True))


class Bottleneck(nn.Module):
    """1x1, then 3x3 convolution, with a residual connection if `shortcut` (He et al., arXiv:1512.03385)."""

    def __init__(self, width: int, *, shortcut: bool) -> None:
        super().__init__()
        self.reduce, self.expand, self.shortcut = Conv(width, width), Conv(width, width, 3), shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        y = self.expand(self.reduce(x))
        return x + y if self.shortcut else y


class C3(nn.Module):
    """Cross-stage partial block: half of the channels bypass the bottlenecks (section 2)."""

    def __init__(self, inputs: int, outputs: int, *, repeats: int, shortcut: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.through, self.bypass, self.join = Conv(inputs, half), Conv(inputs, half), Conv(2 * half, outputs)
        self.blocks = nn.Sequential(*(Bottleneck(half, shortcut=shortcut) for _ in range(repeats)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        return self.join(torch.cat([self.blocks(self.through(x)), self.bypass(x)], 1))


class SPPF(nn.Module):
    """Spatial pyramid pooling (He et al., arXiv:1406.4729) with windows of 5, 9 and 13, by three chained pools of 5."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce, self.join = Conv(width, width // 2), Conv(2 * width, width)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        pooled = [self.reduce(x)]
        for _ in range(3):
            pooled.append(self.pool(pooled[-1]))
        return self.join(torch.cat(pooled, 1))


class CSPBackbone(nn.Module):
    """A stem, four stages of a strided convolution and a C3 block, and pooling at the end: levels P3, P4, P5."""

    stride = 32

    def __init__(self, widths: Sequence[int], repeats: Sequence[int]) -> None:
        super().__init__()
        self.stem = Conv(3, widths[0], 6, 2, 2)
        self.stages = nn.ModuleList(
            nn.Sequential(Conv(a, b, 3, 2), C3(b, b, repeats=n))
            for a, b, n in zip(widths[:-1], widths[1:], repeats, strict=True)
        )
        self.pool = SPPF(widths[-1])
        self.channels = tuple(widths[2:])

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> levels at strides 8, 16 and 32."""
        x, levels = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        return [*levels[1:-1], self.pool(x)]

    def freeze(self, stages: int) -> None:
        """Training mode, except that the stem and the first `stages` stages are frozen; 0 trains everything."""
        self.train().requires_grad_(True)
        if stages:
            for part in [self.stem, *self.stages[:stages]]:
                part.eval().requires_grad_(False)
