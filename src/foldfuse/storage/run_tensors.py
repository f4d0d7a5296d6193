"""Reads and writes the tensors of a run folder: the weights for prediction and the checkpoints to resume from.

Nothing that holds NaN or infinity is written or read: the sentence names the tensor. A checkpoint that cannot be used gives way
to the one before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foldfuse.errors import InputError, shown
from foldfuse.system.atomic_files import atomic
from foldfuse.system.finite import first_not_finite

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "weights.safetensors"
CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
MAX_STEPS = 10**12  # more than any training takes
MAX_SECONDS = 1e10  # three centuries

Check = Callable[[Mapping[str, Any]], None]


class NotFinite(FloatingPointError):
    """A tensor to be written holds NaN or infinity. The message says which."""


def save_weights(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Replace the weights for prediction.

    Raises:
        NotFinite: a tensor holds NaN or infinity; nothing is written.
    """
    from safetensors.torch import save_file

    _require_finite(weights, "weights")
    with atomic(folder / WEIGHTS) as path:
        save_file({key: t.detach().cpu().contiguous() for key, t in weights.items()}, path)


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The weights for prediction, on the CPU.

    Raises:
        InputError: there are none yet, or the file is broken or holds NaN or infinity.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    if not path.exists():
        raise InputError(f"{path}: there is no such file. Was the run trained to its end?")
    if not path.is_file():
        raise InputError(f"{path}: is no regular file, expected the weights of a run.")
    try:
        weights: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: is broken ({str(error)[:100]}). Train the run again.") from None
    if name := first_not_finite(weights):
        raise InputError(
            f"{path}: the tensor {name[:100]} holds NaN or infinity, so every output of the network would be wrong. "
            "Train the run again, with a lower learning rate."
        )
    return weights


def save_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Replace the checkpoint; the one before it is kept too.

    Raises:
        NotFinite: a tensor or number is NaN or infinite; nothing is written, and the last checkpoint stays.
    """
    import torch

    _require_finite(state, "state")
    path = folder / CHECKPOINT
    with atomic(path) as temporary:
        torch.save(dict(state), temporary)
        if path.exists():
            path.replace(folder / PREVIOUS)


def load_checkpoint(folder: Path, check: Check | None = None) -> tuple[dict[str, Any] | None, str | None]:
    """The last good checkpoint, or None; and a sentence where one was passed over.

    Args:
        folder: the folder of the run.
        check: raises InputError for a state that does not fit the run; such a checkpoint is passed over too.
    """
    unusable: list[str] = []
    for name in (CHECKPOINT, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            state = _read_state(path)
            if check is not None:
                check(state)
        except InputError as error:
            unusable.append(f"{path}: {error}")
        else:
            return state, f"{unusable[0]}; resuming from the checkpoint before it." if unusable else None
    return None, f"{'; '.join(unusable)}; starting from step 0." if unusable else None


def _read_state(path: Path) -> dict[str, Any]:
    """The state in a checkpoint file. Raises InputError, with a clause that says what is wrong with it."""
    import torch

    if not path.is_file():
        raise InputError("is no regular file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a cut or damaged file can fail in any of torch's, zip's or pickle's ways
        raise InputError("is broken") from None
    if not isinstance(state, dict):
        raise InputError("is broken (it holds no state of a training)")
    for key, limit in (("step", MAX_STEPS), ("ema_steps", MAX_STEPS), ("mosaic_end", MAX_STEPS)):
        value = state.get(key, 0)
        if key == "mosaic_end" and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
            raise InputError(f"is broken ({key} is {shown(value)}, expected a whole number of 0 or more)")
    for key in ("seconds", "data_wait"):
        value = state.get(key, 0.0)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not 0 <= value <= MAX_SECONDS:
            raise InputError(f"is broken ({key} is {shown(value)}, expected a number of 0 or more)")
    if name := first_not_finite(state):
        raise InputError(f"is of no use: {name[:100]} holds NaN or infinity")
    return state


def _require_finite(value: Mapping[str, Any], what: str) -> None:
    if name := first_not_finite(value):
        raise NotFinite(
            f"{name} holds NaN or infinity, so the {what} is not written.".replace("weights is", "weights are")
        )
