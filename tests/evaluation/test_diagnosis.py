"""Error types, the confusion matrix, curves and the best threshold, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from foldfuse.evaluation.diagnosis import BestThreshold, best_threshold, count_errors, diagnose
from foldfuse.evaluation.matching import ground_truth, match_image, match_predictions
from score_samples import dataset, noisy, predictions, random_dataset

A, B, C = [10, 10, 60, 60], [200, 200, 300, 300], [400, 20, 500, 90]


def test_error_types_are_told_apart():
    shifted = [C[0] + 50, C[1], C[2] + 50, C[3]]  # IoU 1/3
    far = [520, 520, 600, 600]
    truth = dataset([[*A, 0], [*B, 1], [*C, 2], [10, 400, 90, 480, 0]])
    found = predictions([[*A, 0.9, 0], [*A, 0.5, 0], [*B, 0.8, 0], [*shifted, 0.7, 2], [*far, 0.6, 1]])
    got = diagnose(found, truth)
    counts = count_errors(found, truth)
    assert counts == {"Cls": 1, "Loc": 1, "Both": 0, "Dupe": 1, "Bkg": 1, "Miss": 1}
    costs = {cost.name: cost for cost in got.error_costs}
    assert costs["localisation"].ap50 == pytest.approx(1 / 3, abs=1e-9)  # the eels' AP50 would rise from 0 to 1


def test_the_confusion_matrix_has_annotated_classes_in_rows_and_starts_at_the_best_threshold():
    truth = dataset([[*A, 0], [*B, 1]])
    got = diagnose(predictions([[*A, 0.9, 0], [*B, 0.95, 2], [*C, 0.3, 0]]), truth)
    assert got.best.score == pytest.approx(0.9)
    want = np.zeros((4, 4), np.int64)
    want[0, 0] = want[1, 2] = 1
    np.testing.assert_array_equal(got.confusion, want)
    got = diagnose(predictions([[*A, 0.9, 0], [*C, 0.95, 0]]), truth)
    assert got.confusion[1, 3] == 1, "the dog is missed"
    assert got.confusion[3, 0] == 1, "a cat where nothing is annotated"


def test_a_curve_takes_the_best_precision_still_to_come():
    truth = dataset([[*A, 0], [*B, 0]])
    (curve,) = diagnose(predictions([[*A, 0.9, 0], [*C, 0.8, 0], [*B, 0.7, 0]]), truth).curves
    assert (curve.name, curve.boxes) == ("cat", 2)
    np.testing.assert_allclose(curve.precision, np.where(np.arange(101) <= 50, 1, 2 / 3))


@pytest.mark.parametrize("seed", range(4))
def test_the_numbers_agree_with_each_other(seed):
    truth = random_dataset(seed, images=20)
    got = diagnose(noisy(truth, seed), truth)
    assert got.ap_by_iou[0.5] == pytest.approx(np.mean([c.precision.mean() for c in got.curves]), abs=1e-9)
    assert list(got.ap_by_iou.values()) == sorted(got.ap_by_iou.values(), reverse=True)
    for best in (got.best, *got.best_by_class):
        assert best.f1 == pytest.approx(2 * best.precision * best.recall / (best.precision + best.recall))


@pytest.mark.parametrize("seed", range(3))
def test_no_threshold_has_a_better_f1(seed):
    truth = random_dataset(seed, images=20)
    found = noisy(truth, seed, digits=2)
    objects = sum(int((~s.annotations.crowd).sum()) for s in truth.samples)

    def f1(threshold):
        matches = [match_image(found[s.id][found[s.id].scores >= threshold], s.annotations) for s in truth.samples]
        tp, kept = sum(int(m.is_tp.sum()) for m in matches), sum(int(m.not_ignored.sum()) for m in matches)
        return 2 * tp / (kept + objects)

    best = best_threshold(match_predictions(found, ground_truth(truth), ious=(0.5,)))
    assert best.f1 == pytest.approx(f1(best.score))
    assert best.f1 == pytest.approx(max(f1(t) for t in np.unique(found.scores)))


def test_without_a_true_positive_the_threshold_is_zero():
    truth = dataset([[*A, 0]])
    found = predictions([[*B, 0.9, 0]])
    assert best_threshold(match_predictions(found, ground_truth(truth), ious=(0.5,))) == BestThreshold(0, 0, 0, 0)
    got = diagnose(found, truth)
    assert got.best_by_class[1:] == (None, None)
