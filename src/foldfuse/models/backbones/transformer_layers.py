"""What ViT and Swin share: DropPath, the MLP, and the check of an image's size.

Source: Huang et al., "Deep Networks with Stochastic Depth", arXiv:1603.09382.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from foldfuse.errors import InputError


class DropPath(nn.Module):
    """A shortcut around a branch that some samples go without while training; the others' is scaled: the expectation stays.

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
            branch: (b, ...) -> (b, ...), of each sample by itself. On a CPU it never sees those that are dropped.
        """
        if not self.training or not self.rate:
            return x + branch(x)
        kept = x.new_empty(len(x)).bernoulli_(1 - self.rate)
        scale = 1 / (1 - self.rate)
        if (
            x.device.type != "cpu" or torch.compiler.is_compiling()
        ):  # there, to wait for how many costs more than it saves
            return x + branch(x) * (kept * scale).view(-1, *[1] * (x.ndim - 1))
        rows = kept.nonzero().flatten()
        if not len(rows):  # every weight gets a gradient nevertheless: training on several processes waits for it
            return x + branch(x[:1]) * 0
        return x.index_add(0, rows, branch(x.index_select(0, rows)).to(x.dtype), alpha=scale)

    def extra_repr(self) -> str:
        """What print() shows of it."""
        return f"rate={self.rate:g}"


def drop_path_rates(last: float, depth: int) -> list[float]:
    """The rate of each of `depth` blocks: from 0 at the first, linearly, up to `last` (section 4, linear decay)."""
    return [last * i / max(1, depth - 1) for i in range(depth)]


class MLP(nn.Sequential):
    """Two linear layers with a GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


def require_multiple(images: Tensor, stride: int) -> None:
    """Raise InputError where the height or width of (B, 3, H, W) is no multiple of `stride`."""
    height, width = images.shape[-2:]
    if height % stride or width % stride:
        raise InputError(
            f"the image is {height} x {width} pixels (height x width); both must be multiples of {stride}."
        )


def init_transformer(model: nn.Module) -> None:
    """Truncated normal weights of standard deviation 0.02 and zero biases in every linear layer of `model`."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
