"""The moving average of a model's weights: what is predicted with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Ema:
    """Moving average of a model's weights and buffers; young averages forget faster, so that the start is not kept."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.weights = {key: t.detach().clone() for key, t in model.state_dict().items()}

    def load(self, weights: Mapping[str, Tensor], steps: int) -> None:
        """Take over the average that an earlier part of the run has made."""
        for key, t in self.weights.items():
            t.copy_(weights[key])
        self.steps = steps

    @torch.no_grad()
    def update(self, now: Mapping[str, Tensor]) -> None:
        """Move the average towards a model's present weights."""
        self.steps += 1
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        means = [key for key, t in self.weights.items() if t.is_floating_point()]
        torch._foreach_lerp_([self.weights[key] for key in means], [now[key] for key in means], share)
        for key in self.weights.keys() - set(means):
            self.weights[key].copy_(now[key])
