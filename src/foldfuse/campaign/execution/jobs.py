"""The work of a segment, on whatever machine it is done: train it in a run folder, then look at the held-back pictures.

Nothing here knows the ledger or the campaign's clock.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from foldfuse.campaign.planning.allocation import VIEWS, views
from foldfuse.campaign.planning.state import CampaignState
from foldfuse.data.dataset import Dataset
from foldfuse.data.images import ImageCache
from foldfuse.detections import Predictions
from foldfuse.inference.detector import load_detector, predict_views
from foldfuse.inference.tta import View
from foldfuse.storage.ledger import SegmentRecord
from foldfuse.storage.run import Run
from foldfuse.system.progress import Progress, no_progress
from foldfuse.training.budget import Budget
from foldfuse.training.detector import train_run


@dataclass(frozen=True)
class Seen:
    """What a member sees in the held-back pictures.

    Attributes:
        views: {how they were shown: what it finds}; the plain view first.
        cost: seconds of one picture in the plain view.
    """

    views: Mapping[View, Predictions]
    cost: float


def learn(
    run: Run,
    dataset: Dataset,
    seconds: float,
    *,
    state: Mapping[str, Any] | None,
    parent: Run | None,
    images: ImageCache,
    every: float,
    progress: Progress = no_progress,
) -> float:
    """Train a run until it has had `seconds` in all; those that it has had come back.

    Args:
        run: begun, with its recipe and facts.
        dataset: to learn from.
        seconds: in all, those before `state` included.
        state: its last checkpoint, to go on from.
        parent: the run with whose last state it begins, where it has no checkpoint of its own.
        images: of the dataset.
        every: seconds between checkpoints.
        progress: is told the share that is done.
    """
    start = parent.load_checkpoint()[0] if parent is not None and state is None else None
    last = train_run(
        run,
        dataset,
        Budget(seconds=seconds),
        run.metadata.seed,
        images=images,
        state=state,
        start=start,
        progress=progress,
        every=every,
    )
    return float(last["seconds"])


def joined(dataset: Dataset, images: ImageCache, more: Dataset) -> tuple[Dataset, ImageCache]:
    """A dataset and its pictures with those of another one behind them, which are decoded now."""
    samples = (*dataset.samples, *more.samples)
    return replace(dataset, samples=samples), images + ImageCache.load(more.samples, longest=images.longest)


def look(run: Run, held: Dataset, standing: CampaignState) -> Seen:
    """The held-back pictures as a trained run sees them, in as many views as there is time for.

    How many these are depends on what one picture costs in the plain view, and that is measured here.
    """
    model, classes = load_detector(run)
    size, began = run.recipe.image_size, time.monotonic()
    first = predict_views(model, held.samples, classes, image_size=size, views=VIEWS[:1])
    cost = (time.monotonic() - began) / len(held)
    rows = (
        SegmentRecord(**vars(r) | {"result": {"cost": cost}}) if r.name == run.folder.name else r for r in standing.rows
    )
    more = views(replace(standing, rows=tuple(rows)))[1:]
    rest = predict_views(model, held.samples, classes, image_size=size, views=more) if more else {}
    return Seen(first | rest, cost)
