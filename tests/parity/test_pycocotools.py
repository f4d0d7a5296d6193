"""Scores equal pycocotools' scores, with ties, crowd regions, areas and more than 100 boxes an image."""

from __future__ import annotations

import contextlib
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from foldfuse.boxes import xyxy_to_xywh
from foldfuse.data.readers.coco import read, write
from foldfuse.evaluation.coco import score_predictions
from foldfuse.evaluation.metrics import measure
from score_samples import SIDE, noisy, random_dataset

SHARED = Path(os.environ.get("FOLDFUSE_SHARED", Path(__file__).parents[2].parent / "shared"))
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")


def official(annotation_file, predictions, category_ids):
    """pycocotools' twelve numbers, and AP by class, from the annotation file itself."""
    rows = np.column_stack(
        [
            predictions.image_ids[predictions.image_index],
            xyxy_to_xywh(predictions.boxes.astype(np.float64)),
            predictions.scores.astype(np.float64),
            np.array(category_ids)[predictions.labels],
        ]
    )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotation_file))
        evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    per_class = [precision[:, :, k].mean() for k in range(precision.shape[2])]
    return evaluation.stats[[0, 1, 2, 3, 4, 5, 6, 7, 8]], per_class


def assert_agrees(annotation_file, dataset, predictions):
    want, want_per_class = official(annotation_file, predictions, dataset.category_ids)
    got = score_predictions(predictions, dataset)
    for name, value in zip(NAMES, want, strict=True):
        ours = getattr(got, name)
        assert (-1 if ours is None else ours) == pytest.approx(value, abs=1e-6), name
    for row, value in zip(got.per_class, want_per_class, strict=True):
        assert (-1 if row.ap is None else row.ap) == pytest.approx(value, abs=1e-6), row.name
    assert measure(predictions, dataset, metric="ap") == pytest.approx(want[0], abs=1e-6)
    assert measure(predictions, dataset, metric="ap50") == pytest.approx(want[1], abs=1e-6)


@pytest.mark.parametrize("name", ["bccd", "aquatrash", "playing_cards", "coco_val2017_128"])
@pytest.mark.parametrize("digits", [None, 1])
def test_real_annotations(name, digits):
    path = SHARED / "data" / name / "val.json"
    if not path.is_file():
        pytest.skip(f"there is no {path}; set FOLDFUSE_SHARED to the folder that holds data/{name}")
    dataset = read(path)
    assert_agrees(path, dataset, noisy(dataset, 1, digits=digits))


@pytest.mark.parametrize("seed", range(6))
def test_made_up_annotations_with_crowds_and_areas(seed, tmp_path):
    dataset = random_dataset(seed, images=15, boxes=10, crowds=0.25)
    path = write(dataset, tmp_path / "truth.json")
    assert any(row["iscrowd"] for row in json.loads(path.read_text())["annotations"])
    assert_agrees(path, dataset, noisy(dataset, seed, digits=[None, 1, 2][seed % 3]))


def test_annotations_that_stick_out_are_scored_as_annotated(tmp_path):
    rng = np.random.default_rng(0)
    dataset = random_dataset(2)
    samples = []
    for sample in dataset.samples:  # a third of each box or so lies beyond an edge
        moved = (
            sample.annotations.boxes + rng.choice([-250.0, 0.0, 350.0], (len(sample.annotations), 2))[:, [0, 1, 0, 1]]
        )
        outside = (moved[:, 2:] <= 0).any(1) | (moved[:, :2] >= SIDE).any(1)
        boxes = np.where(outside[:, None], sample.annotations.boxes, moved)
        samples.append(replace(sample, annotations=replace(sample.annotations, boxes=boxes)))
    dataset = replace(dataset, samples=tuple(samples))
    path = write(dataset, tmp_path / "truth.json")
    assert_agrees(path, dataset, noisy(dataset, 1, digits=1))
    perfect = noisy(dataset, 1, keep=2, extra=0, jitter=0, wrong=0)
    assert score_predictions(perfect, dataset).ar100 == pytest.approx(1.0)


def test_only_the_best_100_boxes_of_a_class_count(tmp_path):
    dataset = random_dataset(1, images=4, boxes=30)
    path = write(dataset, tmp_path / "truth.json")
    crowded = noisy(dataset, 1, extra=700)
    assert np.bincount(crowded.image_index * 3 + crowded.labels).max() > 200
    assert_agrees(path, dataset, crowded)
