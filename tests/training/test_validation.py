"""Held-out images of a training: --val beside --folds, the score at the end, and scores in between."""

import json
import re

import pytest

from foldfuse import cli
from foldfuse.commands import training_end
from foldfuse.commands.train import train
from foldfuse.data.folds import make_folds
from foldfuse.data.readers.coco import read
from foldfuse.errors import InputError
from foldfuse.evaluation.coco import score_predictions
from foldfuse.evaluation.record import read_evaluation
from foldfuse.formats.predictions import read_predictions
from foldfuse.storage.run import Run
from foldfuse.system.progress import status_bar
from foldfuse.training.budget import Budget
from foldfuse.training.checkpoints import Checkpointer
from foldfuse.training.session import TrainingSession
from foldfuse.training.validation import without_training_images
from learning_samples import write_dataset

SMALL = ("image_size=64", "batch_size=2")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "d", 6)


@pytest.fixture(scope="module")
def val(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("val") / "v", 4, seed=9)


def with_classes(path, names):
    """Change the names of the classes in a dataset's file, which come in the order of their ids."""
    document = json.loads(path.read_text())
    document["categories"] = [
        {"id": row["id"], "name": name} for row, name in zip(document["categories"], names, strict=True)
    ]
    path.write_text(json.dumps(document))
    return path


def test_a_training_with_a_fold_ends_with_its_score_and_the_next_commands(data, tmp_path, capsys):
    make_folds(read(data), num_folds=3).write(tmp_path / "folds.json")
    out = tmp_path / "run"
    words = ["train", str(data), "--out", str(out), "--folds", str(tmp_path / "folds.json"), "--steps", "2"]
    assert cli.main([*words, "--set", "image_size=64", "--set", "batch_size=2"]) == 0
    text = capsys.readouterr().out
    run, kept = Run(out), read_evaluation(out)
    held_out = read(data).subset(run.metadata.val_ids)
    predictions = read_predictions(out / "oof.parquet", held_out)
    assert kept.score == score_predictions(predictions, held_out)
    assert (kept.num_images, kept.held_out, kept.predictions) == (2, "fold 0 of folds.json", "oof.parquet")
    assert run.log[-1] == {"step": 2, "seconds": run.metadata.seconds, "ap": kept.score.ap, "ap50": kept.score.ap50}
    assert f"AP {kept.score.ap:.4f}, AP50 {kept.score.ap50:.4f} (COCO's) on 2 held-out images" in text
    assert "red" in text
    assert "blue" in text
    assert f"2 steps in {round(run.metadata.seconds)} s on" in text
    assert f"the weights are in {out / 'weights.safetensors'}" in text
    assert [line.strip() for line in text.split("next:\n")[1].splitlines()] == [
        f"foldfuse evaluate {out}",
        f"foldfuse predict {out} IMAGES --out predictions.parquet",
        f"foldfuse train --resume {out} --steps 4",
        str(out),
    ]
    assert run.metadata.command == (
        f"foldfuse train {data} --out {out} --folds {tmp_path / 'folds.json'} --steps 2 --set image_size=64 --set batch_size=2"
    )


def test_a_training_on_all_images_says_how_to_get_a_score(data, tmp_path, capsys):
    train(data, out=tmp_path / "run", changes=SMALL, steps=1)
    text = capsys.readouterr().out
    assert "No image was held out, so there is no score." in text
    assert "--val DATA" in text
    assert f"foldfuse split {data} --folds 5 --out folds.json" in text
    assert f"foldfuse evaluate {tmp_path / 'run'} DATA" in text
    assert not (tmp_path / "run" / "evaluation.json").exists()


def test_validation_data_are_scored_with_classes_matched_by_name_and_remembered(data, val, tmp_path, capsys):
    document = json.loads(val.read_text())
    document["categories"] = [{"id": 3, "name": "blue"}]  # one of the training classes, under the other's id
    document["annotations"] = [row for row in document["annotations"] if row["category_id"] == 3]
    some = val.with_name("some.json")
    some.write_text(json.dumps(document))
    out = tmp_path / "run"
    train(data, out=out, changes=SMALL, steps=1, val=some)
    first = read_evaluation(out)
    assert (first.held_out, first.predictions, first.num_learnt) == ("some.json", "val.parquet", 0)
    assert [each.name for each in first.score.per_class] == ["blue"]
    assert Run(out).metadata.val_ids == ()
    train(resume=out, steps=3)
    assert read_evaluation(out).steps == 3
    assert [row["step"] for row in Run(out).log if "ap50" in row] == [1, 3]
    assert "on 4 held-out images: some.json" in capsys.readouterr().out
    with pytest.raises(InputError, match="is scored on other images than"):
        train(resume=out, steps=4, val=val)


