"""From the files on: the numbers are pycocotools' on annotations and results as people have them, made to hit every border.

Boxes that stick out, crowd regions with several detections, ties in score and in IoU (also of decimals), areas on both sides of
32^2 and 96^2 that differ from width x height, the same box annotated twice, detections without a size, images and classes without
annotations or without detections, and more than 100 detections an image.
"""

from __future__ import annotations

import contextlib
import io
import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from foldfuse.data.readers.coco import read
from foldfuse.evaluation.coco import score_predictions
from foldfuse.evaluation.metrics import measure
from foldfuse.formats.predictions import read_predictions

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")
WIDTH, HEIGHT = 400, 300
AREAS = (1024, 1023.5, 1024.5, 9216, 9215, 9217, 1e-9)


def official(document, rows):
    """pycocotools' numbers, and AP by class."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        truth.dataset = document
        truth.createIndex()
        if rows:
            found = truth.loadRes(json.loads(json.dumps(rows)))
        else:  # loadRes cannot read an empty list
            found.dataset = {**document, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    return evaluation.stats[:9], [precision[:, :, k].mean() for k in range(precision.shape[2])]


def assert_equal(document, rows, folder):
    """Scores the two as files, and compares every number with pycocotools'."""
    (folder / "truth.json").write_text(json.dumps(document))
    (folder / "results.json").write_text(json.dumps(rows))
    dataset = read(folder / "truth.json")
    # Named, since a few random boxes that stick out may look like boxes of another form.
    predictions = read_predictions(folder / "results.json", dataset, format="coco_json")
    score = score_predictions(predictions, dataset)
    want, want_per_class = official(document, rows)
    got = [getattr(score, name) for name in NAMES]
    assert [-1 if value is None else value for value in got] == pytest.approx(want.tolist(), abs=1e-6)
    per_class = [-1 if row.ap is None else row.ap for row in score.per_class]
    assert per_class == pytest.approx(want_per_class, abs=1e-6)
    assert measure(predictions, dataset, metric="ap") == pytest.approx(want[0], abs=1e-6)
    assert measure(predictions, dataset, metric="ap50") == pytest.approx(want[1], abs=1e-6)
    return score


def random_box(rng):
    w, h = rng.choice([(32, 32), (96, 96), (10, 40), (rng.randint(1, 200), rng.randint(1, 200)), (33, 31)])
    if rng.random() < 0.4:  # of few places, so that boxes coincide
        return [rng.choice([0, 5, 10]), rng.choice([0, 5, 10]), w, h]
    if rng.random() < 0.3:
        return [round(rng.uniform(0, 300), 1), round(rng.uniform(0, 200), 2), w + 0.1, h + 0.7]
    return [rng.randint(-w + 1, WIDTH - 1), rng.randint(-h + 1, HEIGHT - 1), w, h]


def random_case(seed):
    """A COCO document and results."""
    rng = random.Random(seed)
    image_ids, category_ids = rng.sample(range(1, 1000), rng.randint(1, 5)), rng.sample(range(50), rng.randint(1, 4))
    drawn = category_ids[: rng.randint(1, len(category_ids))]
    annotations, rows = [], []
    for image_id in image_ids:
        own = []
        for _ in range(rng.choice([0, 1, 3, 8])):
            box = random_box(rng)
            row = {
                "image_id": image_id,
                "category_id": rng.choice(drawn),
                "bbox": box,
                "iscrowd": int(rng.random() < 0.25),
            }
            own += [{**row, "area": rng.choice([box[2] * box[3], *AREAS])}] * (1 + (rng.random() < 0.15))
        annotations += own
        for _ in range(rng.choice([0, 2, 6, 12, 12] + [130] * (rng.random() < 0.1))):
            x, y, w, h = rng.choice(own)["bbox"] if own and rng.random() < 0.7 else random_box(rng)
            box = rng.choice(
                [
                    [x, y, w, h],
                    [x, y, w, round(h * rng.choice([0.5, 0.55, 0.75, 0.8]), 3)],
                    [x, y, 2 * w, h],
                    [x + rng.choice([-2, 1]), y, max(1, w - 3), h + 4],
                    [x, y, rng.choice([w, 0]), h],
                ]
            )
            score = rng.choice([0.1, 0.5, 0.5, 0.9, 1.0, 0.0, round(rng.random(), 3), rng.random()])
            rows.append({"image_id": image_id, "category_id": rng.choice(category_ids), "bbox": box, "score": score})
    rng.shuffle(rows)
    rng.shuffle(annotations)
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in image_ids],
        "categories": [{"id": i, "name": f"class {i}"} for i in category_ids],
        "annotations": [{**row, "id": number} for number, row in enumerate(annotations, 1)],
    }, rows


