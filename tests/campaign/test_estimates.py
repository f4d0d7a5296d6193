"""Estimates: costs are measured at the candidate's image size, and `--plan` writes nothing."""

import time
from dataclasses import replace

import pytest

from foldfuse.campaign.planning.estimates import measure_candidate
from foldfuse.commands.campaign import campaign
from foldfuse.data.readers.coco import read
from foldfuse.recipes import load_recipe
from foldfuse.training.batches import Batches
from foldfuse.training.precision import ComputeConfig
from foldfuse.training.step_cost import StepCost, measure_step
from learning_samples import write_dataset


def test_a_candidate_is_measured_at_its_size(tmp_path):
    dataset = read(write_dataset(tmp_path, 6))
    recipe = replace(load_recipe("efficientdet_lite0"), image_size=64, batch_size=2)
    small = measure_candidate("one", recipe, dataset)
    assert 0 < small.image_seconds < small.step_seconds
    large = measure_candidate("two", replace(recipe, image_size=256, batch_size=4), dataset)
    assert large.image_seconds > small.image_seconds


def test_a_candidate_is_measured_in_its_precision(tmp_path, monkeypatch):
    seen, own = set(), ComputeConfig.autocast
    monkeypatch.setattr(ComputeConfig, "autocast", lambda self, device: seen.add(self.precision) or own(self, device))
    recipe = load_recipe("lite0_fpn", ["image_size=64", "batch_size=2", "precision=bfloat16"])
    measure_candidate("one", recipe, read(write_dataset(tmp_path, 4)))
    assert seen == {"bfloat16"}


@pytest.mark.slow
def test_a_plan_is_shown_and_nothing_is_written(tmp_path, capsys):
    data, out = write_dataset(tmp_path / "d"), tmp_path / "out"
    changes = ("image_size=64", "batch_size=2")
    none = campaign(
        data, deadline=3600.0, out=out, recipe=("efficientdet_lite0",), set=changes, train_folds=2, plan=True
    )
    assert none is None
    assert not out.exists()
    shown = capsys.readouterr().out
    assert "yes" in shown
    assert "no time" not in shown
    assert "train base-128" in shown
    assert "predict the test images" in shown
    assert "2 of 5 folds are trained, as --train-folds says." in shown
    assert "6 members; its own fold of 5 is held out from each of them." in shown


def test_a_plan_downloads_no_weights(tmp_path, monkeypatch, capsys):
    def no_download(weights, **_):
        raise AssertionError(f"a plan asked for {weights.file}")

    monkeypatch.setattr("foldfuse.models.pretrained.published.locate", no_download)
    monkeypatch.setattr("foldfuse.campaign.planning.estimates.measure_step", lambda *_, **__: StepCost(0.01, 0.002))
    monkeypatch.setattr("foldfuse.training.step_cost.measure_step", lambda *_, **__: StepCost(0.01, 0.002))
    data = write_dataset(tmp_path / "d", 16)
    campaign(data, deadline=600.0, recipe=("ssdlite320",), plan=True, out=tmp_path / "out")
    assert "ssdlite320" in capsys.readouterr().out


def test_the_first_step_which_compiles_is_not_counted(tmp_path, monkeypatch):
    own = Batches.batch

    def batch(self, step, *arguments, **options):
        time.sleep(3.0 if step == 0 else 0.0)
        return own(self, step, *arguments, **options)

    monkeypatch.setattr(Batches, "batch", batch)
    recipe = replace(load_recipe("lite0_fpn"), image_size=64, batch_size=2, init_weights="none", frozen_stages=0)
    assert measure_step(recipe, read(write_dataset(tmp_path, 6))).step_seconds < 3.0
