"""The work of a segment, on any machine: train it in a run folder, then predict the held-out images.

No function reads the ledger or the campaign's clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from foldfuse.campaign import constants as c
from foldfuse.campaign.planning.slack import views_in_time
from foldfuse.campaign.planning.state import CampaignState
from foldfuse.data.dataset import Dataset
from foldfuse.data.images import ImageCache
from foldfuse.detections import Predictions
from foldfuse.inference.detector import load_detector, predict_views
from foldfuse.inference.tta import View
from foldfuse.storage.recipe_file import write_recipe
from foldfuse.storage.run import LrChange, Run
from foldfuse.system.device import choose_device, current_device, release_memory
from foldfuse.system.processes import World
from foldfuse.system.progress import Progress, no_progress
from foldfuse.training.budget import Budget
from foldfuse.training.detector import train_detector
from foldfuse.training.session import TrainingSession


@dataclass(frozen=True)
class HeldOutPredictions:
    """A member's predictions of the held-out images.

    Attributes:
        views: {TTA view: predictions}; the plain view first.
        image_seconds: seconds that one image takes in the plain view.
    """

    views: Mapping[View, Predictions]
    image_seconds: float


def train_segment(
    run: Run,
    dataset: Dataset,
    seconds: float,
    *,
    images: ImageCache,
    state: Mapping[str, Any] | None,
    parent: Run | None,
    checkpoint_seconds: float,
    device: str = "auto",
    progress: Progress = no_progress,
    watch: Callable[[Budget], Callable[[], None]] | None = None,
) -> float:
    """Trains a run up to `seconds` in all, and returns the seconds that it has trained.

    Where the loss is not finite, the run goes on from its last checkpoint, or begins again, with `DIVERGED_LR` times its
    learning rate. The seconds that this loses count. After `MAX_LR_CUTS` lower rates, or where there is no time to go on, the
    run ends with its last checkpoint. The run's metadata keeps each change of the rate, and that checkpoint's step.

    Args:
        run: the run to train, with its recipe and metadata.
        dataset: the dataset to train on.
        seconds: total seconds of training, the time before `state` included.
        images: the images of the dataset, decoded.
        state: the run's own last checkpoint, to resume from.
        parent: the run whose last checkpoint gives the initial weights, where there is no `state`.
        checkpoint_seconds: seconds between checkpoints.
        device: the device to train on.
        progress: receives the share that is done.
        watch: makes a function of the budget that is called after each step, and may change the budget.

    Raises:
        FloatingPointError: the loss is not finite, the run cannot go on, and there is no checkpoint.
    """
    device, ends = choose_device(device), False
    while True:
        budget = Budget(seconds=seconds)
        session = TrainingSession(
            budget,
            World(device=device),
            checkpoint=state,
            checkpoint_seconds=checkpoint_seconds,
            progress=progress,
            after_step=(lambda: None) if watch is None else watch(budget),
        )
        start = parent.load_checkpoint()[0] if parent is not None and state is None else None
        try:
            with current_device(device):
                return train_detector(run, dataset, session, images=images, init_state=start).seconds
        except FloatingPointError:
            state = run.load_checkpoint()[0]
            kept = 0.0 if state is None else state["seconds"]
            seconds = budget.seconds - (budget.elapsed() - kept)
            step = 0 if state is None else state["step"]
            if len(run.metadata.lr_changes) < c.MAX_LR_CUTS and seconds - kept >= c.MIN_SEGMENT_SECONDS:
                lower_lr(run, c.DIVERGED_LR * run.recipe.lr, step=step)
            elif step and not ends:
                ends, seconds = True, kept  # nothing is left to train: the checkpoint is finished as it is
                run.write_metadata(replace(run.metadata, kept_from=step))
            else:
                raise
        finally:
            release_memory(device)  # the next segment has images of another size


def lower_lr(run: Run, lr: float, *, step: int) -> None:
    """Give a run another learning rate from a step on; its metadata says so."""
    write_recipe(replace(run.recipe, lr=lr), run.folder / "recipe.json")
    metadata = run.metadata
    run.write_metadata(replace(metadata, lr_changes=(*metadata.lr_changes, LrChange(step, lr))))


def concat(dataset: Dataset, images: ImageCache, more: Dataset) -> tuple[Dataset, ImageCache]:
    """A dataset and its decoded images, followed by the samples and images of another one."""
    samples = (*dataset.samples, *more.samples)
    return replace(dataset, samples=samples), images + ImageCache.load(more.samples, longest=images.longest)


def predict_held_out(run: Run, val: Dataset, state: CampaignState, *, device: str) -> HeldOutPredictions:
    """A trained run's predictions of the held-out images, in as many views as there is time for.

    The time of one image in the plain view decides the number of views, and is measured here.
    """
    called, device = time.monotonic(), choose_device(device)
    model, classes = load_detector(run, device)
    image_size = run.recipe.image_size
    if next(model.parameters()).device.type != "cpu":  # a card loads its libraries and kernels at the first image
        predict_views(model, val.samples[: c.WARM_UP_IMAGES], classes, image_size=image_size, views=[c.PLAIN_VIEW])
    start = time.monotonic()
    plain = predict_views(model, val.samples, classes, image_size=image_size, views=[c.PLAIN_VIEW], engine="auto")
    seconds = (time.monotonic() - start) / len(val)
    segments = tuple(
        replace(record, result={"image_seconds": seconds}) if record.name == run.folder.name else record
        for record in state.segments
    )
    elapsed = state.elapsed + time.monotonic() - called
    views = views_in_time(replace(state, segments=segments, elapsed=elapsed), run.folder.name)[1:]
    others = {}
    if views:
        others = predict_views(model, val.samples, classes, image_size=image_size, views=views, engine="auto")
    del model
    release_memory(device)
    return HeldOutPredictions(plain | others, seconds)
