"""Training over several processes, which together compute the same steps as one process with the same global batch.

Each process computes the forward pass of its shard of every batch. Batch norms take their statistics over all shards, the
loss is computed of the whole batch on every process (so that a detector may divide by a count over the whole
batch), and gradients are summed. A single process has no extra cost.

torch's own SyncBatchNorm works on CUDA alone, and layers of other libraries do not use it; so this module has its own.

Shapes: B images of the batch, b of this process's shard, C channels, R processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from foldfuse.system.processes import World


def synced_batch_norm(world: World) -> AbstractContextManager[Any]:
    """A context in which batch norms in training mode take their statistics over the images of all processes."""
    return nullcontext() if world.size == 1 else _SyncedBatchNorm()


def gather_batch(raw: Any, world: World) -> Any:
    """The network's output for the whole batch, from its output for this process's shard.

    Gradients flow back to this process's shard alone.

    Args:
        raw: a tensor, or tuples, lists and dicts of tensors; the first dimension of each trained tensor is the batch.
        world: the processes.
    """
    if world.size == 1:
        return raw
    return tree_map(lambda t: _GatherBatch.apply(t, world.rank, world.size) if _is_trained(t) else t, raw)


def sum_gradients(parameters: Sequence[nn.Parameter], world: World) -> None:
    """Replace every gradient by its sum over all processes."""
    if world.size == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    distributed.all_reduce(flat)
    sums = torch.split(flat, [g.numel() for g in gradients])
    for gradient, total in zip(gradients, sums, strict=True):
        gradient.copy_(total.view_as(gradient))


def _is_trained(t: Any) -> bool:
    return isinstance(t, Tensor) and t.requires_grad


class _GatherBatch(torch.autograd.Function):
    """(b, ...) of each process -> (B, ...); the gradient of this process's shard flows back."""

    @staticmethod
    def forward(ctx: Any, shard: Tensor, rank: int, size: int) -> Tensor:
        ctx.rank, ctx.length = rank, len(shard)
        shards = [torch.empty_like(shard, memory_format=torch.contiguous_format) for _ in range(size)]
        distributed.all_gather(shards, shard.contiguous())
        return torch.cat(shards)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0][ctx.rank * ctx.length : (ctx.rank + 1) * ctx.length], None, None


class _SyncedBatchNorm(TorchFunctionMode):
    """Answers `F.batch_norm`, which the batch norm layers of every library call."""

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
    """`F.batch_norm` with statistics over all processes: (b, C, ...) -> (b, C, ...)."""
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    variance, mean = torch.var_mean(_at_least_float32(x.detach()), [d for d in range(x.ndim) if d != 1], correction=0)
    own = torch.stack([mean, variance])  # (2, C)
    shards = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(shards, own)
    means, variances = torch.stack(shards, 1)  # (R, C), each over equally many pixels
    mean = means.mean(0)
    variance = variances.mean(0) + (means - mean).square().mean(0)
    count = x.numel() // x.shape[1] * len(shards)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * (count / (count - 1)), momentum)
    return _Normalize.apply(x, mean, variance, weight, bias, eps, count)


def _at_least_float32(x: Tensor) -> Tensor:
    """`x`, or its float32 copy where `x` is half precision, which is too coarse for sums over many pixels."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _Normalize(torch.autograd.Function):
    """Batch norm with the mean and variance of all processes, through which gradients flow to the images of all."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        count: int,
    ) -> Tensor:
        ctx.save_for_backward(x, mean, (variance + eps).rsqrt(), weight)
        ctx.count = count
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, scale, weight = ctx.saved_tensors
        pixels = [d for d in range(x.ndim) if d != 1]
        shape = [-1 if d == 1 else 1 for d in range(x.ndim)]
        g = _at_least_float32(grads[0])
        normalized = (_at_least_float32(x) - mean.view(shape)) * scale.view(shape)
        own = torch.stack([g.sum(pixels), (g * normalized).sum(pixels)])  # (2, C)
        total = own.clone()
        distributed.all_reduce(total)
        total /= ctx.count
        gx = g - total[0].view(shape) - normalized * total[1].view(shape)
        gx = gx * (scale if weight is None else scale * weight).view(shape)
        return gx.to(x.dtype), None, None, own[1] if weight is not None else None, own[0], None, None
