"""BiFPN: a feature pyramid that fuses its levels top-down, then bottom-up, a few times over.

Source: Tan, Pang & Le, "EfficientDet", arXiv:1911.09070, section 3. Checked against effdet 0.4.1 (Apache-2.0), whose tensor
names the modules have.
Where we differ: levels need not halve exactly. Top-down, a map is resized to the size of the finer map; bottom-up, a max-pool
pads as TensorFlow's "SAME" does, so that a side of 5 gives 3. Hence any image size works.

Shapes: B images, C channels, H and W the height and width at a level. Levels are P3 (stride 8) to P7 (stride 128).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-3
NORM_MOMENTUM = (
    0.1  # the paper's 0.01 needs thousands of steps to forget the initial statistics; our runs have hundreds
)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """A batch norm with EfficientDet's constants."""
    return nn.BatchNorm2d(channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)


def init_convs(convs: Iterable[nn.Conv2d]) -> None:
    """Draw normal weights of variance 1 / fan-in and set zero biases, in the order of `convs`."""
    for conv in convs:
        nn.init.normal_(conv.weight, std=conv.weight[0].numel() ** -0.5)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)


def convs_of(module: nn.Module) -> list[nn.Conv2d]:
    """The convolutions in `module`, in the order of registration."""
    return [part for part in module.modules() if isinstance(part, nn.Conv2d)]


class SeparableConv(nn.Module):
    """A depthwise 3x3 convolution, a pointwise convolution with bias and, if `norm`, a batch norm."""

    def __init__(self, channels: int, out: int, *, norm: bool = False) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.conv_pw = nn.Conv2d(channels, out, 1)
        self.bn = batch_norm(out) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H, W)."""
        return self.bn(self.conv_pw(self.conv_dw(x)))


def halve(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, ceil(H / 2), ceil(W / 2)): a 3x3 max-pool of stride 2, padded as "SAME"."""
    height, width = x.shape[-2:]
    top, left = height % 2, width % 2  # of an even side, "SAME" pads the far end alone
    return F.max_pool2d(F.pad(x, (left, 1, top, 1), value=float("-inf")), 3, stride=2)


def projection(level: int, channels: int, width: int) -> nn.ModuleDict:
    """{level: a 1x1 convolution and a batch norm} where `channels` differ from `width`; empty where they do not."""
    if channels == width:
        return nn.ModuleDict()
    conv = nn.Sequential(OrderedDict(conv=nn.Conv2d(channels, width, 1), bn=batch_norm(width)))
    return nn.ModuleDict({str(level): nn.Sequential(OrderedDict(conv=conv))})


def project(resample: nn.ModuleDict, x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, width, H, W): `x` after the projection in `resample`, or `x` itself if `resample` is empty."""
    for conv in resample.values():
        x = conv(x)
    return x


class Combine(nn.Module):
    """Sum of equal-sized maps, the first of them projected.

    If `weighted`, the weights are learned, at least 0, and add up to (almost) one. This is "fast normalized fusion", section 3.3:
    w = relu(v); out = sum_i w_i x_i / (eps + sum_j w_j). `eps` keeps the division finite if every weight reaches 0. The Lite
    variants, D6 and D7 have plain sums.
    """

    eps = 1e-4

    def __init__(self, num_maps: int, *, weighted: bool, resample: nn.ModuleDict) -> None:
        super().__init__()
        self.resample = resample
        self.edge_weights = nn.Parameter(torch.ones(num_maps)) if weighted else None

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, C, H, W) and num_maps - 1 x (B, width, H, W) -> (B, width, H, W)."""
        first, others = project(self.resample, maps[0]), maps[1:]
        if self.edge_weights is None:
            return sum(others, first)
        w = self.edge_weights.relu()
        w = w / (w.sum() + self.eps)
        return sum((w[i] * x for i, x in enumerate(others, 1)), w[0] * first)


