"""A campaign's folder predicts its test images as its submission has them, and says what cannot be had for new images."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from campaign_samples import noisy
from foldfuse import cli
from foldfuse.campaign.external_members import _add_predictions
from foldfuse.campaign.submissions import MemberPredictions, predict_test_images, write_submission_folder
from foldfuse.campaign.task import VAL, Task, predictions_path
from foldfuse.commands.train import train
from foldfuse.data.image_inputs import read_paths
from foldfuse.data.pixels import open_images
from foldfuse.data.readers.coco import read
from foldfuse.ensemble.ensemble import Ensemble, apply_ensemble
from foldfuse.ensemble.member_views import MemberView
from foldfuse.errors import InputError
from foldfuse.formats.predictions import read_predictions, write_predictions
from foldfuse.inference.crop_encoder import LinearProbe
from foldfuse.inference.crop_features import imagenet_encoder
from foldfuse.inference.predictor import load
from foldfuse.inference.rescorer import Blend, Rescorer, apply_rescorer
from foldfuse.recipes import load_recipe
from foldfuse.storage.ledger import create
from foldfuse.storage.run import Run
from foldfuse.storage.segments import Role, SegmentRecord
from learning_samples import write_dataset

VIEWS = ("1", "1+hflip", "1.5")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with d/ (labeled), t/ (test images of two sizes) and run/, trained for two steps without fold 0."""
    folder = tmp_path_factory.mktemp("made")
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


@pytest.fixture
def campaign(made, tmp_path):
    """(task, ledger) of a campaign with one trained member, in out/."""
    labeled = open_images(read(made / "d"))
    test = open_images(read(made / "t", annotated=False))
    held_out = Run(made / "run").metadata.val_ids
    train_ids = set(labeled.image_ids) - set(held_out)
    recipes = {"lite0_fpn": load_recipe("lite0_fpn", ["image_size=64"])}
    task = Task(labeled.subset(train_ids), labeled.subset(held_out), test, frozenset(), recipes, (), 0, 2, device="cpu")
    (tmp_path / "out").mkdir()
    request = {"data": str(made / "d"), "images": None, "ignore_orientation": False}
    ledger = create(tmp_path / "out", {"request": request}, deadline=600, start=time.monotonic())
    shutil.copytree(made / "run", tmp_path / "out" / "members" / "base")
    shutil.copy(made / "folds.json", tmp_path / "out" / "folds.json")
    row = {"name": "base", "image_seconds": 0.01, "predicted_views": list(VIEWS)}
    ledger.put_segment(SegmentRecord("base", Role.BASE, {}, None, 0, 0, "done", 1.0, 1.0, 0.0, 1.0, row))
    yield task, ledger
    ledger.close()


def submit(task, ledger, members, ensemble, score, facts=(), rescorer=None):
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
    write_submission_folder(val, test, ensemble, score, dict(facts), task=task, ledger=ledger, rescorer=rescorer)


def equal(found, submitted):
    assert found.image_ids.tolist() == submitted.image_ids.tolist()
    assert found.offsets.tolist() == submitted.offsets.tolist()
    np.testing.assert_allclose(found.boxes, submitted.boxes, atol=1e-3)
    np.testing.assert_allclose(found.scores, submitted.scores, atol=1e-6)
    assert found.labels.tolist() == submitted.labels.tolist()


