"""World: the processes that torchrun started for one job, and the messages between them.

`torchrun --nproc-per-node 2 -m foldfuse train ...` starts the processes; they meet with NCCL on CUDA, and with gloo on the CPU.
Process 0 alone keeps the clock and writes files. `training/distributed` has the functions for training.
A world of one process needs no torch: an ONNX file predicts without it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from foldfuse.errors import InputError
from foldfuse.system.device import choose_device, current_device

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes that work together. A single process is a world of size 1, where no method communicates.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        device: the device that this process computes on.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and keeps the clock."""
        return self.rank == 0

    def broadcast(self, *values: float) -> list[float]:
        """The values of process 0; every process must call. They go from CPU to CPU, so a GPU goes on computing."""
        if self.size == 1:
            return list(values)
        import torch
        from torch import distributed

        agreed = torch.tensor(values, dtype=torch.float64)
        distributed.broadcast(agreed, 0)
        numbers: list[float] = agreed.tolist()
        return numbers

    def all_gather(self, value: T) -> list[T]:
        """The values of all processes, by rank; every process must call."""
        if self.size == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Return when every process has called."""
        if self.size > 1:
            from torch import distributed

            distributed.barrier()

    def shard(self, batch_size: int) -> range:
        """This process's positions in a batch: consecutive positions, equally many for each process.

        Raises:
            InputError: the batch cannot be shared evenly.
        """
        each, rest = divmod(batch_size, self.size)
        if rest:
            raise InputError(
                f"batch_size is {batch_size}, and cannot be shared evenly by {self.size} processes. "
                f"The nearest are {max(1, each) * self.size} and {(each + 1) * self.size}."
            )
        return range(self.rank * each, (self.rank + 1) * each)


SINGLE_PROCESS = World()


@contextmanager
def open_world(device: str = "auto") -> Iterator[World]:
    """The world that torchrun describes in the environment; this process alone without torchrun.

    Args:
        device: a name that `choose_device` takes. Under torchrun "cuda" means the card of each process's LOCAL_RANK.

    Raises:
        InputError: there is no such device, or several processes cannot share it.
    """
    import torch
    from torch import distributed

    size = int(os.environ.get("WORLD_SIZE", "1"))
    device = choose_device(device)
    if size == 1:
        with current_device(device):
            yield World(device=device)
        return
    if device not in ("cpu", "cuda"):
        raise InputError(f"--device {device}: {size} processes cannot share it. Take --device cuda or --device cpu.")
    if device == "cuda":
        device = choose_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(device)
    distributed.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl")
    try:
        yield World(distributed.get_rank(), size, device)
        distributed.barrier()  # gloo may abort a process whose peer has left already
    finally:
        distributed.destroy_process_group()
