"""Depthwise and stride-2 convolutions that train and run faster on a CPU than PyTorch's own; `fast_layers` installs them.

Two things are slow in PyTorch. oneDNN computes the gradient of a depthwise convolution's weights slowly from 5x5 on: these
gradients take a third of a training step of EfficientNet-Lite0. Here the gradient is a loop over contiguous channels. And
TensorFlow's "SAME" padding of a stride-2 convolution, which is one-sided, makes a padded copy of the input; a kernel with a
leading row and column of zeros needs no copy. For other devices and dtypes than float32 on a CPU the gradients are PyTorch's own.

Shapes: B images, C channels, H and W height and width, K the side of the kernel, which is odd.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor
from torch.nn.grad import conv2d_input

from foldfuse.models.card.depthwise import depthwise as card_depthwise
from foldfuse.system.compiled import compiled

_POOL = ThreadPoolExecutor(1, thread_name_prefix="depthwise")  # a second thread beside the caller's


@compiled(fastmath=True)
def _weight_gradient(x: Any, g: Any, stride: int, out: Any, first: int, last: int) -> None:
    """Add to `out` (K, K, C) the gradient from images first..last - 1 of x (B, H, W, C) and g (B, H/stride, W/stride, C)."""
    height, width = x.shape[1:3]
    rows, columns, channels = g.shape[1:]
    side = out.shape[0]
    pad = (side - stride) // 2  # of an even side with stride 2, "SAME" pads the far end by one more
    for b in range(first, last):
        for y in range(rows):
            for ky in range(side):
                row = y * stride + ky - pad
                if row < 0 or row >= height:
                    continue
                for kx in range(side):
                    shift = kx - pad
                    i = (max(0, -shift) + stride - 1) // stride
                    end = min(columns, (width - 1 - shift) // stride + 1)
                    u = out[ky, kx]
                    while i + 3 < end:  # four pixels for one pass over `u`
                        g0, g1, g2, g3 = g[b, y, i], g[b, y, i + 1], g[b, y, i + 2], g[b, y, i + 3]
                        j = i * stride + shift
                        x0, x1 = x[b, row, j], x[b, row, j + stride]
                        x2, x3 = x[b, row, j + 2 * stride], x[b, row, j + 3 * stride]
                        for c in range(channels):
                            u[c] += g0[c] * x0[c] + g1[c] * x1[c] + g2[c] * x2[c] + g3[c] * x3[c]
                        i += 4
                    while i < end:
                        g0, x0 = g[b, y, i], x[b, row, i * stride + shift]
                        for c in range(channels):
                            u[c] += g0[c] * x0[c]
                        i += 1


def _same(x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int, groups: int) -> Tensor:
    """A convolution padded as "SAME"; with stride 2 the sides of `x` must be even."""
    if stride == 2:
        weight = pad_kernel_same(weight)
    pad = (weight.shape[-1] - 1) // 2
    if x.is_cuda and groups == x.shape[1] and not torch.compiler.is_compiling():
        return card_depthwise(x, weight, bias, (stride, stride), (pad, pad))
    return F.conv2d(x, weight, bias, stride, pad, groups=groups)


def pad_kernel_same(weight: Tensor) -> Tensor:
    """(out, in, K, K) -> (out, in, K + 1, K + 1) with a leading row and column of zeros: even padding acts as one-sided."""
    return F.pad(weight, (1, 0, 1, 0))


class _Depthwise(torch.autograd.Function):
    """Depthwise convolution of stride 1 or 2, padded as "SAME", without bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return _same(x, weight, None, stride=stride, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None]:
        (g,) = grads
        x, weight = ctx.saved_tensors
        side, channels = weight.shape[-1], x.shape[1]
        gx = None
        if ctx.needs_input_grad[0] and ctx.stride == 1:  # a convolution with the kernel rotated by 180 degrees
            gx = F.conv2d(g, weight.flip(2, 3), padding=side // 2, groups=channels)
        elif ctx.needs_input_grad[0]:
            gx = conv2d_input(x.shape, pad_kernel_same(weight), g, 2, side // 2, groups=channels)  # type: ignore[no-untyped-call]
        xn, gn = (t.detach().permute(0, 2, 3, 1).contiguous().numpy() for t in (x, g))
        halves = np.zeros((2, side, side, channels), np.float32)
        half = len(xn) // 2
        other = _POOL.submit(_weight_gradient, xn, gn, ctx.stride, halves[1], half, len(xn))
        _weight_gradient(xn, gn, ctx.stride, halves[0], 0, half)
        other.result()
        return gx, torch.from_numpy(halves.sum(0)).permute(2, 0, 1)[:, None], None


class SameConv(Conv2dSame):
    """A convolution of stride 1 or 2 and an odd kernel, padded as TensorFlow's "SAME"."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, ceil(H / stride), ceil(W / stride))."""
        stride = self.stride[0]
        if stride == 2 and (x.shape[-2] % 2 or x.shape[-1] % 2):
            return super().forward(x)  # pads both ends alike, by a copy
        fallback = x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu")
        trained = torch.is_grad_enabled() and self.weight.requires_grad
        if trained and not fallback and self.groups == self.in_channels and self.bias is None:
            return _Depthwise.apply(x, self.weight, stride)
        return _same(x, self.weight, self.bias, stride=stride, groups=self.groups)
