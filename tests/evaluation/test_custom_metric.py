"""Metrics by their names, and functions of the user's own: what they get, and how their mistakes are told."""

from __future__ import annotations

import numpy as np
import pytest

from foldfuse.ensemble.build import build_ensemble
from foldfuse.ensemble.ensemble import apply_ensemble
from foldfuse.errors import InputError
from foldfuse.evaluation.bootstrap import MIN_SAMPLES, bootstrap_difference
from foldfuse.evaluation.custom_metric import (
    check_ranks,
    custom_metric,
    load_custom_metric,
    metric_label,
)
from foldfuse.evaluation.matching import f1_score, ground_truth, match_image
from foldfuse.evaluation.metrics import THRESHOLDS, get_metric, measure
from score_samples import dataset, noisy, predictions, random_dataset

A, B = [10, 10, 60, 60], [200, 200, 300, 300]
MEAN_F1 = """
import numpy as np
from foldfuse.evaluation.matching import f1_score

def mean_f1(truth, predictions):
    assert len(truth) == len(predictions)
    return np.mean([f1_score(p[p.scores >= 0.5], t) for t, p in zip(truth, predictions)])
"""


@pytest.fixture
def write(tmp_path):
    """A function that writes a file of Python, and returns the name of the metric `name` in it."""

    def write(text, name="score", file="mine.py"):
        (tmp_path / file).write_text(text)
        return f"{tmp_path / file}:{name}"

    return write


def test_ap_at_one_threshold():
    shifted = [A[0] + 20, A[1], A[2] + 20, A[3]]  # IoU 3/7
    truth, found = dataset([[*A, 0], [*B, 1]]), predictions([[*shifted, 0.9, 0], [*B, 0.8, 1]])
    assert [measure(found, truth, metric=m) for m in ("ap40", "ap45", "ap50")] == pytest.approx([1, 0.5, 0.5])
    random = random_dataset(3, images=20)
    some = noisy(random, 1)
    aps = [measure(some, random, metric=f"ap{iou}") for iou in range(50, 100, 5)]
    assert np.mean(aps) == pytest.approx(measure(some, random, metric="ap"), abs=1e-9)


@pytest.mark.parametrize("beta", [0.5, 1, 2])
def test_f_beta_is_the_best_over_thresholds(beta):
    truth = random_dataset(2, images=12)
    found = noisy(truth, 3, digits=2)
    objects = sum(int((~s.annotations.crowd).sum()) for s in truth.samples)

    def f(threshold):
        kept = found.filter(found.scores >= threshold)
        each = [match_image(kept[s.id], s.annotations) for s in truth.samples]
        tp, boxes = sum(int(m.is_tp.sum()) for m in each), sum(int(m.not_ignored.sum()) for m in each)
        return (1 + beta**2) * tp / (beta**2 * objects + boxes)

    want = max(f(t) for t in THRESHOLDS)
    assert measure(found, truth, metric=f"f{beta}") == pytest.approx(want, abs=1e-9)
    assert measure(predictions([]), dataset([[*A, 0]]), metric=f"f{beta}") == 0


@pytest.mark.parametrize("name", ["ap00", "ap99", "ap5", "f0", "f11", "F1", "mean_f1.py"])
def test_other_names_are_refused(name):
    with pytest.raises(InputError, match="no metric is called") as caught:
        get_metric(name)
    assert "file.py:name" in str(caught.value)


