"""A DETR in operations that ONNX has, for any number of images of any size: the outputs of `Detr` in eval mode.

The forward pass of transformers fixes sizes where it calls `int()` and `len()`, and checks shapes with an operation that ONNX
lacks. Here are its steps between encoder and decoder (the models' `forward` in transformers 5, Apache-2.0) without these.

Shapes: B images, A cells of all levels, C channels, Q queries.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from foldfuse.models.detection.detr import QUERIES, Detr, DetrOutput

MAX_CELLS = 512  # of a side of the coarsest level, for which there are position embeddings
ANCHOR_SIDE = 0.05  # of the finest level's anchors, as a share of the input
INSIDE = (1e-2, 1 - 1e-2)  # an anchor whose numbers are not all between these is left out
CHECKS = "TRANSFORMERS_DISABLE_TORCH_CHECK"  # transformers' switch of its checks of shapes


class ExportedDetr(nn.Module):
    """A copy of a DETR for export.

    Args:
        model: the network, with or without its batch norms folded.
    """

    shapes: Tensor  # (L, 2), which the checks alone would look at

    def __init__(self, model: Detr) -> None:
        super().__init__()
        net = copy.deepcopy(model).eval().requires_grad_(False)
        self.backbone, self.body = net.backbone, net.body
        self.stride, self.image_size, self.num_classes = net.stride, net.image_size, net.num_classes
        self.body.config._attn_implementation = "eager"  # the others ask for the number of queries
        for module in net.modules():
            if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
                module.ceil_mode = False  # sides are even; rounding up would fix them
        for part in self.body.encoder.aifi:
            known = part.position_embedding
            part.position_embedding = _Positions(known.embed_dim, known.temperature)
        self.register_buffer("shapes", torch.zeros(len(net.strides), 2, dtype=torch.int64), persistent=False)

    def forward(self, images: Tensor) -> DetrOutput:
        """(B, 3, H, W) RGB in [0, 1], H and W multiples of `stride` -> the decoder's output."""
        height, width = images.shape[-2:]
        levels = self.backbone(images).feature_maps
        projected = [project(level) for project, level in zip(self.body.encoder_input_proj, levels, strict=True)]
        encoded = self.body.encoder(projected).last_hidden_state
        sources = [project(level) for project, level in zip(self.body.decoder_input_proj, encoded, strict=True)]
        sizes = [(level.shape[-2], level.shape[-1]) for level in sources]
        cells = torch.cat([level.flatten(2).transpose(1, 2) for level in sources], 1)  # (B, A, C)
        anchors, is_inside = _anchors(sizes)
        memory = self.body.enc_output(is_inside * cells)
        boxes = self.body.enc_bbox_head(memory) + anchors
        best = _best(self.body.enc_score_head(memory).amax(-1))[..., None]  # (B, Q, 1)
        with _no_checks():
            out = self.body.decoder(
                inputs_embeds=memory.gather(1, best.expand(-1, -1, memory.shape[2])),
                encoder_hidden_states=cells,
                reference_points=boxes.gather(1, best.expand(-1, -1, 4)),
                spatial_shapes=self.shapes,
                spatial_shapes_list=sizes,
            )
        return DetrOutput(out.intermediate_logits[:, -1], out.intermediate_reference_points[:, -1], (height, width))


class _Positions(nn.Module):
    """transformers' position embeddings of a level: sines and cosines of a cell's row, then of its column."""

    table: Tensor  # (MAX_CELLS, C / 2) of the numbers from 0 on

    def __init__(self, channels: int, temperature: float) -> None:
        super().__init__()
        number = channels // 4
        omega = 1.0 / temperature ** (torch.arange(number, dtype=torch.float64) / number)
        angles = torch.arange(MAX_CELLS, dtype=torch.float64).outer(omega)
        self.register_buffer("table", torch.cat([angles.sin(), angles.cos()], 1).float(), persistent=False)

    def forward(self, width: int, height: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """(1, H W, C) for a level of H rows and W columns; device and dtype are the table's."""
        rows, columns = (self.table.index_select(0, torch.arange(number)) for number in (height, width))
        both = [rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)]
        return torch.cat(both, -1).flatten(0, 1)[None]


def _anchors(sizes: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """(A, 4) logits of the cells' boxes, cxcywh as shares of the input, and (A, 1) float32: 1 where a cell counts, else 0."""
    levels = []
    for i, size in enumerate(sizes):
        y, x = ((torch.arange(n).float() + 0.5) / torch.full((), n, dtype=torch.float32) for n in size)
        centres = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)
        levels.append(torch.cat([centres, torch.full_like(centres, ANCHOR_SIDE * 2.0**i)], -1).flatten(0, 1))
    anchors = torch.cat(levels)
    is_inside = ((anchors.amin(-1) > INSIDE[0]) & (anchors.amax(-1) < INSIDE[1]))[:, None]
    logits = torch.log(anchors / (1 - anchors))
    return torch.where(is_inside, logits, torch.finfo(torch.float32).max), is_inside.float()


def _best(scores: Tensor) -> Tensor:
    """(B, A) -> (B, Q) cells with the highest scores, best first: as many as there are queries, or cells if these are fewer."""
    if not torch.compiler.is_exporting():
        return scores.topk(min(QUERIES, scores.shape[1]), 1).indices
    number = torch.sym_min(QUERIES, scores.shape[1])
    return scores.sort(1, descending=True).indices.index_select(1, torch.arange(number))


@contextmanager
def _no_checks() -> Iterator[None]:
    """A context in which transformers does not check shapes."""
    before: Any = os.environ.get(CHECKS)
    os.environ[CHECKS] = "1"
    try:
        yield
    finally:
        os.environ.pop(CHECKS) if before is None else os.environ.update({CHECKS: before})
