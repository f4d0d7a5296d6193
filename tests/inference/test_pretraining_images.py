"""Images that look like those behind detection weights are told of where they are held out, scored or predicted."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from foldfuse.campaign.external_members import add_all
from foldfuse.campaign.task import Inputs, note_weights, prepare_task
from foldfuse.commands.predict import predict
from foldfuse.commands.train import sweep, train
from foldfuse.data.folds import make_folds
from foldfuse.data.near_duplicates import difference_hash, nearest_hashes
from foldfuse.data.readers.coco import read
from foldfuse.errors import InputError
from foldfuse.inference import pretraining_images as module
from foldfuse.inference.pretraining_images import OTHER_BITS, SAME_BITS, hash_images, likeness_warnings
from foldfuse.models import make_detector
from foldfuse.models.pretrained.detection import (
    OBJECT_CLASS,
    PretrainingImages,
    add_pretraining_images,
    keep_object_class,
    pretraining_images,
    save_detection_weights,
    shipped_weights,
)
from foldfuse.recipes import load_recipe
from foldfuse.storage import ledger as ledgers
from foldfuse.storage.run import Run
from learning_samples import write_dataset

SMALL = ("image_size=64", "batch_size=2", "frozen_stages=0", "lr=1e-4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Datasets a/ and b/ of 4 images, weights.safetensors that have learnt from both, and data/: 12 images, 3 of them of a/."""
    folder = tmp_path_factory.mktemp("known")
    for seed, name in enumerate(("a", "b")):
        write_dataset(folder / name, 4, size=(192, 128), seed=seed)
    write_dataset(folder / "data", 12, size=(288, 192), seed=5)
    for i in range(3):
        with Image.open(folder / "a" / "images" / f"{i:03}.png") as image:
            larger = image.resize((288, 192), Image.Resampling.BICUBIC)
        larger.save(folder / "data" / "images" / f"{i:03}.png", "JPEG", quality=70)
    images = hash_images({name: read(folder / name / "train.json").samples for name in ("a", "b")})
    torch.manual_seed(0)
    weights = make_detector("lite0_fpn", 2, pretrained=False).state_dict()
    path = folder / "weights.safetensors"
    save_detection_weights(path, weights, detector="lite0_fpn", classes=("x", OBJECT_CLASS), images=images)
    return folder


@pytest.fixture(scope="module")
def recipe(folder):
    return load_recipe("lite0_fpn", (*SMALL, f"init_weights={folder / 'weights.safetensors'}"))


@pytest.fixture(scope="module")
def run(folder):
    """A run from the weights that holds out the images of a/; what it printed is not looked at."""
    dataset = read(folder / "data" / "train.json")
    split = make_folds(dataset, num_folds=3)
    folds = replace(split, fold_of={i: 0 if i < 3 else 1 + i % 2 for i in dataset.image_ids})
    folds.write(folder / "folds.json")
    changes = (*SMALL, f"init_weights={folder / 'weights.safetensors'}")
    train(folder / "data", out=folder / "run", changes=changes, steps=1, folds=folder / "folds.json")
    return Run(folder / "run")


def test_the_nearest_hash_is_that_of_a_search_bit_by_bit():
    rng = np.random.default_rng(0)
    hashes, known = (list(rng.integers(0, 256, (n, 32), dtype=np.uint8)) for n in (5, 7))
    positions, bits = nearest_hashes(hashes, known)
    for row, own in enumerate(hashes):
        differ = [int((np.unpackbits(own) != np.unpackbits(other)).sum()) for other in known]
        assert (positions[row], bits[row]) == (int(np.argmin(differ)), min(differ))
    assert [len(part) for part in nearest_hashes([], known)] == [0, 0]


def test_copies_of_other_size_and_quality_are_known_and_others_are_not(folder, recipe):
    dataset = read(folder / "data" / "train.json")
    (sentence,) = likeness_warnings({"start": recipe}, dataset)
    assert sentence.startswith("start: 3 of the 12 held-out images look like images that the detection weights have")
    assert "(a)" in sentence
    assert "--set init_weights=imagenet" in sentence
    (sentence,) = likeness_warnings({"start": recipe}, dataset.subset({0, 7}), what="images")
    assert "1 of the 2 images looks like images" in sentence
    assert likeness_warnings({"start": recipe}, dataset.subset(range(3, 12))) == []
    assert likeness_warnings({"start": recipe}, dataset.subset(())) == []


