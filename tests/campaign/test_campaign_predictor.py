"""A campaign's folder predicts its test images as its submission has them, and says what cannot be had for new images."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from campaign_samples import noisy
from foldfuse import cli
from foldfuse.campaign.external_members import _add_predictions
from foldfuse.data.image_inputs import read_paths
from foldfuse.data.pixels import open_images
from foldfuse.data.readers.coco import read
from foldfuse.ensemble.calibration import Calibration
from foldfuse.ensemble.ensemble import Ensemble
from foldfuse.ensemble.member_views import MemberView
from foldfuse.errors import InputError
from foldfuse.evaluation.thresholds import read_thresholds
from foldfuse.formats.predictions import read_predictions
from foldfuse.inference.predictor import load
from submission_samples import crop_rescorer, equal, make_run, members_of, open_campaign, submit


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made"))


@pytest.fixture
def campaign(made, tmp_path):
    """(task, ledger) of a campaign with one trained member, in out/."""
    with open_campaign(made, tmp_path / "out") as opened:
        yield opened


def test_a_campaign_predicts_its_submission(campaign, made, tmp_path):
    task, ledger = campaign
    with pytest.raises(InputError, match="has no submission yet"):
        load(ledger.folder)
    members = members_of(ledger)
    submit(task, ledger, members, Ensemble({"base@1": 1.0}), 0.3)
    second = Ensemble({"base@1": 2.0, "base@1+hflip": 1.0, "base@1.5": 1.0}, score_exponents={"base@1.5": 2.0})
    submit(task, ledger, members, second, 0.4)
    predictor = load(str(ledger.folder), device="cpu")
    assert "campaign of 1 network in 3 views by WBF" in repr(predictor)
    submitted = read_predictions(ledger.folder / "fused_test.parquet", task.test)
    assert len(submitted.boxes)
    equal(predictor.predict(made / "t"), submitted)

    rescorer = crop_rescorer()
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
    words = ["predict", str(ledger.folder), str(made / "t"), "--out", str(out), "--overwrite", "--device", "cpu"]
    assert cli.main([*words, "--score-threshold", "best-by-class"]) == 0
    thresholds = read_thresholds(ledger.folder / "thresholds.json")
    equal(read_predictions(out, task.test), thresholds.apply(rescored, "best-by-class"))
    assert len(predictor.learnt_ids(task.labeled)) == 8, "the rescorer has learnt from the held-out images"

    for name in ("rescorer.json", "rescorer.safetensors"):
        assert (ledger.folder / name).exists()
        (ledger.folder / "submissions" / "3" / name).unlink()
    submit(task, ledger, members, second, 0.6)
    assert not (ledger.folder / "rescorer.json").exists(), "the current submission has none"


def test_an_ensemble_with_learned_fusion_has_learnt_the_held_out_images(campaign, made):
    task, ledger = campaign
    members = members_of(ledger)
    plain = Ensemble({"base@1": 2.0, "base@1+hflip": 1.0})
    submit(task, ledger, members, replace(plain, calibrations={"base@1": Calibration(0.9, 0.1)}), 0.4)
    predictor = load(ledger.folder, device="cpu")
    assert predictor.learnt_ids(task.labeled) >= {*task.val.image_ids}
    submit(task, ledger, members, plain, 0.5)
    assert not load(ledger.folder, device="cpu").learnt_ids(task.labeled) & {*task.val.image_ids}


@pytest.mark.slow
def test_two_processes_predict_with_a_campaign_what_one_predicts(campaign, made, tmp_path):
    task, ledger = campaign
    members = members_of(ledger)
    rescorer = crop_rescorer()
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
    members = members_of(ledger)
    submit(task, ledger, members, Ensemble({"base@1": 1.0}), 0.3, {"rescoring": {"accepted": True}})
    load(ledger.folder, device="cpu")
    assert "these predictions are not rescored" in caplog.text
    shutil.rmtree(ledger.folder / "members")
    with pytest.raises(InputError, match="needs this member"):
        load(ledger.folder, device="cpu")


def test_external_predictions_are_left_out_and_their_loss_is_told(campaign, made, caplog):
    task, ledger = campaign
    found = noisy(task.val, 3)
    members = members_of(ledger)
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
