"""The training loop, read from top to bottom.

Every schedule is a function of the share of the budget that is spent, so that training ends exactly on time. What a
step sees is a function of (seed, step) alone, so that a run that was stopped goes on as if it had not been. The same loop
serves one process and the many of torchrun: see `distributed`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from foldfuse.data.dataset import Sample
from foldfuse.recipes import ClassifierRecipe, Recipe
from foldfuse.system.processes import ALONE, World
from foldfuse.system.progress import Progress, no_progress
from foldfuse.system.signals import deferred_interrupts
from foldfuse.training.budget import Budget, lr_scale
from foldfuse.training.optimizers import Ema, ScheduleFree, averaged_state, detector_optimizer
from foldfuse.training.precision import Setting, usual


class BatchSource(Protocol):
    """What each step of a training sees; `Batches` for detectors."""

    @property
    def samples(self) -> Sequence[Sample]:
        """Whose pictures they are."""

    def indices(self, step: int) -> list[int]:
        """Positions in `samples` that a step sees."""

    def batch(self, step: int, spent: float, part: range | None = None) -> tuple[Tensor, list[Any]]:
        """(B, 3, H, W) uint8, and B targets."""


def fit(
    model: Any,
    batches: BatchSource,
    recipe: Recipe | ClassifierRecipe,
    budget: Budget,
    *,
    log: list[dict[str, Any]],
    resume: Mapping[str, Any] | None = None,
    checkpoint: Callable[[dict[str, Any]], None] | None = None,
    every: float = 60.0,
    progress: Progress = no_progress,
    setting: Setting | None = None,
    together: World = ALONE,
    make_optimizer: Callable[[Any, Any], Optimizer] = detector_optimizer,
) -> dict[str, Any]:
    """Train `model` in place until the budget is gone.

    Args:
        model: keeps the detector contract.
        batches: what each step sees.
        recipe: rates and schedules.
        budget: when to stop.
        log: a row is appended for each step.
        resume: a state that an earlier part of the run left. Without it, `model` is trained from step 0 as it is.
        checkpoint: is given the state about every `every` seconds, and at the end.
        every: seconds between checkpoints.
        progress: is told the share of the budget that is spent.
        setting: how it is computed; the usual one of the device by default.
        together: the processes that train as one.
        make_optimizer: gives the optimizer of a model and its recipe.

    Returns:
        The state at the end: "model", "ema", "ema_steps", "optimizer", "scaler", "step", "seconds", "loading", "rng".

    Raises:
        FloatingPointError: the loss is not finite; the step, the terms and the pictures are named.
        KeyboardInterrupt: the step that an interrupt came in is over, and its state was given to `checkpoint`.
    """
    device = next(model.parameters()).device
    setting = setting or usual(device)
    model.to(memory_format=setting.memory_format)
    if resume is not None:
        model.load_state_dict(resume["model"])
    model.freeze(recipe.frozen_stages)  # after the weights are there: the frozen part is a copy
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(model, recipe)
    averages = isinstance(optimizer, ScheduleFree)  # by itself: its rate does not fall, and no other average is taken
    lr_decay_start = 1.0 if averages else recipe.lr_decay_start
    ema, step, loading = Ema(model, 0.0 if averages else recipe.ema_decay), 0, 0.0
    scaler = setting.scaler(device)
    if resume is not None:
        scaler.load_state_dict(resume["scaler"])
        optimizer.load_state_dict(resume["optimizer"])
        ema.load(resume["ema"], resume["ema_steps"])
        step, loading = resume["step"], resume["loading"]
        _set_rng(resume["rng"], together)
        budget.used += resume["seconds"]

    def state() -> dict[str, Any]:
        return {
            "model": model.state_dict(),
            "ema": ema.weights,
            "ema_steps": ema.steps,
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "step": step,
            "seconds": budget.elapsed(),
            "loading": loading,
            "rng": together.gathered(_rng(device)),
        }

    saved, part = budget.elapsed(), together.part(recipe.batch_size)
    with deferred_interrupts() as interrupted, ThreadPoolExecutor(1) as ahead, setting.applied():
        spent = together.agreed(budget.spent(step))
        coming = ahead.submit(batches.batch, step, spent, part)
        while spent < 1:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * lr_scale(spent, recipe.warmup_fraction, lr_decay_start)
            began = budget.elapsed()
            images, targets = coming.result()
            # The next batch is made while this one is learnt from; which it is, and how, its step alone decides.
            coming = ahead.submit(batches.batch, step + 1, together.agreed(budget.spent(step + 1)), part)
            if device.type == "cuda":
                images = images.pin_memory()
            images = images.to(device, non_blocking=True, memory_format=setting.memory_format).float().div_(255)
            loading += budget.elapsed() - began

            with setting.autocast(device), together.norms():
                raw = model(images)
            terms = model.loss(together.whole(raw), [t for some in together.gathered(targets) for t in some])
            loss = sum(terms.values())
            if not loss.isfinite():
                raise FloatingPointError(_not_finite(step, terms, batches))
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            together.add_up(parameters)
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, recipe.grad_clip_norm)
            scaler.step(optimizer)
            scaler.update()
            ema.update(averaged_state(model, optimizer))

            row = {"step": step, "seconds": round(budget.elapsed(), 3), "spent": round(spent, 6)}
            row |= {"lr": recipe.lr * lr_scale(spent, recipe.warmup_fraction, lr_decay_start), "loss": loss.item()}
            log.append(row | {name: term.item() for name, term in terms.items()} | {"loading": round(loading, 3)})
            step += 1
            spent = together.agreed(budget.spent(step))
            progress(spent)
            if together.agreed(interrupted()):
                if checkpoint is not None:
                    checkpoint(state())
                raise KeyboardInterrupt
            if checkpoint is not None and spent < 1 and together.agreed(budget.elapsed() - saved) > every:
                checkpoint(state())
                saved = budget.elapsed()
    last = state()
    if checkpoint is not None:
        checkpoint(last)
    return last


def _rng(device: torch.device) -> dict[str, Tensor]:
    """The random state that a step draws from: torch's alone. Batches have generators of their own, made from the seed."""
    return {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state()} if device.type == "cuda" else {})


def _set_rng(states: Sequence[Mapping[str, Tensor]], together: World) -> None:
    """Go on from what `_rng` gave in each process; where their number has changed, from that of another."""
    mine = states[together.rank % len(states)]
    torch.set_rng_state(mine["cpu"])
    if "cuda" in mine and torch.cuda.is_available():
        torch.cuda.set_rng_state(mine["cuda"])


def _not_finite(step: int, terms: Mapping[str, Tensor], batches: BatchSource) -> str:
    values = ", ".join(f"{name} {term.item():g}" for name, term in terms.items())
    names = ", ".join(batches.samples[i].file_name for i in batches.indices(step))
    return f"step {step}: the loss is not finite ({values}). The pictures were {names}. Try a lower lr."
