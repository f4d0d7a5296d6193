"""Campaigns with one member, trained for two steps, and submissions of them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from campaign_samples import noisy
from foldfuse import cli
from foldfuse.campaign.submissions import MemberPredictions, predict_test_images, write_submission_folder
from foldfuse.campaign.task import VAL, Task, predictions_path
from foldfuse.commands.train import train
from foldfuse.data.pixels import open_images
from foldfuse.data.readers.coco import read
from foldfuse.detections import Predictions
from foldfuse.ensemble.ensemble import Ensemble, apply_ensemble
from foldfuse.ensemble.member_views import MemberView
from foldfuse.formats.predictions import write_predictions
from foldfuse.inference.crop_encoder import LinearProbe
from foldfuse.inference.crop_features import imagenet_encoder
from foldfuse.inference.rescorer import Blend, Rescorer, apply_rescorer
from foldfuse.recipes import load_recipe
from foldfuse.storage.ledger import Ledger, create
from foldfuse.storage.run import Run
from foldfuse.storage.segments import Role, SegmentRecord
from learning_samples import write_dataset

VIEWS = ("1", "1+hflip", "1.5")


def make_run(folder: Path) -> Path:
    """Puts d/ (labeled), t/ (test images), folds.json and run/, trained for two steps without fold 0, into a folder."""
    data = write_dataset(folder / "d", 8, size=(150, 110))
    write_dataset(folder / "t", 5, size=(150, 110), seed=9)
    assert cli.main(["split", str(data), "--folds", "2", "--out", str(folder / "folds.json")]) == 0
    train(
        data,
        out=folder / "run",
        changes=("image_size=64", "batch_size=2"),
        steps=2,
        folds=folder / "folds.json",
        fold=0,
    )
    return folder


@contextmanager
def open_campaign(made: Path, folder: Path) -> Iterator[tuple[Task, Ledger]]:
    """(task, ledger) of a campaign in `folder` whose one trained member, base, is the run of `make_run`."""
    labeled = open_images(read(made / "d"))
    test = open_images(read(made / "t", annotated=False))
    held_out = Run(made / "run").metadata.val_ids
    train_ids = set(labeled.image_ids) - set(held_out)
    recipes = {"lite0_fpn": load_recipe("lite0_fpn", ["image_size=64"])}
    task = Task(labeled.subset(train_ids), labeled.subset(held_out), test, frozenset(), recipes, (), 0, 2, device="cpu")
    folder.mkdir()
    request = {"data": str(made / "d"), "images": None, "ignore_orientation": False}
    ledger = create(folder, {"request": request}, deadline=600, start=time.monotonic())
    shutil.copytree(made / "run", folder / "members" / "base")
    shutil.copy(made / "folds.json", folder / "folds.json")
    row = {"name": "base", "image_seconds": 0.01, "predicted_views": list(VIEWS)}
    ledger.put_segment(SegmentRecord("base", Role.BASE, {}, None, 0, 0, "done", 1.0, 1.0, 0.0, 1.0, row))
    try:
        yield task, ledger
    finally:
        ledger.close()


def members_of(ledger: Ledger) -> MemberPredictions:
    """The members of such a campaign, before their test images are predicted."""
    return MemberPredictions(runs={"base": Run(ledger.folder / "members" / "base")})


def crop_rescorer() -> Rescorer:
    """A rescorer of two classes with random numbers, on the package's encoder."""
    numbers = np.random.default_rng(0)
    probe = LinearProbe(numbers.normal(size=1280), np.ones(1280), numbers.normal(size=(1280, 3)), np.zeros(3))
    return Rescorer(probe, imagenet_encoder(device="cpu"), Blend(0.4, True), 3, -1.0)


def submit(
    task: Task,
    ledger: Ledger,
    members: MemberPredictions,
    ensemble: Ensemble,
    score: float,
    facts: Mapping[str, Any] | None = None,
    rescorer: Rescorer | None = None,
) -> None:
    """Submits an ensemble as a campaign does: the views that were not predicted yet, together."""
    candidates = {key: noisy(task.val, i) for i, key in enumerate(MemberView("base", view) for view in VIEWS)}
    for key, predictions in candidates.items():
        write_predictions(predictions, predictions_path(ledger.folder / "members" / "base", VAL, key.view), task.val)
    names = {name for name in ensemble.weights if name.startswith("base")}
    own = replace(ensemble, weights={name: 1.0 for name in ensemble.weights if name in names})
    predict_test_images(own, candidates, task, ledger, members)
    test = apply_ensemble(ensemble, {str(key): value for key, value in members.test.items()})
    if rescorer is not None:
        test = apply_rescorer(rescorer, test, task.test_samples)
    val = noisy(task.val, 7)
    write_submission_folder(val, test, ensemble, score, dict(facts or {}), task=task, ledger=ledger, rescorer=rescorer)


def equal(found: Predictions, submitted: Predictions) -> None:
    """Asserts that two predictions of the same images are equal."""
    assert found.image_ids.tolist() == submitted.image_ids.tolist()
    assert found.offsets.tolist() == submitted.offsets.tolist()
    np.testing.assert_allclose(found.boxes, submitted.boxes, atol=1e-3)
    np.testing.assert_allclose(found.scores, submitted.scores, atol=1e-6)
    assert found.labels.tolist() == submitted.labels.tolist()
