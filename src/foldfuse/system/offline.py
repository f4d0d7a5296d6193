"""No network: with --offline, or with HF_HUB_OFFLINE=1 as the Hugging Face hub reads it, nothing is downloaded."""

from __future__ import annotations

import os
import sys

VARIABLE = "HF_HUB_OFFLINE"  # read by huggingface_hub, transformers and timm; processes that this one starts inherit it


def go_offline() -> None:
    """Forbid downloads in this process and in those that it starts."""
    os.environ[VARIABLE] = "1"
    if (constants := sys.modules.get("huggingface_hub.constants")) is not None:  # it has read the variable already
        constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def is_offline() -> bool:
    """Whether downloads are forbidden."""
    return os.environ.get(VARIABLE, "").strip().upper() in ("1", "ON", "YES", "TRUE")
