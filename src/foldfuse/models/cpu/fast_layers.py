"""Layers that make timm's EfficientNets faster on a CPU, with the same outputs, parameters and tensor names.

The layers (measured in benchmarks/models.md) replace: depthwise convolutions and "SAME" padding (see `depthwise`); in-place
activations, whose input autograd has to copy first; squeeze-and-excitation, whose gradient materialises the mean's share before
it adds it; and 1x1 convolutions of many pixels, which PyTorch in one thread does not hand to oneDNN's kernel.

Shapes: B images, C channels, H and W height and width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn

from foldfuse.models.cpu.depthwise import SameConv

_MIN_PIXELS = 6400  # of a map, for which a 1x1 convolution is faster row by row
_ONEDNN_BATCH = 16  # images, for which PyTorch uses oneDNN's kernel even in one thread


class SiLU(nn.Module):
    """x * sigmoid(x), in place if no gradient is needed."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x, inplace=not torch.is_grad_enabled())


class ReLU6(nn.Module):
    """x clipped to 0..6, in place if no gradient is needed."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x, inplace=not torch.is_grad_enabled())


class Pointwise(nn.Conv2d):
    """A 1x1 convolution that treats each row of the map as a separate image where this is faster."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H, W)."""
        batch, _, height, width = x.shape
        fallback = torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype != torch.float32
        if fallback or torch.get_num_threads() > 1 or batch >= _ONEDNN_BATCH or height * width < _MIN_PIXELS:
            return super().forward(x)
        if not x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x)
        rows = (
            x.permute(0, 2, 3, 1).reshape(batch * height, 1, width, -1).permute(0, 3, 1, 2)
        )  # (B * H, C, 1, W), a view
        out = super().forward(rows)
        return out.permute(0, 2, 3, 1).reshape(batch, height, width, -1).permute(0, 3, 1, 2)


class _WithMean(torch.autograd.Function):
    """x and its mean over each map: (B, C, H, W) -> (B, C, H, W), (B, C, 1, 1). One backward pass adds both gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.pixels = x.shape[-2] * x.shape[-1]
        return x.view_as(x), x.mean((2, 3), keepdim=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        g, of_mean = grads
        return g + of_mean / ctx.pixels


class Excite(nn.Module):
    """Squeeze-and-excitation with the layers of timm's own module."""

    def __init__(self, parts: SqueezeExcite) -> None:
        super().__init__()
        self.conv_reduce, self.act1 = parts.conv_reduce, parts.act1
        self.conv_expand, self.gate = parts.conv_expand, parts.gate

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if torch.is_grad_enabled():
            x, mean = _WithMean.apply(x)
        else:
            mean = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.conv_expand(self.act1(self.conv_reduce(mean))))


def use_fast_cpu_layers(module: nn.Module) -> None:
    """Replace, in place, every layer of `module` for which there is a faster one."""
    for child in module.modules():
        for name, part in child.named_children():
            setattr(child, name, _faster(part))


def _faster(part: nn.Module) -> nn.Module:
    if type(part) is nn.SiLU and part.inplace:
        return SiLU()
    if type(part) is nn.ReLU6 and part.inplace:
        return ReLU6()
    if type(part) is SqueezeExcite:
        return Excite(part)
    if isinstance(part, nn.Conv2d) and not isinstance(part, SameConv | Pointwise):
        return _faster_convolution(part)
    return part


def _faster_convolution(conv: nn.Conv2d) -> nn.Conv2d:
    if conv.dilation != (1, 1) or conv.bias is not None:
        return conv
    side, stride, depthwise = conv.kernel_size, conv.stride, conv.groups == conv.in_channels == conv.out_channels
    fast: nn.Conv2d
    if side == (1, 1) and stride == (1, 1) and conv.padding == (0, 0) and conv.groups == 1:
        fast = Pointwise(conv.in_channels, conv.out_channels, 1, bias=False)
    elif (depthwise and side == (5, 5) and stride == (1, 1) and conv.padding == (2, 2)) or (
        isinstance(conv, Conv2dSame) and side in ((3, 3), (5, 5)) and stride == (2, 2)
    ):
        fast = SameConv(conv.in_channels, conv.out_channels, side, stride, groups=conv.groups, bias=False)
    else:
        return conv
    fast.weight = conv.weight
    return fast
