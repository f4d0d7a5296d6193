"""The page on a run shows its score, its errors and how it was trained, and is written whatever the folder lacks."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from foldfuse import cli
from foldfuse.data.readers import coco
from foldfuse.errors import InputError
from foldfuse.evaluation.coco import score_predictions
from foldfuse.evaluation.record import OOF, VAL, Evaluation, write_evaluation
from foldfuse.formats.predictions import write_predictions
from foldfuse.recipes import Recipe
from foldfuse.reporting.run_page import write_run_page
from foldfuse.storage.run import LrChange, Run, RunMetadata
from page_samples import CLASSES, draw_dataset, noisy_predictions, read_page

RECIPE = Recipe("efficientdet_lite0", image_size=320)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A trained run's folder with the predictions of its fold, for tests that only read it."""
    root = tmp_path_factory.mktemp("run")
    data = draw_dataset(root / "shapes", num_images=24, seed=0)
    dataset = coco.read(data)
    held_out = dataset.subset(dataset.image_ids[::3])
    metadata = RunMetadata(
        classes=CLASSES,
        category_ids=dataset.category_ids,
        data=str(data),
        val_ids=held_out.image_ids,
        folds="folds.json",
        fold=0,
        budget={"steps": 300},
        command=f"foldfuse train {data} --out run --folds folds.json --steps 300",
        image_size_reason="320 px: three quarters of the objects measure 28 px or more.",
        started_from="lite0_fpn.safetensors of this package: all weights were loaded.",
        trained_on="cpu",
        steps=300,
        seconds=80.0,
        lr_changes=(LrChange(120, 3e-4),),
    )
    run = Run.create(root / "run", RECIPE, metadata)
    rows = [{"step": i, "seconds": 80.0 * i / 300, "lr": 2e-3 * (1 - i / 300), "loss": 3 / (1 + i)} for i in range(300)]
    run.write_log([*rows, {"step": 150, "seconds": 40.0, "ap50": 0.3}, {"step": 300, "seconds": 80.0, "ap50": 0.5}])
    predictions = noisy_predictions(held_out, seed=1)
    write_predictions(predictions, run.folder / OOF, held_out)
    score = score_predictions(predictions, held_out)
    objects = sum(each.boxes for each in score.per_class)
    write_evaluation(
        run.folder, Evaluation("fold 0 of folds.json", str(data), len(held_out), objects, 1, 300, OOF, score)
    )
    (run.folder / "weights.safetensors").write_bytes(b"")
    return run.folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def text_of(path: Path) -> str:
    return " ".join(" ".join(read_page(path).text).split())


def test_the_page_shows_score_errors_images_curves_and_how_the_run_was_trained(finished):
    path = write_run_page(finished)
    assert path == finished / "report.html"
    page, text = read_page(path), text_of(path)
    score = json.loads((finished / "evaluation.json").read_text())["score"]
    for words in (
        f"AP50 {score['ap50']:.3f} and AP {score['ap']:.3f} on 8 images that the run has not learnt from: fold 0 of folds.json",
        "Left out: 1 image that the run has learnt from",
        "AP small",
        "By class",
        "Score thresholds",
        "Precision and recall",
        "Errors by type",
        "Confusion of classes",
        "Worst, F1",
        "Training loss",
        "Learning rate",
        "AP50 during training",
        "24 images with",
        "8 of the images are held out",
        f"foldfuse evaluate {finished}",
        f"foldfuse train --resume {finished} --steps 600",
        "--folds folds.json --steps 300",
        "three quarters of the objects",
        "all weights were loaded",
        "0.0003 from step 120 on",
        "efficientdet_lite0",
        "1 min 20 s",
    ):
        assert words in text
    linked = {a.removeprefix("#") for a in page.addresses if a.startswith("#")}
    assert {a for a in linked if not a.startswith("image-")} == {
        "scores",
        "errors",
        "images",
        "curves",
        "data",
        "next",
        "reproduce",
    }
    assert linked <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_the_page_requests_nothing_and_escapes_every_name(finished):
    path = write_run_page(finished)
    page, source = read_page(path), path.read_text(encoding="utf-8")
    assert all(a.startswith(("#", "data:image/jpeg;base64,")) for a in page.addresses)
    assert not {"script", "link", "iframe", "object", "b"} & page.elements
    assert "&lt;b&gt;bolt &amp; nut" in source


def test_validation_data_are_read_from_their_own_file(run, tmp_path):
    val = draw_dataset(tmp_path / "val", num_images=5, seed=3)
    dataset = coco.read(val)
    predictions = noisy_predictions(dataset, seed=2)
    write_predictions(predictions, run / VAL, dataset)
    write_evaluation(
        run, Evaluation("train.json", str(val), 5, 9, 0, 300, VAL, score_predictions(predictions, dataset))
    )
    Run(run).write_metadata(replace(Run(run).metadata, val=str(val), val_ids=(), folds=None))
    text = text_of(write_run_page(run))
    assert "on 5 images that the run has not learnt from: train.json" in text
    assert "Worst, F1" in text


def test_a_page_without_its_data_or_predictions_still_has_the_score(run):
    (run / OOF).unlink()
    assert "AP small" in text_of(write_run_page(run))
    Run(run).write_metadata(replace(Run(run).metadata, data="/nowhere/train.json"))
    text = text_of(write_run_page(run))
    assert "AP small" in text
    assert "could not show everything" in text
    assert "Errors by type" not in text


@pytest.mark.parametrize("name", ["evaluation.json", OOF, "run.json", "recipe.json"])
def test_a_broken_file_is_named_and_the_rest_is_shown(run, name):
    (run / name).write_bytes(b'{"format": 1, "score": 7, "classes": 3}')
    text = text_of(write_run_page(run))
    assert name in text.split("could not show everything")[-1] or name == "recipe.json"
    assert "Training loss" in text


def test_a_run_without_a_score_says_so(run):
    for name in ("evaluation.json", OOF, "log.jsonl", "weights.safetensors"):
        (run / name).unlink()
    text = text_of(write_run_page(run))
    assert "the run has no score" in text
    assert "not trained to its end" in text


def test_the_page_of_a_classifier_shows_its_accuracy(tmp_path):
    rows = [{"step": 0, "seconds": 1.0, "loss": 2.0}, {"step": 9, "seconds": 9.0, "accuracy": 0.875}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "the run reached accuracy 0.875" in text_of(write_run_page(tmp_path))


def test_the_report_command_writes_the_page_of_a_run(run, capsys):
    assert cli.main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert "Foldfuse run" in text_of(run / "report.html")
    with pytest.raises(InputError, match="there is no such folder"):
        write_run_page(run / "nowhere")
