"""Fast frozen copies of convolutional networks: batch norms and "SAME" padding are folded into the kernels.

Shapes: B images, C channels, H and W height and width.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from foldfuse.models.card.depthwise import use_card_layers
from foldfuse.models.cpu.depthwise import pad_kernel_same


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """A copy of `module` for inference, with each batch norm folded into the convolution right before it.

    Up to rounding, the copy gives the outputs of `module` in eval mode, if the input maps of strided convolutions have even
    sides. There "SAME" pads one row more at the bottom and one column more at the right; a kernel with a leading row and column
    of zeros does the same without a padded copy of the map. A module whose maps may have odd sides says so by `has_odd_maps`:
    its convolutions keep their way to pad.

    Convolutions that are shared over levels, with a batch norm for each level, become a convolution for each level. A module says
    that it has such ones by `shared_convs`: the names of its list of convolutions, and of the lists of batch norms of each.
    """
    folded = copy.deepcopy(module).eval().requires_grad_(False)
    for parent in list(folded.modules()):
        if names := getattr(type(parent), "shared_convs", None):
            _unshare(*(getattr(parent, name) for name in names))
    odd = {
        part for whole in folded.modules() if getattr(type(whole), "has_odd_maps", False) for part in whole.modules()
    }
    for parent in folded.modules():
        conv_name: str | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                conv_name = name
            elif isinstance(child, nn.BatchNorm2d) and conv_name is not None:
                conv = getattr(parent, conv_name)
                fused = fuse_conv_bn_eval(conv, child)
                pads = parent not in odd and _takes_padded_kernel(fused)
                setattr(parent, conv_name, _with_padded_kernel(fused) if pads else fused)
                setattr(parent, name, getattr(child, "act", nn.Identity()))
                conv_name = None
            elif not isinstance(child, nn.Identity):
                conv_name = None  # what comes between may not be linear
    return use_card_layers(folded)


def _unshare(convs: nn.ModuleList, norms: nn.ModuleList) -> None:
    """Put a folded copy of each shared convolution in the place of each of its batch norms, and nothing in its own place."""
    for i, conv in enumerate(convs):
        of_levels = norms[i]
        assert isinstance(of_levels, nn.ModuleList)
        for level, norm in enumerate(of_levels):
            batch_norm = next(part for part in norm.modules() if isinstance(part, nn.BatchNorm2d))
            if isinstance(conv, nn.Conv2d):
                of_levels[level] = fuse_conv_bn_eval(conv, batch_norm)
            else:  # a separable one, whose last convolution takes the batch norm
                own: Any = copy.deepcopy(conv)
                own.conv_pw = fuse_conv_bn_eval(own.conv_pw, batch_norm)
                of_levels[level] = own
        convs[i] = nn.Identity()


def _takes_padded_kernel(conv: nn.Conv2d) -> bool:
    """Whether `conv` is a strided "SAME" convolution that pads one side alone. Every other one keeps its own way to pad.

    A kernel of 1 needs no padding: "SAME" takes the first pixel of each pair.
    """
    is_odd = conv.kernel_size[0] == conv.kernel_size[1] and conv.kernel_size[0] % 2 == 1 and conv.kernel_size[0] > 1
    return isinstance(conv, Conv2dSame) and conv.stride == (2, 2) and conv.dilation == (1, 1) and is_odd


def _with_padded_kernel(conv: nn.Conv2d) -> nn.Conv2d:
    """The stride-2 "SAME" convolution `conv` with symmetric padding and a kernel that is one row and one column larger."""
    kernel_size = conv.kernel_size[0]
    padded = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        kernel_size + 1,
        stride=2,
        padding=(kernel_size - 1) // 2,
        groups=conv.groups,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    ).requires_grad_(False)
    assert conv.bias is not None
    assert padded.bias is not None
    padded.weight.copy_(pad_kernel_same(conv.weight))
    padded.bias.copy_(conv.bias)
    return padded.to(memory_format=torch.channels_last)


class Unregistered:
    """Holds a module without registering it: the module is in no state dict, and its owner's `train()` does not reach it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        output: Tensor = self.module(x)
        return output