@settings(
    deadline=None, derandomize=True, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 10**6))
def test_random_files(tmp_path, seed):
    document, rows = random_case(seed)
    if any(not row["iscrowd"] for row in document["annotations"]):
        assert_equal(document, rows, tmp_path)


def case(boxes, found, *, classes=1):
    """A document of one image, with rows [x, y, w, h] or [x, y, w, h, area, iscrowd], and results [x, y, w, h, score]."""
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 100}],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, classes + 1)],
        "annotations": [
            {
                "id": number,
                "image_id": 1,
                "category_id": 1,
                "bbox": row[:4],
                "area": row[4] if len(row) > 4 else row[2] * row[3],
                "iscrowd": row[5] if len(row) > 5 else 0,
            }
            for number, row in enumerate(boxes, 1)
        ],
    }
    return document, [{"image_id": 1, "category_id": 1, "bbox": row[:4], "score": row[4]} for row in found]


def test_predictions_that_equal_annotations_that_stick_out_score_one(tmp_path):
    boxes = [[-20, -10, 60, 50], [80, 85, 40, 40], [-5, 40, 200, 20]]
    score = assert_equal(*case(boxes, [[*box, 0.9] for box in boxes]), tmp_path)
    assert (score.ap, score.ar100) == (pytest.approx(1.0), pytest.approx(1.0))


def test_a_crowd_region_takes_several_detections_and_counts_none(tmp_path):
    boxes = [[0, 0, 50, 50, 2500, 1], [60, 60, 20, 20]]
    found = [[0, 0, 20, 20, 0.9], [10, 10, 20, 20, 0.8], [45, 45, 20, 20, 0.7], [60, 60, 20, 20, 0.6]]
    assert assert_equal(*case(boxes, found), tmp_path).ap50 == pytest.approx(0.5)


def test_an_iou_of_decimals_that_equals_the_threshold_reaches_it(tmp_path):
    boxes = [[10.1, 20.3, 30.7, 40.2], [60.1, 20.3, 30.7, 40.2]]
    found = [[10.1, 20.3, 30.7, 20.1, 0.9], [60.1, 20.3, 30.7, 20.1, 0.8]]
    assert assert_equal(*case(boxes, found), tmp_path).ap50 == pytest.approx(1.0)


@pytest.mark.parametrize("area", [1023, 1024, 1025, 9215, 9216, 9217])
def test_sizes_at_the_borders_count_by_the_area_field(tmp_path, area):
    assert_equal(*case([[0, 0, 60, 60, area]], [[0, 0, 60, 60, 0.9], [30, 30, 32, 32, 0.8]]), tmp_path)


def test_no_detections_and_a_class_without_annotations(tmp_path):
    score = assert_equal(*case([[0, 0, 60, 60]], [], classes=3), tmp_path)
    assert (score.ap, score.per_class[1].ap) == (0.0, None)


def test_the_same_box_annotated_twice_is_two_objects(tmp_path):
    assert_equal(*case([[5, 5, 20, 20]] * 2, [[5, 5, 20, 20, 0.9], [5, 5, 20, 20, 0.9], [6, 5, 20, 20, 0.5]]), tmp_path)


def test_only_100_detections_count(tmp_path):
    noise = [[i % 10 * 10, i // 10 * 5, 3, 3, 0.9] for i in range(100)]
    assert assert_equal(*case([[50, 50, 40, 40]], [*noise, [50, 50, 40, 40, 0.1]]), tmp_path).ap == pytest.approx(0.0)
