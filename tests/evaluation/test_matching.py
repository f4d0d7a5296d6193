"""Matching of one image by hand, and against the matching of all images."""

from __future__ import annotations

import numpy as np
import pytest

from foldfuse.detections import Annotations, Detections
from foldfuse.evaluation import kernels
from foldfuse.evaluation.matching import NO_LIMIT, f1_score, ground_truth, match_image, match_predictions
from score_samples import dataset, noisy, predictions, random_dataset


def annotations(*rows):
    """Of rows [x1, y1, x2, y2, label] or [.., label, crowd]."""
    return dataset(rows).samples[0].annotations


def detections(*rows):
    """Of rows [x1, y1, x2, y2, score, label]."""
    return predictions(rows)[0]


def test_each_annotation_is_found_once_and_by_the_best_score():
    result = match_image(detections([0, 0, 10, 10, 0.8, 0], [0, 0, 10, 9, 0.9, 0]), annotations([0, 0, 10, 10, 0]))
    assert result.is_tp.tolist() == [False, True]
    assert result.matched_detection.tolist() == [1]


def test_the_class_must_agree():
    result = match_image(detections([0, 0, 10, 10, 0.9, 1]), annotations([0, 0, 10, 10, 0]))
    assert result.is_tp.tolist() == [False]
    assert result.matched_detection.tolist() == [-1]


def test_detections_in_a_crowd_region_of_their_class_are_ignored():
    found = detections([5, 5, 15, 15, 0.9, 0], [5, 5, 15, 15, 0.9, 1])
    result = match_image(found, annotations([0, 0, 100, 100, 0, 1], [50, 50, 60, 60, 0]))
    assert result.not_ignored.tolist() == [False, True]
    assert result.is_tp.tolist() == [False, False]
    assert result.matched_detection.tolist() == [-1, -1]


@pytest.mark.parametrize("digits", [None, 1])
def test_one_image_is_matched_as_all_images_are(digits):
    truth = random_dataset(3, images=20, boxes=10, crowds=0.3)
    found = noisy(truth, 3, digits=digits)
    matches = match_predictions(found, ground_truth(truth), ious=(0.5,), max_detections=NO_LIMIT)
    for i, image_id in enumerate(sorted(truth.image_ids)):
        sample = next(s for s in truth.samples if s.id == image_id)
        one, status = match_image(found[image_id], sample.annotations), matches.status[matches.image == i, 0]
        assert one.is_tp.sum() == (status == kernels.TRUE).sum()
        assert (~one.not_ignored).sum() == (status == kernels.IGNORED).sum()
        matched = one.matched_detection[one.matched_detection >= 0]
        assert sorted(matched) == np.flatnonzero(one.is_tp).tolist()


def test_f1_of_one_image():
    truth = annotations([0, 0, 10, 10, 0], [20, 20, 30, 30, 1])
    assert f1_score(detections([0, 0, 10, 10, 0.9, 0]), truth) == pytest.approx(2 / 3)
    assert f1_score(Detections.empty(), Annotations.empty()) == 1
    assert f1_score(Detections.empty(), truth) == 0