def test_validation_data_and_folds_exclude_each_other(data, val, tmp_path):
    make_folds(read(data), num_folds=3).write(tmp_path / "folds.json")
    with pytest.raises(InputError, match="Give one of them"):
        train(data, out=tmp_path / "run", folds=tmp_path / "folds.json", val=val)
    with pytest.raises(InputError, match=r"--eval-every 1m: nothing is held out"):
        train(data, out=tmp_path / "run", changes=SMALL, steps=1, eval_every=60.0)
    assert not (tmp_path / "run").exists()


def test_classes_that_the_training_data_lack_are_refused(data, tmp_path):
    other = with_classes(write_dataset(tmp_path / "other", 3, seed=5), ("red", "green"))
    with pytest.raises(
        InputError, match=r"has the class green, not among .* the training data .*train.json \(red, blue\)"
    ):
        train(data, out=tmp_path / "run", changes=SMALL, steps=1, val=other)
    assert not (tmp_path / "run").exists()


def test_training_images_are_left_out_of_the_score_by_their_content(data, tmp_path, caplog):
    both = read(write_dataset(tmp_path / "both", 3, seed=9))
    train_set = read(data)
    (tmp_path / "both" / "images" / "000.png").write_bytes(train_set.samples[0].path.read_bytes())
    kept = without_training_images(both, train_set, where="--val both")
    assert kept.image_ids == (1, 2)
    assert "--val both: 1 of the 3 images is a training image too, and left out of the score." in caplog.text
    with pytest.raises(InputError, match="all 6 images are training images too"):
        without_training_images(train_set, train_set, where="--val d")


def test_images_that_look_like_training_images_are_told(data, tmp_path, caplog):
    from PIL import Image

    train_set, val_set = read(data), read(write_dataset(tmp_path / "v", 2, seed=9))
    Image.open(train_set.samples[0].path).save(
        val_set.samples[0].path, compress_level=1
    )  # other bytes, the same pixels
    with Image.open(val_set.samples[0].path) as image:
        image.convert("RGB").point(lambda value: min(255, value + 1)).save(val_set.samples[0].path)
    assert without_training_images(val_set, train_set, where="--val v").image_ids == val_set.image_ids
    assert "--val v: 1 of the 2 images looks almost like training images" in caplog.text


def test_scores_in_between_are_logged_at_their_time_and_cost_no_budget(data, val, tmp_path):
    out = tmp_path / "run"
    train(data, out=out, changes=SMALL, steps=4, val=val, checkpoint_every=1e-6, eval_every=1e-6)
    scored = [row["step"] for row in Run(out).log if "ap50" in row]
    assert scored == [1, 2, 3, 4]
    assert [row["step"] for row in Run(out).log if "loss" in row] == [0, 1, 2, 3]


def test_an_evaluation_is_due_when_its_time_has_come_and_never_at_the_last_step(tmp_path):
    session = TrainingSession(Budget(steps=9), evaluate=lambda weights: {"ap50": 0.5}, evaluate_seconds=10.0)
    checkpointer = Checkpointer(Run(tmp_path), session)
    due = {}
    for step, seconds in ((1, 4.0), (2, 11.0), (3, 15.0), (4, 21.5), (9, 60.0)):
        checkpointer.log.append({"step": step - 1, "seconds": seconds, "loss": 1.0})
        due[step] = checkpointer._is_due({"step": step, "seconds": seconds})
        if due[step]:
            checkpointer.log.append({"step": step, "seconds": seconds, "ap50": 0.5})
    assert due == {1: False, 2: True, 3: False, 4: True, 9: False}


def test_a_stopped_scoring_says_that_the_run_is_trained(data, val, tmp_path, monkeypatch):
    def stopped(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(training_end, "evaluate_run", stopped)
    with pytest.raises(KeyboardInterrupt, match=r"is trained; scoring was stopped\. Score it with: foldfuse evaluate"):
        train(data, out=tmp_path / "run", changes=SMALL, steps=1, val=val)
    assert Run(tmp_path / "run").is_trained


def test_the_bar_shows_named_values_beside_the_progress(monkeypatch):
    import io

    from rich.console import Console

    from foldfuse.system import progress

    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(progress, "error_console", lambda: terminal)
    with status_bar("training run1") as (advance, status):
        advance(0.5)
        status({"step": "1,200", "loss": "1.250"})
        status({"AP50": "0.411"})
        status({"step": "1,201"})
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert "step 1,201 loss 1.250 AP50 0.411" in text
