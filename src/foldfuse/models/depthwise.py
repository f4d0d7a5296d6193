"""Depthwise 5x5 convolutions that train several times faster on a CPU.

oneDNN is quick at their forward pass and slow at the gradient of their weights, which takes a third of a training step
of EfficientNet-Lite0 at 256 px. Here that gradient is a loop over contiguous channels; the gradient of the input is a
convolution again, with the kernel turned round. Elsewhere than float32 on a CPU it is PyTorch's own convolution.

Shapes: B images, C channels, H and W height and width, K the side of the kernel.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor, nn

_POOL = ThreadPoolExecutor(1, thread_name_prefix="depthwise")  # beside the caller's own thread


@njit(nogil=True, fastmath=True, cache=True)
def _weight_gradient(x: Any, g: Any, pad: int, out: Any, first: int, last: int) -> None:
    """Add to `out` (K, K, C) the gradient that images first..last - 1 of x, g (B, H, W, C) give. Stride 1, same size."""
    height, width, channels = x.shape[1:]
    side = out.shape[0]
    for b in range(first, last):
        for y in range(height):
            for ky in range(side):
                row = y + ky - pad
                if row < 0 or row >= height:
                    continue
                for kx in range(side):
                    shift = kx - pad
                    i, end = max(0, -shift), min(width, width - shift)
                    u = out[ky, kx]
                    while i + 3 < end:  # four pixels for one pass over `u`
                        g0, g1, g2, g3 = g[b, y, i], g[b, y, i + 1], g[b, y, i + 2], g[b, y, i + 3]
                        j = i + shift
                        x0, x1, x2, x3 = x[b, row, j], x[b, row, j + 1], x[b, row, j + 2], x[b, row, j + 3]
                        for c in range(channels):
                            u[c] += g0[c] * x0[c] + g1[c] * x1[c] + g2[c] * x2[c] + g3[c] * x3[c]
                        i += 4
                    while i < end:
                        g0, x0 = g[b, y, i], x[b, row, i + shift]
                        for c in range(channels):
                            u[c] += g0[c] * x0[c]
                        i += 1


class _Depthwise(torch.autograd.Function):
    """Depthwise convolution of stride 1 and padding (K - 1) / 2, without bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor]:
        (g,) = grads
        x, weight = ctx.saved_tensors
        side, channels = weight.shape[-1], x.shape[1]
        gx = None
        if ctx.needs_input_grad[0]:
            gx = F.conv2d(g, weight.flip(2, 3), padding=side // 2, groups=channels)
        xn, gn = (t.detach().permute(0, 2, 3, 1).contiguous().numpy() for t in (x, g))
        halves = np.zeros((2, side, side, channels), np.float32)
        half = len(xn) // 2
        other = _POOL.submit(_weight_gradient, xn, gn, side // 2, halves[1], half, len(xn))
        _weight_gradient(xn, gn, side // 2, halves[0], 0, half)
        other.result()
        return gx, torch.from_numpy(halves.sum(0)).permute(2, 0, 1)[:, None]


class Depthwise5(nn.Conv2d):
    """A depthwise 5x5 convolution of stride 1 that keeps the size; its parameters are those of nn.Conv2d."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        plain = x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu")
        if plain or not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(x)
        return _Depthwise.apply(x, self.weight)


def quicken(module: nn.Module) -> None:
    """Let every convolution in `module` that is a depthwise 5x5 of stride 1, without bias, be a Depthwise5; in place."""
    for child in module.modules():
        for name, conv in child.named_children():
            if (
                type(conv) is nn.Conv2d
                and conv.kernel_size == (5, 5)
                and conv.stride == (1, 1)
                and conv.padding == (2, 2)
                and conv.groups == conv.in_channels == conv.out_channels
                and conv.bias is None
            ):
                made = Depthwise5(conv.in_channels, conv.out_channels, 5, padding=2, groups=conv.groups, bias=False)
                made.weight = conv.weight
                setattr(child, name, made)
