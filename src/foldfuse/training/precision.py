"""How numbers are kept and laid out while training: the settings that change a step's time, and hardly what it learns.

The probe: a few steps in several settings, to find the fastest that computes the same, remembered for this machine.

A setting is changed in one respect at a time, and a change is kept only where a step takes clearly less time and the loss
is that of float32 to within `TOLERANCE`. Nothing of it reaches the training but the setting: the steps are made by a copy
of the model, and the random state is put back.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foldfuse.errors import InputError
from foldfuse.system import host
from foldfuse.system.atomic_files import write_text


@dataclass(frozen=True)
class Setting:
    """How the forward pass computes. Losses, the optimizer and the weights themselves are always float32.

    Attributes:
        precision: of the forward pass: "float32", "bfloat16", or "float16" for cards without bfloat16.
        matmul: "highest", or "medium" to let matrix products round their factors to bfloat16.
        channels_last: whether pictures lie channels last.
        threads: that torch computes with; None for as many as it takes by itself.
    """

    precision: str = "float32"
    matmul: str = "highest"
    channels_last: bool = True
    threads: int | None = None

    @property
    def memory_format(self) -> torch.memory_format:
        """Of weights and pictures."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context of the forward pass."""
        kind = torch.float16 if self.precision == "float16" else torch.bfloat16
        return torch.autocast(device.type, kind, enabled=self.precision != "float32")

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """The scaler of the loss, which float16 alone needs."""
        return torch.amp.GradScaler(device.type, enabled=self.precision == "float16")

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it, torch computes with these threads and matrix products."""
        threads, matmul = torch.get_num_threads(), torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.matmul)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(matmul)
            torch.set_num_threads(threads)

    def to_dict(self) -> dict[str, Any]:
        """As run.json keeps it."""
        return asdict(self)

    def __str__(self) -> str:
        parts = [self.precision, "channels last" if self.channels_last else "channels first"]
        if self.matmul != "highest":
            parts.append(f"{self.matmul} matrix products")
        if self.threads is not None:
            parts.append(f"{self.threads} thread{'s' if self.threads > 1 else ''}")
        return ", ".join(parts)


def usual(device: torch.device) -> Setting:
    """What is taken unmeasured: float32 on a CPU, the half precision that the card has on CUDA."""
    if device.type != "cuda":
        return Setting()
    return Setting("bfloat16" if torch.cuda.is_bf16_supported() else "float16")


WORTH = 0.93  # of the time: a change must bring a step below this share, more than a busy machine's noise
TOLERANCE = 0.02  # of the loss
ROUNDS = 3  # timed steps of each setting, after one that is not timed; the fastest counts
SHARE = 0.03  # of the budget that probing may take
LARGEST_SHARE = 0.06  # the same where steps are so slow that a few pictures must do: there a change gains most
FEW = 2  # pictures


@dataclass(frozen=True)
class AutotuneResult:
    """What the probe found.

    Attributes:
        setting: to train with.
        gain: how many times as fast as the usual setting a step is.
        tried: {setting in words: seconds of a step, or why it was left out}.
    """

    setting: Setting
    gain: float
    tried: Mapping[str, float | str]

    def to_dict(self) -> dict[str, Any]:
        """As run.json and the machine's memory keep it."""
        return {"setting": asdict(self.setting), "gain": self.gain, "tried": dict(self.tried)}

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> AutotuneResult:
        """What `to_dict` gave."""
        return AutotuneResult(Setting(**value["setting"]), value["gain"], value["tried"])

    def __str__(self) -> str:
        return f"computing in {self.setting}: {self.gain:.2f} x the usual speed"


