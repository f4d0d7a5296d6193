"""A segment whose loss is not finite goes on from its checkpoint at a lower learning rate, or ends with that checkpoint."""

from __future__ import annotations

import math

import pytest

from foldfuse.campaign import constants as c
from foldfuse.campaign.execution.jobs import train_segment
from foldfuse.data.images import ImageCache
from foldfuse.data.readers.coco import read
from foldfuse.recipes import Recipe
from foldfuse.storage.run import Run
from foldfuse.training.gradients import StepLoss
from foldfuse.training.session import run_metadata
from learning_samples import write_dataset

RECIPE = Recipe("lite0_fpn", image_size=64, batch_size=2, init_weights="none", frozen_stages=0, lr=1e-3)


@pytest.fixture
def segment(tmp_path):
    """A new run, its dataset, and the decoded images."""
    dataset = read(write_dataset(tmp_path / "data", 4))
    run = Run.create(tmp_path / "run", RECIPE, run_metadata(dataset, data="data", seed=0))
    return run, dataset, ImageCache.load(dataset.samples, longest=64)


def diverging(monkeypatch, run, when):
    """Makes the loss of a step not finite where `when(step number, learning rate)` says so; returns the steps' numbers."""
    steps, real = [], StepLoss.read

    def read(loss):
        steps.append(len(steps))
        values = real(loss)
        return values | {"loss": math.nan} if when(len(steps), run.recipe.lr) else values

    monkeypatch.setattr(StepLoss, "read", read)
    return steps


def train(segment, seconds, **settings):
    run, dataset, images = segment
    values = {"state": None, "parent": None, "checkpoint_seconds": 0.1, "device": "cpu"} | settings
    return train_segment(run, dataset, seconds, images=images, **values)


def ends_after(steps, number, budgets=None):
    """A watch that ends a training once so many steps were computed; `budgets` gets the seconds of each try."""

    def watch(budget):
        if budgets is not None:
            budgets.append(budget.seconds)

        def after_step():
            if len(steps) >= number:
                budget.seconds = budget.elapsed()

        return after_step

    return watch


def test_it_goes_on_from_its_checkpoint_at_a_lower_rate_and_the_lost_seconds_count(segment, monkeypatch):
    run = segment[0]
    steps = diverging(monkeypatch, run, lambda number, lr: number >= 8 and lr == RECIPE.lr)
    budgets = []
    train(segment, 600.0, watch=ends_after(steps, 14, budgets), checkpoint_seconds=0.0)
    (change,) = run.metadata.lr_changes
    assert change.lr == run.recipe.lr == pytest.approx(c.DIVERGED_LR * RECIPE.lr)
    assert 0 < change.step < 8, "from the last checkpoint"
    assert run.is_trained
    assert [row["step"] for row in run.log] == list(range(run.metadata.steps))
    assert len(steps) > run.metadata.steps, "some steps were computed twice"
    assert budgets[1] < budgets[0] == 600.0


def test_a_first_member_without_a_checkpoint_begins_again(segment, monkeypatch):
    steps = diverging(monkeypatch, segment[0], lambda number, lr: number == 2)
    train(segment, 600.0, watch=ends_after(steps, 6), checkpoint_seconds=600.0)
    assert [change.step for change in segment[0].metadata.lr_changes] == [0]


@pytest.mark.parametrize(("cuts", "at_least"), [(c.MAX_LR_CUTS, 5.0), (0, 900.0)])
def test_without_a_checkpoint_it_fails_after_two_lower_rates_or_where_no_time_is_left(
    segment, monkeypatch, cuts, at_least
):
    monkeypatch.setattr(c, "MIN_SEGMENT_SECONDS", at_least)
    diverging(monkeypatch, segment[0], lambda number, lr: True)
    with pytest.raises(FloatingPointError, match="the loss is not finite"):
        train(segment, 600.0)
    assert len(segment[0].metadata.lr_changes) == cuts


@pytest.mark.parametrize(("cuts", "at_least"), [(c.MAX_LR_CUTS, 5.0), (0, 900.0)])
def test_its_last_checkpoint_is_kept_where_it_cannot_go_on(segment, monkeypatch, cuts, at_least):
    run = segment[0]
    monkeypatch.setattr(c, "MIN_SEGMENT_SECONDS", at_least)
    diverging(monkeypatch, run, lambda number, lr: number >= 5)
    seconds = train(segment, 600.0, checkpoint_seconds=0.0)
    assert 0 < run.metadata.kept_from == run.metadata.steps < 5
    assert run.is_trained
    assert len(run.metadata.lr_changes) == cuts
    assert seconds < 600, "the campaign has the rest of the time"
