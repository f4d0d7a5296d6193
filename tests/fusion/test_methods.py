"""Fusion agrees with a slow version in plain numpy, and keeps the promises of docs/fusion.md."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldfuse.boxes import pairwise_iou
from foldfuse.errors import InputError
from foldfuse.fusion import methods as fuse
from foldfuse.fusion.clusters import GRID_MIN_BOXES
from fusion_samples import predictions, random_members

METHODS = ("wbf", "nms", "soft_nms", "nmw")
every_method = pytest.mark.parametrize("method", METHODS)


def table(found, image_id):
    """(n, 6) float64 rows of one image."""
    one = found[image_id]
    return np.concatenate([one.boxes, one.scores[:, None], one.labels[:, None]], 1, dtype=np.float64)


def assert_equal(a, b, image_ids=None):
    for image_id in image_ids or a:
        np.testing.assert_array_equal(table(a, image_id), table(b, image_id))


def slow_fuse(
    members,
    image_id,
    *,
    method,
    iou=0.55,
    score_threshold=0.0,
    weights=None,
    decay="gaussian",
    sigma=0.5,
    min_score=0.001,
):
    """(n, 6) rows of one image, computed as the documentation describes, one box at a time."""
    share = np.array(weights or [1.0] * len(members)) / max(weights or [1.0])
    rows = []
    for number, member in enumerate(members):
        for x1, y1, x2, y2, score, label in table(member, image_id):
            vote = score * share[number]
            if score >= min(score_threshold, float(np.float32(score_threshold))) and vote > 0 and x2 > x1 and y2 > y1:
                rows.append((label, -vote, x1, y1, x2, y2, number))
    rows.sort()
    fused = []
    for label in sorted({row[0] for row in rows}):
        of_label = [row for row in rows if row[0] == label]
        if method == "soft_nms":
            fused += [(*box, score, label) for box, score in slow_soften(of_label, iou, decay, sigma, min_score)]
            continue
        clusters = []
        last = None
        for row in of_label:
            box, vote, number = np.array(row[2:6]), -row[1], row[6]
            if row[:6] != last:
                overlaps = pairwise_iou(np.array([cluster["box"] for cluster in clusters]).reshape(-1, 4), box[None])[
                    :, 0
                ]
                best = int(overlaps.argmax()) if len(overlaps) and overlaps.max() > iou else None
                overlap = overlaps[best] if best is not None else 1.0
            last = row[:6]
            if best is None:
                best = len(clusters)
                clusters.append({"box": box, "first": (box, vote), "voters": [], "votes": [], "boxes": []})
            cluster = clusters[best]
            if number in cluster["voters"]:
                continue
            cluster["voters"].append(number)
            cluster["votes"].append(vote * overlap if method == "nmw" else vote)
            cluster["boxes"].append(box)
            if method == "wbf" and len(cluster["boxes"]) > 1:
                cluster["box"] = np.average(cluster["boxes"], axis=0, weights=cluster["votes"])
        for cluster in clusters:
            box, score = cluster["first"]
            if method == "wbf":
                box, score = cluster["box"], sum(cluster["votes"]) / share.sum()
            elif method == "nmw":
                box = np.average(cluster["boxes"], axis=0, weights=cluster["votes"])
            fused.append((*box, score, label))
    return np.array(sorted(fused, key=lambda r: (-r[4], *np.float32(r[:4]), r[5]))).reshape(-1, 6)


def slow_soften(rows, iou, decay, sigma, min_score):
    boxes, scores = np.array([row[2:6] for row in rows]), np.array([-row[1] for row in rows])
    while len(scores) and scores.max() > min_score:
        best = int(scores.argmax())
        yield boxes[best], scores[best]
        overlap = pairwise_iou(boxes, boxes[best : best + 1])[:, 0]
        scores = scores * (
            np.exp(-(overlap**2) / sigma) if decay == "gaussian" else np.where(overlap > iou, 1 - overlap, 1)
        )
        boxes, scores = np.delete(boxes, best, 0), np.delete(scores, best)


@every_method
@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 4),
    digits=st.sampled_from([None, 1, 2]),
    iou=st.sampled_from([0.0, 0.3, 0.55, 0.8]),
    score_threshold=st.sampled_from([0.0, 0.3]),
    weighted=st.booleans(),
)
def test_each_method_does_what_the_documentation_says(method, seed, count, digits, iou, score_threshold, weighted):
    members = random_members(seed, members=count, images=2, boxes=20, digits=digits)
    weights = [1.0, 0.5, 2.0, 0.0][:count] if weighted else None
    found = fuse.fuse(members, method=method, iou=iou, score_threshold=score_threshold, weights=weights, threads=1)
    for image_id in members[0]:
        want = slow_fuse(members, image_id, method=method, iou=iou, score_threshold=score_threshold, weights=weights)
        np.testing.assert_allclose(table(found, image_id), want, rtol=1e-5, atol=1e-5)


def test_linear_soft_nms_does_what_the_documentation_says():
    members = random_members(3)
    found = fuse.soft_nms(members, decay="linear", iou=0.2, min_score=0.1, threads=1)
    for image_id in members[0]:
        want = slow_fuse(members, image_id, method="soft_nms", decay="linear", iou=0.2, min_score=0.1)
        np.testing.assert_allclose(table(found, image_id), want, rtol=1e-5, atol=1e-5)


@every_method
@pytest.mark.parametrize("digits", [1, 2, None])
def test_the_order_of_members_never_matters(method, digits):
    for seed in range(6):
        members = [*random_members(seed, digits=digits), *random_members(seed, members=1, digits=digits)]
        want = fuse.fuse(members, method=method, weights=[1, 2, 1, 0.7], threads=1)
        for order in permutations(range(4)):
            weights = [[1, 2, 1, 0.7][i] for i in order]
            assert_equal(want, fuse.fuse([members[i] for i in order], method=method, weights=weights, threads=1))


@every_method
def test_the_order_of_boxes_never_matters(method):
    members = random_members(0, digits=1, images=1)
    backwards = [replace(m, boxes=m.boxes[::-1], scores=m.scores[::-1], labels=m.labels[::-1]) for m in members]
    assert_equal(fuse.fuse(members, method=method), fuse.fuse(backwards, method=method))


@every_method
def test_the_order_of_images_is_that_of_the_first_member(method):
    first, second, third = random_members(1)
    shuffled = [second.select_images([2, 0, 3, 1]), first, third]
    found = fuse.fuse(shuffled, method=method)
    assert found.image_ids.tolist() == [2, 0, 3, 1]
    assert_equal(found, fuse.fuse([first, second, third], method=method))


@every_method
def test_images_are_independent_and_threads_change_nothing(method):
    members = random_members(2, images=40)
    found = fuse.fuse(members, method=method, threads=1)
    assert_equal(found, fuse.fuse(members, method=method, threads=3))
    assert_equal(fuse.fuse([m.select_images([7]) for m in members], method=method), found, [7])


def test_five_copies_of_one_model_are_not_five_models():
    copies = predictions([[10, 10, 20, 20, 0.5, 0]] * 5)
    silent = predictions([])
    found = fuse.wbf([copies, silent, silent, silent, silent])
    np.testing.assert_allclose(table(found, 0), [[10, 10, 20, 20, 0.1, 0]], rtol=1e-6)


def test_a_member_moves_a_cluster_once():
    twice = predictions([[0, 0, 10, 10, 0.8, 0], [0, 0, 10, 11, 0.6, 0]])
    once = predictions([[0, 0, 12, 10, 0.8, 0]])
    np.testing.assert_allclose(table(fuse.wbf([twice, once]), 0), [[0, 0, 11, 10, 0.8, 0]], rtol=1e-6)


def test_the_mean_is_weighted_by_score_and_weight():
    a, b = predictions([[0, 0, 10, 10, 0.8, 2]]), predictions([[0, 0, 13, 10, 0.4, 2]])
    found = table(fuse.wbf([a, b], weights=[1, 4]), 0)
    np.testing.assert_allclose(found, [[0, 0, (8 + 4 * 5.2) / 2.4, 10, 2.4 / 5, 2]], rtol=1e-6)


def test_wbf_of_one_member_many_times_is_that_member_fused_once():
    for seed in range(5):
        member = random_members(seed, members=1)[0]
        once, thrice = fuse.wbf([member]), fuse.wbf([member] * 3)
        np.testing.assert_allclose(once.boxes, thrice.boxes, rtol=1e-6)
        np.testing.assert_allclose(once.scores, thrice.scores, rtol=1e-6)


@every_method
def test_scores_stay_within_one(method):
    certain = predictions([[0, 0, 10, 10, 1.0, 0]] * 4)
    for count in range(1, 12):
        found = fuse.fuse([certain] * count, method=method, weights=[0.1 + 0.7 * i for i in range(count)])
        assert 1 - 1e-12 <= found.scores.max() <= 1


@every_method
def test_a_member_without_weight_changes_nothing(method):
    members = random_members(5)
    assert_equal(
        fuse.fuse(members, method=method, weights=[1, 2, 0]), fuse.fuse(members[:2], method=method, weights=[1, 2])
    )


@every_method
def test_boxes_without_score_or_area_are_left_out(method):
    found = fuse.fuse([predictions([[0, 0, 9, 9, 0.0, 0], [5, 0, 5, 9, 0.9, 0], [0, 0, 9, 9, 0.3, 1]])], method=method)
    np.testing.assert_allclose(table(found, 0), [[0, 0, 9, 9, 0.3, 1]], rtol=1e-6)


@every_method
def test_boxes_of_different_labels_never_match(method):
    found = fuse.fuse([predictions([[0, 0, 9, 9, 0.5, label]]) for label in range(3)], method=method)
    assert sorted(found.labels) == [0, 1, 2]


@every_method
def test_an_iou_equal_to_the_threshold_does_not_match(method):
    pair = [predictions([[0, 0, 10, 10, 0.9, 0]]), predictions([[0, 0, 10, 5, 0.8, 0]])]
    if method == "soft_nms":
        assert fuse.soft_nms(pair, iou=0.5, decay="linear").scores.min() == pytest.approx(0.8)
        assert fuse.soft_nms(pair, iou=0.49, decay="linear").scores.min() == pytest.approx(0.4)
    else:
        assert len(fuse.fuse(pair, method=method, iou=0.5).boxes) == 2
        assert len(fuse.fuse(pair, method=method, iou=0.49).boxes) == 1


def test_a_score_equal_to_the_threshold_is_kept():
    assert len(fuse.wbf([predictions([[0, 0, 9, 9, 0.1, 0]])], score_threshold=0.1).boxes) == 1


@every_method
def test_empty_members_give_empty_predictions(method):
    found = fuse.fuse([predictions([], []), predictions([], [])], method=method)
    assert list(found) == [0, 1]
    assert found.boxes.shape == (0, 4)
    assert len(fuse.fuse([predictions()], method=method)) == 0


@every_method
def test_one_image_without_detections(method):
    found = fuse.fuse([predictions([[0, 0, 9, 9, 0.5, 0]], []), predictions([], [])], method=method)
    assert [len(found[i]) for i in (0, 1)] == [1, 0]


@every_method
def test_a_crowded_class_is_fused_as_the_documentation_says(method):
    members = random_members(11, members=2, images=1, boxes=500, size=400.0, classes=1)
    assert sum(len(m.boxes) for m in members) > GRID_MIN_BOXES
    found = fuse.fuse(members, method=method)
    np.testing.assert_allclose(table(found, 0), slow_fuse(members, 0, method=method), rtol=1e-5, atol=1e-4)


def test_more_members_than_bits_in_a_word():
    members = [predictions([[0, 0, 10, 10, 0.5, 0]] * 2)] * 130
    np.testing.assert_allclose(table(fuse.wbf(members), 0), [[0, 0, 10, 10, 0.5, 0]])


@every_method
@pytest.mark.parametrize(
    "row", [[0, 0, np.nan, 9, 0.5, 0], [9, 0, 0, 9, 0.5, 0], [0, 0, 9, np.inf, 0.5, 0], [0, 0, 9, 9, 1.5, 0],
            [0, 0, 9, 9, np.nan, 0], [0, 0, 9, 9, 0.5, 3]],
)  # fmt: skip
def test_a_broken_box_is_named(method, row):
    good = [0, 0, 9, 9, 0.5, 0]
    with pytest.raises(InputError, match=r"member 1, row 2 \(image 7\)"):
        fuse.fuse(
            [predictions([good], [good], ids=[3, 7]), predictions([good], [good, row], ids=[3, 7])], method=method
        )


@every_method
def test_members_must_hold_the_same_images(method):
    two, one = predictions([], [], ids=[3, 7]), predictions([], ids=[3])
    with pytest.raises(InputError, match="member 1 lacks image 7"):
        fuse.fuse([two, one], method=method)
    with pytest.raises(InputError, match="member 0 lacks image 7"):
        fuse.fuse([one, two], method=method)


def test_members_must_have_the_same_classes():
    with pytest.raises(InputError, match="member 1 has the classes"):
        fuse.wbf([predictions([]), replace(predictions([]), classes=("cat", "eel", "dog"))])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iou": 1.0}, "iou is 1.0"),
        ({"iou": float("nan")}, "iou is nan"),
        ({"score_threshold": -0.1}, "score_threshold is -0.1"),
        ({"weights": [1, 2]}, "2 weights for 1 members"),
        ({"weights": [-1]}, "weights are"),
        ({"weights": [0]}, "weights are"),
        ({"threads": 0}, "threads is 0"),
        ({"method": "nmm"}, "no method of fusion is called 'nmm'. Did you mean"),
    ],
)
def test_a_bad_option_is_named(options, message):
    with pytest.raises(InputError, match=message):
        fuse.fuse([predictions([])], **options)


@pytest.mark.parametrize(
    ("options", "message"), [({"sigma": 0}, "sigma"), ({"min_score": 1}, "min_score"), ({"decay": "g"}, "decay")]
)
def test_a_bad_option_of_soft_nms_is_named(options, message):
    with pytest.raises(InputError, match=message):
        fuse.soft_nms([predictions([])], **options)


def test_nothing_to_fuse_is_an_error():
    with pytest.raises(InputError, match="nothing to fuse"):
        fuse.wbf([])


def test_fusion_does_not_import_torch():
    code = "import sys, foldfuse.fusion.methods, foldfuse.ensemble_boxes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
