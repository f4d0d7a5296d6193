"""Scores by hand, by brute force, and on resampled datasets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldfuse.boxes import pairwise_iou
from foldfuse.commands.predictions import score
from foldfuse.data.readers.coco import write
from foldfuse.detections import Detections, Predictions
from foldfuse.errors import InputError
from foldfuse.evaluation import kernels
from foldfuse.evaluation.bootstrap import bootstrap_difference
from foldfuse.evaluation.coco import score_predictions
from foldfuse.evaluation.diagnosis import diagnose
from foldfuse.evaluation.matching import ground_truth
from foldfuse.evaluation.metrics import METRICS, WHEAT_IOUS, measure
from foldfuse.formats.predictions import write_predictions
from score_samples import CLASSES, dataset, noisy, predictions, random_dataset

A, B, C = [10, 10, 60, 60], [200, 200, 300, 300], [400, 20, 500, 90]


def test_perfect_predictions_score_one():
    truth = dataset([[*A, 0], [*B, 1]], [[*C, 0]])
    got = score_predictions(predictions([[*A, 0.9, 0], [*B, 0.8, 1]], [[*C, 0.7, 0]]), truth)
    assert (got.ap, got.ap50, got.ap75, got.ar100) == pytest.approx((1.0, 1.0, 1.0, 1.0))


def test_ap50_by_hand():
    # Ranked: true, false, true positive of 2: precision 1 up to recall 0.5 (51 points), then 2/3 (50 points).
    truth = dataset([[*A, 0], [*B, 0]])
    found = predictions([[*A, 0.9, 0], [*C, 0.8, 0], [*B, 0.7, 0]])
    want = (51 + 50 * 2 / 3) / 101
    assert score_predictions(found, truth).ap50 == pytest.approx(want, abs=1e-9)
    assert measure(found, truth) == pytest.approx(want, abs=1e-9)


def test_a_class_without_annotations_has_no_score_and_json_holds_that():
    got = score_predictions(predictions([[*A, 0.9, 0]]), dataset([[*A, 0]])).to_dict()
    assert got["ap"] == pytest.approx(1.0)
    assert got["ap_small"] is None
    assert [row["boxes"] for row in got["per_class"]] == [1, 0, 0]
    assert [row["ap50"] for row in got["per_class"]] == [pytest.approx(1.0), None, None]


def test_an_image_without_predictions_counts_as_empty():
    truth = dataset([[*A, 0]], [[*B, 0]])
    absent, empty = predictions([[*A, 0.9, 0]]), predictions([[*A, 0.9, 0]], [])
    assert score_predictions(absent, truth) == score_predictions(empty, truth)
    assert measure(absent, truth) == measure(empty, truth) == pytest.approx(51 / 101, abs=1e-9)


def test_no_detections_score_zero():
    truth = dataset([[*A, 0]], [[*B, 0]])
    assert score_predictions(predictions([], []), truth).ap == 0.0
    assert all(measure(predictions([], []), truth, metric=name) == 0.0 for name in METRICS)


@pytest.mark.parametrize("scored", [score_predictions, measure, diagnose])
def test_bad_input_is_named(scored):
    truth = dataset([[*A, 0]])
    with pytest.raises(InputError, match="image id 7"):
        scored(predictions([[*A, 0.9, 0]], ids=[7]), truth)
    with pytest.raises(InputError, match="cow"):
        scored(predictions([[*A, 0.9, 0]], classes=("cow",)), truth)
    with pytest.raises(InputError, match="not one object is annotated"):
        scored(predictions([[*A, 0.9, 0]]), truth.without_annotations())


def test_an_unknown_metric_is_named_with_its_neighbour():
    with pytest.raises(InputError, match="Did you mean 'ap50'"):
        measure(predictions([]), dataset([[*A, 0]]), metric="ap5")


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([None, 1, 2]))
def test_fast_metrics_agree_with_the_score(seed, digits):
    truth = random_dataset(seed)
    if not any((~s.annotations.crowd).any() for s in truth.samples):
        return
    found = noisy(truth, seed, digits=digits)
    got = score_predictions(found, truth)
    assert measure(found, truth, metric="ap") == pytest.approx(got.ap, abs=1e-9)
    assert measure(found, truth, metric="ap50") == pytest.approx(got.ap50, abs=1e-9)


def resampled(times, truth, found):
    """Predictions and dataset in which image i, by rising id, stands times[i] times, under ids that keep the order."""
    samples, again = [], {}
    for number, sample in zip(times, sorted(truth.samples, key=lambda s: s.id), strict=True):
        for _ in range(number):
            again[len(samples)] = found[sample.id]
            samples.append(replace(sample, id=len(samples)))
    return Predictions.of(again, truth.classes), replace(truth, samples=tuple(samples))


@pytest.mark.parametrize("name", ["ap", "ap50"])
@pytest.mark.parametrize("seed", range(4))
def test_a_metric_of_a_resample_is_the_score_of_the_resampled_dataset(name, seed):
    truth = random_dataset(seed)
    found = noisy(truth, seed)
    times = np.random.default_rng(seed).integers(0, 4, (5, len(truth)))
    metric = METRICS[name]
    fast = metric.of(found, ground_truth(truth))(times)
    slow = [getattr(score_predictions(*resampled(row, truth, found)), name) for row in times]
    np.testing.assert_allclose(fast, slow, atol=1e-9)


def test_many_samples_are_measured_as_each_of_them():
    truth = random_dataset(3)
    metric = METRICS["ap50"].of(noisy(truth, 3), ground_truth(truth))
    times = np.random.default_rng(0).integers(0, 3, (2 * kernels.WIDTH + 5, len(truth)))
    np.testing.assert_array_equal(metric(times), np.concatenate([metric(row[None]) for row in times]))


def slow_counts(found, annotations, iou, threshold):
    """TP, FP, FN of one image without crowd regions: by falling score, each detection takes the best free box."""
    kept = found[found.scores >= np.float32(threshold)]
    free, tp = set(range(len(annotations))), 0
    for i in np.argsort(-kept.scores, kind="stable"):
        overlaps = {
            g: pairwise_iou(kept.boxes[i : i + 1].astype(np.float64), annotations.boxes[g : g + 1])[0, 0]
            for g in free
            if annotations.labels[g] == kept.labels[i]
        }
        best = max(overlaps, key=overlaps.__getitem__, default=None)
        if best is not None and overlaps[best] >= iou:
            free.remove(best)
            tp += 1
    return tp, len(kept) - tp, len(annotations) - tp


@pytest.mark.parametrize("seed", range(2))
def test_f2_and_wheat_agree_with_counting(seed):
    truth = random_dataset(seed, images=5, boxes=4, crowds=0.0)
    found = noisy(truth, seed, extra=2)
    f2, wheat = [], []
    for threshold in np.arange(100) / 100:
        right, wrong, missed = np.sum(
            [slow_counts(found[s.id], s.annotations, 0.5, threshold) for s in truth.samples], axis=0
        )
        f2.append(5 * right / (5 * right + 4 * missed + wrong))
        of_images = []
        for sample in truth.samples:
            counts = [slow_counts(found[sample.id], sample.annotations, iou, threshold) for iou in WHEAT_IOUS]
            of_images.append(np.mean([c[0] / sum(c) if sum(c) else 1.0 for c in counts]))
        wheat.append(np.mean(of_images))
    assert measure(found, truth, metric="f2") == pytest.approx(max(f2), abs=1e-9)
    assert measure(found, truth, metric="wheat") == pytest.approx(max(wheat), abs=1e-9)


def test_the_difference_of_equal_predictions_is_zero():
    truth = random_dataset(3)
    found = noisy(truth, 1)
    got = bootstrap_difference(found, found, truth, samples=50)
    assert (got.value, got.low, got.high, got.prob_better) == (0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("name", METRICS)
def test_the_bootstrap_finds_the_better_predictions_and_is_repeatable(name):
    truth = random_dataset(3, images=40)
    good, bad = noisy(truth, 1, jitter=0.02, keep=0.95), noisy(truth, 2, jitter=0.2, keep=0.5)
    got = bootstrap_difference(good, bad, truth, name, samples=200)
    assert got.prob_better == 1.0
    assert 0 < got.low < got.value < got.high
    back = bootstrap_difference(bad, good, truth, name, samples=200)
    assert (back.value, back.low, back.high) == pytest.approx((-got.value, -got.high, -got.low))
    assert got == bootstrap_difference(good, bad, truth, name, samples=200)
    assert got != bootstrap_difference(good, bad, truth, name, samples=200, seed=1)
    whole = measure(good, truth, metric=name) - measure(bad, truth, metric=name)
    assert got.value == pytest.approx(whole)


def test_the_command_prints_scores_and_the_difference(tmp_path, capsys):
    from PIL import Image

    truth = random_dataset(5)
    for sample in truth.samples:
        Image.new("L", (1, 1)).save(tmp_path / sample.file_name)
    data = write(truth, tmp_path / "truth.json")
    first, second = noisy(truth, 1), noisy(truth, 2)
    paths = [
        write_predictions(p, tmp_path / name, truth)
        for p, name in ((first, "first.parquet"), (second, "second.parquet"))
    ]
    score(paths[0], data, other=paths[1])
    printed = capsys.readouterr().out
    for found in (first, second):
        assert f"{score_predictions(found, truth).ap50:.4f}" in printed
    gain = bootstrap_difference(first, second, truth, "ap50")
    assert f"{gain.value:+.4f}" in printed
    for head in ("IoU 0.75", "all classes", "Confusion matrix of first.parquet", "background", "missed"):
        assert head in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_images_are_matched_by_id_not_by_order():
    truth = dataset([[*A, 0]], [[*B, 1]], ids=[9, 4])
    found = Predictions.of(
        {
            4: Detections(np.array([B], np.float32), np.array([0.9], np.float32), np.array([1])),
            9: Detections(np.array([A], np.float32), np.array([0.8], np.float32), np.array([0])),
        },
        CLASSES,
    )
    assert measure(found, truth) == pytest.approx(1.0)
    assert score_predictions(found, truth).ap50 == pytest.approx(1.0)
