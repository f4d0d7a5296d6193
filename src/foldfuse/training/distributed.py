"""Training over several processes, which together compute the same steps as one process with the same global batch.

Each process computes forward pass, loss and backward pass of its shard of every batch, and DistributedDataParallel averages the
gradients while the backward pass runs. Two things look beyond a shard: batch norms, whose statistics are of all shards, and
normalizers of losses, which are counts over all shards (`models.detection.normalizers`). A single process has no extra cost.

On CUDA, batch norms become torch's SyncBatchNorm. It works on CUDA alone, so that processes on CPUs have one of ours: see
docs/adr/0007-several-processes.md.

Shapes: b images of this process's shard, C channels, R processes.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import convert_sync_batchnorm
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from foldfuse.models.detection.normalizers import at_least_float32
from foldfuse.system.processes import World


def sync_batch_norms(model: nn.Module, world: World) -> None:
    """Make the batch norms of a model on CUDA take their statistics over all processes; parameters and names stay."""
    if world.size > 1 and next(model.parameters()).is_cuda:
        converted = convert_sync_batchnorm(model)  # in place, unless the model itself is a batch norm
        assert converted is model


def synced_batch_norm(world: World) -> AbstractContextManager[Any]:
    """A context in which batch norms on CPUs, in training mode, take their statistics over the images of all processes."""
    return _SyncedBatchNorm() if world.size > 1 and world.device == "cpu" else nullcontext()


def distributed_network(network: nn.Module, world: World) -> nn.Module:
    """`network` such that its gradients are means over the processes; a single process has the network itself.

    Every step must train the same parameters as the first.
    """
    if world.size == 1:
        return network
    # Buffers need no exchange: each process computes the same statistics. The option's name depends on torch's version.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    no_exchange: dict[str, Any] = {option: False}
    return DistributedDataParallel(network, static_graph=True, **no_exchange)


def sum_over_processes(values: Tensor, world: World) -> Tensor:
    """The sum of a tensor without gradient over all processes; every process must call."""
    if world.size == 1:
        return values
    total = values.detach().clone()
    distributed.all_reduce(total)
    return total


def loss_terms(model: Any, raw: Any, targets: Sequence[Any], world: World) -> dict[str, Tensor]:
    """The terms of this shard's part of the loss: over all processes they sum to the loss of the whole batch.

    A loss that takes `batch_total` divides by counts over the whole batch. Another one divides by counts over its shard, and the
    mean over the processes is taken: this is the loss of the whole batch where it is a mean over images, else nearly.
    """
    if world.size == 1:
        whole: dict[str, Tensor] = model.loss(raw, targets)
        return whole
    if "batch_total" in inspect.signature(model.loss).parameters:
        shard: dict[str, Tensor] = model.loss(
            raw, targets, batch_total=lambda counts: sum_over_processes(counts, world)
        )
        return shard
    return {name: term / world.size for name, term in model.loss(raw, targets).items()}


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
    variance, mean = torch.var_mean(at_least_float32(x.detach()), [d for d in range(x.ndim) if d != 1], correction=0)
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
        g = at_least_float32(grads[0])
        normalized = (at_least_float32(x) - mean.view(shape)) * scale.view(shape)
        own = torch.stack([g.sum(pixels), (g * normalized).sum(pixels)])  # (2, C)
        total = own.clone()
        distributed.all_reduce(total)
        total /= ctx.count
        gx = g - total[0].view(shape) - normalized * total[1].view(shape)
        gx = gx * (scale if weight is None else scale * weight).view(shape)
        return gx.to(x.dtype), None, None, own[1] if weight is not None else None, own[0], None, None
