"""A head that asks each cell for one box: no anchors, distances to the four sides, convolutions shared by all levels.

Source: one box a cell, as distances to its sides: Tian et al., "FCOS", arXiv:1904.01355, section 3.1. Shared convolutions with
a batch norm for each level: Lyu et al., "RTMDet", arXiv:2212.07784, section 3.3. What it learns from stands in `aligned`.

Shapes: B images, K classes, A cells of all levels.

EfficientDet's heads as one part that goes behind any neck (Tan, Pang and Le, arXiv:1911.09070, sections 4.1 and 4.2).

Shapes: B images, K classes, A anchors of all levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from foldfuse.models.cpu.fast_layers import SiLU
from foldfuse.models.detection import anchors as A
from foldfuse.models.detection.bifpn import SeparableConv, batch_norm
from foldfuse.models.detection.dense_head import PRIOR, Aligned, Raw

MAX_LOG = 4.0  # a side is at most e^4 = 55 units away: keeps exp finite


class Tower(nn.Module):
    """Convolutions shared by all levels, a batch norm of its own for each, SiLU behind each."""

    def __init__(self, width: int, *, repeats: int, num_levels: int, separable: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            SeparableConv(width, width) if separable else nn.Conv2d(width, width, 3, padding=1, bias=False)
            for _ in range(repeats)
        )
        self.norms = nn.ModuleList(nn.ModuleList(batch_norm(width) for _ in range(num_levels)) for _ in range(repeats))
        self.act = nn.SiLU()
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.normal_(conv.weight, std=conv.weight[0].numel() ** -0.5)

    def forward(self, x: Tensor, level: int) -> Tensor:
        """(B, C, H, W) of a level -> the same."""
        for conv, norms in zip(self.convs, self.norms, strict=True):
            assert isinstance(norms, nn.ModuleList)
            x = self.act(norms[level](conv(x)))
        return x


class DenseHead(Aligned, nn.Module):
    """Two towers, one for classes and one for boxes, and a 1x1 convolution behind each.

    Args:
        num_classes: K.
        width: channels of the levels.
        num_levels: from stride 8 on.
        repeats: convolutions of a tower.
        separable: depthwise and pointwise convolutions instead of plain ones.
        anchor_scale: side of an untrained box, in strides.
    """

    per_cell = 1

    def __init__(
        self,
        num_classes: int,
        *,
        width: int,
        num_levels: int = 3,
        repeats: int = 2,
        separable: bool = True,
        anchor_scale: float = 3.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.anchor_scale = num_classes, anchor_scale
        self.class_tower, self.box_tower = (
            Tower(width, repeats=repeats, num_levels=num_levels, separable=separable) for _ in range(2)
        )
        self.class_head, self.box_head = nn.Conv2d(width, num_classes, 1), nn.Conv2d(width, 4, 1)
        for conv, bias in ((self.class_head, -math.log((1 - PRIOR) / PRIOR)), (self.box_head, 0.0)):
            nn.init.normal_(conv.weight, std=0.01)
            assert conv.bias is not None
            nn.init.constant_(conv.bias, bias)

    def forward(self, levels: Sequence[Tensor], image: tuple[int, int]) -> Raw:
        """(B, width, H_i, W_i) of each level, and (height, width) of the network's input -> Raw."""
        logits, codes = [], []
        for i, x in enumerate(levels):
            logits.append(self.class_head(self.class_tower(x, i)).permute(0, 2, 3, 1).flatten(1, 2))
            codes.append(self.box_head(self.box_tower(x, i)).permute(0, 2, 3, 1).flatten(1, 2))
        sizes = tuple((x.shape[-2], x.shape[-1]) for x in levels)
        return Raw(torch.cat(logits, 1), torch.cat(codes, 1), sizes, image)

    def places(self, raw: Raw) -> Tensor:
        """(A, 4): x and y of each cell's centre, and twice the distance from it to a side of its untrained box, in pixels."""
        return _cells(raw.sizes, raw.image, self.anchor_scale).to(raw.codes.device)

    def boxes(self, codes: Tensor, places: Tensor) -> Tensor:
        """(..., 4) codes, of the left, upper, right and lower side, and (..., 4) places -> (..., 4) xyxy in input pixels."""
        away = codes.clamp(max=MAX_LOG).exp() * places[..., 2:].repeat_interleave(2, -1)
        return torch.cat([places[..., :2] - away[..., :2], places[..., :2] + away[..., 2:]], -1)


