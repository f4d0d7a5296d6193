"""The state of a training, as a checkpoint holds it: checks that it fits a model, before anything is changed.

States of earlier versions lack `_LATER` fields, and can be resumed all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from foldfuse.errors import InputError
from foldfuse.models.pretrained.state_dicts import require_same_tensors, shape_of

_SETTINGS = {"params", "lr", "betas", "eps", "weight_decay"}  # later versions of torch add more
_AVERAGES = ("step", "exp_avg", "exp_avg_sq")  # AdamW's, of each parameter
_TYPES = {
    "model": dict,
    "ema": dict,
    "ema_steps": int,
    "optimizer": dict,
    "scaler": dict,
    "step": int,
    "seconds": float | int,
    "data_wait": float | int,
    "rng": list,
}
_LATER = {"micro_batch": int, "skipped": int}


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """torch's random state, which DropPath draws from; batches have generators of their own, made from the seed."""
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_rng_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore torch's random state; that of CUDA where there is one."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def check_state(state: Mapping[str, Any], model: Any, optimizer: Optimizer) -> None:
    """Raise InputError, which names the part, unless `state` is a whole state of a training of this model.

    Args:
        state: a checkpoint as `fit` makes it.
        model: the model, with the recipe's stages frozen.
        optimizer: a new optimizer of the model.
    """
    for name, kind in _TYPES.items():
        if not isinstance(state.get(name), kind):
            raise InputError(f"is not the state of a training: {name} is missing or of another type")
    for name, kind in _LATER.items():
        if not isinstance(state.get(name, 0), kind):
            raise InputError(f"is not the state of a training: {name} is of another type")
    if "mosaic_end" not in state:
        raise InputError("is not the state of a training: mosaic_end is missing")
    own = model.state_dict()
    for part in ("model", "ema"):
        require_same_tensors(state[part], own, source=f"its part {part}")
    _check_optimizer(state["optimizer"], optimizer)
    like = torch.get_rng_state()
    for own_rng in state["rng"]:
        cpu = own_rng.get("cpu") if isinstance(own_rng, dict) else None
        if not isinstance(cpu, Tensor) or (cpu.dtype, cpu.shape) != (like.dtype, like.shape):
            raise InputError("is not the state of a training: rng is of another type")
    if not state["rng"]:
        raise InputError("is not the state of a training: rng is empty")


def _check_optimizer(state: Mapping[str, Any], optimizer: Optimizer) -> None:
    """Raise InputError unless an optimizer's state has the groups of `optimizer`, and averages of its parameters' shapes."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    groups, averages = state.get("param_groups"), state.get("state")
    if not isinstance(groups, list) or not isinstance(averages, dict):
        raise InputError("is not the state of a training: optimizer is of another type")
    own_groups = optimizer.param_groups
    if len(groups) != len(own_groups) or not all(_is_like(*pair) for pair in zip(groups, own_groups, strict=True)):
        raise InputError("its optimizer is of other parameters: another recipe, or another version of the network")
    for index, own in averages.items():
        parameter = parameters[index] if isinstance(index, int) and 0 <= index < len(parameters) else None
        if parameter is None or not isinstance(own, dict) or not all(isinstance(own.get(n), Tensor) for n in _AVERAGES):
            raise InputError("its optimizer is of other parameters: another recipe, or another version of the network")
        for name, value in own.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise InputError(
                    f"its optimizer has {name} of the shape {shape_of(value)} for a tensor of {shape_of(parameter)}"
                )


def _is_like(group: Any, own: Mapping[str, Any]) -> bool:
    """Whether a group of an optimizer's state has AdamW's settings, and as many parameters as the optimizer's own group."""
    return isinstance(group, dict) and group.keys() >= _SETTINGS and len(group["params"]) == len(own["params"])
