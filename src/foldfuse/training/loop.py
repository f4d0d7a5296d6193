"""The training loop, to be read from top to bottom.

Every schedule is a function of the share of the budget that is spent, so that training ends on time. A step's batch is a
function of (seed, step) and of the step at which mosaics end, which the checkpoint keeps; a resumed training thus equals one
without interruption. The same loop serves one process and several: see `distributed`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from foldfuse.models.pretrained.state_dicts import load_exactly
from foldfuse.recipes import ClassifierRecipe, Recipe
from foldfuse.system.signals import deferred_interrupts
from foldfuse.training.batches import BatchSource
from foldfuse.training.budget import lr_scale
from foldfuse.training.distributed import sync_batch_norms
from foldfuse.training.gradients import Gradients
from foldfuse.training.loading import open_loader
from foldfuse.training.optimizers import Ema, make_detector_optimizer
from foldfuse.training.precision import ComputeConfig, default_config
from foldfuse.training.readback import Readback
from foldfuse.training.session import TrainingSession
from foldfuse.training.state import check_state, rng_state, set_rng_state

SMOOTHING = 0.95  # of the loss that is shown: about the mean of the last 20 steps
MAX_SKIPPED = 20  # steps in a row that may be skipped: halved so often, float16's scale of the loss is far below 1

logger = logging.getLogger(__name__)


def fit(
    model: Any,
    batches: BatchSource,
    recipe: Recipe | ClassifierRecipe,
    session: TrainingSession,
    *,
    log: list[dict[str, Any]],
    save: Callable[[dict[str, Any]], None] | None = None,
    config: ComputeConfig | None = None,
    make_optimizer: Callable[[Any, Any], Optimizer] = make_detector_optimizer,
) -> dict[str, Any]:
    """Train `model` in place until the budget is spent.

    Args:
        model: a model with the detector contract, on the session's device.
        batches: the batches of each step.
        recipe: rates and schedules.
        session: budget, processes, and the checkpoint to resume from; without one `model` is trained from step 0 as it is.
        log: a row is appended for each step.
        save: receives the state about every `checkpoint_seconds`, and at the end.
        config: the settings of the forward pass; the device's default by default.
        make_optimizer: makes the optimizer of a model and its recipe.

    Returns:
        The last state: "model", "ema", "ema_steps", "optimizer", "scaler", "step", "seconds", "data_wait", "mosaic_end", "rng",
        "micro_batch" (images that a process computes at a time; 0 for all of its share), "skipped" (the last steps in a row that
        float16 skipped).

    Raises:
        FloatingPointError: the loss is not finite, or the gradients are not for `MAX_SKIPPED` steps (in float16, and on a CPU);
            the message names the step, the terms and the images. Or the state to be saved is not; the message names the tensor.
        InputError: the checkpoint to resume from is not of this model, or not even one image fits in memory.
        KeyboardInterrupt: after the step in which an interrupt came, whose state was given to `save`.
    """
    budget, world, resumed = session.budget, session.world, session.checkpoint
    device = next(model.parameters()).device
    config = config or default_config(device)
    model.to(memory_format=config.memory_format)
    if resumed is not None:
        load_exactly(model, resumed.get("model"), source="the checkpoint to resume from")
    sync_batch_norms(model, world)
    model.freeze(recipe.frozen_stages)  # after the weights are loaded: the frozen part is a copy
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer, scaler = make_optimizer(model, recipe), config.scaler(device)
    ema, step, data_wait = Ema(model, recipe.ema_decay), 0, 0.0
    shown_loss: float | None = None
    mosaic_end: int | None = None
    micro_batch, skipped = getattr(recipe, "micro_batch", 0), 0
    if resumed is not None:
        check_state(resumed, model, optimizer)
        base_lrs = [group["base_lr"] for group in optimizer.param_groups]
        optimizer.load_state_dict(resumed["optimizer"])
        for group, base_lr in zip(optimizer.param_groups, base_lrs, strict=True):
            group["base_lr"] = base_lr  # the recipe's, which a resume may have changed
        if resumed["scaler"]:  # none where the earlier part did not compute in float16
            scaler.load_state_dict(resumed["scaler"])
        ema.load(resumed["ema"], resumed["ema_steps"])
        step, data_wait, mosaic_end = resumed["step"], resumed["data_wait"], resumed["mosaic_end"]
        micro_batch, skipped = resumed.get("micro_batch", micro_batch), resumed.get("skipped", 0)
        rng_states = resumed["rng"]  # of the earlier processes; now there may be more
        set_rng_state(rng_states[world.rank % len(rng_states)], device)
        budget.elapsed_before += resumed["seconds"]
    gradients = Gradients(model, recipe, config, scaler, world=world, micro_batch=micro_batch)
    looks_first = _looks_first(device, scaler)

    def state() -> dict[str, Any]:
        return {
            "model": model.state_dict(),
            "ema": ema.weights,
            "ema_steps": ema.steps,
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "step": step,
            "seconds": budget.elapsed(),
            "data_wait": data_wait,
            "mosaic_end": mosaic_end,
            "rng": world.all_gather(rng_state(device)),
            "micro_batch": gradients.micro_batch,
            "skipped": skipped,
        }

    shard, saved_at = world.shard(recipe.batch_size), budget.elapsed()
    spent, soon = world.broadcast(budget.spent(step), budget.spent(step + 1))
    if resumed is None and spent >= batches.mosaic_until:
        mosaic_end = step
    if config.graphed:  # before the loader's threads pin memory
        gradients.record(config.network_input(batches.batch(step, shard)[0], device))
    with (
        deferred_interrupts() as interrupted,
        open_loader(batches, device, shard=shard, mosaic_end=mosaic_end) as loader,
        config.applied(),
    ):
        while spent < 1:
            scale = lr_scale(spent, recipe.warmup_fraction, recipe.lr_decay_start)
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * scale
            if mosaic_end is None and soon >= batches.mosaic_until:
                mosaic_end = step + 1
                loader.end_mosaics(mosaic_end)
                if soon < 1:
                    logger.info("mosaics end at step %d", mosaic_end)
            wait_began = budget.elapsed()
            images, targets = loader.get(step)  # and the next ones are made while the network computes
            images = config.network_input(images, device)
            data_wait += budget.elapsed() - wait_began

            step_loss = gradients.compute(images, targets)
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.grad_clip_norm)
            overflow = looks_first and not math.isfinite(norm)
            if not overflow:
                scaler.step(optimizer)
            scaler.update()
            # The one place where the host waits for a card: for the forward pass, in float16 for the backward pass too.
            if scaler.is_enabled():
                overflow = not math.isfinite(Readback(norm.view(1)).read()[0])
            losses = step_loss.read()
            is_finite = math.isfinite(losses["loss"]) or (overflow and scaler.is_enabled())
            skipped = skipped + 1 if overflow and is_finite else 0
            if overflow:  # the optimizer has left the weights as they were, and float16's scale of the loss is halved
                gradients.undo_forward()
            if skipped >= MAX_SKIPPED or not is_finite:
                raise FloatingPointError(_not_finite(step, losses, batches, skipped, half=scaler.is_enabled()))
            if not overflow:
                ema.update(model)
                shown_loss = SMOOTHING * (shown_loss or losses["loss"]) + (1 - SMOOTHING) * losses["loss"]

            row: dict[str, Any] = {
                "step": step,
                "seconds": round(budget.elapsed(), 3),
                "spent": round(spent, 6),
                "lr": recipe.lr * scale,
            }
            row |= {name: value if math.isfinite(value) else None for name, value in losses.items()}
            log.append(row | ({"skipped": 1} if overflow else {}) | {"data_wait": round(data_wait, 3)})
            step += 1
            session.after_step()
            spent, soon, stop, since_saved = world.broadcast(
                budget.spent(step), budget.spent(step + 1), interrupted(), budget.elapsed() - saved_at
            )
            session.progress(spent)
            shown = "-" if shown_loss is None else f"{shown_loss:.3f}"
            session.status({"step": f"{step:,}", "loss": shown, "lr": f"{100 * scale:.0f}%"})
            if stop:
                if save is not None:
                    save(state())
                raise KeyboardInterrupt
            if save is not None and spent < 1 and since_saved > session.checkpoint_seconds:
                save(state())
                saved_at = budget.elapsed()
    last = state()
    if save is not None:
        save(last)
    return last


def _looks_first(device: torch.device, scaler: torch.amp.GradScaler) -> bool:
    """Whether a step looks at its gradients before it takes them: a card would have to be waited for."""
    return device.type == "cpu" and not scaler.is_enabled()


def _not_finite(step: int, losses: Mapping[str, float], batches: BatchSource, skipped: int, *, half: bool) -> str:
    values = ", ".join(f"{name} {value:g}" for name, value in losses.items() if name != "loss")
    names = ", ".join(batches.samples[i].file_name for i in batches.indices(step))
    if skipped:
        return (
            f"step {step}: {'in float16 ' if half else ''}the gradients have not been finite for {skipped} steps in a row "
            f"(loss: {values}). The images were {names}. Try a lower lr"
            + (", or a new run with --set precision=float32." if half else ".")
        )
    return f"step {step}: the loss is not finite ({values}). The images were {names}. Try a lower lr."
