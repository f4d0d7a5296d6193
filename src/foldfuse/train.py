"""Training under a budget: one loop, read from top to bottom.

Every schedule is a function of the share of the budget that is spent, so that training ends exactly on time. What a
step sees is a function of (seed, step) alone, so that a run that was stopped goes on as if it had not been. The same loop
serves one process and the many of torchrun: see `distributed`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from foldfuse.batches import Batches
from foldfuse.data import Dataset, Sample, read, require_annotations
from foldfuse.distributed import ALONE, World, best_device, world
from foldfuse.durations import seconds_of
from foldfuse.ema import Ema
from foldfuse.errors import InputError
from foldfuse.images import Fit, Pictures, canvas_for
from foldfuse.models import make_detector
from foldfuse.models.weights import load_effdet
from foldfuse.precision import Setting, usual
from foldfuse.progress import Progress, bar, silent
from foldfuse.recipes import CLASSIFIER_RECIPES, ClassifierRecipe, Recipe, load_recipe
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

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done within it is not paid for."""
        used = self.elapsed()
        yield
        self._start = self.clock() - used + self.used


class Steps(Protocol):
    """What each step of a training sees; `Batches` for detectors."""

    @property
    def samples(self) -> Sequence[Sample]:
        """Whose pictures they are."""

    def indices(self, step: int) -> list[int]:
        """Positions in `samples` that a step sees."""

    def batch(self, step: int, spent: float, part: range | None = None) -> tuple[Tensor, list[Any]]:
        """(B, 3, H, W) uint8, and B targets."""


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
    batches: Steps,
    recipe: Recipe | ClassifierRecipe,
    budget: Budget,
    *,
    log: list[dict[str, Any]],
    resume: Mapping[str, Any] | None = None,
    checkpoint: Callable[[dict[str, Any]], None] | None = None,
    every: float = 60.0,
    progress: Progress = silent,
    setting: Setting | None = None,
    together: World = ALONE,
    groups: Callable[[Any, Any], list[dict[str, Any]]] = parameter_groups,
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
        groups: gives the optimizer's groups of a model and its recipe.

    Returns:
        The state at the end: "model", "ema", "ema_steps", "optimizer", "scaler", "step", "seconds", "loading", "rng".

    Raises:
        FloatingPointError: the loss is not finite; the step, the terms and the pictures are named.
    """
    device = next(model.parameters()).device
    setting = setting or usual(device)
    model.to(memory_format=setting.memory_format)
    if resume is not None:
        model.load_state_dict(resume["model"])
    model.freeze(recipe.frozen_stages)  # after the weights are there: the frozen part is a copy
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(groups(model, recipe), fused=True)
    ema, step, loading = Ema(model, recipe.ema), 0, 0.0
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
    with ThreadPoolExecutor(1) as ahead, setting.applied():
        spent = together.agreed(budget.spent(step))
        coming = ahead.submit(batches.batch, step, spent, part)
        while spent < 1:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * lr_scale(spent, recipe.warmup, recipe.decay_from)
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
            torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
            scaler.step(optimizer)
            scaler.update()
            ema.update(model)

            row = {"step": step, "seconds": round(budget.elapsed(), 3), "spent": round(spent, 6)}
            row |= {"lr": recipe.lr * lr_scale(spent, recipe.warmup, recipe.decay_from), "loss": loss.item()}
            log.append(row | {name: term.item() for name, term in terms.items()} | {"loading": round(loading, 3)})
            step += 1
            spent = together.agreed(budget.spent(step))
            progress(spent)
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


def _not_finite(step: int, terms: Mapping[str, Tensor], batches: Steps) -> str:
    values = ", ".join(f"{name} {term.item():g}" for name, term in terms.items())
    names = ", ".join(batches.samples[i].file_name for i in batches.indices(step))
    return f"step {step}: the loss is not finite ({values}). The pictures were {names}. Try a lower lr."


def train(
    data: Path,
    out: Path,
    *,
    recipe: str = "efficientdet_lite0",
    change: tuple[str, ...] = (),
    budget: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    folds: Path | None = None,
    fold: int = 0,
    resume: bool = False,
    checkpoint: str = "60s",
) -> Path:
    """Train one detector or classifier; its run folder comes back.

    Args:
        data: COCO JSON with annotations, or a folder with a train.json. A classifier learns the crops of its objects, or a
            folder of pictures with a sub-folder for each class.
        out: folder to make; it must not exist yet, unless `resume` is given.
        recipe: name of a recipe; `foldfuse recipes` lists them.
        change: changes to the recipe, such as lr=3e-4.
        budget: time that training may take, such as 90s, 10m or 1h30m; 10m by default.
        steps: train this many steps instead, however long they take: such a run can be repeated bit by bit.
        seed: of every random choice.
        folds: JSON that `foldfuse split` wrote; without it, all pictures are trained on.
        fold: which of `folds` to hold back.
        resume: go on with a run that was stopped, with its own recipe, seed and, unless one is given, budget. A run that
            was stopped before it began is begun.
        checkpoint: time between checkpoints, such as 60s; what was learnt since the last one is lost in a crash.

    Raises:
        InputError: the data, the recipe or the folder cannot be used.
    """
    if steps is not None and steps < 1:
        raise InputError(f"steps is {steps}, and must be 1 or more.")
    if recipe in CLASSIFIER_RECIPES or (resume and Run(out).of_classifier):
        from foldfuse.classify import train_classifier  # it trains by `fit` below

        return train_classifier(
            data,
            out,
            recipe=recipe,
            change=change,
            budget=budget,
            steps=steps,
            seed=seed,
            folds=folds,
            fold=fold,
            resume=resume,
            checkpoint=checkpoint,
        )
    every = seconds_of(checkpoint)
    wanted = {"steps": steps} if steps is not None else {"seconds": seconds_of(budget)} if budget is not None else None
    dataset = require_annotations(read(data))
    held: tuple[int, ...] = ()
    if folds is not None:
        split = read_folds(folds)
        dataset, held = dataset.subset(split.train_ids(fold)), tuple(split.held_ids(fold))
    run, state = Run(Path(out)), None
    with world() as together:
        if resume and run.begun:
            facts = run.facts
            wanted = wanted or facts["budget"]
            state, trouble = run.load_state()
            if trouble and together.first:
                print(trouble)
            if facts["data_fingerprint"] != dataset.fingerprint:
                raise InputError(
                    f"{out}: was trained on other data than {data}. Resume it with the data it began with."
                )
        else:
            wanted = wanted or {"seconds": seconds_of("10m")}
            made = load_recipe(recipe, change)
            together.part(made.batch_size)
            facts = run_facts(dataset, data=data, seed=seed, held=held)
            if together.first:
                Run.create(run.folder, made, facts)
        together.wait()
        if together.first:
            run.write_facts(run.facts | {"budget": wanted})
        made = run.recipe
        shown = bar(f"training {made.detector} at {made.image_size} px") if together.first else nullcontext(silent)
        with shown as progress:
            train_run(
                run,
                dataset,
                Budget(**wanted),
                facts["seed"],
                state=state,
                progress=progress,
                every=every,
                together=together,
            )
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
    every: float = 60.0,
    evaluate: Callable[[Mapping[str, Tensor]], dict[str, float | None]] | None = None,
    together: World | None = None,
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
        every: seconds between checkpoints.
        evaluate: gives the scores of averaged weights; asked at each checkpoint, off the budget, for a row in the log.
        together: the processes that train as one; this one alone by default.
    """
    recipe, together = run.recipe, together or World(device=best_device())
    torch.manual_seed(seed)
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
    model.to(together.device)
    if together.rank:
        torch.manual_seed(seed + 1_000_003 * together.rank)  # DropPath is to drop other pictures' paths elsewhere
    if pictures is None:
        largest = recipe.image_size * (1 + recipe.scale_jitter) * (1 + recipe.multi_scale)
        pictures = Pictures.of(samples, longest=round(largest))
    log = [row for row in run.log if state is not None and _before(row, state["step"])]
    batches = Batches(samples, pictures, recipe, canvas, seed, model.stride)

    def checkpoint(now: dict[str, Any]) -> None:
        if evaluate is not None and (not log or "loss" in log[-1]):
            with budget.paused():
                log.append({"step": now["step"], "seconds": round(now["seconds"], 3), **evaluate(now["ema"])})
        if together.first:
            run.write_log(log)  # first: a log that is longer than the state can be cut, a shorter one has lost rows
            run.save_state(now)

    last = fit(
        model,
        batches,
        recipe,
        budget,
        log=log,
        resume=state,
        checkpoint=checkpoint,
        every=every,
        progress=progress,
        together=together,
    )
    if together.first:
        run.save_weights(last["ema"])
        seconds, steps = last["seconds"], last["step"]
        run.write_facts(
            run.facts
            | {
                "canvas": list(canvas),
                "steps": steps,
                "seconds": round(seconds, 2),
                "images_per_second": round(steps * recipe.batch_size / max(seconds, 1e-9), 2),
                "loading_share": round(last["loading"] / seconds, 4) if log else None,
                "processes": together.size,
            }
        )
    together.wait()
    return last


def _before(row: Mapping[str, Any], step: int) -> bool:
    """Whether a row of the log was written before a checkpoint at `step`; an evaluation at it was."""
    return row["step"] < step or (row["step"] == step and "loss" not in row)


def _object_sizes(samples: Sequence[Sample], canvas: tuple[int, int]) -> Tensor:
    """(N, 2) width and height of all objects, in pixels of the network's input; crowd regions are left out."""
    sides = []
    for sample in samples:
        assert sample.annotations is not None
        boxes = Fit(sample.width, sample.height, canvas).boxes(sample.annotations.boxes[~sample.annotations.crowd])
        sides.append(boxes[:, 2:] - boxes[:, :2])
    return torch.from_numpy(np.concatenate(sides)).float()
