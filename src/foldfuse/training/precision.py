"""Settings of the forward pass: number format, memory layout and threads. They change a step's time, and hardly its result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foldfuse.errors import InputError, shown, unknown_name
from foldfuse.storage.run import Run
from foldfuse.system.records import from_plain

PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ComputeConfig:
    """The settings of the forward pass. Losses, the optimizer and the weights themselves are always float32.

    Attributes:
        precision: the precision of the forward pass: "float32", "bfloat16", or "float16" for cards without bfloat16.
        matmul: of float32 matrix products: "highest"; "high" lets CUDA round the factors to TF32, and "medium" to bfloat16.
        channels_last: whether images and weights lie channels last in memory.
        threads: number of threads of torch; None for torch's own choice.
        compiled: whether torch compiles the network.
        graphed: whether a card repeats the network's kernels as a CUDA graph, without the host's work of launching each. It is
            never chosen unasked: it has not run on a card yet (`benchmarks/gpu.py` measures it).
    """

    precision: str = "float32"
    matmul: str = "highest"
    channels_last: bool = True
    threads: int | None = None
    compiled: bool = False
    graphed: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        if self.matmul not in ("highest", "high", "medium"):
            raise unknown_name("precision of matrix products", self.matmul, ("highest", "high", "medium"))
        if self.threads is not None and not 1 <= self.threads <= 4096:
            raise InputError(f"threads is {shown(self.threads)}, and must be in 1..4096")

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory format of weights and images."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def network_input(self, images: Tensor, device: torch.device) -> Tensor:
        """(B, 3, H, W) float32 in 0..1 on the device, in the memory format, from uint8 images."""
        return images.to(device, non_blocking=True, memory_format=self.memory_format).float().div_(255)

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
        if self.compiled:
            parts.append("compiled")
        if self.graphed:
            parts.append("as a CUDA graph")
        return ", ".join(parts)


def default_config(device: torch.device, *, precision: str = "auto") -> ComputeConfig:
    """The configuration without measurement: float32, on CUDA the half precision that the card has, and TF32.

    Args:
        device: where the network computes.
        precision: the recipe's; unless "auto" it takes the place of the device's.
    """
    config = ComputeConfig()
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        config = ComputeConfig("bfloat16" if has_bfloat16 else "float16", "high")
    return config if precision == "auto" else replace(config, precision=precision)


def config_for(stored: ComputeConfig, device: torch.device, *, precision: str) -> ComputeConfig:
    """A stored configuration as this device can compute it: a run may go on where it did not begin.

    Args:
        stored: the configuration of an earlier part of the run, perhaps of another device.
        device: the device of this part.
        precision: the recipe's; "auto" lets the device's default take the place of one that does not suit the device. On a CPU
            that is every half precision of a card, and bfloat16 stays only where it was measured to be faster on a CPU.
    """
    default = default_config(device)
    if device.type == "cpu":  # "high" is what a card has, and no CPU
        foreign = stored.precision == "float16" or stored.matmul == "high"
    else:
        foreign = stored.precision not in ("float32", default.precision)
    if precision == "auto" and foreign:
        stored = replace(stored, precision=default.precision)
    if device.type == "cuda":
        return replace(stored, matmul="high", threads=None)
    matmul = "highest" if stored.matmul == "high" else stored.matmul
    return replace(stored, matmul=matmul, compiled=False, graphed=False)


def stored_config(run: Run) -> ComputeConfig | None:
    """The compute configuration in a run's metadata; None where there is none yet.

    Raises:
        InputError: the metadata hold something else.
    """
    compute, where = run.metadata.compute, str(run.folder / "run.json")
    return None if compute is None else from_plain(compute, ComputeConfig, where=where, what="a compute configuration")
