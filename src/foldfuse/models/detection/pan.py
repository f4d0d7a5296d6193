"""PAN: a feature pyramid fused top-down, then bottom-up, with C3 blocks.

Source: Liu et al., arXiv:1803.01534; with CSP blocks as the YOLOv5-style detector has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foldfuse.models.backbones.csp import C3, Conv


class PAN(nn.Module):
    """Path aggregation over any number of levels: coarse to fine, then fine to coarse.

    Args:
        inputs: channels of each level, finest first.
        repeats: bottlenecks of each C3 block.
        widths: channels of each output level; by default the channels of the inputs.
    """

    def __init__(self, inputs: Sequence[int], *, repeats: int, widths: Sequence[int] | None = None) -> None:
        super().__init__()
        outs = list(inputs if widths is None else widths)
        pairs = list(pairwise(outs))
        self.laterals = nn.ModuleList(
            Conv(coarse_in, fine) for coarse_in, (fine, _) in zip([*outs[1:-1], inputs[-1]], pairs, strict=True)
        )
        self.downs = nn.ModuleList(
            C3(fine_in + fine, fine, repeats=repeats, shortcut=False)
            for fine_in, (fine, _) in zip(inputs[:-1], pairs, strict=True)
        )
        self.strided = nn.ModuleList(Conv(fine, fine, 3, 2) for fine, _ in pairs)
        self.ups = nn.ModuleList(C3(2 * fine, coarse, repeats=repeats, shortcut=False) for fine, coarse in pairs)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """(B, C_i, H_i, W_i) of each level -> as many levels."""
        x, laterals = levels[-1], []
        for i in reversed(range(len(self.downs))):
            laterals.append(self.laterals[i](x))
            finer = levels[i]
            x = self.downs[i](torch.cat([F.interpolate(laterals[-1], size=finer.shape[-2:]), finer], 1))
        out = [x]
        for strided, up, lateral in zip(self.strided, self.ups, reversed(laterals), strict=True):
            out.append(up(torch.cat([strided(out[-1]), lateral], 1)))
        return out
