"""Fast frozen copies of convolutional networks: batch norms folded into convolutions, TensorFlow's padding into kernels.

Shapes: B images, C channels, H and W height and width.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from foldfuse.models.cpu.depthwise import pad_kernel_same


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """A copy of `module` for inference, with each batch norm folded into the convolution before it.

    The copy gives the outputs of `module` in eval mode, to rounding, if strided convolutions see maps of even sides: then "SAME"
    pads the far end alone, and a kernel with a leading row and column of zeros needs no padded copy of the map.
    """
    made = copy.deepcopy(module).eval().requires_grad_(False)
    for parent in made.modules():
        before: str | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                before = name
            elif isinstance(child, nn.BatchNorm2d) and before is not None:
                conv = getattr(parent, before)
                fused = fuse_conv_bn_eval(conv, child)
                setattr(parent, before, _with_padded_kernel(fused) if _is_strided_same(fused) else fused)
                setattr(parent, name, getattr(child, "act", nn.Identity()))
                before = None
    return made


def _is_strided_same(conv: nn.Conv2d) -> bool:
    """Whether `conv` is a strided convolution of TensorFlow's kind, which is a class of its own; plain ones pad evenly."""
    return type(conv) is not nn.Conv2d and conv.stride[0] == 2


def _with_padded_kernel(conv: nn.Conv2d) -> nn.Conv2d:
    """A stride-2 "SAME" convolution as one with symmetric padding, its kernel a row and a column larger."""
    side = conv.kernel_size[0]
    wide = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        side + 1,
        stride=2,
        padding=(side - 1) // 2,
        groups=conv.groups,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    ).requires_grad_(False)
    assert conv.bias is not None
    assert wide.bias is not None
    wide.weight.copy_(pad_kernel_same(conv.weight))
    wide.bias.copy_(conv.bias)
    return wide.to(memory_format=torch.channels_last)


class Unregistered:
    """Holds a module without registering it: the module is in no state dict, and its owner's `train()` does not reach it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        found: Tensor = self.module(x)
        return found
