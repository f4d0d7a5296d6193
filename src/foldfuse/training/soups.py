"""Averages the weights of runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foldfuse.storage.run import Run


def average_weights(runs: Sequence[Run]) -> dict[str, Tensor]:
    """The mean of the runs' weights, batch norm's statistics included; integers are of the first run.

    Statistics that were measured anew on training images made the mean worse, since those images are augmented in training.
    """
    weights = [run.load_weights() for run in runs]
    first = weights[0]
    return {
        name: torch.stack([each[name].float() for each in weights]).mean(0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in first.items()
    }
