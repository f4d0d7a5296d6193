"""The evaluate command predicts and scores in one, on images that the run has not learnt from."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from foldfuse import cli
from foldfuse.commands.train import train
from foldfuse.data.folds import make_folds
from foldfuse.data.readers.coco import read
from foldfuse.errors import InputError
from foldfuse.evaluation.coco import score_predictions
from foldfuse.evaluation.diagnosis import diagnose
from foldfuse.evaluation.record import read_evaluation
from foldfuse.evaluation.thresholds import read_thresholds, write_thresholds
from foldfuse.formats.predictions import read_predictions
from foldfuse.inference.evaluation import evaluate, held_out_images
from foldfuse.storage.run import Run
from learning_samples import write_dataset
from page_samples import read_page


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps that holds out 2 of 6 images; beside the data."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_dataset(folder / "d", 6)
    make_folds(read(data), num_folds=3).write(folder / "folds.json")
    changes = ("image_size=64", "batch_size=2")
    train(data, out=folder / "run", changes=changes, steps=2, folds=folder / "folds.json")
    return folder


def test_the_own_fold_is_scored_again_and_shown_on_a_page(trained, capsys):
    run = trained / "run"
    before = read_evaluation(run)
    (run / "evaluation.json").unlink()
    assert cli.main(["evaluate", str(run)]) == 0
    text = capsys.readouterr().out
    assert read_evaluation(run) == before
    assert len([row for row in Run(run).log if "ap50" in row]) == 1
    for words in ("AP small", "By class", "Confusion matrix", "Score threshold with the best F1", "(TIDE)"):
        assert words in text
    assert text.splitlines()[-1] == str(run / "evaluation.html")
    assert "fold 0 of folds.json" in " ".join(read_page(run / "evaluation.html").text)


def test_other_data_are_scored_without_touching_the_own_score(trained, tmp_path):
    run, other = trained / "run", write_dataset(tmp_path / "other", 3, seed=8)
    own, log = (run / "evaluation.json").read_bytes(), Run(run).log
    kept, page = tmp_path / "found.parquet", tmp_path / "page.html"
    assert cli.main(["evaluate", str(run), str(other), "--out", str(page), "--predictions", str(kept)]) == 0
    found = evaluate(str(run), str(other))
    predictions = read_predictions(kept, read(other))
    assert found.score == score_predictions(predictions, read(other))
    assert found.diagnosis.best == diagnose(predictions, read(other)).best
    assert repr(found) == f"RunEvaluation(AP {found.score.ap:.4f}, AP50 {found.score.ap50:.4f}, 3 images)"
    assert ((run / "evaluation.json").read_bytes(), Run(run).log) == (own, log)
    assert "3 images that the run has not learnt from" in " ".join(read_page(page).text)


def test_learnt_images_are_left_out(trained, caplog):
    run = Run(trained / "run")
    held_out = held_out_images(run, trained / "d" / "train.json")
    assert set(held_out.dataset.image_ids) == set(run.metadata.val_ids)
    assert held_out.num_learnt == 4
    assert (
        "has learnt from 4 of the 6 images (train.json). They are left out, and the score is of the 2 others"
        in caplog.text
    )


def test_what_cannot_be_scored_is_refused(trained, tmp_path):
    run = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    document = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(document | {"val_ids": [], "folds": None}))
    with pytest.raises(InputError, match=r"held out no image when it was trained.*foldfuse evaluate .* DATA"):
        evaluate(run)
    (run / "run.json").write_text(json.dumps(document | {"val_ids": [0, 77]}))
    with pytest.raises(InputError, match="lacks 1 of the 2 images that"):
        evaluate(run)
    hashes = Run(trained / "run").learnt_images
    some = tmp_path / "learnt"
    shutil.copytree(trained / "d", some)
    full = json.loads((some / "train.json").read_text())
    keep = set(range(6)) - set(Run(trained / "run").metadata.val_ids)
    full["images"] = [row for row in full["images"] if row["id"] in keep]
    full["annotations"] = [row for row in full["annotations"] if row["image_id"] in keep]
    (some / "train.json").write_text(json.dumps(full))
    assert len(hashes) == 4
    with pytest.raises(InputError, match="has learnt from all 4 images"):
        evaluate(trained / "run", some)


def test_a_campaign_and_a_classifier_are_refused_with_the_command_to_use(trained, tmp_path, capsys):
    (tmp_path / "night").mkdir()
    (tmp_path / "night" / "campaign.sqlite").write_bytes(b"")
    assert cli.main(["evaluate", str(tmp_path / "night")]) == 2
    assert f"foldfuse report {tmp_path / 'night'}" in capsys.readouterr().err
    run = Path(shutil.copytree(trained / "run", tmp_path / "classifier"))
    (run / "recipe.json").write_text(json.dumps({"format": 1, "classifier": "lite0"}))
    with pytest.raises(InputError, match="foldfuse predict"):
        evaluate(run)


def test_a_run_of_the_first_format_is_read(trained, tmp_path):
    run = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    document = json.loads((run / "run.json").read_text())
    for name in ("val", "val_fingerprint", "eval_seconds", "command"):
        del document[name]
    (run / "run.json").write_text(json.dumps(document | {"format": 1}))
    assert Run(run).metadata.val is None
    assert len(evaluate(run).held_out.dataset) == 2


def test_the_thresholds_are_kept_with_the_run_and_predict_takes_them(trained, tmp_path, capsys):
    run = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    assert cli.main(["evaluate", str(run), "--metric", "f2"]) == 0
    text = capsys.readouterr().out
    assert "Score threshold with the best F2" in text
    assert "best-by-class, all boxes" in text
    stored = read_thresholds(run / "thresholds.json")
    assert (stored.beta, stored.num_images, stored.steps) == (2.0, 2, 2)
    out, data = tmp_path / "p.parquet", trained / "d" / "train.json"
    words = ["predict", str(run), str(data), "--out", str(out), "--overwrite", "--score-threshold"]
    assert cli.main(words[:-1]) == 0
    everything = read_predictions(out, read(data))
    for choice in ("best", "best-by-class"):
        assert cli.main([*words, choice]) == 0
        assert "boxes are kept from these scores on" in capsys.readouterr().err
        kept = stored.apply(everything, choice)
        assert len(read_predictions(out, read(data)).boxes) == len(kept.boxes)
    assert cli.main([*words, "most"]) == 2
    assert "'most' is neither a number in 0..1 nor best or best-by-class" in capsys.readouterr().err
    assert cli.main([*words, "best", "--view", "1,1+hflip"]) == 2
    assert "were chosen on predictions in view 1" in capsys.readouterr().err
    write_thresholds(run / "thresholds.json", replace(stored, steps=1))
    assert cli.main([*words, "best"]) == 2
    assert f"after 1 steps, and the run has 2 now. Choose them with: foldfuse evaluate {run}" in capsys.readouterr().err
    (run / "thresholds.json").unlink()
    assert cli.main([*words, "best"]) == 2
    assert f"Choose them with: foldfuse evaluate {run}" in capsys.readouterr().err
