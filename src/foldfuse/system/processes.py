"""Several processes at one training: what they learn is what one process learns from the same global batch.

`torchrun --nproc-per-node 2 -m foldfuse train ...` starts the processes; here they meet. Each makes its part of every
batch. Batch norms take their statistics over all parts, the loss is taken of the whole batch on every process (so that
whatever a detector divides by is the whole batch's, and no detector has to know), and gradients are added up. Process 0
alone keeps the clock and writes files.

With gloo on CPUs, with NCCL on CUDA. PyTorch's own SyncBatchNorm works on CUDA alone, hence the one here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from foldfuse.errors import InputError
from foldfuse.system.device import best_device

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes that work together; one process alone is a world of size 1, where nothing here costs anything.

    Attributes:
        rank: which of them this is, from 0.
        size: how many they are.
        device: that this one computes on.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        """Whether this process writes files and keeps the clock."""
        return self.rank == 0

    def agreed(self, value: float) -> float:
        """The value that process 0 gave; every process must ask."""
        if self.size == 1:
            return value
        said = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.broadcast(said, 0)
        return said.item()

    def gathered(self, value: T) -> list[T]:
        """The values of all processes, in their order; every process must ask."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.size > 1:
            distributed.barrier()

    def part(self, whole: int) -> range:
        """This process's places in a batch of `whole`: consecutive ones, as many as every other process has.

        Raises:
            InputError: the batch cannot be shared evenly.
        """
        if whole % self.size:
            raise InputError(
                f"batch_size is {whole}, and cannot be shared evenly by {self.size} processes. "
                f"The nearest are {max(1, whole // self.size) * self.size} and {(whole // self.size + 1) * self.size}."
            )
        each = whole // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def norms(self) -> AbstractContextManager[Any]:
        """Within it, batch norms in training mode take their statistics over the pictures of all processes."""
        return nullcontext() if self.size == 1 else _Synced()

    def whole(self, raw: Any) -> Any:
        """What the network gave for the whole batch, from its part here. Gradients go back to the own part alone.

        Args:
            raw: a tensor, or tuples, lists and dicts of them; the first dimension of all that are trained is the batch.
        """
        if self.size == 1:
            return raw
        return tree_map(lambda t: _Whole.apply(t, self.rank, self.size) if _trained(t) else t, raw)

    def add_up(self, parameters: Sequence[nn.Parameter]) -> None:
        """Let every gradient be the sum of those of all processes."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        distributed.all_reduce(flat)
        totals = torch.split(flat, [g.numel() for g in gradients])
        for gradient, total in zip(gradients, totals, strict=True):
            gradient.copy_(total.view_as(gradient))


ALONE = World()


@contextmanager
def world() -> Iterator[World]:
    """The world that torchrun tells of in the environment; where it tells of none, this process alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device=best_device())
        return
    device = best_device()
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield World(distributed.get_rank(), size, device)
        distributed.barrier()  # gloo may abort a process whose peer has left already
    finally:
        distributed.destroy_process_group()


def _trained(t: Any) -> bool:
    return isinstance(t, Tensor) and t.requires_grad


class _Whole(torch.autograd.Function):
    """(b, ...) of each process -> (B, ...) of all; back goes the own part of the gradient."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, rank: int, size: int) -> Tensor:
        ctx.rank, ctx.part = rank, len(part)
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(size)]
        distributed.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0][ctx.rank * ctx.part : (ctx.rank + 1) * ctx.part], None, None


class _Synced(TorchFunctionMode):
    """Answers `F.batch_norm`, which every batch norm calls, whichever library its layer is from."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            return _batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm`, its statistics taken over all processes: (b, C, ...) -> (b, C, ...)."""
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    variance, mean = torch.var_mean(_wide(x.detach()), [d for d in range(x.ndim) if d != 1], correction=0)  # (C,)
    here = torch.stack([mean, variance])
    parts = [torch.empty_like(here) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, here)
    means, variances = torch.stack(parts, 1)  # (R, C), over as many pixels each
    mean = means.mean(0)
    variance = variances.mean(0) + (means - mean).square().mean(0)
    number = x.numel() // x.shape[1] * len(parts)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * (number / (number - 1)), momentum)
    return _Normalised.apply(x, mean, variance, weight, bias, eps, number)


def _wide(x: Tensor) -> Tensor:
    """At least float32: half precision is too coarse for sums over many pixels."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _Normalised(torch.autograd.Function):
    """Batch norm with the mean and variance of all processes, through which gradients go back to all of their pictures."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        number: int,
    ) -> Tensor:
        ctx.save_for_backward(x, mean, (variance + eps).rsqrt(), weight)
        ctx.number = number
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, scale, weight = ctx.saved_tensors
        across = [d for d in range(x.ndim) if d != 1]
        shape = [-1 if d == 1 else 1 for d in range(x.ndim)]
        g = _wide(grads[0])
        normal = (_wide(x) - mean.view(shape)) * scale.view(shape)
        own = torch.stack([g.sum(across), (g * normal).sum(across)])  # (2, C)
        total = own.clone()
        distributed.all_reduce(total)
        total /= ctx.number
        gx = g - total[0].view(shape) - normal * total[1].view(shape)
        gx = gx * (scale if weight is None else scale * weight).view(shape)
        return gx.to(x.dtype), None, None, own[1] if weight is not None else None, own[0], None, None
