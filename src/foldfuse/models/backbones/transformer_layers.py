"""Layers of ViT and Swin: patch embedding, MLP, DropPath; the initial weights, and the check of an image's size.

Source: DropPath is stochastic depth, Huang et al., arXiv:1603.09382. The modules have timm's tensor names.

Shapes: B images, P pixels on a patch's side, (h, w) patches, D width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from foldfuse.errors import InputError


class DropPath(nn.Module):
    """Residual connection with stochastic depth.

    In training it drops the branch for random samples and divides the rest by the keep probability, so that the expected output
    is unchanged.

    Args:
        rate: probability that a sample's branch is dropped, 0 <= rate < 1.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        assert 0 <= rate < 1, rate
        self.rate = rate

    def forward(self, x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """x + branch(x), (B, ...) -> (B, ...).

        Args:
            x: samples.
            branch: (b, ...) -> (b, ...), of each sample by itself. On a CPU it does not run for dropped samples.
        """
        if not self.training or not self.rate:
            return x + branch(x)
        kept = x.new_empty(len(x)).bernoulli_(1 - self.rate)
        scale = 1 / (1 - self.rate)
        # Elsewhere than on a CPU, waiting for the number of kept samples costs more than dropping the others saves.
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return x + branch(x) * (kept * scale).view(-1, *[1] * (x.ndim - 1))
        rows = kept.nonzero().flatten()
        if not len(rows):  # every weight must get a gradient: training on several processes waits for it
            return x + branch(x[:1]) * 0
        return x.index_add(0, rows, branch(x.index_select(0, rows)).to(x.dtype), alpha=scale)

    def extra_repr(self) -> str:
        """The arguments that print() shows."""
        return f"rate={self.rate:g}"


def drop_path_rates(last: float, depth: int) -> list[float]:
    """The rate of each of `depth` blocks: from 0 at the first, linearly, up to `last` (section 4, linear decay)."""
    return [last * i / max(1, depth - 1) for i in range(depth)]


class Mlp(nn.Sequential):
    """Two linear layers with a GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(
            OrderedDict(fc1=nn.Linear(width, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, width))  # timm's names
        )


class PatchEmbed(nn.Module):
    """Cuts images into patches and maps each to a vector; a layer norm follows if `norm`."""

    def __init__(self, width: int, patch: int, *, norm: bool = False) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, h, w, D)."""
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


def require_multiple(images: Tensor, stride: int) -> None:
    """Raise InputError if the height or width of (B, 3, H, W) is no multiple of `stride`."""
    height, width = images.shape[-2:]
    if height % stride or width % stride:
        raise InputError(
            f"the image is {height} x {width} pixels (height x width); both must be multiples of {stride}."
        )


def init_transformer(model: nn.Module) -> None:
    """Draw truncated normal weights of standard deviation 0.02 and set zero biases in every linear layer of `model`."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
