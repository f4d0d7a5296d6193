"""Training under a budget: one loop, read from top to bottom.

Every schedule is a function of the share of the budget that is spent, so that training ends exactly on time. What a
step sees is a function of (seed, step) alone, so that a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foldfuse.batches import Batches
from foldfuse.data import Dataset, Sample, read, require_annotations
from foldfuse.durations import seconds_of
from foldfuse.errors import InputError
from foldfuse.images import Fit, Pictures, canvas_for
from foldfuse.models import make_detector
from foldfuse.models.weights import load_effdet
from foldfuse.progress import Progress, bar, silent
from foldfuse.recipes import Recipe, load_recipe
from foldfuse.run import Run
from foldfuse.split import read_folds

Clock = Callable[[], float]


@dataclass
class Budget:
    """How much training is paid for. Whichever limit is met first ends the run.

    Attributes:
        seconds: wall clock, counted from the first call of `spent`.
        steps: optimizer steps. Give only this one for a run that can be repeated bit by bit.
        used: seconds that earlier parts of the run have taken already.
        clock: seconds, from any start; tests pass their own.
    """

    seconds: float = math.inf
    steps: float = math.inf
    used: float = 0.0
    clock: Clock = time.monotonic
    _start: float | None = field(default=None, repr=False)

    def elapsed(self) -> float:
        """Seconds used so far, those of earlier parts included."""
        if self._start is None:
            self._start = self.clock()
        return self.clock() - self._start + self.used

    def spent(self, step: int) -> float:
        """Share of the budget used up before `step`: 0 at the start, 1 or more when it is gone."""
        return max(self.elapsed() / self.seconds, step / self.steps)


def lr_scale(spent: float, warmup: float, decay_from: float) -> float:
    """Share of the peak learning rate: a line up over `warmup`, level until `decay_from`, then half a cosine down to 0.

    With `decay_from` = 1 a run stays at its peak, and others can branch off from its end.
    """
    if spent < warmup:
        return spent / warmup
    decay_from = max(warmup, decay_from)
    if spent <= decay_from:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (spent - decay_from) / (1 - decay_from))))


class Ema:
    """Moving average of a model's weights and buffers; young averages forget faster, so that the start is not kept."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.weights = {key: t.detach().clone() for key, t in model.state_dict().items()}

    def load(self, weights: Mapping[str, Tensor], steps: int) -> None:
        """Take over the average that an earlier part of the run has made."""
        for key, t in self.weights.items():
            t.copy_(weights[key])
        self.steps = steps

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's present weights."""
        self.steps += 1
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        now = model.state_dict()
        means = [key for key, t in self.weights.items() if t.is_floating_point()]
        torch._foreach_lerp_([self.weights[key] for key in means], [now[key] for key in means], share)
        for key in self.weights.keys() - set(means):
            self.weights[key].copy_(now[key])


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The optimizer's groups: backbone or not, decayed (matrices) or not (biases and norms); `peak` is a group's lr."""
    backbone = {id(p) for p in model.backbone.parameters()}  # type: ignore[union-attr]
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for p in model.parameters():
        if p.requires_grad:
            groups.setdefault((id(p) in backbone, p.ndim > 1), []).append(p)
    return [
        {
            "params": params,
            "peak": recipe.lr * (recipe.backbone_lr if in_backbone else 1),
            "lr": 0.0,
            "weight_decay": recipe.weight_decay if decayed else 0.0,
        }
        for (in_backbone, decayed), params in groups.items()
    ]


def fit(
    model: Any,
    batches: Batches,
    recipe: Recipe,
    budget: Budget,
    *,
    log: list[dict[str, Any]],
    resume: Mapping[str, Any] | None = None,
    checkpoint: Callable[[dict[str, Any]], None] | None = None,
    every: float = 60.0,
    progress: Progress = silent,
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

    Returns:
        The state at the end: "model", "ema", "ema_steps", "optimizer", "scaler", "step", "seconds", "rng".

    Raises:
        FloatingPointError: the loss is not finite; the step, the terms and the pictures are named.
    """
    device = next(model.parameters()).device
    model.to(memory_format=torch.channels_last)
    if resume is not None:
        model.load_state_dict(resume["model"])
    model.freeze(recipe.frozen_stages)  # after the weights are there: the frozen part is a copy
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe), fused=True)
    ema, step = Ema(model, recipe.ema), 0
    half, scaler = mixed_precision(device)
    if resume is not None:
        scaler.load_state_dict(resume["scaler"])
        optimizer.load_state_dict(resume["optimizer"])
        ema.load(resume["ema"], resume["ema_steps"])
        step = resume["step"]
        torch.set_rng_state(resume["rng"])
        budget.used += resume["seconds"]

    saved, loading = budget.elapsed(), 0.0
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(batches.batch, step, budget.spent(step))
        while (spent := budget.spent(step)) < 1:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * lr_scale(spent, recipe.warmup, recipe.decay_from)
            began = budget.elapsed()
            images, targets = coming.result()
            # The next batch is made while this one is learnt from; which it is, and how, its step alone decides.
            coming = ahead.submit(batches.batch, step + 1, budget.spent(step + 1))
            if device.type == "cuda":
                images = images.pin_memory()
            images = images.to(device, non_blocking=True).float().div_(255)
            loading += budget.elapsed() - began

            with half:
                raw = model(images)
            terms = model.loss(raw, targets)
            loss = sum(terms.values())
            if not loss.isfinite():
                raise FloatingPointError(_not_finite(step, terms, batches))
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            scaler.step(optimizer)
            scaler.update()
            ema.update(model)

            row = {"step": step, "seconds": round(budget.elapsed(), 3), "spent": round(spent, 6)}
            row |= {"lr": recipe.lr * lr_scale(spent, recipe.warmup, recipe.decay_from), "loss": loss.item()}
            log.append(row | {name: term.item() for name, term in terms.items()} | {"loading": round(loading, 3)})
            step += 1
            progress(budget.spent(step))
            if checkpoint is not None and budget.elapsed() - saved > every:
                checkpoint(_state(model, ema, optimizer, scaler, step, budget))
                saved = budget.elapsed()
    state = _state(model, ema, optimizer, scaler, step, budget)
    if checkpoint is not None:
        checkpoint(state)
    return state


