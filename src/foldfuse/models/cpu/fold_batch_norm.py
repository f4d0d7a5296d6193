"""The frozen part of a network made cheap: batch norms folded into convolutions, TensorFlow's paddings into kernels.

Shapes: B images, C channels, H and W height and width.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """A copy of `module` in which each convolution has taken in the batch norm behind it; for inference alone.

    It gives what `module` gives in eval mode, to rounding, for inputs whose strided convolutions see even sides: those
    pad by "SAME" at the far end alone, which a kernel with a leading row and column of zeros does without a copy.
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
                setattr(parent, before, _widened(fused) if _pads_at_the_end(fused) else fused)
                setattr(parent, name, getattr(child, "act", nn.Identity()))
                before = None
    return made


def _pads_at_the_end(conv: nn.Conv2d) -> bool:
    """Whether it is a strided convolution of TensorFlow's kind, which is a class of its own; plain ones pad evenly."""
    return type(conv) is not nn.Conv2d and conv.stride[0] == 2


def _widened(conv: nn.Conv2d) -> nn.Conv2d:
    """A stride-2 "SAME" convolution as one with even symmetric padding, its kernel a row and a column larger."""
    side = conv.kernel_size[0]
    wide = nn.Conv2d(
        conv.in_channels, conv.out_channels, side + 1, stride=2, padding=(side - 1) // 2, groups=conv.groups
    ).requires_grad_(False)
    wide.weight.zero_()
    wide.weight[:, :, 1:, 1:] = conv.weight
    assert conv.bias is not None
    assert wide.bias is not None
    wide.bias.copy_(conv.bias)
    return wide.to(memory_format=torch.channels_last)
