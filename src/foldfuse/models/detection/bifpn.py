"""BiFPN: a feature pyramid mixed top-down, then bottom-up, a few times over.

Source: Tan, Pang & Le, "EfficientDet", arXiv:1911.09070, section 3. Checked against effdet 0.4.1 (Apache-2.0).
Where we differ: levels need not halve exactly. Going up, a map is resized to its neighbour's very size; going down,
a max-pool pads as TensorFlow's "SAME" does, so that a side of 5 gives 3. Hence any image size works.

Shapes: B images, C channels, H and W the height and width at a level. Levels are P3 (stride 8) to P7 (stride 128).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-3
NORM_MOMENTUM = 0.1  # the paper's 0.01 needs thousands of steps to forget its start; our runs have hundreds


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """A batch norm with EfficientDet's constants."""
    return nn.BatchNorm2d(channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)


class SeparableConv(nn.Module):
    """A depthwise 3x3, then a pointwise convolution with bias: (B, C, H, W) -> (B, out, H, W)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class WeightedSum(nn.Module):
    """Sum of equal-sized maps, with learned weights that are >= 0 and add up to (almost) one.

    This is "fast normalized fusion", section 3.3: w = relu(v); out = sum_i w_i x_i / (eps + sum_j w_j).
    `eps` keeps the division finite once every weight has been driven to 0.
    """

    def __init__(self, num_maps: int, eps: float = 1e-4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_maps))
        self.eps = eps

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """num_maps x (B, C, H, W) -> (B, C, H, W)."""
        w = self.weight.relu()
        w = w / (w.sum() + self.eps)
        return sum((w[i] * x for i, x in enumerate(maps[1:], 1)), w[0] * maps[0])


class PlainSum(nn.Module):
    """Sum of equal-sized maps: what the Lite variants do."""

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """n x (B, C, H, W) -> (B, C, H, W)."""
        return sum(maps[1:], maps[0])


def halve(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, ceil(H / 2), ceil(W / 2)): a 3x3 max-pool of stride 2, padded as "SAME"."""
    height, width = x.shape[-2:]
    top, left = height % 2, width % 2  # of an even side, "SAME" pads the far end alone
    return F.max_pool2d(F.pad(x, (left, 1, top, 1), value=float("-inf")), 3, stride=2)


class Node(nn.Module):
    """One place where maps meet: sum -> activation -> separable convolution -> batch norm (figure 3)."""

    def __init__(self, num_maps: int, width: int, act: Callable[[], nn.Module], weighted: bool) -> None:
        super().__init__()
        self.sum = WeightedSum(num_maps) if weighted else PlainSum()
        self.act = act()
        self.conv = SeparableConv(width, width)
        self.norm = batch_norm(width)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """num_maps x (B, C, H, W) -> (B, C, H, W)."""
        return self.norm(self.conv(self.act(self.sum(maps))))


def project(channels: int, width: int) -> nn.Module:
    """A 1x1 convolution and batch norm where the channels differ from `width`; nothing where they do not."""
    return nn.Identity() if channels == width else nn.Sequential(nn.Conv2d(channels, width, 1), batch_norm(width))


class BiFPNLayer(nn.Module):
    """One top-down and one bottom-up pass over the levels (figure 2d).

    A level between the two ends enters both passes, each through a projection of its own where the channels differ.
    """

    def __init__(self, channels: Sequence[int], width: int, act: Callable[[], nn.Module], weighted: bool) -> None:
        super().__init__()
        n = len(channels)
        self.down_project = nn.ModuleList(project(c, width) for c in channels)
        self.up_project = nn.ModuleList(project(c, width) for c in channels[1:-1])
        self.down = nn.ModuleList(Node(2, width, act, weighted) for _ in range(n - 1))
        self.up = nn.ModuleList(Node(3 if i < n - 2 else 2, width, act, weighted) for i in range(n - 1))

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """(B, C_i, H_i, W_i) of each level, finest first -> (B, width, H_i, W_i) of each."""
        n = len(levels)
        coarsest = self.down_project[-1](levels[-1])
        down = [coarsest]  # coarsest first
        for i in range(n - 2, -1, -1):
            above = F.interpolate(down[-1], size=levels[i].shape[-2:], mode="nearest")
            down.append(self.down[n - 2 - i]([self.down_project[i](levels[i]), above]))
        down.reverse()
        out = [down[0]]
        for i in range(1, n):
            maps = [coarsest] if i == n - 1 else [self.up_project[i - 1](levels[i]), down[i]]
            out.append(self.up[i - 1]([*maps, halve(out[-1])]))
        return out


class BiFPN(nn.Module):
    """`repeats` BiFPN layers over P3-P7; P6 and P7 are made from the last of the backbone's levels (section 4.2)."""

    def __init__(
        self,
        channels: Sequence[int],
        *,
        width: int,
        repeats: int,
        num_levels: int = 5,
        act: Callable[[], nn.Module] = nn.SiLU,
        weighted: bool = True,
    ) -> None:
        super().__init__()
        self.num_extra = num_levels - len(channels)
        self.extra = project(channels[-1], width) if self.num_extra else None
        entering = [*channels, *[width] * self.num_extra]
        self.layers = nn.ModuleList(
            BiFPNLayer(entering if i == 0 else [width] * num_levels, width, act, weighted) for i in range(repeats)
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """(B, C_i, H_i, W_i) of the backbone's levels, finest first -> num_levels x (B, width, H_i, W_i)."""
        levels = list(features)
        for i in range(self.num_extra):
            below = self.extra(levels[-1]) if i == 0 and self.extra is not None else levels[-1]
            levels.append(halve(below))
        for layer in self.layers:
            levels = layer(levels)
        return levels
