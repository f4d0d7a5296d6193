"""`next`: images to label, from a campaign or from runs, without those that are labelled; its folder, and what it refuses."""

from __future__ import annotations

import json
import shutil
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

import foldfuse as ff
from campaign_samples import noisy
from foldfuse import cli
from foldfuse.commands.train import train
from foldfuse.data.content_hashes import repeated_images, same_images
from foldfuse.data.folds import make_folds
from foldfuse.data.image_inputs import read_paths
from foldfuse.data.readers.coco import read
from foldfuse.ensemble.ensemble import Ensemble
from foldfuse.errors import InputError
from foldfuse.formats.predictions import write_predictions
from foldfuse.inference.committee import committee, predict_committee
from foldfuse.inference.held_out_evidence import held_out_evidence
from foldfuse.inference.image_features import SIDE, colour_grid, image_encoder
from foldfuse.inference.predictor import load
from foldfuse.reporting.next_folder import FILES
from foldfuse.storage import ledger
from foldfuse.storage.run import Run
from learning_samples import write_dataset

SMALL = ("image_size=64", "batch_size=2")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """d/ with 8 annotated images, two runs of six of them, and pool/ with new, labelled, repeated and broken images."""
    folder = tmp_path_factory.mktemp("next")
    data = write_dataset(folder / "d", 8)
    make_folds(read(data), num_folds=4).write(folder / "folds.json")
    for seed, name in enumerate(("run1", "run2")):
        train(data, out=folder / name, changes=SMALL, steps=2, seed=seed, folds=folder / "folds.json")
    new = write_dataset(folder / "new", 7, seed=5).parent / "images"
    pool = folder / "pool"
    (pool / "more").mkdir(parents=True)
    for i in range(6):
        shutil.copy(new / f"00{i}.png", pool / ("more" if i > 3 else ".") / f"n{i}.png")
    shutil.copy(new / "000.png", pool / "again.png")
    for i in range(8):  # learnt and held-out ones: all are labelled
        shutil.copy(folder / "d" / "images" / f"00{i}.png", pool / f"labelled{i}.png")
    (pool / "cut.png").write_bytes((new / "006.png").read_bytes()[:4000])
    return folder


