"""Reads a file's tensors, and compares them with a network's: a tensor that is missing, unknown or of another shape is named.

Shapes: as each tensor has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from foldfuse.errors import InputError
from foldfuse.models.pretrained.checkpoint import read_checkpoint, read_safetensors, shown
from foldfuse.system.finite import first_not_finite

WRAPPERS = (
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
    "backbone.",
    "encoder.",
)  # of DataParallel, torch.compile, trainers


def read_state(
    path: Path, *, expected: str, inside: Sequence[str] = (), inert: Sequence[str] = ()
) -> dict[str, Tensor]:
    """The state dict in a file of torch.save or a .safetensors file; no code in the file is executed.

    Args:
        path: the file.
        expected: what the file should be, for the sentence.
        inside: names under which a checkpoint may hold its state dict; the first one found is taken.
        inert: see `read_checkpoint`.

    Raises:
        InputError: the file is missing, broken or unsafe, or holds something else.
    """
    loaded: Any = read_safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path, inert=inert)
    if isinstance(loaded, dict):
        loaded = next((loaded[key] for key in inside if isinstance(dict.get(loaded, key), dict)), loaded)
    if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in dict.values(loaded)):
        raise InputError(f"{path}: holds no state dict, that is, tensors by name. Expected {expected}.")
    return {str(key): t for key, t in dict.items(loaded)}


def load_exactly(model: nn.Module, state: Any, *, source: str) -> None:
    """Load `state` into `model`, in place.

    Args:
        model: the network.
        state: a state dict of the same tensors.
        source: the file or folder, for the sentence.

    Raises:
        InputError: a tensor is missing, unknown or of another shape.
    """
    require_same_tensors(state, model.state_dict(), source=source)
    model.load_state_dict(state)


def require_same_tensors(state: Any, expected: Mapping[str, Tensor], *, source: str) -> None:
    """Raise InputError, which names the first tensor, unless `state` has the tensors of `expected` in their shapes."""
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise InputError(f"{source}: holds no tensors by name, expected the state of the network.")
    for what, keys in (
        ("lacks the tensor", [key for key in expected if key not in state]),
        ("has a tensor that the network does not have,", [key for key in state if key not in expected]),
    ):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise InputError(f"{source}: {what} {shown(keys[0])}{more}. These are the weights of another network.")
    for key, t in expected.items():
        if state[key].shape != t.shape:
            raise InputError(
                f"{source}: {shown(key)} has the shape {shape_of(state[key])}, and in the network {shape_of(t)}. "
                "These are the weights of another network."
            )
        if state[key].is_floating_point() != t.is_floating_point():
            kinds = ("whole numbers", "numbers with fractions")
            found, own = kinds[state[key].is_floating_point()], kinds[t.is_floating_point()]
            raise InputError(f"{source}: {shown(key)} holds {found}, and in the network {own}. The file is damaged.")


def with_counters(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the counters of the batch norms in `own` that it lacks: older files and frozen batch norms have none."""
    return {**{key: t for key, t in own.items() if key.endswith("num_batches_tracked")}, **state}


def require_finite(state: Mapping[str, Tensor], *, source: str) -> None:
    """Raise InputError, which names the tensor, where one holds NaN or infinity."""
    if name := first_not_finite(state):
        raise InputError(
            f"{source}: the tensor {shown(name)} holds NaN or infinity, so every output of the network would be wrong. "
            "Take other weights."
        )


def without_wrappers(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` without the prefix that a wrapper such as DataParallel put before the name of every tensor.

    A prefix is taken off only where all names have it and more names of the network appear without it.
    """
    bare = dict(state)
    while bare:
        prefix = next((p for p in WRAPPERS if all(key.startswith(p) for key in bare)), None)
        if prefix is None:
            return bare
        shorter = {key.removeprefix(prefix): t for key, t in bare.items()}
        if len(shorter.keys() & expected.keys()) < len(bare.keys() & expected.keys()):
            return bare
        bare = shorter
    return bare


def shape_of(t: Tensor) -> str:
    """The shape as text, such as "64 x 3 x 3 x 3"; "a number" where there is none."""
    return " x ".join(map(str, t.shape)) or "a number"
