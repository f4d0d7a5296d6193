"""ViT: a transformer encoder over the patches of an image. Each part names its section of the paper.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv:2010.11929. The tiny and small models come from Touvron
et al., "DeiT", arXiv:2012.12877, table 1. Checked against timm: the same tensor names, and the same outputs with the
same weights.

Shapes: B images, P pixels on a patch's side, (h, w) patches, N = h w + 1 tokens (the class token first), D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

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

Positions = Literal["none", "learned_1d", "learned_2d", "sincos"]


class Attention(nn.Module):
    """Multi-head self-attention (appendix A)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) -> queries, keys and values, (B, heads, N, D / heads) each."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        mixed = F.scaled_dot_product_attention(*self.split(x))
        return self.proj(mixed.transpose(1, 2).reshape(x.shape))

    def maps(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, heads, N, N): the attention weights of each token over all tokens; rows sum to 1."""
        q, k, _ = self.split(x)
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)


class Block(nn.Module):
    """One layer of the encoder: attention, then an MLP, each with a norm before it and a residual connection (equations 2, 3)."""

    def __init__(self, width: int, heads: int, *, mlp_ratio: int = 4, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, mlp_ratio * width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = self.drop_path(x, lambda t: self.attn(self.norm1(t)))
        return self.drop_path(x, lambda t: self.mlp(self.norm2(t)))


def resample_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """(1, N, D) learned positions of an `old` (h, w) grid, resampled to a `new` one (section 3.2, fine-tuning)."""
    if old == new:
        return table
    token, patches = table[:, :1], table[:, 1:]
    image = patches.transpose(1, 2).reshape(1, -1, *old)
    image = F.interpolate(image.float(), size=new, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([token, image.flatten(2).transpose(1, 2).to(token.dtype)], 1)


def separable_positions(rows: Tensor, columns: Tensor, grid: tuple[int, int]) -> Tensor:
    """(1, h w, D): half a vector from the (1, D / 2, n) `rows`, half from the `columns`, both resampled to the grid."""
    rows, columns = (
        F.interpolate(t, size=n, mode="linear", align_corners=False) for t, n in zip((rows, columns), grid, strict=True)
    )
    along_rows = rows.transpose(1, 2)[:, :, None].expand(-1, -1, grid[1], -1)
    along_columns = columns.transpose(1, 2)[:, None].expand(-1, grid[0], -1, -1)
    return torch.cat([along_rows, along_columns], -1).flatten(1, 2)


def sincos(grid: tuple[int, int], width: int) -> Tensor:
    """(1, h w, D): sines and cosines of the row in the first half of a vector, of the column in the second half."""
    frequencies = 10000 ** -(torch.arange(width // 4) / (width // 4))
    waves = [torch.arange(n)[:, None] * frequencies for n in grid]
    rows, columns = (torch.cat([w.sin(), w.cos()], -1) for w in waves)
    both = [rows[:, None].expand(-1, grid[1], -1), columns[None].expand(grid[0], -1, -1)]
    return torch.cat(both, -1).reshape(1, grid[0] * grid[1], width)


class ViT(nn.Module):
    """Patches -> encoder -> class token -> head (section 3.1, figure 1).

    Args:
        num_classes: K.
        width, depth, heads: width, number of blocks and number of attention heads of the encoder (table 1).
        patch: side of a patch in pixels; also the stride.
        image_size: (height, width) in pixels that learned positions are made for; any other multiple of `patch` works too.
        positions: kind of position embedding (appendix D.4). "none"; "learned_1d", a vector for each patch of the grid;
            "learned_2d", half a vector for each row and half for each column; "sincos", fixed waves along both axes (Vaswani
            et al., arXiv:1706.03762, section 3.5, in 2-D). Learned positions are resampled to other grids.
        drop_path: rate of the last block; it grows linearly up to there.
        mean, std: mean and standard deviation of the RGB channels; `forward` normalises the images.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        width: int,
        depth: int,
        heads: int,
        patch: int = 16,
        image_size: tuple[int, int] = (224, 224),
        positions: Positions = "learned_1d",
        drop_path: float = 0.0,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        self.num_classes, self.width, self.stride, self.positions = num_classes, width, patch, positions
        self.grid = (image_size[0] // patch, image_size[1] // patch)
        self.patch_embed = PatchEmbed(width, patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        if positions == "learned_1d":
            self.pos_embed = nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1] + 1, width).normal_(std=0.02))
        elif positions == "learned_2d":
            self.pos_embed_rows = nn.Parameter(torch.empty(1, width // 2, self.grid[0]).normal_(std=0.02))
            self.pos_embed_columns = nn.Parameter(torch.empty(1, width // 2, self.grid[1]).normal_(std=0.02))
        rates = drop_path_rates(drop_path, depth)
        self.blocks = nn.ModuleList(Block(width, heads, drop_path=rate) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        init_transformer(self)
        nn.init.zeros_(self.head.weight)  # section 4.1, fine-tuning: a new head starts at zero

    def embedding_parameters(self) -> list[nn.Parameter]:
        """The parameters in front of the blocks: patches, class token, positions."""
        return [p for name, p in self.named_parameters() if name.startswith(("patch_embed.", "cls_token", "pos_embed"))]

    def position_embedding(self, grid: tuple[int, int]) -> Tensor | None:
        """(1, h w + 1, D) to be added to the tokens of an (h, w) grid; None for the kind "none"."""
        if self.positions == "none":
            return None
        if self.positions == "learned_1d":
            return resample_positions(self.pos_embed, self.grid, grid)
        if self.positions == "learned_2d":
            patches = separable_positions(self.pos_embed_rows, self.pos_embed_columns, grid)
        else:
            patches = sincos(grid, self.width)
        return F.pad(patches, (0, 0, 1, 0))  # the class token has no position

    def tokens(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 -> (B, N, D): the class token, then the embedded patches (equation 1).

        Raises:
            InputError: H or W is no multiple of `stride`.
        """
        require_multiple(images, self.stride)
        x = self.patch_embed((images - self.mean) / self.std)
        positions = self.position_embedding((x.shape[1], x.shape[2]))
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(1, 2)], 1)
        return x if positions is None else x + positions.to(x)

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 -> (B, N, D): tokens after the last norm."""
        x = self.tokens(images)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 -> (B, K) logits, of the class token (equation 4)."""
        return self.head(self.encode(images)[:, 0])

    def class_layers(self) -> list[ClassLayer]:
        """The layer whose rows belong to classes; none of a backbone, which has no head."""
        return [] if isinstance(self.head, nn.Identity) else [ClassLayer("head")]

    def features(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in 0..1 -> [(B, D, H / P, W / P)]: the patches as a map."""
        grid = (images.shape[-2] // self.stride, images.shape[-1] // self.stride)
        return [self.encode(images)[:, 1:].transpose(1, 2).reshape(len(images), -1, *grid)]

    def attention_maps(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 -> (B, depth, heads, N, N): the attention weights of each layer (section 4.5, figure 7)."""
        x, maps = self.tokens(images), []
        for block in self.blocks:
            assert isinstance(block, Block)
            maps.append(block.attn.maps(block.norm1(x)))
            x = block(x)
        return torch.stack(maps, 1)


SIZES: Mapping[str, tuple[int, int, int, int]] = {
    # name: (width, depth, heads, patch)
    "vit_tiny": (192, 12, 3, 16),
    "vit_small": (384, 12, 6, 16),
    "vit_base": (768, 12, 12, 16),
    "vit_large": (1024, 24, 16, 16),
    "vit_huge": (1280, 32, 16, 16),
    "vit_huge14": (1280, 32, 16, 14),
}


def vit(name: str, num_classes: int, *, positions: Positions = "learned_1d", drop_path: float = 0.1) -> ViT:
    """A new ViT of one of `SIZES`."""
    width, depth, heads, patch = SIZES[name]
    return ViT(
        num_classes, width=width, depth=depth, heads=heads, patch=patch, positions=positions, drop_path=drop_path
    )
