"""`score --thresholds` writes the best thresholds, and `submit --score-threshold` applies them to a submission."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from foldfuse import cli
from foldfuse.data.readers.coco import read, write
from foldfuse.evaluation.thresholds import read_thresholds
from foldfuse.formats.predictions import write_predictions
from score_samples import noisy, random_dataset


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Annotations, out-of-fold predictions, and predictions of the same images as test predictions in a folder of their own."""
    truth = random_dataset(3, images=25, crowds=0)
    write(truth, tmp_path / "data.json")
    truth = read(tmp_path / "data.json")
    found = noisy(truth, 4)
    (tmp_path / "test").mkdir()
    paths = {"data": tmp_path / "data.json", "oof": tmp_path / "oof.parquet", "test": tmp_path / "test" / "p.parquet"}
    write_predictions(found, paths["oof"], truth)
    write_predictions(found, paths["test"], truth)
    return paths


def boxes(path: Path) -> int:
    return len(json.loads(path.read_text()))


def test_thresholds_go_from_out_of_fold_predictions_to_a_submission(files, tmp_path, capsys):
    thresholds, out = tmp_path / "t.json", tmp_path / "s.json"
    score = ["score", str(files["oof"]), str(files["data"]), "--metric", "f2", "--thresholds", str(thresholds)]
    assert cli.main(score) == 0
    text = capsys.readouterr().out
    for words in ("Score threshold with the best F2", "95 % interval", "F2 at the thresholds", "cross-validated"):
        assert words in text
    assert cli.main(score) == 2
    assert "exists already" in capsys.readouterr().err
    chosen, found = read_thresholds(thresholds), noisy(read(files["data"]), 4)
    assert chosen.beta == 2
    submit = ["submit", str(files["test"]), str(files["data"]), "--out", str(out), "--overwrite", "--score-threshold"]
    for choice in ("best", "best-by-class"):
        assert cli.main([*submit, choice, "--thresholds", str(thresholds)]) == 0
        assert boxes(out) == len(chosen.apply(found, choice).boxes)
        assert f"{thresholds}: boxes are kept from these scores on: " in capsys.readouterr().err
    assert cli.main([*submit, "0.5"]) == 0
    assert boxes(out) == int((found.scores >= 0.5).sum())
    assert cli.main([*submit, "best"]) == 2
    assert "its best score thresholds are not known: no thresholds.json lies beside it" in capsys.readouterr().err
    (files["test"].parent / "thresholds.json").write_bytes(thresholds.read_bytes())
    assert cli.main([*submit, "best"]) == 0
    assert cli.main([*submit, "best-by-class", "--thresholds", str(files["test"].parent)]) == 0
    assert cli.main([*submit, "0.5", "--thresholds", str(thresholds)]) == 2
    assert "is for --score-threshold best or best-by-class" in capsys.readouterr().err


def test_thresholds_are_not_chosen_on_learnt_images(files, tmp_path, capsys):
    truth = read(files["data"])
    learnt = replace(noisy(truth, 4), learnt_ids=frozenset(truth.image_ids[:3]))
    write_predictions(learnt, tmp_path / "learnt.parquet", truth)
    words = ["score", str(tmp_path / "learnt.parquet"), str(files["data"])]
    assert cli.main(words) == 0
    assert cli.main([*words, "--thresholds", str(tmp_path / "t.json")]) == 2
    assert "3 of its 25 images" in capsys.readouterr().err
    assert not (tmp_path / "t.json").exists()
