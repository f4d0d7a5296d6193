"""What ViT and Swin share: DropPath, the MLP, and the check of an image's size.

Source: Huang et al., "Deep Networks with Stochastic Depth", arXiv:1603.09382.
"""

from __future__ import annotations

from torch import Tensor, nn

from foldfuse.errors import InputError


class DropPath(nn.Module):
    """Drops a residual branch of some samples while training, and scales those kept: the expectation stays.

    Args:
        rate: probability that a sample's branch is dropped, 0 <= rate < 1.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        assert 0 <= rate < 1, rate
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """(B, ...) -> (B, ...); as it is in eval mode."""
        if not self.training or not self.rate:
            return branch
        kept = branch.new_empty(len(branch), *[1] * (branch.ndim - 1)).bernoulli_(1 - self.rate)
        return branch * kept.div_(1 - self.rate)

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
