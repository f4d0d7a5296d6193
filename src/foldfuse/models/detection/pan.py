"""PAN: a feature pyramid mixed top-down, then bottom-up, with C3 blocks.

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
    """Path aggregation: coarse to fine, and back (Liu et al., PANet, arXiv:1803.01534), of any number of levels.

    Args:
        inputs: channels of each level, finest first.
        repeats: bottlenecks of each block.
        widths: channels of each level that comes out; as those that go in by default.
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
        x, kept = levels[-1], []
        for i in reversed(range(len(self.downs))):
            kept.append(self.laterals[i](x))
            finer = levels[i]
            x = self.downs[i](torch.cat([F.interpolate(kept[-1], size=finer.shape[-2:]), finer], 1))
        found = [x]
        for strided, up, side in zip(self.strided, self.ups, reversed(kept), strict=True):
            found.append(up(torch.cat([strided(found[-1]), side], 1)))
        return found
