"""The files that the examples of help pages and documentation name, in one small folder; a way to run their lines."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from foldfuse import cli, recipes
from foldfuse.data.corrections import FORMAT, KIND
from foldfuse.data.folds import make_folds
from foldfuse.data.readers.coco import read
from foldfuse.detections import Annotations, Detections, Predictions
from foldfuse.ensemble.ensemble import Ensemble
from foldfuse.formats.predictions import write_predictions
from foldfuse.storage import ledger
from learning_samples import write_dataset

STAND_INS = {  # functions of commands/campaign.py: what they do here
    "run_campaign": lambda request, *_, **__: Path("night1"),
    "resume_campaign": lambda folder, *_, **__: folder,
    "_print_campaign_plan": lambda request: None,
    "score": lambda predictions, data, **__: None,  # demo scores what its campaign leaves
}
SIZE = 64  # pixels: every image size of an example becomes this one, or the next multiples of 32


def make_files(folder: Path) -> None:
    """Makes data/, folds.json, predictions, runs and campaigns in a folder."""
    train = write_dataset(folder / "data", 12)
    test = write_dataset(folder / "later", 4, seed=1)
    shutil.copytree(test.parent / "images", folder / "data" / "images_test")
    text = test.read_text().replace('"file_name": "', '"file_name": "images_test/')
    for name in ("test.json", "truth.json"):
        (folder / "data" / name).write_text(text)
    shutil.rmtree(test.parent)
    write_dataset(folder / "more", 3, seed=2).rename(folder / "more" / "labelled.json")
    dataset = read(train)
    make_folds(dataset, num_folds=3).write(folder / "folds.json")
    for seed, name in enumerate(("a_oof", "b_oof")):
        write_predictions(_predictions(train, seed=seed), folder / f"{name}.parquet", dataset)
    tested = read(folder / "data" / "test.json")
    shutil.copytree(folder / "data" / "images_test", folder / "photos")
    rows = "".join(f",{sample.file_name}\n" for sample in tested.samples)
    (folder / "sample_submission.csv").write_text(f"PredictionString,image_id\n{rows}")
    for seed, name in enumerate(("a", "b", "predictions")):
        write_predictions(_predictions(folder / "data" / "test.json", seed=seed), folder / f"{name}.parquet", tested)
    for name in ("campaign", "campaign1", "campaign2", "night", "night1"):
        _make_campaign(folder / name, train)
    no_corrections = {"format": FORMAT, "kind": KIND, "fingerprint": dataset.fingerprint, "corrections": []}
    (folder / "corrections.json").write_text(json.dumps(no_corrections))


def _predictions(path: Path, *, seed: int) -> Predictions:
    """The annotated boxes of a dataset, shifted by some pixels, with random scores."""
    rng = np.random.default_rng(seed)
    dataset = read(path)
    found = {}
    for sample in dataset.samples:
        truth = sample.annotations or Annotations.empty()
        boxes = truth.boxes + rng.normal(0, 3, (len(truth), 2))[:, [0, 1, 0, 1]]
        found[sample.id] = Detections(boxes.astype(np.float32), rng.random(len(truth), np.float32), truth.labels)
    return Predictions.of(found, dataset.classes)


def _make_campaign(folder: Path, data: Path) -> None:
    """The folder of a finished campaign with one member and one submission."""
    folder.mkdir()
    dataset = read(data)
    facts = {"state": "finished", "data": str(data), "fingerprints": {"data": dataset.fingerprint}}
    with closing(ledger.create(folder, facts, deadline=600, start=0.0)) as book:
        book.add_submission(0.5, {"fused": {"ap50": 0.5, "ap": 0.25}, "best_member": "base-256"})
    write_predictions(_predictions(data, seed=0), folder / "fused_oof.parquet", dataset)
    submitted = read(data.parent / "test.json")
    write_predictions(_predictions(data.parent / "test.json", seed=0), folder / "submission.json", submitted)


def make_runs(folder: Path, line: Callable[[str], int]) -> None:
    """Makes ensemble.json, thresholds, and the runs that examples name, of a step each; one is the member of campaign1."""
    Ensemble({"a": 1.0, "b": 2.0}).write(folder / "ensemble.json")
    for words in (
        "score night1/fused_oof.parquet data/train.json --thresholds night1/thresholds.json",
        "train data/train.json --recipe lite0_fpn --folds folds.json --steps 1 --out run1",
        "train data/train.json --recipe classify_lite0 --folds folds.json --steps 1 --out classifier1",
    ):
        assert line(f"foldfuse {words}") == 0, words
    shutil.copytree(folder / "run1", folder / "run2")
    shutil.copytree(folder / "run1", folder / "campaign1" / "members" / "base-256")
    Ensemble({"base-256@1": 1.0}).write(folder / "campaign1" / "ensemble.json")


def make_everything_small(monkeypatch: pytest.MonkeyPatch, *, campaigns: bool = False) -> None:
    """Recipes train on small images; unless `campaigns` run, they do nothing but leave their folder: other tests run them."""
    for table in (recipes.RECIPES, recipes.CLASSIFIER_RECIPES):
        for name, maker in table.items():
            monkeypatch.setitem(table, name, _small(maker))
    monkeypatch.setattr("foldfuse.training.sweep.seconds_for_each", lambda *_, **__: 0.1)
    for name, made in () if campaigns else STAND_INS.items():
        monkeypatch.setattr(f"foldfuse.commands.campaign.{name}", made)


def _small(maker: Callable[[], recipes.Recipe]) -> Callable[[], recipes.Recipe]:
    def make() -> recipes.Recipe:
        return replace(maker(), image_size=SIZE, batch_size=2)

    make.__doc__ = maker.__doc__
    return make


def shortened(line: str) -> list[str]:
    """The words of a command line after `foldfuse`, with durations of two seconds and small images."""
    words = shlex.split(line, comments=True)[1:]
    for i, option in enumerate(words[:-1]):
        value = words[i + 1]
        if option.startswith("--") and re.fullmatch(r"(\d+h)?(\d+m)?(\d+s)?", value):
            words[i + 1] = "2s"
        if option == "--image-size":
            words[i + 1] = ",".join(str(SIZE + 32 * k) for k in range(value.count(",") + 1))
    if words[0] == "demo":
        words += ["--num-images", "6"]
    return words


def run_line(line: str, folder: Path) -> int:
    """Runs one command line in the current folder; what its --out names is removed first, for examples share names."""
    words = shortened(line)
    for option, value in pairwise(words):
        path = folder / value
        if option in ("--out", "-o") and path.exists() and "--overwrite" not in words:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return cli.main(words)
