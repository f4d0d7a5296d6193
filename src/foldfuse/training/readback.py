"""Readback: numbers on their way from the device to the host. The training loop reads its numbers once a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Readback:
    """A copy of a tensor to the host. On CUDA `read` waits for what was queued before the copy, not for what came after it.

    Args:
        values: (n,).
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self._copied: Any = None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            make_event: Any = torch.cuda.Event
            self._copied = make_event()
            self._copied.record(torch.cuda.current_stream(values.device))

    def read(self) -> list[float]:
        """The n numbers."""
        if self._copied is not None:
            self._copied.synchronize()
        numbers: list[float] = self._values.tolist()
        return numbers