def mixed_precision(device: torch.device) -> tuple[torch.autocast, torch.amp.GradScaler]:
    """The context of the forward pass, and the scaler of the loss: bfloat16 or float16 on CUDA, neither on a CPU.

    Losses are taken in float32. Only float16, for cards without bfloat16, needs the scaler.
    """
    on_cuda = device.type == "cuda"
    narrow = on_cuda and not torch.cuda.is_bf16_supported()
    half = torch.autocast(device.type, torch.float16 if narrow else torch.bfloat16, enabled=on_cuda)
    return half, torch.amp.GradScaler(device.type, enabled=narrow)


def _state(
    model: nn.Module,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    step: int,
    budget: Budget,
) -> dict[str, Any]:
    return {
        "model": model.state_dict(),
        "ema": ema.weights,
        "ema_steps": ema.steps,
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "step": step,
        "seconds": budget.elapsed(),
        "rng": torch.get_rng_state(),
    }


def _not_finite(step: int, terms: Mapping[str, Tensor], batches: Batches) -> str:
    values = ", ".join(f"{name} {term.item():g}" for name, term in terms.items())
    names = ", ".join(batches.samples[i].file_name for i in batches.indices(step))
    return f"step {step}: the loss is not finite ({values}). The pictures were {names}. Try a lower lr."


