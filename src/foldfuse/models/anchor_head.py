"""EfficientDet's heads as one part that goes behind any neck (Tan, Pang and Le, arXiv:1911.09070, sections 4.1 and 4.2).

Shapes: B images, K classes, A anchors of all levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from foldfuse.models import anchors as A
from foldfuse.models.aligned import PRIOR, Aligned, Raw
from foldfuse.models.efficientdet import Head
from foldfuse.models.quicker import SiLU


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