def test_no_image_is_read_where_no_weights_tell_of_their_images(folder, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "difference_hashes", lambda *_: pytest.fail("images were read"))
    dataset = read(folder / "data" / "train.json")
    silent = tmp_path / "silent.safetensors"
    save_detection_weights(silent, {"w": torch.ones(1)}, detector="lite0_fpn", classes=(OBJECT_CLASS,))
    starts = ("imagenet", "none", str(silent), str(tmp_path / "gone.pth"))
    assert likeness_warnings({s: replace(recipe, init_weights=s) for s in starts}, dataset) == []


def test_few_images_of_many_are_not_told_and_not_all_of_many_are_compared(folder, recipe):
    dataset = read(folder / "data" / "train.json")
    other = dataset.samples[5]
    large = replace(dataset, samples=(dataset.samples[0], *[other] * 149))
    assert likeness_warnings({"start": recipe}, large) == []
    larger = replace(dataset, samples=(dataset.samples[0],) * 1100)
    (sentence,) = likeness_warnings({"start": recipe}, larger)
    assert "367 of 367 held-out images look" in sentence


def test_images_behind_a_run_are_those_behind_its_own_start(folder, run, recipe):
    dataset = read(folder / "data" / "train.json")
    second = replace(recipe, init_weights=str(run.folder))
    assert likeness_warnings({"x": second}, dataset) == likeness_warnings({"x": recipe}, dataset)


def test_a_circle_of_runs_ends(folder, recipe, tmp_path):
    for own, other in (("one", "two"), ("two", "one")):
        Run(tmp_path / own).folder.mkdir()
        text = (folder / "run" / "recipe.json").read_text()
        fields = json.loads(text) | {"init_weights": str(tmp_path / other)}
        (tmp_path / own / "recipe.json").write_text(json.dumps(fields))
    start = replace(recipe, init_weights=str(tmp_path / "one"))
    assert likeness_warnings({"x": start}, read(folder / "data" / "train.json")) == []


def test_flat_images_and_those_close_to_another_dataset_are_left_out(tmp_path):
    """Two drawings that share most of their pixels: neither tells its dataset. The same image in both is kept in both."""
    rng = np.random.default_rng(0)
    first, same = (rng.integers(0, 256, (16, 17), dtype=np.uint8) for _ in range(2))
    second = first.copy()
    second[:5] = rng.integers(0, 256, (5, 17), dtype=np.uint8)
    flat = np.full((16, 17), 200, np.uint8)
    samples = {}
    for name, drawings in (("one", (first, same, flat)), ("two", (second, same))):
        path = write_dataset(tmp_path / name, len(drawings))
        samples[name] = read(path).samples
        for sample, drawing in zip(samples[name], drawings, strict=True):
            Image.fromarray(drawing.repeat(4, 0).repeat(4, 1)).save(sample.path)
    hashes = [difference_hash(samples[name][0].path) for name in ("one", "two")]
    _, bits = nearest_hashes(hashes[:1], hashes[1:])
    assert SAME_BITS < bits[0] <= OTHER_BITS
    images = hash_images(samples)
    assert images.counts == {"one": 1, "two": 1}
    assert (images.hashes[0] == images.hashes[1]).all()
    assert (images.hashes[0] == difference_hash(samples["one"][1].path)).all()


def test_copies_of_a_file_keep_the_hashes_and_the_weights(folder, tmp_path):
    path, small, other = folder / "weights.safetensors", tmp_path / "small.safetensors", tmp_path / "other.safetensors"
    keep_object_class(path, small)
    assert (pretraining_images(small).hashes == pretraining_images(path).hashes).all()
    assert pretraining_images(small).counts == {"a": 4, "b": 4}
    add_pretraining_images(path, other, PretrainingImages(np.zeros((1, 32), np.uint8), {"c": 1}))
    assert pretraining_images(other).counts == {"c": 1}
    before, after = load_file(path), load_file(other)
    assert before.keys() == after.keys()
    assert [key for key, t in before.items() if not torch.equal(t, after[key])] == ["pretraining_images"]