def test_runs_pick_images_that_nobody_has_labelled(made, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(made)
    words = ["next", "pool", "run1", "run2", "--number", "4", "--device", "cpu"]
    assert cli.main([*words, "--out", str(tmp_path / "a")]) == 0
    printed = capsys.readouterr()
    assert "left out are 8 that are labelled already and 1 that are copies of others; 7 images to choose" in printed.err
    assert "1 image is left out: " in printed.err
    assert "cut.png" in printed.err
    assert "The first images to label" in printed.out
    assert {path.name for path in (tmp_path / "a").iterdir()} <= {*FILES}
    record = json.loads((tmp_path / "a" / "next.json").read_text())
    names = [one["image"] for one in record["images"]]
    assert len(set(names)) == 4
    assert set(names) <= {"again.png", "more/n4.png", "more/n5.png", *(f"n{i}.png" for i in range(4))}
    assert (tmp_path / "a" / "images.txt").read_text().splitlines() == [one["path"] for one in record["images"]]
    offered = read(tmp_path / "a" / "annotations.json")
    assert [s.file_name for s in offered.samples] == [f"images/{name}" for name in names]
    assert (offered.classes, offered.category_ids) == (("red", "blue"), (3, 7))
    assert all(s.path.read_bytes() == (made / "pool" / n).read_bytes() for s, n in zip(offered, names, strict=True))
    header, *rows = (tmp_path / "a" / "next.csv").read_text().splitlines()
    assert header == "rank,image,score,expected,reason,members,path"
    assert [row.split(",")[1] for row in rows] == names
    assert "1. " in (tmp_path / "a" / "next.html").read_text()
    found = ff.read_predictions(tmp_path / "a" / "predictions.parquet", offered)
    assert len(found) == 4
    monkeypatch.setattr("foldfuse.inference.committee.CHUNK", 2)
    again = ff.next_images("pool", ["run1", ff.Run("run2")], number=4, out=tmp_path / "b", device="cpu")
    assert [one.image for one in again.images] == names, "the same images, whatever the chunks"
    assert again.members == ("run1", "run2")


def test_members_see_what_they_predict_alone(made):
    predictors = [load(made / name, device="cpu") for name in ("run1", "run2")]
    samples = predictors[0].open(read_paths([made / "new" / "images"])).samples
    predicted = predict_committee(committee(predictors, {}), samples, colour_grid)
    assert predicted.features.shape == (7, 192)
    alone = predictors[1].predict_samples(samples)
    for sample, seen in zip(samples, predicted.detections["run2"], strict=True):
        own = alone[sample.id]
        own = own[own.scores >= 0.02]
        np.testing.assert_allclose(np.sort(seen.scores), np.sort(own.scores), atol=1e-4)


def test_a_single_run_is_compared_with_its_mirrored_view(made):
    members = committee([load(made / "run1", device="cpu")], {})
    assert [member.name for member in members] == ["run1", "run1@1+hflip"]


@pytest.fixture(scope="module")
def campaign(made):
    """A campaign of run1 and run2 with a submission, out-of-fold AP by class, and held-out predictions of run1."""
    folder = made / "night1"
    folder.mkdir()
    dataset = read(made / "d" / "train.json")
    facts = {"state": "finished", "request": {"data": str(made / "d" / "train.json")}}
    with closing(ledger.create(folder, facts, deadline=600, start=0.0)) as book:
        rows = [{"name": "red", "boxes": 5, "ap": 0.75}, {"name": "blue", "boxes": 0, "ap": None}]
        book.add_submission(0.5, {"fused": {"ap50": 0.5, "per_class": rows}, "best_member": "run1"})
    for name in ("run1", "run2"):
        shutil.copytree(made / name, folder / "members" / name)
    held_out = Run(made / "run1").metadata.val_ids
    predictions = noisy(dataset, seed=0).select_images(held_out)
    write_predictions(predictions, folder / "members/run1/val@1.parquet", dataset)
    Ensemble({"run1@1": 1.0, "run1@1+hflip": 1.0, "run2@1": 2.0}).write(folder / "ensemble.json")
    return folder


def test_a_campaign_brings_its_ap_by_class_and_its_labelled_images(made, campaign, tmp_path, capsys):
    evidence = held_out_evidence([load(campaign, device="cpu")])
    assert evidence.average_precisions == {"red": 0.75, "blue": None}
    assert [run.folder.name for run in evidence.calibrations] == ["run1"]
    assert [len(dataset) for dataset in evidence.labelled] == [8]
    assert not evidence.notes
    picked = ff.next_images(f"{made / 'pool'}/*.png", campaign, number=50, out=tmp_path / "next", score_threshold=0.0)
    assert {one.image for one in picked.images} <= {"again.png", *(f"n{i}.png" for i in range(4))}
    assert len(picked.images) == 4, "all that are left"
    assert picked.members == ("run1", "run2")
    assert "0.750" in capsys.readouterr().out
    document = json.loads((tmp_path / "next" / "annotations.json").read_text())
    assert all(0 <= row["score"] <= 1 for row in document["annotations"])
    same = load(campaign, device="cpu").predict([one.path for one in picked.images])
    assert len(document["annotations"]) == len(same.boxes), "the boxes of the whole ensemble"
    path = tmp_path / "next" / "annotations.json"
    offered = ff.read_predictions(path, read(path))
    np.testing.assert_allclose(np.sort(offered.scores), np.sort(same.scores), atol=1e-4)


def test_a_campaign_whose_data_are_gone_says_so(made, campaign, tmp_path):
    moved = tmp_path / "night1"
    shutil.copytree(campaign, moved)
    with ledger.resume(moved, start=0.0).db as db:
        db.execute("UPDATE facts SET value = ? WHERE name = 'request'", (json.dumps({"data": "gone.json"}),))
    evidence = held_out_evidence([load(moved, device="cpu")])
    assert not evidence.labelled
    assert not evidence.calibrations
    (note,) = evidence.notes
    assert "gone.json: cannot be read any more" in note


def test_what_cannot_be_done_is_refused_in_a_sentence(made, campaign, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(made)
    (tmp_path / "none").mkdir()
    (tmp_path / "empty").mkdir()
    with closing(ledger.create(tmp_path / "none", {"state": "running"}, deadline=600, start=0.0)):
        pass
    for words, sentence in (
        (["d/images", "run1"], "all of its 8 images are labelled already"),
        (["pool", str(tmp_path / "none")], "this campaign has no submission yet"),
        ([str(tmp_path / "empty"), "run1"], "empty"),
        (["no/*.png", "run1"], "no image has a name of this pattern"),
        (["pool", "pool/n1.png", "run1"], "is an image, expected a campaign or a run. Put a pattern"),
        (["pool", "run1", "./run1"], "is given twice"),
        (["pool", "run1", "run2", "--score-threshold", "best"], "several runs together have no stored threshold"),
        (["pool", "gone"], "gone"),
    ):
        assert cli.main(["next", *words, "--out", str(tmp_path / "out")]) == 2, words
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_labels_of_a_person_are_never_overwritten(made, tmp_path):
    def again(**options):
        return ff.next_images(made / "new" / "images", made / "run1", number=2, out=tmp_path / "next", **options)

    again()
    with pytest.raises(InputError, match="exists already"):
        again()
    assert len(again(overwrite=True).images) == 2
    labelled = tmp_path / "next" / "labels.json"
    labelled.write_text("{}")
    with pytest.raises(InputError, match="which 'foldfuse next' did not write"):
        again(overwrite=True)
    labelled.unlink()
    path = tmp_path / "next" / "annotations.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(InputError, match="somebody's labels would be lost"):
        again(overwrite=True)
    assert path.read_text().endswith(" ")


def test_images_are_the_same_by_their_content(tmp_path):
    samples = read(write_dataset(tmp_path / "d", 4)).samples
    others = read(write_dataset(tmp_path / "e", 3)).samples  # the same seed: the same first images
    assert [s.id for s in same_images(samples, others[1:])] == [1, 2]
    assert [s.id for s in repeated_images([*samples, *others])] == [0, 1, 2]
    others[1].path.unlink()
    assert [s.id for s in same_images(samples, others[1:])] == [2]


def test_features_of_alike_images_are_close():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (3, 8, 8, 3), np.uint8)
    images = np.stack([np.asarray(Image.fromarray(one).resize((SIDE, SIDE))) for one in images])
    images = np.concatenate([images, np.clip(images[:1].astype(int) + 3, 0, 255).astype(np.uint8)])
    for encode in (colour_grid, image_encoder("cpu")):
        found = encode(images)
        apart = np.linalg.norm(found - found[0], axis=1)
        assert apart[3] < 0.3 * apart[1:3].min()