class Node(nn.Module):
    """One fusion of a BiFPN layer: sum -> activation -> separable convolution -> batch norm (figure 3)."""

    def __init__(
        self, num_maps: int, width: int, act: Callable[[], nn.Module], *, weighted: bool, resample: nn.ModuleDict
    ) -> None:
        super().__init__()
        self.combine = Combine(num_maps, weighted=weighted, resample=resample)
        self.after_combine = nn.Sequential(OrderedDict(act=act(), conv=SeparableConv(width, width, norm=True)))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Equal-sized maps -> (B, width, H, W)."""
        return self.after_combine(self.combine(maps))


class BiFPNLayer(nn.Module):
    """One top-down and one bottom-up pass over n levels (figure 2d): n - 1 nodes each.

    A level between the finest and the coarsest enters both passes, each through a projection of its own where its channels
    differ from `width`. The coarsest level has `width` channels already.
    """

    def __init__(self, channels: Sequence[int], width: int, act: Callable[[], nn.Module], *, weighted: bool) -> None:
        super().__init__()
        n = len(channels)
        assert channels[-1] == width
        down = [projection(i, channels[i], width) for i in range(n - 1)]
        up = [projection(i, channels[i], width) for i in range(1, n)]
        nodes = [Node(2, width, act, weighted=weighted, resample=resample) for resample in reversed(down)]
        nodes += [Node(3 if i < n - 2 else 2, width, act, weighted=weighted, resample=up[i]) for i in range(n - 1)]
        self.fnode = nn.ModuleList(nodes)

    def convs(self) -> list[nn.Conv2d]:
        """The convolutions in order of creation: the projections, finest level first, then the convolutions of the nodes."""
        nodes: list[Any] = list(self.fnode)
        n = len(nodes) // 2
        parts = [node.combine for node in (*reversed(nodes[:n]), *nodes[n:])] + [node.after_combine for node in nodes]
        return [conv for part in parts for conv in convs_of(part)]

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """(B, C_i, H_i, W_i) of each level, finest first -> (B, width, H_i, W_i) of each."""
        n, nodes = len(levels), list(self.fnode)
        down = [levels[-1]]  # coarsest first
        for node, level in zip(nodes[: n - 1], reversed(levels[:-1]), strict=True):
            down.append(node([level, F.interpolate(down[-1], size=level.shape[-2:], mode="nearest")]))
        down.reverse()
        out = [down[0]]
        for i, node in enumerate(nodes[n - 1 :], 1):
            own = [levels[i], down[i]] if i < n - 1 else [levels[i]]
            out.append(node([*own, halve(out[-1])]))
        return out


class BiFPN(nn.Module):
    """`repeats` BiFPN layers over `num_levels` levels from P3 on.

    Levels that the backbone does not have are max-pooled from its coarsest level (section 4.2), after a projection.
    """

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
        inputs = [*channels, *[width] * self.num_extra] if self.num_extra else [*channels[:-1], width]
        coarsest = len(channels) if self.num_extra else len(channels) - 1
        self.resample = projection(coarsest, channels[-1], width)
        self.cell = nn.ModuleList(
            BiFPNLayer(inputs if i == 0 else [width] * num_levels, width, act, weighted=weighted)
            for i in range(repeats)
        )

    def convs(self) -> list[nn.Conv2d]:
        """The convolutions in order of creation."""
        layers: list[Any] = list(self.cell)
        return convs_of(self.resample) + [conv for layer in layers for conv in layer.convs()]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """(B, C_i, H_i, W_i) of the backbone's levels, finest first -> num_levels x (B, width, H_i, W_i)."""
        levels, coarsest = list(features), project(self.resample, features[-1])
        if not self.num_extra:
            levels[-1] = coarsest
        for _ in range(self.num_extra):
            coarsest = halve(coarsest)
            levels.append(coarsest)
        for layer in self.cell:
            levels = layer(levels)
        return levels
