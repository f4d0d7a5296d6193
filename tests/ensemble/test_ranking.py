"""Ranking of base runs: a run counts for what it adds to the ensemble of the others."""

import numpy as np
import pytest

from foldfuse.ensemble.ranking import MIN_GAIN, MIN_PROB_BETTER, RankedRun, promoted, rank_by_ensemble_gain
from foldfuse.evaluation.metrics import measure
from foldfuse.fusion.methods import fuse
from score_samples import noisy, random_dataset


def only_of(member, labels):
    """The member's predictions of some classes."""
    return member.filter(np.isin(member.labels, labels))


def test_a_weaker_member_that_finds_other_objects_ranks_above_a_stronger_one_that_repeats():
    truth = random_dataset(5, images=24)
    good = noisy(truth, 1, jitter=0.01, keep=1.0, extra=0, wrong=0.0)
    members = {
        "most": only_of(good, [0, 1]),
        "some of most": only_of(noisy(truth, 2, jitter=0.02, keep=0.9, extra=0, wrong=0.0), [0, 1]),
        "the rest": only_of(noisy(truth, 3, jitter=0.02, keep=0.9, extra=0, wrong=0.0), [2]),
    }
    alone = {name: measure(member, truth) for name, member in members.items()}
    assert alone["some of most"] > alone["the rest"]
    order = rank_by_ensemble_gain(members, truth, metric="ap50")
    assert [one.name for one in order] == ["most", "the rest", "some of most"]
    assert order[0].ensemble_score == pytest.approx(measure(fuse([members["most"]]), truth))
    assert order[0].ensemble_score > alone["most"], "overlapping boxes are merged, which is no other member's gain"
    assert order[1].ensemble_score == pytest.approx(measure(fuse([members["most"], members["the rest"]]), truth))


def test_the_best_run_and_those_with_a_large_and_significant_gain_are_promoted():
    added = 2 * MIN_GAIN
    values = {"a": 0.5, "b": 0.5 + added, "c": 0.4, "d": 0.45 + added, "e": 0.5 + 2 * added}
    ranked = [RankedRun(name, value, MIN_PROB_BETTER) for name, value in values.items()]
    assert promoted(ranked) == ["a", "b", "e"]
    assert promoted([one._replace(prob_better=0.9) for one in ranked]) == ["a"]
    assert promoted([RankedRun("only", 0.0, 1.0)]) == ["only"]


def test_a_gain_in_every_image_is_significant_and_a_gain_in_two_images_is_not():
    truth = random_dataset(5, images=24)
    good = noisy(truth, 1, jitter=0.01, keep=1.0, extra=0, wrong=0.0)
    most, rest = only_of(good, [0, 1]), only_of(good, [2])
    little = rest.filter(rest.image_index <= 2)  # of two images, which one resample in eight lacks
    (_, much), (_, few) = (
        rank_by_ensemble_gain({"most": most, "other": other}, truth, metric="ap50") for other in (rest, little)
    )
    assert much.prob_better > MIN_PROB_BETTER
    assert few.ensemble_score > measure(fuse([most]), truth)
    assert few.prob_better < MIN_PROB_BETTER
