"""Depthwise convolutions on CUDA without cuDNN.

For a channels-last image cuDNN builds each depthwise convolution anew for each size of the image: on an NVIDIA H200 that took 4 s
of the first forward pass of the 19 of lite0_fpn at one size, and 10 s of the first backward pass, where the other 42 convolutions
took 0.2 s (benchmarks/gpu.md). A campaign trains and predicts at many sizes. PyTorch has kernels of its own, which need nothing
built, but takes them for channels-first images alone; so the image is turned around before and after.

Shapes: B images, C channels, H and W height and width, K the side of the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[int, int]


class DepthwiseConv(nn.Conv2d):
    """A depthwise convolution that leaves cuDNN out on CUDA; elsewhere, and where torch compiles, it is PyTorch's."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not input.is_cuda or torch.compiler.is_compiling():
            return super()._conv_forward(input, weight, bias)
        stride, padding, dilation = (_pair(value) for value in (self.stride, self.padding, self.dilation))
        return depthwise(input, weight, bias, stride, padding, dilation)


def use_card_layers(module: nn.Module) -> nn.Module:
    """Gives every depthwise convolution of `module` the class above; weights and names stay. Returns `module`."""
    for part in module.modules():
        if type(part) is nn.Conv2d and _is_depthwise(part):
            part.__class__ = DepthwiseConv
    return module


def _is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether a convolution is depthwise and padded with a number of zeros."""
    numbered = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return numbered and 1 < conv.groups == conv.in_channels


def depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair = (1, 1)
) -> Tensor:
    """A convolution of each channel with kernels of its own: (B, C, H, W) -> (B, M * C, H', W'), in the layout of `x`.

    Args:
        x: (B, C, H, W).
        weight: (M * C, 1, K, K), M kernels for each channel.
        bias: (M * C,), or None.
        stride, padding, dilation: rows and columns.
    """
    if torch.is_autocast_enabled(x.device.type):
        kind = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(kind), weight.to(kind), None if bias is None else bias.to(kind)
    out: Tensor = _Depthwise.apply(x, weight, bias, stride, padding, dilation)
    return out


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair
    ) -> Tensor:
        layout = torch.channels_last if _is_channels_last(x) else torch.contiguous_format
        x, weight = x.contiguous(), weight.flatten(1).view(weight.shape)  # strides that torch takes for channels-first
        ctx.save_for_backward(x, weight)
        ctx.options = stride, padding, dilation, layout, bias is not None
        with _without_cudnn():
            out = F.conv2d(x, weight, bias, stride, padding, dilation, x.shape[1])
        return out.contiguous(memory_format=layout)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding, dilation, layout, has_bias = ctx.options
        wanted = ctx.needs_input_grad
        with _without_cudnn():
            of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
                grads[0].contiguous(),
                x,
                weight,
                [len(weight)] if has_bias else None,
                stride,
                padding,
                dilation,
                False,
                (0, 0),
                x.shape[1],
                [wanted[0], wanted[1], has_bias and wanted[2]],
            )
        if of_x is not None:
            of_x = of_x.contiguous(memory_format=layout)
        return of_x, of_weight, of_bias, None, None, None


def _is_channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _pair(value: Any) -> Pair:
    rows, columns = (value, value) if isinstance(value, int) else value
    return int(rows), int(columns)


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """A context in which torch does not choose cuDNN; the switch is one for all threads."""
    enabled = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = enabled
