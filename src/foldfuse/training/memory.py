"""What to do when a batch does not fit in memory: notice it, and halve the batch."""

from __future__ import annotations

from dataclasses import replace

import torch

from foldfuse.errors import InputError
from foldfuse.recipes import Recipe


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could not allocate: on CUDA that is an error of its own, on a CPU its text must be read."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def halved(recipe: Recipe) -> Recipe:
    """The recipe with half the pictures in a batch, and a rate that goes with the square root, as `sweep` has it.

    Raises:
        InputError: half a batch is too small to learn from.
    """
    size = recipe.batch_size // 2
    try:
        return replace(recipe, batch_size=size, lr=recipe.lr * (size / recipe.batch_size) ** 0.5)
    except InputError:
        raise InputError(
            f"batch_size is {recipe.batch_size}, which does not fit in memory at {recipe.image_size} px, and half of it "
            "cannot be learnt from. Take a smaller image_size, or a smaller detector."
        ) from None
