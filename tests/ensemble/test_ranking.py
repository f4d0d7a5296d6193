"""Promotion: a member counts for what it adds to the others."""

import numpy as np
import pytest

from foldfuse.ensemble.ranking import LEAST_ADDED, SURE, Ranked, by_gain, worth_going_on
from foldfuse.evaluation.metrics import measure
from foldfuse.fusion.methods import fuse
from score_samples import noisy, random_dataset


def only_of(member, labels):
    """What the member finds of some classes."""
    return member.filter(np.isin(member.labels, labels))


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
    assert [one.name for one in order] == ["most", "the rest", "some of most"]
    assert order[0].value == pytest.approx(measure(fuse([members["most"]]), truth))
    assert order[0].value > alone["most"], "boxes that overlap are joined, which is no other member's merit"
    assert order[1].value == pytest.approx(measure(fuse([members["most"], members["the rest"]]), truth))


def test_the_best_goes_on_and_those_that_add_enough_and_not_by_chance():
    added = 2 * LEAST_ADDED
    values = {"a": 0.5, "b": 0.5 + added, "c": 0.4, "d": 0.45 + added, "e": 0.5 + 2 * added}
    ranked = [Ranked(name, value, SURE) for name, value in values.items()]
    assert worth_going_on(ranked) == ["a", "b", "e"]
    assert worth_going_on([one._replace(sure=0.9) for one in ranked]) == ["a"]
    assert worth_going_on([Ranked("only", 0.0, 1.0)]) == ["only"]


def test_what_adds_in_every_picture_is_sure_and_what_adds_in_two_is_not():
    truth = random_dataset(5, images=24)
    good = noisy(truth, 1, jitter=0.01, keep=1.0, extra=0, wrong=0.0)
    most, rest = only_of(good, [0, 1]), only_of(good, [2])
    little = rest.filter(rest.image_index <= 2)  # of two pictures, which one draw in eight lacks
    (_, much), (_, few) = (by_gain({"most": most, "other": other}, truth, metric="ap50") for other in (rest, little))
    assert much.sure > SURE
    assert few.value > measure(fuse([most]), truth)
    assert few.sure < SURE
