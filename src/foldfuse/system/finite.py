"""Finds a tensor that holds NaN or infinity. torch is imported only when tensors are looked at."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any


def first_not_finite(value: Any) -> str | None:
    """The name of the first tensor or number in nested containers that holds NaN or infinity; None where all are finite.

    Args:
        value: dicts, lists and tuples of tensors and numbers, such as a state dict. A name is the keys from the outside in,
            joined by dots: "ema.backbone.bn1.running_var".
    """
    import torch

    tensors = []
    for name, item in _leaves(value, ""):
        if isinstance(item, torch.Tensor):
            if item.is_floating_point() or item.is_complex():
                tensors.append((name, item.detach()))
        elif isinstance(item, float) and not math.isfinite(item):
            return name
    # A sum holds NaN or infinity wherever a term does, and costs a fraction of a look at each number; only a sum that is not
    # finite is looked at closely, for it may be no more than an overflow.
    sums = [(name, tensor, tensor.sum()) for name, tensor in tensors]
    for device in {tensor.device for _, tensor in tensors}:
        here = [(name, tensor, total) for name, tensor, total in sums if tensor.device == device]
        suspects = torch.stack([total.abs().to(torch.float32) for _, _, total in here]).isfinite().tolist()
        for (name, tensor, _), is_finite in zip(here, suspects, strict=True):
            if not is_finite and not bool(tensor.isfinite().all()):
                return name
    return None


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """(name, item) of everything in nested containers that is no container."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{name}.{i}" if name else str(i))
    else:
        yield name, value
