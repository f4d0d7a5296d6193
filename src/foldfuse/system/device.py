"""Which device networks run on."""

from __future__ import annotations

import torch


def best_device() -> str:
    """ "cuda" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_device(name: str) -> torch.device:
    """The torch device that `--device` names; "auto" is the best one."""
    return torch.device(best_device() if name == "auto" else name)