def train(
    data: Path,
    out: Path,
    *,
    recipe: str = "efficientdet_lite0",
    change: tuple[str, ...] = (),
    budget: str = "10m",
    steps: int | None = None,
    seed: int = 0,
    folds: Path | None = None,
    fold: int = 0,
    resume: bool = False,
) -> Path:
    """Train one detector; its run folder comes back.

    Args:
        data: COCO JSON with annotations, or a folder with a train.json.
        out: folder to make; it must not exist yet, unless `resume` is given.
        recipe: name of a recipe; `foldfuse recipes` lists them.
        change: changes to the recipe, such as lr=3e-4.
        budget: time that training may take, such as 90s, 10m or 1h30m.
        steps: train this many steps instead, however long they take: such a run can be repeated bit by bit.
        seed: of every random choice.
        folds: JSON that `foldfuse split` wrote; without it, all pictures are trained on.
        fold: which of `folds` to hold back.
        resume: go on with a run that was stopped.

    Raises:
        InputError: the data, the recipe or the folder cannot be used.
    """
    if steps is not None and steps < 1:
        raise InputError(f"steps is {steps}, and must be 1 or more.")
    limit = Budget(steps=steps) if steps is not None else Budget(seconds=seconds_of(budget))
    dataset = require_annotations(read(data))
    held: tuple[int, ...] = ()
    if folds is not None:
        split = read_folds(folds)
        dataset, held = dataset.subset(split.train_ids(fold)), tuple(split.held_ids(fold))
    state = None
    if resume:
        run = Run(Path(out))
        made, facts = run.recipe, run.facts
        state, trouble = run.load_state()
        if trouble:
            print(trouble)
        if facts["data_fingerprint"] != dataset.fingerprint:
            raise InputError(f"{out}: was trained on other data than {data}. Resume it with the data it began with.")
    else:
        made = load_recipe(recipe, change)
        facts = run_facts(dataset, data=data, seed=seed, held=held)
        run = Run.create(out, made, facts)
    with bar(f"training {made.detector} at {made.image_size} px") as progress:
        train_run(run, dataset, limit, facts["seed"], state=state, progress=progress)
    return run.folder


def run_facts(dataset: Dataset, *, data: Path, seed: int, held: Sequence[int]) -> dict[str, Any]:
    """What run.json holds before training."""
    return {
        "data": str(data),
        "data_fingerprint": dataset.fingerprint,
        "classes": list(dataset.classes),
        "category_ids": list(dataset.category_ids),
        "seed": seed,
        "held": list(held),
    }


def train_run(
    run: Run,
    dataset: Dataset,
    budget: Budget,
    seed: int,
    *,
    pictures: Pictures | None = None,
    state: Mapping[str, Any] | None = None,
    start: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train the detector of a run folder, and leave weights, log and facts in it; the last state comes back.

    Args:
        run: folder with a recipe.
        dataset: annotated pictures to learn from.
        budget: when to stop.
        seed: of every random choice.
        pictures: of the dataset, where they are decoded already.
        state: of this very run, to go on with.
        start: the last state of another run, whose weights this one begins with.
        progress: is told the share of the budget that is spent.
    """
    recipe = run.recipe
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fresh = start is None and state is None
    imagenet = fresh and recipe.weights == "imagenet"
    model = make_detector(recipe.detector, len(dataset.classes), anchor_scale=recipe.anchor_scale, pretrained=imagenet)
    if fresh and recipe.weights not in ("imagenet", "none"):
        print(load_effdet(Path(recipe.weights), model))
    samples = dataset.samples
    canvas = canvas_for(samples, image_size=recipe.image_size, stride=model.stride)
    if fresh and hasattr(model, "fit_anchors"):
        model.fit_anchors(_object_sizes(samples, canvas))
    if start is not None:
        model.load_state_dict(start["model"])
    model.to(device)
    if pictures is None:
        largest = recipe.image_size * (1 + recipe.scale_jitter) * (1 + recipe.multi_scale)
        pictures = Pictures.of(samples, longest=round(largest))
    log = [row for row in run.log if state is not None and row.get("step", -1) < state["step"]]
    batches = Batches(samples, pictures, recipe, canvas, seed, model.stride)

    def checkpoint(now: dict[str, Any]) -> None:
        run.save_state(now)
        run.write_log(log)

    last = fit(model, batches, recipe, budget, log=log, resume=state, checkpoint=checkpoint, progress=progress)
    run.save_weights(last["ema"])
    seconds, steps = last["seconds"], last["step"]
    run.write_facts(
        run.facts
        | {
            "canvas": list(canvas),
            "steps": steps,
            "seconds": round(seconds, 2),
            "images_per_second": round(steps * recipe.batch_size / max(seconds, 1e-9), 2),
            "loading_share": round(log[-1]["loading"] / seconds, 4) if log else None,
        }
    )
    return last


def _object_sizes(samples: Sequence[Sample], canvas: tuple[int, int]) -> Tensor:
    """(N, 2) width and height of all objects, in pixels of the network's input; crowd regions are left out."""
    sides = []
    for sample in samples:
        assert sample.annotations is not None
        boxes = Fit(sample.width, sample.height, canvas).boxes(sample.annotations.boxes[~sample.annotations.crowd])
        sides.append(boxes[:, 2:] - boxes[:, :2])
    return torch.from_numpy(np.concatenate(sides)).float()
