"""Swin: attention within windows that shift from block to block, so that the cost grows linearly with the image's area.

Source: Liu et al., "Swin Transformer", arXiv:2103.14030; each part names its section. Checked against timm: the same tensor
names, and the same outputs with the same weights.
Where we differ: any image size that is a multiple of 4 works, as in torchvision.

Shapes: B images, (H, W) tokens of a stage, C channels, M tokens on a window's side, R windows of an image.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foldfuse.models.backbones.transformer_layers import (
    DropPath,
    Mlp,
    PatchEmbed,
    drop_path_rates,
    init_transformer,
    require_multiple,
)
from foldfuse.models.pretrained.class_layer import ClassLayer

WINDOW = 7


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias for each relative position (section 3.2, equation 4)."""

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        table = torch.empty((2 * WINDOW - 1) ** 2, heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.register_buffer("relative_position_index", relative_position_index(WINDOW), persistent=False)

    def bias(self) -> Tensor:
        """(heads, M^2, M^2): the bias of each pair of tokens, which is added to the logits."""
        rows = self.relative_position_bias_table[self.relative_position_index.flatten()]
        return rows.view(WINDOW**2, WINDOW**2, self.heads).permute(2, 0, 1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, R, M^2, C) -> (B, R, M^2, C).

        Args:
            x: windows of tokens.
            mask: (R, M^2, M^2), 0 or -100, added to the logits; None if every token may attend to its whole window.
        """
        batch, windows, tokens, channels = x.shape
        qkv = self.qkv(x).view(batch, windows, tokens, 3, self.heads, channels // self.heads).permute(3, 0, 1, 4, 2, 5)
        # Windows and heads are one axis of the batched product, so that the bias is broadcast over images, not copied.
        q, k, v = qkv.reshape(3, batch, windows * self.heads, tokens, channels // self.heads).unbind(0)
        bias = self.bias() if mask is None else self.bias() + mask[:, None]
        bias = bias.expand(windows, -1, -1, -1).reshape(1, windows * self.heads, tokens, tokens)
        mixed = attend(q, k, v, bias.to(q.dtype))
        return self.proj(mixed.view(batch, windows, self.heads, tokens, -1).transpose(2, 3).reshape(x.shape))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """(B, G, N, D) queries, keys and values of G groups, (1, G, N, N) -> (B, G, N, D): softmax(q k^T / sqrt(D) + bias) v."""
    if bias.requires_grad and bias.device.type == "cpu":
        # PyTorch has no fused kernel for this case, and its fallback also guards against rows that are masked throughout.
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        logits += bias
        return logits.softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def relative_position_index(side: int) -> Tensor:
    """(side^2, side^2) int64: the row of the bias table for each pair of tokens of a window."""
    yx = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")).flatten(1)
    apart = yx[:, :, None] - yx[:, None] + side - 1
    return apart[0] * (2 * side - 1) + apart[1]


def shift_mask(height: int, width: int, shifts: tuple[int, int], device: torch.device) -> Tensor | None:
    """(R, M^2, M^2), -100 between tokens that are neighbours only through the cyclic shift (section 3.2, figure 4).

    Args:
        height, width: size of the map of tokens, before it is padded to whole windows.
        shifts: shift along rows and along columns; 0 for no shift.
        device: the device of the mask.
    """
    if not any(shifts):
        return None
    padded = (height + -height % WINDOW, width + -width % WINDOW)
    region = torch.zeros(padded, device=device)
    for axis, (size, shift) in enumerate(zip(padded, shifts, strict=True)):
        if shift:
            index = torch.arange(size, device=device)
            band = (index >= size - WINDOW).float() + (index >= size - shift).float()
            region += band[:, None] * 3 if axis == 0 else band[None]
    in_windows = window_partition(region[None, :, :, None])[0, :, :, 0]  # (R, M^2)
    return (in_windows[:, None] != in_windows[:, :, None]) * -100.0


def window_partition(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, R, M^2, C)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // WINDOW, WINDOW, width // WINDOW, WINDOW, channels)
    return x.transpose(2, 3).reshape(batch, -1, WINDOW**2, channels)


def window_reverse(windows: Tensor, height: int, width: int) -> Tensor:
    """(B, R, M^2, C) -> (B, H, W, C)."""
    batch, _, _, channels = windows.shape
    x = windows.view(batch, height // WINDOW, width // WINDOW, WINDOW, WINDOW, channels)
    return x.transpose(2, 3).reshape(batch, height, width, channels)


class Block(nn.Module):
    """Window attention, then an MLP, each with a norm before it and a residual connection (equation 3)."""

    def __init__(self, channels: int, heads: int, *, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, 4 * channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, shifts: tuple[int, int], mask: Tensor | None) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C).

        Args:
            x: tokens.
            shifts: shift along rows and along columns, in tokens; 0 for no shift.
            mask: the `shift_mask` for these shifts.
        """
        x = self.drop_path(x, lambda t: self._attend(self.norm1(t), shifts, mask))
        return self.drop_path(x, lambda t: self.mlp(self.norm2(t)))

    def _attend(self, x: Tensor, shifts: tuple[int, int], mask: Tensor | None) -> Tensor:
        """Window attention: pad to whole windows, shift, attend, undo the shift and the padding."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % WINDOW, 0, -height % WINDOW))
        padded = x.shape[1:3]
        if any(shifts):
            x = torch.roll(x, (-shifts[0], -shifts[1]), (1, 2))
        x = window_reverse(self.attn(window_partition(x), mask), padded[0], padded[1])
        if any(shifts):
            x = torch.roll(x, shifts, (1, 2))
        return x[:, :height, :width]


class PatchMerging(nn.Module):
    """Four neighbours become one token of twice the channels (section 3.1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H / 2, W / 2, 2 C), rounded up."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        batch, height, width, channels = x.shape
        x = x.view(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(x.reshape(batch, height // 2, width // 2, 4 * channels)))


class Stage(nn.Module):
    """Patch merging if `downsample`, then blocks, every second of them with shifted windows."""

    def __init__(self, channels: int, heads: int, *, downsample: bool, drop_paths: Sequence[float]) -> None:
        super().__init__()
        self.downsample = PatchMerging(channels // 2) if downsample else nn.Identity()
        self.blocks = nn.ModuleList(Block(channels, heads, drop_path=rate) for rate in drop_paths)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C), after merging (B, H / 2, W / 2, 2 C)."""
        x = self.downsample(x)
        height, width = x.shape[1:3]
        # An axis of one window is not shifted: its tokens attend to each other already.
        shifts = (WINDOW // 2 * (height > WINDOW), WINDOW // 2 * (width > WINDOW))
        mask = shift_mask(height, width, shifts, x.device)
        for i, block in enumerate(self.blocks):
            x = block(x, shifts, mask) if i % 2 else block(x, (0, 0), None)
        return x


class Swin(nn.Module):
    """Patches -> four stages -> mean -> head (section 3.1, figure 3).

    Args:
        num_classes: K.
        channels: C of the first stage; each later one has twice as many.
        depths, heads: number of blocks and number of attention heads of each stage.
        drop_path: rate of the last block; it grows linearly up to there.
        mean, std: mean and standard deviation of the RGB channels; `forward` normalises the images.
    """

    mean: Tensor
    std: Tensor
    stride = 4  # image height and width must be multiples of this; features at every stride need 32

    def __init__(
        self,
        num_classes: int,
        *,
        channels: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        drop_path: float = 0.2,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.widths = [channels * 2**i for i in range(len(depths))]
        self.patch_embed = PatchEmbed(channels, 4, norm=True)
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        self.layers = nn.ModuleList(
            Stage(width, n, downsample=i > 0, drop_paths=[next(rates) for _ in range(depth)])
            for i, (width, n, depth) in enumerate(zip(self.widths, heads, depths, strict=True))
        )
        self.norm = nn.LayerNorm(self.widths[-1])
        self.head = nn.Sequential(OrderedDict(fc=nn.Linear(self.widths[-1], num_classes)))  # timm's names
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        init_transformer(self)

    def _stages(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in 0..1 -> (B, H / s, W / s, C_i) after each stage, s = 4, 8, 16, 32, rounded up."""
        require_multiple(images, self.stride)
        x = self.patch_embed((images - self.mean) / self.std)
        outputs = []
        for stage in self.layers:
            x = stage(x)
            outputs.append(x)
        return outputs

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 -> (B, K) logits.

        Raises:
            InputError: H or W is no multiple of `stride`.
        """
        return self.head(self.norm(self._stages(images)[-1]).mean((1, 2)))

    def class_layers(self) -> list[ClassLayer]:
        """The layer whose rows belong to classes; none of a backbone, which has no head."""
        return [] if isinstance(self.head, nn.Identity) else [ClassLayer("head.fc")]

    def features(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in 0..1 -> (B, C_i, H / s, W / s) of each stage, s = 4, 8, 16, 32."""
        return [x.permute(0, 3, 1, 2) for x in self._stages(images)]


SIZES: Mapping[str, tuple[int, tuple[int, ...], tuple[int, ...]]] = {
    # name: (channels, depths, heads), section 3.3
    "swin_tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "swin_small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "swin_base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
}


def swin(name: str, num_classes: int, *, drop_path: float = 0.2) -> Swin:
    """A new Swin of one of `SIZES`."""
    channels, depths, heads = SIZES[name]
    return Swin(num_classes, channels=channels, depths=depths, heads=heads, drop_path=drop_path)
