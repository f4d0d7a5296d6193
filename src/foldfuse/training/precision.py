"""Settings of the forward pass: number format, memory layout and threads. They change a step's time, and hardly its result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ComputeConfig:
    """The settings of the forward pass. Losses, the optimizer and the weights themselves are always float32.

    Attributes:
        precision: the precision of the forward pass: "float32", "bfloat16", or "float16" for cards without bfloat16.
        matmul: "highest", or "medium" to let matrix products round their factors to bfloat16.
        channels_last: whether images and weights lie channels last in memory.
        threads: number of threads of torch; None for torch's own choice.
    """

    precision: str = "float32"
    matmul: str = "highest"
    channels_last: bool = True
    threads: int | None = None

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory format of weights and images."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context of the forward pass."""
        dtype = torch.float16 if self.precision == "float16" else torch.bfloat16
        return torch.autocast(device.type, dtype, enabled=self.precision != "float32")

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """The scaler of the loss, enabled for float16 alone."""
        return torch.amp.GradScaler(device.type, enabled=self.precision == "float16")

    @contextmanager
    def applied(self) -> Iterator[None]:
        """A context in which torch computes with these threads and matrix products."""
        threads, matmul = torch.get_num_threads(), torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.matmul)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(matmul)
            torch.set_num_threads(threads)

    def __str__(self) -> str:
        parts = [self.precision, "channels last" if self.channels_last else "channels first"]
        if self.matmul != "highest":
            parts.append(f"{self.matmul} matrix products")
        if self.threads is not None:
            parts.append(f"{self.threads} thread{'s' if self.threads > 1 else ''}")
        return ", ".join(parts)


def default_config(device: torch.device) -> ComputeConfig:
    """The configuration without measurement: float32, on CUDA the half precision that the card has."""
    if device.type != "cuda":
        return ComputeConfig()
    return ComputeConfig("bfloat16" if torch.cuda.is_bf16_supported() else "float16")
