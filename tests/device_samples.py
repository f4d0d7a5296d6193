"""Networks on a CUDA device that is not there."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode


def move_to_fake(model: nn.Module, device: str, mode: FakeTensorMode) -> None:
    """Replaces the tensors of a model by ones of a device that need not exist: they have a shape and no values."""
    for module in model.modules():
        for group in (module._parameters, module._buffers):
            for key, tensor in group.items():
                if tensor is not None:
                    moved = mode.from_tensor(tensor.detach()).to(device)
                    is_parameter = group is module._parameters
                    group[key] = torch.nn.Parameter(moved, tensor.requires_grad) if is_parameter else moved