@lru_cache(maxsize=32)
def _cells(sizes: tuple[tuple[int, int], ...], image: tuple[int, int], scale: float) -> Tensor:
    """(A, 4) float32, see `DenseHead.places`; levels from stride 8 on, finest first."""
    parts = []
    for i, (height, width) in enumerate(sizes):
        y = (torch.arange(height) + 0.5) * (image[0] / height)
        x = (torch.arange(width) + 0.5) * (image[1] / width)
        centre = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1).view(-1, 2)  # (H W, 2), x first
        parts.append(torch.cat([centre, torch.full_like(centre, 8.0 * 2**i * scale / 2)], -1))
    return torch.cat(parts)


class AnchorHead(Aligned, nn.Module):
    """Class head and box head with nine anchors a cell, as EfficientDet has them.

    Args:
        num_classes: K.
        width: channels of the levels.
        num_levels: from stride 8 on.
        anchor_scale: side of a level's smallest anchor, in strides.
    """

    per_cell = A.PER_CELL

    def __init__(self, num_classes: int, *, width: int, num_levels: int = 3, anchor_scale: float = 3.0) -> None:
        super().__init__()
        self.num_classes, self.anchor_scale = num_classes, anchor_scale
        self.class_head, self.box_head = (
            Head(width, repeats=3, outputs=outputs, num_levels=num_levels, act=SiLU) for outputs in (num_classes, 4)
        )
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.normal_(conv.weight, std=conv.weight[0].numel() ** -0.5)
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)
        for head in (self.class_head, self.box_head):
            nn.init.normal_(head.predict.pointwise.weight, std=0.01)
        bias = self.class_head.predict.pointwise.bias
        assert bias is not None
        nn.init.constant_(bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, levels: Sequence[Tensor], image: tuple[int, int]) -> Raw:
        """(B, width, H_i, W_i) of each level, and (height, width) of the network's input -> Raw."""
        sizes = tuple((x.shape[-2], x.shape[-1]) for x in levels)
        return Raw(self.class_head(levels), self.box_head(levels), sizes, image)

    def places(self, raw: Raw) -> Tensor:
        """(A, 4) cxcywh of the anchors in input pixels."""
        return A.anchors(raw.sizes, raw.image, self.anchor_scale).to(raw.codes.device)

    def boxes(self, codes: Tensor, places: Tensor) -> Tensor:
        """(..., 4) codes and (..., 4) anchors -> (..., 4) xyxy in input pixels."""
        return A.decode(codes, places)


class Head(nn.Module):
    """Class or box head: convolutions shared by all levels, a batch norm of its own for each (section 4.2)."""

    def __init__(
        self, width: int, *, repeats: int, outputs: int, num_levels: int, act: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.outputs = outputs
        self.convs = nn.ModuleList(SeparableConv(width, width) for _ in range(repeats))
        self.norms = nn.ModuleList(nn.ModuleList(batch_norm(width) for _ in range(num_levels)) for _ in range(repeats))
        self.act = act()
        self.predict = SeparableConv(width, A.PER_CELL * outputs)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """(B, width, H_i, W_i) of each level -> (B, A, outputs)."""
        found = []
        for i, x in enumerate(levels):
            for conv, norms in zip(self.convs, self.norms, strict=True):
                assert isinstance(norms, nn.ModuleList)
                x = self.act(norms[i](conv(x)))
            found.append(self.predict(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, self.outputs))
        return torch.cat(found, 1)
