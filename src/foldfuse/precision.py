"""How numbers are kept and laid out while training: the settings that change a step's time, and hardly what it learns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Setting:
    """How the forward pass computes. Losses, the optimizer and the weights themselves are always float32.

    Attributes:
        precision: of the forward pass: "float32", "bfloat16", or "float16" for cards without bfloat16.
        matmul: "highest", or "medium" to let matrix products round their factors to bfloat16.
        channels_last: whether pictures lie channels last.
        threads: that torch computes with; None for as many as it takes by itself.
    """

    precision: str = "float32"
    matmul: str = "highest"
    channels_last: bool = True
    threads: int | None = None

    @property
    def memory_format(self) -> torch.memory_format:
        """Of weights and pictures."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context of the forward pass."""
        kind = torch.float16 if self.precision == "float16" else torch.bfloat16
        return torch.autocast(device.type, kind, enabled=self.precision != "float32")

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """The scaler of the loss, which float16 alone needs."""
        return torch.amp.GradScaler(device.type, enabled=self.precision == "float16")

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it, torch computes with these threads and matrix products."""
        threads, matmul = torch.get_num_threads(), torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.matmul)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(matmul)
            torch.set_num_threads(threads)

    def to_dict(self) -> dict[str, Any]:
        """As run.json keeps it."""
        return asdict(self)

    def __str__(self) -> str:
        parts = [self.precision, "channels last" if self.channels_last else "channels first"]
        if self.matmul != "highest":
            parts.append(f"{self.matmul} matrix products")
        if self.threads is not None:
            parts.append(f"{self.threads} thread{'s' if self.threads > 1 else ''}")
        return ", ".join(parts)


def usual(device: torch.device) -> Setting:
    """What is taken unmeasured: float32 on a CPU, the half precision that the card has on CUDA."""
    if device.type != "cuda":
        return Setting()
    return Setting("bfloat16" if torch.cuda.is_bf16_supported() else "float16")
