"""Recognises torch's out-of-memory errors, and halves the batch size of a recipe."""

from __future__ import annotations

from dataclasses import replace

import torch

from foldfuse.errors import InputError
from foldfuse.recipes import Recipe


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could not allocate memory. The error has a class of its own on CUDA; on a CPU only its message tells."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def halve_batch(recipe: Recipe) -> Recipe:
    """The recipe with half the batch size, and the learning rate divided by the square root of 2 (the rule of `sweep`).

    Raises:
        InputError: half the batch size is too small for batch norm.
    """
    size = recipe.batch_size // 2
    try:
        return replace(recipe, batch_size=size, lr=recipe.lr * (size / recipe.batch_size) ** 0.5)
    except InputError:
        raise InputError(
            f"batch_size is {recipe.batch_size}, which does not fit in memory at {recipe.image_size} px, and half of it "
            "is too small to train. Take a smaller image_size, or a smaller detector."
        ) from None
