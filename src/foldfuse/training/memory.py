"""Batches that do not fit in memory: computed in parts of `micro_batch` images, with the loss of the whole batch.

The parts go through the network one after the other, and keep nothing for the backward pass but their images and outputs
(Chen et al., "Training deep nets with sublinear memory cost", arXiv:1604.06174: each part is computed again when its gradient
is due). The loss sees the outputs of all parts at once, so assignment, normalizers and gradients are those of the whole batch
for any detector. Batch norms alone differ: their statistics are of a part.

Shapes: B images of a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from foldfuse.errors import InputError
from foldfuse.recipes import SMALL_IMAGE
from foldfuse.system.processes import SINGLE_PROCESS, World
from foldfuse.training.cuda_graph import GraphedNetwork
from foldfuse.training.distributed import synced_batch_norm

log = logging.getLogger(__name__)


class NotEnoughMemory(InputError):
    """Not even the smallest part of a batch fits in memory."""


def num_parts(batch_size: int, micro_batch: int) -> int:
    """The number of parts of at most `micro_batch` images; 1 where `micro_batch` is 0."""
    return -(-batch_size // micro_batch) if micro_batch else 1


def half_micro_batch(batch_size: int, micro_batch: int, *, image_size: int) -> int | None:
    """The largest micro-batch that makes twice as many parts; None where a part would be too small for batch norms."""
    half = -(-batch_size // (2 * num_parts(batch_size, micro_batch)))
    least = 2 if image_size <= SMALL_IMAGE else 1
    parts = num_parts(batch_size, half)
    return half if parts > num_parts(batch_size, micro_batch) and batch_size // parts >= least else None


class InParts(nn.Module):
    """A network that computes its batch in parts, and joins their outputs.

    Args:
        model: (B, 3, H, W) -> raw: tensors whose first dimension is B, in tuples, lists and dicts, beside numbers.
        micro_batch: the number of images of a part; 0 for the whole batch at once.
        world: the processes over which batch norms take their statistics.
        compiled: whether torch compiles the network where the whole batch is computed at once.
        graphed: whether such a batch is computed by a CUDA graph.
    """

    def __init__(
        self,
        model: nn.Module,
        micro_batch: int = 0,
        world: World = SINGLE_PROCESS,
        *,
        compiled: bool = False,
        graphed: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.micro_batch, self.world = model, micro_batch, world
        self._whole: Any = torch.compile(model.forward, dynamic=False) if compiled else self._synced
        if graphed:
            self._whole = GraphedNetwork(model)

    def forward(self, images: Tensor) -> Any:
        """(B, 3, H, W) -> raw of the whole batch.

        Raises:
            InputError: outputs of this network cannot be joined, or a part is too small for batch norms.
        """
        parts = num_parts(len(images), self.micro_batch)
        if parts == 1:
            return self._whole(images)
        split = images.tensor_split(parts)
        try:
            raws = [checkpoint(self._synced, part, use_reentrant=False) for part in split]
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise InputError(
                f"micro_batch is {self.micro_batch}: a part of one image has one pixel at the coarsest level, which batch norm "
                "cannot train on. Take a larger micro_batch or image_size."
            ) from None
        return _join(raws, [len(part) for part in split])

    def record(self, images: Tensor) -> None:
        """Records the CUDA graph, where there is to be one, of batches like `images`; where it fails, there is none.

        Other threads must not use the card meanwhile, not even to pin memory.
        """
        if not isinstance(self._whole, GraphedNetwork) or num_parts(len(images), self.micro_batch) > 1:
            return
        try:
            self._whole.record(images)
        except RuntimeError as error:
            log.info(f"Training goes on without a CUDA graph: {str(error).splitlines()[0]}")
            self._whole = self._synced

    def _synced(self, images: Tensor) -> Any:
        with synced_batch_norm(self.world):
            return self.model(images)


def _join(raws: Sequence[Any], lengths: Sequence[int]) -> Any:
    """The output for all images, from the outputs for parts of them."""
    flat = [tree_flatten(raw) for raw in raws]
    leaves, spec = flat[0]
    if any(len(own) != len(leaves) for own, _ in flat):
        raise _cannot_join()
    columns = zip(*(own for own, _ in flat), strict=True)
    return tree_unflatten([_joined(column, lengths) for column in columns], spec)


def _joined(column: Sequence[Any], lengths: Sequence[int]) -> Any:
    """One output of all parts as one: tensors with a row for each image are joined; others must not depend on the images."""
    first = column[0]
    if isinstance(first, Tensor) and all(t.ndim and len(t) == n for t, n in zip(column, lengths, strict=True)):
        return torch.cat(list(column))
    if isinstance(first, Tensor):
        same = not first.requires_grad and all(t.shape == first.shape for t in column)
    else:
        same = all(other == first for other in column)
    if not same:
        raise _cannot_join()
    return first


def _cannot_join() -> InputError:
    return InputError("the network's outputs cannot be computed in parts of a batch. Take a smaller batch_size.")