def test_a_function_gets_the_images_and_their_boxes(write):
    truth = random_dataset(1, images=15)
    found = noisy(truth, 2)
    name = write(MEAN_F1, "mean_f1")
    kept = found.filter(found.scores >= 0.5)
    want = np.mean([f1_score(kept[s.id], s.annotations) for s in truth.samples])
    assert measure(found, truth, metric=name) == pytest.approx(want)
    counts = np.random.default_rng(0).integers(0, 3, (2, len(truth)))
    each = [f1_score(kept[int(i)], truth[int(i)].annotations) for i in sorted(truth.image_ids)]
    values = get_metric(name).of(found, ground_truth(truth))(counts)
    np.testing.assert_allclose(values, counts @ each / counts.sum(1))
    details = write(
        "def score(truth, predictions):\n"
        "    assert all((p.scores[:-1] >= p.scores[1:]).all() for p in predictions)\n"
        "    assert predictions[0].classes == ('cat', 'dog', 'eel') and predictions[0].image.width == 640\n"
        "    return sum(len(t) for t in truth) + 0.5\n"
    )
    load_custom_metric(details)
    assert measure(found, truth, metric=details) == truth.num_boxes + 0.5


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "def score(truth, predictions):\n    x = 1\n    return 1 / 0\n",
            "mine.py:3: score: raised ZeroDivisionError: division by",
        ),
        ("def score(t, p):\n    return float('nan')\n", "score returned nan for 1 image, expected a finite number"),
        ("def score(t, p):\n    return None\n", "score returned None for 1 image"),
        ("def score(t, p):\n    return True\n", "score returned True"),
        ("def score(t, p):\n    return [1.0]\n", "returned a value of type list"),
        (
            "def score(t, p):\n    p[0].scores[:] = 1\n    return 1.0\n",
            "mine.py:2: score: raised ValueError: assignment dest",
        ),
        ("def score(t, p):\n    exit(3)\n", "mine.py:2: score: raised SystemExit: 3"),
        (
            "def score(t):\n    return 1.0\n",
            "score does not take two arguments. A metric is a function of (truth, predictions)",
        ),
        ("def other(t, p):\n    return 1.0\n", "has no function 'score'"),
        ("score = 3\n", "has no function 'score'"),
        ("def score(t, p)\n    return 1.0\n", "mine.py:1: is no Python code (expected ':')"),
        (
            "import os\nimport no_such_package\n",
            "mine.py:2: raised ModuleNotFoundError: No module named 'no_such_package' when",
        ),
        ("raise SystemExit\n", "mine.py:1: raised SystemExit when the file was run"),
    ],
)
def test_mistakes_are_one_sentence_with_file_and_line(write, text, sentence):
    with pytest.raises(InputError) as caught:
        measure(predictions([[*A, 0.9, 0]]), dataset([[*A, 0]]), metric=write(text))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_loss_is_refused_before_anything_is_chosen_by_it(write):
    truth = random_dataset(1)
    name = write("def score(t, p):\n    return -sum(map(len, p))\n")
    with pytest.raises(
        InputError, match=r"is -\d+ for the annotations themselves and 0 for no boxes at all. A larger value"
    ):
        build_ensemble({"a": noisy(truth, 1)}, truth, metric=name, seconds=1)
    fails = write("def score(t, p):\n    return sum(x.scores.max() for x in p)\n", file="fails.py")
    with pytest.raises(InputError, match=r"fails.py:2: <genexpr>: raised ValueError: zero-size array"):
        check_ranks(custom_metric(fails), ground_truth(truth))


def test_a_file_is_run_again_only_where_a_command_names_it_and_its_text_has_changed(write):
    name = write("def score(t, p):\n    return 1.0\n")
    first = custom_metric(name)
    assert load_custom_metric(name) is first
    write("def score(t, p):\n    return 2.0\n")
    assert custom_metric(name) is first, "a campaign of hours keeps what it began with"
    assert load_custom_metric(name).value([], []) == custom_metric(name).value([], []) == 2.0
    assert metric_label(name) == "score"
    assert metric_label("ap50") == "AP50"


def test_the_ensemble_by_a_function_is_the_best_that_it_has_scored(write):
    truth = random_dataset(5, images=16)
    members = {"a": noisy(truth, 1), "b": noisy(truth, 2, jitter=0.05), "c": noisy(truth, 3, keep=0.3)}
    name = write(MEAN_F1, "mean_f1")
    report = build_ensemble(members, truth, metric=name, seconds=3, threads=1)
    singles = {key: measure(member, truth, metric=name) for key, member in members.items()}
    assert report.best_single[1] == max(singles.values())
    assert report.score >= max(report.best_single[1], report.uniform_score)
    assert report.score == pytest.approx(measure(apply_ensemble(report.ensemble, members), truth, metric=name))
    assert report.nested_score is not None
    assert report.nested_score < report.score + 0.1
    assert {row.name: row.single_score for row in report.table} == singles


def test_the_time_bounds_the_calls_of_a_slow_function(write):
    truth = random_dataset(5, images=16)
    members = {f"m{i}": noisy(truth, i) for i in range(12)}
    name = write(
        MEAN_F1.replace("    assert", "    now[0] += 1; calls[0] += 1\n    assert") + "now, calls = [0.0], [0]\n",
        "mean_f1",
    )
    state = custom_metric(name).function.__globals__
    report = build_ensemble(members, truth, metric=name, seconds=6.0, threads=1, clock=lambda: state["now"][0])
    assert state["calls"][0] <= 14, "6 s, and some calls for the scores that every report has"
    assert report.nested_score is None
    assert report.interval is None
    assert any(row.single_score is None for row in report.table)


def test_a_slow_function_is_measured_on_fewer_resamples(write):
    truth = random_dataset(5, images=10)
    slow = write("import time\n" + MEAN_F1.replace("    assert", "    time.sleep(0.02)\n    assert"), "mean_f1")
    found = bootstrap_difference(noisy(truth, 1, keep=1, jitter=0.01), noisy(truth, 2, keep=0.2), truth, slow)
    assert MIN_SAMPLES <= found.samples < 1000
    assert found.low <= found.value <= found.high
