"""Batches that do not fit in memory: recognises torch's error, and halves the batch of a recipe."""

from __future__ import annotations

from dataclasses import replace

import torch

from foldfuse.errors import InputError
from foldfuse.recipes import Recipe


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could not allocate memory: CUDA has an error class of its own, a CPU only a text."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def halve_batch(recipe: Recipe) -> Recipe:
    """The recipe with half the batch size, and the learning rate divided by the square root of 2, as in `sweep`.

    Raises:
        InputError: half a batch is too small for batch norm.
    """
    size = recipe.batch_size // 2
    try:
        return replace(recipe, batch_size=size, lr=recipe.lr * (size / recipe.batch_size) ** 0.5)
    except InputError:
        raise InputError(
            f"batch_size is {recipe.batch_size}, which does not fit in memory at {recipe.image_size} px, and half of it "
            "is too small to train. Take a smaller image_size, or a smaller detector."
        ) from None
