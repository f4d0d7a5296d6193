"""The training loop, to be read from top to bottom.

Every schedule is a function of the share of the budget that is spent, so that training ends on time. A step's batch is a
function of (seed, step) and of the step at which mosaics end, which the checkpoint keeps; a resumed training thus equals one
without interruption. The same loop serves one process and several: see `distributed`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from foldfuse.models.pretrained.state_dicts import load_exactly
from foldfuse.recipes import ClassifierRecipe, Recipe
from foldfuse.system.processes import World
from foldfuse.system.signals import deferred_interrupts
from foldfuse.training.batches import BatchSource
from foldfuse.training.budget import lr_scale
from foldfuse.training.distributed import gather_batch, sum_gradients, synced_batch_norm
from foldfuse.training.loading import open_loader
from foldfuse.training.optimizers import Ema, make_detector_optimizer
from foldfuse.training.precision import ComputeConfig, default_config
from foldfuse.training.session import TrainingSession
from foldfuse.training.state import check_state

SMOOTHING = 0.95  # of the loss that is shown: about the mean of the last 20 steps

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
        The last state: "model", "ema", "ema_steps", "optimizer", "scaler", "step", "seconds", "data_wait", "mosaic_end", "rng".

    Raises:
        FloatingPointError: the loss is not finite; the message names the step, the terms and the images. Or the state to be
            saved is not; the message names the tensor.
        InputError: the checkpoint to resume from is not of this model.
        KeyboardInterrupt: after the step in which an interrupt came, whose state was given to `save`.
    """
    budget, world, resumed = session.budget, session.world, session.checkpoint
    device = next(model.parameters()).device
    config = config or default_config(device)
    model.to(memory_format=config.memory_format)
    if resumed is not None:
        load_exactly(model, resumed.get("model"), source="the checkpoint to resume from")
    model.freeze(recipe.frozen_stages)  # after the weights are loaded: the frozen part is a copy
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer, scaler = make_optimizer(model, recipe), config.scaler(device)
    ema, step, data_wait = Ema(model, recipe.ema_decay), 0, 0.0
    shown_loss: float | None = None
    mosaic_end: int | None = None
    if resumed is not None:
        check_state(resumed, model, optimizer)
        base_lrs = [group["base_lr"] for group in optimizer.param_groups]
        optimizer.load_state_dict(resumed["optimizer"])
        for group, base_lr in zip(optimizer.param_groups, base_lrs, strict=True):
            group["base_lr"] = base_lr  # the recipe's, which a resume may have changed
        scaler.load_state_dict(resumed["scaler"])
        ema.load(resumed["ema"], resumed["ema_steps"])
        step, data_wait, mosaic_end = resumed["step"], resumed["data_wait"], resumed["mosaic_end"]
        _set_rng_state(resumed["rng"], world, device)
        budget.elapsed_before += resumed["seconds"]

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
            "rng": world.all_gather(_rng_state(device)),
        }

    shard, saved_at = world.shard(recipe.batch_size), budget.elapsed()
    spent = world.broadcast(budget.spent(step))
    if resumed is None and spent >= batches.mosaic_until:
        mosaic_end = step
    loading = open_loader(batches, device, shard=shard, mosaic_end=mosaic_end)
    with deferred_interrupts() as interrupted, loading as loader, config.applied():
        while spent < 1:
            scale = lr_scale(spent, recipe.warmup_fraction, recipe.lr_decay_start)
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * scale
            if mosaic_end is None and (soon := world.broadcast(budget.spent(step + 1))) >= batches.mosaic_until:
                mosaic_end = step + 1
                loader.end_mosaics(mosaic_end)
                if soon < 1:
                    logger.info("mosaics end at step %d", mosaic_end)
            wait_began = budget.elapsed()
            images, targets = loader.get(step)  # and the next ones are made while the network computes
            images = images.to(device, non_blocking=True, memory_format=config.memory_format).float().div_(255)
            data_wait += budget.elapsed() - wait_began

            with config.autocast(device), synced_batch_norm(world):
                raw = model(images)
            all_targets = [target for shard_targets in world.all_gather(targets) for target in shard_targets]
            terms = model.loss(gather_batch(raw, world), all_targets)
            loss = sum(terms.values())
            if not loss.isfinite():
                raise FloatingPointError(_not_finite(step, terms, batches))
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            sum_gradients(parameters, world)
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, recipe.grad_clip_norm)
            scaler.step(optimizer)
            scaler.update()
            ema.update(model)

            row = {"step": step, "seconds": round(budget.elapsed(), 3), "spent": round(spent, 6)}
            row |= {"lr": recipe.lr * scale, "loss": loss.item()}
            row |= {name: term.item() for name, term in terms.items()}
            log.append(row | {"data_wait": round(data_wait, 3)})
            step += 1
            shown_loss = SMOOTHING * (shown_loss or row["loss"]) + (1 - SMOOTHING) * row["loss"]
            spent = world.broadcast(budget.spent(step))
            session.progress(spent)
            session.status({"step": f"{step:,}", "loss": f"{shown_loss:.3f}", "lr": f"{100 * scale:.0f}%"})
            if world.broadcast(interrupted()):
                if save is not None:
                    save(state())
                raise KeyboardInterrupt
            due = world.broadcast(budget.elapsed() - saved_at) > session.checkpoint_seconds
            if save is not None and spent < 1 and due:
                save(state())
                saved_at = budget.elapsed()
    last = state()
    if save is not None:
        save(last)
    return last


def _rng_state(device: torch.device) -> dict[str, Tensor]:
    """torch's random state, which DropPath draws from; batches have generators of their own, made from the seed."""
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _set_rng_state(states: Sequence[Mapping[str, Tensor]], world: World, device: torch.device) -> None:
    """Restore torch's random state of this process; with more processes than states, some processes share a state."""
    own = states[world.rank % len(states)]
    torch.set_rng_state(own["cpu"])
    if "cuda" in own and device.type == "cuda":
        torch.cuda.set_rng_state(own["cuda"], device)


def _not_finite(step: int, terms: Mapping[str, Tensor], batches: BatchSource) -> str:
    values = ", ".join(f"{name} {term.item():g}" for name, term in terms.items())
    names = ", ".join(batches.samples[i].file_name for i in batches.indices(step))
    return f"step {step}: the loss is not finite ({values}). The images were {names}. Try a lower lr."