def probe(
    model: Any,
    batch: tuple[Tensor, Sequence[Any]],
    *,
    frozen_stages: int,
    seconds: float,
    key: str,
    memory: Path | None = None,
) -> AutotuneResult | None:
    """The fastest setting for training `model`, remembered under `key`; None where measuring it would take too long.

    Args:
        model: keeps the detector contract; it is not changed.
        batch: a batch as training sees it.
        frozen_stages: of the recipe.
        seconds: of the budget.
        key: of what the answer depends on besides the machine.
        memory: JSON file of earlier answers; that of the user's cache by default.
    """
    memory = memory or cache_folder() / "probe.json"
    facts = host.describe()
    key = " | ".join([*(str(facts[name]) for name in ("cpu", "cores", "device", "torch", "foldfuse")), key])
    known = _known(memory)
    if key in known:
        with suppress(KeyError, TypeError):
            return AutotuneResult.from_dict(known[key])
    rng = torch.get_rng_state()
    found = _measured(model, batch, frozen_stages, seconds)
    torch.set_rng_state(rng)
    if found is not None:
        with suppress(InputError):  # a cache that cannot be written is measured again
            write_text(memory, json.dumps(_known(memory) | {key: found.to_dict()}, indent=1))
    return found


def cache_folder() -> Path:
    """Where Foldfuse keeps what it can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "foldfuse"


def changes(best: Setting, device: torch.device) -> Generator[Setting, Setting, None]:
    """Settings to try, each against the best so far, which is sent in."""
    if device.type == "cpu":
        best = yield replace(best, matmul="medium")
        best = yield replace(best, precision="bfloat16")
    best = yield replace(best, channels_last=not best.channels_last)
    if device.type == "cpu" and torch.get_num_threads() > 1:
        yield replace(best, threads=torch.get_num_threads() // 2)


def affordable(step: float, pictures: int, seconds: float) -> tuple[int, int] | None:
    """How many pictures and timed steps of each setting there is time to measure; None where even the fewest take too long.

    Args:
        step: seconds of one with `FEW` pictures.
        pictures: of a batch.
        seconds: of the budget.
    """
    for count, rounds, share in ((pictures, ROUNDS, SHARE), (pictures, 1, SHARE), (FEW, 1, LARGEST_SHARE)):
        if 4 * (1 + rounds) * step * count / FEW <= share * seconds:
            return count, rounds
    return None


def _measured(
    model: Any, batch: tuple[Tensor, Sequence[Any]], frozen_stages: int, budget: float
) -> AutotuneResult | None:
    """The best setting by measurement; None where a single step shows that it would take too much of `budget` seconds."""
    device = next(model.parameters()).device
    best = usual(device)
    images, targets = batch
    one, _ = _step(model, (images[:FEW], targets[:FEW]), frozen_stages, best, rounds=0)
    found = affordable(one, len(images), budget)
    if found is None:
        return None
    count, rounds = found
    batch = images[:count], targets[:count]
    usual_time, usual_loss = _step(model, batch, frozen_stages, best, rounds=rounds)
    tried: dict[str, float | str] = {str(best): round(usual_time, 4)}
    best_time = usual_time
    candidates = changes(best, device)
    trial = next(candidates, None)
    while trial is not None:
        seconds, loss = _step(model, batch, frozen_stages, trial, rounds=rounds)
        if abs(loss - usual_loss) > TOLERANCE * abs(usual_loss):
            tried[str(trial)] = f"its loss is {loss:.4g}, not {usual_loss:.4g}"
        else:
            tried[str(trial)] = round(seconds, 4)
            if seconds < WORTH * best_time:
                best, best_time = trial, seconds
        try:
            trial = candidates.send(best)
        except StopIteration:
            break
    return AutotuneResult(best, round(usual_time / best_time, 3), tried)


def _step(
    model: Any, batch: tuple[Tensor, Sequence[Any]], frozen_stages: int, setting: Setting, *, rounds: int
) -> tuple[float, float]:
    """Seconds of the fastest step of a copy of `model`, the first aside unless it is the only one; and the loss of the first."""
    device = next(model.parameters()).device
    images, targets = batch[0].to(device, memory_format=setting.memory_format).float().div_(255), batch[1]
    mine = copy.deepcopy(model).to(memory_format=setting.memory_format)
    mine.freeze(frozen_stages)
    times, losses = [], []
    with setting.applied():
        for _ in range(1 + rounds):
            began = time.perf_counter()
            with setting.autocast(device):
                raw = mine(images)
            loss = sum(mine.loss(raw, targets).values())
            loss.backward()
            losses.append(loss.item())
            mine.zero_grad(set_to_none=True)
            times.append(time.perf_counter() - began)
    return min(times[1:] or times), losses[0]


def _known(memory: Path) -> dict[str, Any]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
