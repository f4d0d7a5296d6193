"""What a run has learnt from is recorded, left out of its predictions, and refused where something is chosen on it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from foldfuse.campaign.task import Inputs, prepare_task
from foldfuse.commands.fusion import ensemble, fuse
from foldfuse.commands.predict import predict
from foldfuse.commands.predictions import convert, score
from foldfuse.commands.rescore import rescore
from foldfuse.commands.train import train
from foldfuse.data.content_hashes import image_hashes
from foldfuse.data.folds import make_folds, read_folds
from foldfuse.data.readers.coco import read
from foldfuse.ensemble.build import build_ensemble
from foldfuse.errors import InputError
from foldfuse.formats.predictions import read_predictions, write_predictions
from foldfuse.inference.learnt_images import learnt_before, learnt_ids
from foldfuse.recipes import load_recipe
from foldfuse.storage import ledger as ledgers
from foldfuse.storage.run import Run
from learning_samples import write_dataset
from score_samples import noisy

SMALL = ("image_size=64", "batch_size=2", "init_weights=none", "frozen_stages=0", "lr=1e-4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """data/ with 12 images, folds.json of 3 folds, and a run that held out fold 0."""
    folder = tmp_path_factory.mktemp("learnt")
    data = write_dataset(folder / "data", 12)
    make_folds(read(data), num_folds=3).write(folder / "folds.json")
    train(data, out=folder / "run", changes=SMALL, steps=1, folds=folder / "folds.json")
    return folder


@pytest.fixture(scope="module")
def val_ids(folder):
    return set(read_folds(folder / "folds.json").val_ids(0))


@pytest.fixture(scope="module")
def all_parquet(folder):
    return predict(folder / "run", folder / "data" / "train.json", out=folder / "all.parquet", all_=True)


def test_a_run_records_the_images_it_trains_on_by_their_content(folder, val_ids, tmp_path):
    dataset = read(folder / "data" / "train.json")
    assert learnt_ids(Run(folder / "run"), dataset) == set(dataset.image_ids) - val_ids
    shutil.copytree(folder / "data", tmp_path / "elsewhere")  # other names, other ids, one pixel changed
    document = json.loads((tmp_path / "elsewhere" / "train.json").read_text())
    for row in document["images"]:
        (tmp_path / "elsewhere" / "images" / row["file_name"]).rename(tmp_path / "elsewhere" / f"x{row['file_name']}")
        row["id"], row["file_name"] = row["id"] + 100, f"x{row['file_name']}"
    changed = min(set(dataset.image_ids) - val_ids)
    path = tmp_path / "elsewhere" / f"x{changed:03}.png"
    pixels = np.array(Image.open(path))
    pixels[0, 0] ^= 255
    Image.fromarray(pixels).save(path)
    (tmp_path / "elsewhere" / "train.json").write_text(json.dumps(document | {"annotations": []}))
    renamed = read(tmp_path / "elsewhere" / "train.json")
    assert learnt_ids(Run(folder / "run"), renamed) == {i + 100 for i in set(dataset.image_ids) - val_ids - {changed}}


def test_only_held_out_images_are_predicted(folder, val_ids, tmp_path, capsys):
    data = folder / "data" / "train.json"
    predict(folder / "run", data, out=tmp_path / "oof.parquet")
    assert f"has learnt from 8 of the 12 images of {data}. The 4 others are predicted" in capsys.readouterr().err
    predictions = read_predictions(tmp_path / "oof.parquet", read(data))
    assert set(predictions) == val_ids
    assert predictions.learnt_ids == set(read(data).image_ids) - val_ids
    predict(folder / "run", data, out=tmp_path / "oof.json")
    assert "only a .parquet can say that images were left out" in capsys.readouterr().err


def test_all_predicts_every_image_and_the_file_remembers_the_learnt_ones(folder, val_ids, all_parquet, tmp_path):
    dataset = read(folder / "data" / "train.json")
    predictions = read_predictions(all_parquet, dataset)
    assert set(predictions) == set(dataset.image_ids)
    assert predictions.learnt_ids == set(dataset.image_ids) - val_ids
    convert(all_parquet, folder / "data" / "train.json", out=tmp_path / "copy.parquet")
    fuse((all_parquet, tmp_path / "copy.parquet"), data=folder / "data" / "train.json", out=tmp_path / "fused.parquet")
    for name in ("copy.parquet", "fused.parquet"):
        assert read_predictions(tmp_path / name, dataset).learnt_ids == predictions.learnt_ids


def test_a_run_that_knows_every_image_is_refused(folder, val_ids, tmp_path):
    document = json.loads((folder / "data" / "train.json").read_text())
    document["images"] = [row for row in document["images"] if row["id"] not in val_ids]
    document["annotations"] = []
    part = folder / "data" / "part.json"
    part.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"has learnt from all 8 images of .*part.json.*--all"):
        predict(folder / "run", part, out=tmp_path / "no.parquet")
    assert not (tmp_path / "no.parquet").exists()


def test_new_images_are_predicted_without_a_word(folder, tmp_path, capsys):
    new = write_dataset(tmp_path / "new", 3, seed=5)
    predict(folder / "run", new, out=tmp_path / "new.parquet")
    assert "learnt" not in capsys.readouterr().err
    assert read_predictions(tmp_path / "new.parquet", read(new)).learnt_ids == frozenset()


def test_a_run_inherits_from_the_run_it_starts_from(folder, val_ids, tmp_path, capsys):
    new = write_dataset(tmp_path / "new", 4, seed=5)
    train(new, out=tmp_path / "tuned", init_from=folder / "run", steps=1)
    both = {*image_hashes(read(new).samples), *learnt_before(str(folder / "run"))}
    assert Run(tmp_path / "tuned").learnt_images == both
    assert len(both) == 4 + 8
    capsys.readouterr()
    options = {"init_from": folder / "run", "steps": 1, "folds": folder / "folds.json", "fold": 1}
    train(folder / "data" / "train.json", out=tmp_path / "leaky", **options)
    assert "has learnt from 4 of the 4 held-out images" in capsys.readouterr().err
    with pytest.raises(InputError, match="has learnt from all 12 images"):
        predict(tmp_path / "leaky", folder / "data" / "train.json", out=tmp_path / "no.parquet")


def test_an_imported_run_knows_no_image_of_other_data(folder):
    dataset = read(folder / "data" / "train.json")
    run = Run(folder / "old")
    shutil.copytree(folder / "run", run.folder)
    (run.folder / "learnt_images.json").unlink()  # a run of an earlier version is judged by its held-out ids
    assert learnt_ids(run, dataset) == learnt_ids(Run(folder / "run"), dataset)
    run.write_metadata(type(run.metadata)(classes=dataset.classes))
    assert learnt_ids(run, dataset) == frozenset()
    assert learnt_ids(run, dataset, strict=True) == set(dataset.image_ids)


def test_score_warns_of_learnt_images_and_scores_only_what_is_predicted(folder, val_ids, all_parquet, tmp_path, capsys):
    data = folder / "data" / "train.json"
    score(all_parquet, data)
    assert "WARNING" in (err := capsys.readouterr().err)
    assert "has learnt from 8 of the 12 images" in err
    dataset = read(data)
    held_out = dataset.subset(val_ids)
    perfect = noisy(held_out, 0, keep=2, extra=0, jitter=0, wrong=0)
    write_predictions(perfect, tmp_path / "held_out.parquet", dataset)
    score(tmp_path / "held_out.parquet", data)
    out, err = capsys.readouterr()
    assert "scored on the 4 of 12 images that are predicted" in err
    assert "1.0000" in out


def test_nothing_is_chosen_on_learnt_images(folder, val_ids, all_parquet, tmp_path, capsys):
    data = folder / "data" / "train.json"
    with pytest.raises(InputError, match=r"8 of its 12 images.*has learnt from.*without --all"):
        ensemble((all_parquet,), data=data, out=tmp_path / "e.json", budget=0.1)
    with pytest.raises(InputError, match="has learnt from"):
        rescore(all_parquet, data=data, out=tmp_path / "rescored")
    dataset = read(data)
    for seed in range(2):
        write_predictions(noisy(dataset.subset(val_ids), seed), tmp_path / f"{seed}.parquet", dataset)
    names = (tmp_path / "0.parquet", tmp_path / "1.parquet")
    ensemble(names, data=data, out=tmp_path / "e.json", budget=0.1)
    assert "chosen on the 4 of 12 images that every member predicts" in capsys.readouterr().err
    other = noisy(dataset.subset(set(dataset.image_ids) - val_ids), 0)
    write_predictions(other, tmp_path / "other.parquet", dataset)
    with pytest.raises(InputError, match=r"no image of .* is predicted by every member"):
        ensemble((names[0], tmp_path / "other.parquet"), data=data, out=tmp_path / "f.json", budget=0.1)
    oof = read_predictions(all_parquet, dataset).select_images(sorted(val_ids))
    assert build_ensemble({"run": oof}, dataset.subset(val_ids), seconds=0.1).ensemble.weights == {"run": 1.0}


def test_a_campaign_does_not_start_from_a_run_that_knows_its_held_out_images(folder, tmp_path):
    labeled = read(folder / "data" / "train.json")
    recipe = load_recipe("lite0_fpn", (*SMALL, f"init_weights={folder / 'run'}"))
    for fold, refused in ((0, False), (1, True)):
        split = read_folds(folder / "folds.json")
        turned = type(split)({i: (own - fold) % 3 for i, own in split.fold_of.items()}, 3)
        out = tmp_path / str(fold)
        out.mkdir()
        ledger = ledgers.create(out, {}, deadline=60, start=0.0)
        settings = {"image_sizes": (), "seed": 0, "metric": "ap50", "pseudo_labels": False, "device": "cpu"}
        inputs = Inputs(labeled, None, turned)
        if refused:
            with pytest.raises(InputError, match="has learnt from 4 of the campaign's 4 held-out images"):
                prepare_task(inputs, {"a": recipe}, **settings, ledger=ledger)
        else:
            task = prepare_task(inputs, {"a": recipe}, **settings, ledger=ledger)
            assert task.train_hashes(0) == image_hashes(task.train.samples)
        ledger.close()