@pytest.mark.parametrize(
    ("text", "shape"),
    [('{"a": 3}', (2, 32)), ("[2]", (2, 32)), ('{"a": "2"}', (2, 32)), ("{", (2, 32)), ('{"a": 2}', (2, 8))],
)
def test_damaged_hashes_are_named_in_a_sentence(tmp_path, text, shape):
    path = tmp_path / "w.safetensors"
    tensors = {"pretraining_images": torch.zeros(shape, dtype=torch.uint8)}
    save_file(tensors, path, metadata={"detector": "lite0_fpn", "classes": "[]", "pretraining_images": text})
    with pytest.raises(InputError, match=r"w\.safetensors: its hashes of the pre-training images are damaged"):
        pretraining_images(path)


def test_the_weights_of_the_package_tell_of_their_images():
    first, second = (pretraining_images(shipped_weights(f"lite{i}_fpn")) for i in range(2))
    assert (first.hashes == second.hashes).all()
    notice = (Path(__file__).parents[2] / "NOTICE").read_text(encoding="utf-8").splitlines()
    assert len(first.counts) == 61
    assert set(first.counts) <= set(notice)


def test_a_training_warns_of_held_out_images_that_its_weights_know(folder, run, tmp_path, capsys):
    changes = (*SMALL, f"init_weights={folder / 'weights.safetensors'}")
    data, folds = folder / "data", folder / "folds.json"
    for fold, number in ((0, 1), (1, 0)):
        train(data, out=tmp_path / str(fold), changes=changes, steps=1, folds=folds, fold=fold)
        told = capsys.readouterr().err
        assert told.count("3 of the 3 held-out images look like images that the detection") == number


def test_predict_warns_of_images_that_the_first_weights_know(folder, run, tmp_path, capsys):
    predict(run.folder, folder / "data", out=tmp_path / "p.parquet")
    told = capsys.readouterr().err
    assert f"WARNING: {run.folder}: 3 of the 3 images of {folder / 'data' / 'train.json'} look like" in told


def test_predict_needs_no_record_of_the_images(folder, run, tmp_path, capsys):
    fields = json.loads((run.folder / "recipe.json").read_text())
    moved = Run(tmp_path / "run")
    moved.folder.mkdir()
    for file in run.folder.iterdir():
        if file.is_file():
            (moved.folder / file.name).write_bytes(file.read_bytes())
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    (moved.folder / "recipe.json").write_text(json.dumps(fields | {"init_weights": str(broken)}))
    predict(moved.folder, folder / "data", out=tmp_path / "p.parquet")
    assert "look like" not in capsys.readouterr().err


def test_a_campaign_notes_what_its_weights_and_external_runs_know(folder, run, recipe, tmp_path):
    labeled = read(folder / "data" / "train.json")
    split = make_folds(labeled, num_folds=3)
    folds = replace(split, fold_of={i: 0 if i < 3 else 1 + i % 2 for i in labeled.image_ids})
    settings = {"image_sizes": (), "seed": 0, "metric": "ap50", "pseudo_labels": False, "device": "cpu"}
    ledger = ledgers.create(tmp_path, {}, deadline=60, start=0.0)
    recipes = {"a": recipe, "b": replace(recipe, image_size=96), "c": replace(recipe, init_weights="none")}
    task = prepare_task(Inputs(labeled, None, folds), recipes, **settings, ledger=ledger)
    note_weights(recipes, task.val, ledger)
    add_all([run.folder], (), task, ledger)
    ledger.close()
    notes = [note for note in ledgers.snapshot(tmp_path)["notes"] if "look like" in note]
    assert len(notes) == 2
    assert notes[0].startswith(f"init_weights={recipe.init_weights}: 3 of the 3 held-out images look like")
    assert notes[1].startswith("run: 3 of the 3 held-out images look like")


def test_a_sweep_warns_of_images_that_its_weights_know(folder, recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("foldfuse.training.sweep.load_recipe", lambda _: recipe)
    with pytest.raises(InputError, match="folds"):
        sweep(folder / "data", out=tmp_path / "sweep", image_size=(64,), batch_size=(2,), folds=13)
    assert "3 of the 12 images look like images that the detection" in capsys.readouterr().err
