"""Promotion: a member counts for what it adds to the others."""

import numpy as np
import pytest

from foldfuse.fuse import fuse
from foldfuse.metrics import measure
from foldfuse.promotion import LEAST_ADDED, by_gain, worth_going_on
from score_samples import noisy, random_dataset


def only_of(member, labels):
    """What the member finds of some classes."""
    return member.where(np.isin(member.labels, labels))


def test_a_worse_member_that_sees_other_things_comes_before_a_better_one_that_does_not():
    truth = random_dataset(5, images=24)
    good = noisy(truth, 1, jitter=0.01, keep=1.0, extra=0, wrong=0.0)
    members = {
        "most": only_of(good, [0, 1]),
        "some of most": only_of(noisy(truth, 2, jitter=0.02, keep=0.9, extra=0, wrong=0.0), [0, 1]),
        "the rest": only_of(noisy(truth, 3, jitter=0.02, keep=0.9, extra=0, wrong=0.0), [2]),
    }
    alone = {name: measure(member, truth) for name, member in members.items()}
    assert alone["some of most"] > alone["the rest"]
    order = by_gain(members, truth, metric="ap50")
    assert [name for name, _ in order] == ["most", "the rest", "some of most"]
    assert order[0][1] == pytest.approx(alone["most"])
    assert order[1][1] == pytest.approx(measure(fuse([members["most"], members["the rest"]]), truth))


def test_the_best_goes_on_and_those_that_add_enough():
    added = 2 * LEAST_ADDED
    ranked = [("a", 0.5), ("b", 0.5 + added), ("c", 0.4), ("d", 0.45 + added), ("e", 0.5 + 2 * added)]
    assert worth_going_on(ranked) == ["a", "b", "e"]
    assert worth_going_on([("only", 0.0)]) == ["only"]
