"""What a step changes before its gradients are known, remembered so that the step can be repeated."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foldfuse.training.state import rng_state, set_rng_state


class Snapshot:
    """What the forward pass changes: the model's buffers and torch's random state. Restored, a step can be repeated."""

    def __init__(self, model: nn.Module) -> None:
        self.device = next(model.parameters()).device
        buffers: dict[torch.dtype, list[Tensor]] = {}  # of one dtype, which a card copies in one launch
        for buffer in model.buffers():
            buffers.setdefault(buffer.dtype, []).append(buffer)
        self._buffers = list(buffers.values())
        self._copies = [[torch.empty_like(b) for b in group] for group in self._buffers]
        self.take()

    def take(self) -> None:
        """Remember the present state."""
        for copies, buffers in zip(self._copies, self._buffers, strict=True):
            torch._foreach_copy_(copies, buffers)
        self._rng = rng_state(self.device)

    def restore_buffers(self) -> None:
        """Give the buffers the values that they had."""
        for copies, buffers in zip(self._copies, self._buffers, strict=True):
            torch._foreach_copy_(buffers, copies)

    def restore(self) -> None:
        """Give buffers and random state the values that they had."""
        self.restore_buffers()
        set_rng_state(self._rng, self.device)
