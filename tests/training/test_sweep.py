"""A sweep: its grid, its time, its page, and that nothing is trained twice."""

import itertools
import json
from dataclasses import replace

import pytest

from foldfuse.commands.train import sweep
from foldfuse.errors import InputError
from foldfuse.evaluation.bootstrap import bootstrap_difference
from foldfuse.evaluation.coco import score_predictions
from foldfuse.evaluation.metrics import measure
from foldfuse.formats.predictions import write_predictions
from foldfuse.recipes import load_recipe
from foldfuse.reporting.sweep_page import sweep_heads, sweep_page, sweep_rows
from foldfuse.system.records import read_record
from foldfuse.training import sweep as module
from foldfuse.training.budget import Budget
from foldfuse.training.sweep import Evaluation, Sweep, SweepRequest, SweepRun, combinations
from foldfuse.training.sweep_comparison import SweepComparison, compare_runs
from learning_samples import write_dataset
from score_samples import noisy, random_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "d", 10)


def test_the_rate_goes_with_the_square_root_of_the_batch_size_and_the_largest_come_first():
    grid = combinations(["efficientdet_lite0"], [192, 256], [2, 8])
    assert list(grid) == [f"efficientdet_lite0-{size}-b{batch}" for batch in (8, 2) for size in (256, 192)]
    small, usual = (grid[f"efficientdet_lite0-256-b{batch}"] for batch in (2, 8))
    assert usual.lr == pytest.approx(2 * small.lr)
    assert (small.image_size, small.batch_size) == (256, 2)


@pytest.mark.slow
def test_a_sweep_scores_each_training_at_moments_and_trains_nothing_twice(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "MIN_SECONDS", 0.1)
    monkeypatch.setattr(module, "Budget", lambda seconds: Budget(seconds, clock=itertools.count(step=0.02).__next__))
    monkeypatch.setattr(module, "seconds_for_each", lambda recipes, val, left, device: 1.5)
    arguments = {"out": tmp_path / "s", "image_size": (64, 96), "batch_size": (2,), "budget": 30.0, "folds": 2}
    text = sweep(data, **arguments).read_text()
    made = read_record(tmp_path / "s" / "sweep.json", Sweep, version=1, what="a sweep")
    names = ["lite0_fpn-96-b2", "lite0_fpn-64-b2"]
    assert list(made.runs) == names
    for name in names:
        evaluations = made.runs[name].evaluations
        assert 2 <= len(evaluations) <= module.EVALUATIONS
        assert [e.seconds for e in evaluations] == sorted(e.seconds for e in evaluations)
        assert evaluations[-1].step == made.runs[name].steps
        assert f'<th scope="row">{name}</th>' in text
        assert (tmp_path / "s" / "runs" / name / "oof.parquet").is_file()
    assert text.count("<svg") >= 3
    assert "images/s" in (printed := capsys.readouterr().out)
    (other,) = made.comparison.differences
    assert {other, made.comparison.best} == set(names)
    assert made.comparison.verdict(other) in text
    assert made.comparison.sentences()[0].split()[0] in printed

    def never(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "train_detector", never)
    sweep(data, **arguments)
    document = json.loads((tmp_path / "s" / "sweep.json").read_text())  # as an earlier version left it
    del document["comparison"]
    (tmp_path / "s" / "sweep.json").write_text(json.dumps(document))
    (tmp_path / "s" / "runs" / made.comparison.best / "oof.parquet").unlink()
    assert f"{made.comparison.best}: has no interval" in sweep(data, **arguments).read_text()
    with pytest.raises(InputError, match="holds a sweep with other arguments"):
        sweep(data, **(arguments | {"image_size": (64,)}))


def test_runs_are_told_apart_from_the_best_by_the_interval_of_their_difference(tmp_path):
    truth = random_dataset(0, images=30, crowds=0)
    found = {
        "best": noisy(truth, 2),
        "same": noisy(truth, 12),
        "worse": noisy(truth, 3, keep=0.4, jitter=0.2),
    }
    files = {name: tmp_path / f"{name}.parquet" for name in (*found, "old")}
    for name, predictions in found.items():
        write_predictions(predictions, files[name], truth)
    scores = {name: score_predictions(predictions, truth).ap for name, predictions in found.items()}
    best, same = ("best", "same") if scores["best"] > scores["same"] else ("same", "best")
    compared = compare_runs(scores | {"old": 0.1}, files, truth)
    assert compared.best == best
    assert compared.equals == (same,)
    assert [compared.verdict(name) for name in (best, same, "worse", "old")] == [
        "the best",
        "cannot be told apart from the best",
        "worse than the best",
        "",
    ]
    assert compared.differences["worse"].value == pytest.approx(scores["worse"] - scores[best], abs=1e-6)
    assert compared.differences["worse"] == bootstrap_difference(found["worse"], found[best], truth, "ap")
    first, second = compared.sentences()
    assert first.startswith(f"Cannot be told apart from the best, {best}: {same}. ")
    assert "30 held-out images" in first
    assert second.startswith("old: has no interval. ")
    assert (
        compare_runs({"worse": scores["worse"], best: scores[best]}, files, truth)
        .sentences()[0]
        .startswith(f"{best} is better than worse: ")
    )
    assert not compare_runs(scores | {"old": 1.0}, files, truth).differences
    by_f2 = compare_runs(scores, files, truth, metric="f2")
    assert by_f2.scores == {name: measure(one, truth, metric="f2") for name, one in found.items()}
    assert by_f2.best == max(by_f2.scores, key=by_f2.scores.get)
    assert by_f2.differences["worse"] == bootstrap_difference(found["worse"], found[by_f2.best], truth, "f2")
    assert "in F2 " in by_f2.sentences()[0]
    assert compare_runs({}, files, truth).sentences() == []


def test_what_cannot_be_swept_is_refused_before_anything_is_written(data, tmp_path):
    for arguments, message in [
        ({"image_size": (64, 64)}, "expected different values"),
        ({"image_size": (70,)}, "multiple of 32"),
        ({"recipe": ("efficientdet_lite",)}, "Did you mean"),
        ({"image_size": (64,), "batch_size": (2,), "budget": 1.0}, "for each of 1 combinations"),
    ]:
        with pytest.raises(InputError, match=message):
            sweep(data, out=tmp_path / "s", **arguments)
        assert not (tmp_path / "s").exists(), message


def test_a_training_that_diverged_comes_last():
    recipe = load_recipe("lite0_fpn")
    good = SweepRun((Evaluation(3, 1.0, 0.1, 0.2),), steps=3, images_per_second=2.0)
    bad = SweepRun(failed="step 3", steps=3, images_per_second=2.0)
    request = SweepRequest("data", {"bad": recipe, "<good>": recipe}, 120.0, 5, 0)
    made = Sweep(request, 60.0, {"bad": bad, "<good>": good})
    assert [row[:3] for row in sweep_rows(made)] == [("<good>", "0.100", "0.200"), ("bad", "failed", "–")]
    assert "&lt;good&gt;" in sweep_page(made, "d")
    other = replace(made, request=replace(request, metric="f2"))
    other = replace(other, comparison=SweepComparison("<good>", 9, metric="f2", scores={"<good>": 0.7}))
    assert sweep_heads(other)[:5] == ("run", "F2", "AP", "AP50", "F2 − best")
    assert [row[:4] for row in sweep_rows(other)] == [
        ("<good>", "0.700", "0.100", "0.200"),
        ("bad", "–", "failed", "–"),
    ]