def test_a_campaign_predicts_its_submission(campaign, made, tmp_path):
    task, ledger = campaign
    with pytest.raises(InputError, match="has no submission yet"):
        load(ledger.folder)
    members = MemberPredictions(runs={"base": Run(ledger.folder / "members" / "base")})
    submit(task, ledger, members, Ensemble({"base@1": 1.0}), 0.3)
    second = Ensemble({"base@1": 2.0, "base@1+hflip": 1.0, "base@1.5": 1.0}, score_exponents={"base@1.5": 2.0})
    submit(task, ledger, members, second, 0.4)
    predictor = load(str(ledger.folder), device="cpu")
    assert "campaign of 1 network in 3 views by WBF" in repr(predictor)
    submitted = read_predictions(ledger.folder / "fused_test.parquet", task.test)
    assert len(submitted.boxes)
    equal(predictor.predict(made / "t"), submitted)

    numbers = np.random.default_rng(0)
    probe = LinearProbe(numbers.normal(size=1280), np.ones(1280), numbers.normal(size=(1280, 3)), np.zeros(3))
    rescorer = Rescorer(
        probe,
        imagenet_encoder(device="cpu"),
        Blend(0.4, True),
        3,
        -1.0,
    )
    submit(task, ledger, members, second, 0.5, {"rescoring": {"accepted": True}}, rescorer)
    rescored = read_predictions(ledger.folder / "fused_test.parquet", task.test)
    assert not np.allclose(np.sort(rescored.scores), np.sort(submitted.scores))
    predictor = load(ledger.folder, device="cpu")
    assert repr(predictor).endswith("crop rescoring, 2 classes: red, blue)")
    equal(predictor.predict(made / "t" / "train.json"), rescored)
    assert repr(load(ledger.folder / "ensemble.json", device="cpu")) == repr(predictor)
    out = tmp_path / "p.parquet"
    assert cli.main(["predict", str(ledger.folder), str(made / "t"), "--out", str(out), "--device", "cpu"]) == 0
    equal(read_predictions(out, task.test), rescored)
    assert len(predictor.learnt_ids(task.labeled)) == 8, "the rescorer has learnt from the held-out images"

    for name in ("rescorer.json", "rescorer.safetensors"):
        assert (ledger.folder / name).exists()
        (ledger.folder / "submissions" / "3" / name).unlink()
    submit(task, ledger, members, second, 0.6)
    assert not (ledger.folder / "rescorer.json").exists(), "the current submission has none"


@pytest.mark.slow
def test_two_processes_predict_with_a_campaign_what_one_predicts(campaign, made, tmp_path):
    task, ledger = campaign
    members = MemberPredictions(runs={"base": Run(ledger.folder / "members" / "base")})
    numbers = np.random.default_rng(0)
    probe = LinearProbe(numbers.normal(size=1280), np.ones(1280), numbers.normal(size=(1280, 3)), np.zeros(3))
    blend = Blend(0.4, True)
    rescorer = Rescorer(probe, imagenet_encoder(device="cpu"), blend, 3, -1.0)
    ensemble = Ensemble({"base@1": 2.0, "base@1+hflip": 1.0})
    submit(task, ledger, members, ensemble, 0.5, {"rescoring": {"accepted": True}}, rescorer)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for number, images in enumerate(
        (made / "t", made / "t" / "images" / "000.png")
    ):  # the second process has no image then
        out = tmp_path / f"{number}.parquet"
        words = ["-m", "foldfuse", "predict", ledger.folder, images, "--out", out, "--device", "cpu"]
        subprocess.run([*map(str, (*torchrun, *words))], check=True, timeout=240)
        inputs = read_paths([images])
        predictor = load(ledger.folder, device="cpu")
        test = predictor.open(inputs)
        equal(read_predictions(out, test), predictor.predict(test))


def test_an_old_campaign_says_that_it_cannot_rescore(campaign, made, caplog):
    task, ledger = campaign
    members = MemberPredictions(runs={"base": Run(ledger.folder / "members" / "base")})
    submit(task, ledger, members, Ensemble({"base@1": 1.0}), 0.3, {"rescoring": {"accepted": True}})
    load(ledger.folder, device="cpu")
    assert "these predictions are not rescored" in caplog.text
    shutil.rmtree(ledger.folder / "members")
    with pytest.raises(InputError, match="needs this member"):
        load(ledger.folder, device="cpu")


def test_external_predictions_are_left_out_and_their_loss_is_told(campaign, made, caplog):
    task, ledger = campaign
    found = noisy(task.val, 3)
    members = MemberPredictions(runs={"base": Run(ledger.folder / "members" / "base")})
    test = noisy(open_images(read(made / "t")), 4)
    _add_predictions("other", found, test, task, ledger)
    members.test[MemberView("other", "1")] = test
    both = Ensemble({"base@1": 1.0, "other@1": 3.0, "base@1.5": 2.0}, score_exponents={"other@1": 2.0})
    submit(task, ledger, members, both, 0.3, {"fused": {"metric": "ap"}})
    predictor = load(ledger.folder, device="cpu")
    assert predictor.ensemble == Ensemble({"base@1": 2.0, "base@1.5": 4.0})
    assert "other joined as predictions of another toolkit" in caplog.text
    assert "Out-of-fold, AP is" in caplog.text
    assert len(predictor.predict(made / "t")) == 5
    caplog.clear()
    (ledger.folder / "folds.json").unlink()
    load(ledger.folder, device="cpu")
    assert "What this costs is not known" in caplog.text
    submit(task, ledger, members, Ensemble({"other@1": 1.0}), 0.4)
    with pytest.raises(InputError, match="every member of its ensemble"):
        load(ledger.folder)
