"""Run folders as a training on a card leaves them, made without one."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from foldfuse.storage.run import Run

SCALER = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 3}


@contextmanager
def saved_on_a_card():
    """A context in which torch writes tensors as those of the first card."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        yield


def as_from_a_card(run: Run, precision: str = "float16") -> None:
    """Change the files of a run to those of a card: its random state, the scaler of the loss, its precision and its tensors.

    With "float16" the card has no bfloat16; with "bfloat16" it has, and its network was compiled.
    """
    state: Any = run.load_checkpoint()[0]
    state["rng"][0]["cuda"] = torch.zeros(16, dtype=torch.uint8)
    with saved_on_a_card():
        run.save_checkpoint(state | {"scaler": SCALER} if precision == "float16" else state)
    facts = json.loads((run.folder / "run.json").read_text())
    facts |= {"trained_on": "cuda", "device": "cuda"}
    compute = {"precision": precision, "matmul": "high", "compiled": precision == "bfloat16", "threads": None}
    facts["compute"] = (facts["compute"] or {}) | compute
    (run.folder / "run.json").write_text(json.dumps(facts))
