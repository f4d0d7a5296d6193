"""Scoring, fusing and choosing on predictions as people have them: the right numbers, and nothing chosen on learnt images."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corpus_samples import Case, coco, parametrize, run, write_coco
from foldfuse.data.readers.coco import read
from foldfuse.detections import Detections, Predictions
from foldfuse.ensemble.ensemble import read_ensemble
from foldfuse.formats.predictions import read_predictions, write_predictions

Document = dict[str, Any]


def truth(folder: Path, change: Callable[[Document], object] | None = None, *, images: int = 4) -> Document:
    """Writes train.json without its images, and returns the document."""
    document = coco(images)
    if change is not None:
        change(document)
    write_coco(folder, document, with_images=False)
    return document


def results(document: Document, *, score: float = 0.9, images: Sequence[int] | None = None) -> list[Document]:
    """COCO results that equal the annotations, of all images or some."""
    return [
        {key: row[key] for key in ("image_id", "category_id", "bbox")} | {"score": score}
        for row in document["annotations"]
        if images is None or row["image_id"] in images
    ]


def scored(
    change: Callable[[Document], object] | None = None, change_results: Callable[[list[Document]], object] | None = None
) -> Callable[[Path], None]:
    """Makes train.json, and predictions.json that equals its annotations before `change_results`."""

    def make(folder: Path) -> None:
        document = truth(folder, change)
        rows = results(document)
        if change_results is not None:
            change_results(rows)
        (folder / "predictions.json").write_text(json.dumps(rows))

    return make


def parquet(
    folder: Path,
    name: str,
    *,
    images: Sequence[int] = (1, 2, 3, 4),
    learnt: Sequence[int] = (),
    shift: float = 0.0,
    empty: bool = False,
) -> None:
    """Writes a member's predictions of some images of train.json: the annotated boxes, shifted, or none at all."""
    dataset = read(folder / "train.json")
    found = {}
    for sample in dataset.samples:
        if sample.id in images:
            assert sample.annotations is not None
            boxes = (sample.annotations.boxes + shift)[: 0 if empty else None]
            scores = np.linspace(0.9, 0.5, len(boxes), dtype=np.float32)
            found[sample.id] = Detections(boxes.astype(np.float32), scores, sample.annotations.labels[: len(boxes)])
    made = Predictions.of(found, dataset.classes)
    predictions = Predictions(
        made.image_ids, made.offsets, made.boxes, made.scores, made.labels, made.classes, frozenset(learnt)
    )
    write_predictions(predictions, folder / name, dataset)


def members(*files: tuple[str, dict[str, Any]], with_images: bool = False) -> Callable[[Path], None]:
    """Makes train.json and Parquet files."""

    def make(folder: Path) -> None:
        write_coco(folder, coco(), with_images=with_images)
        for name, options in files:
            parquet(folder, name, **options)

    return make


def stick_out(document: Document) -> None:
    for row in document["annotations"]:
        x, y, w, h = row["bbox"]
        row["bbox"] = [x - 30, y - 20, w + 90, h + 10]


def crowd(document: Document) -> None:
    for row in document["annotations"][::2]:
        row.update(iscrowd=1, bbox=[0, 0, 40, 40])


def several_in_a_crowd(rows: list[Document]) -> None:
    for row in list(rows[::2]):
        row["bbox"] = [2, 2, 10, 10]
        rows.append({**row, "bbox": [20, 20, 10, 10], "score": 0.95})


def half_height(rows: list[Document]) -> None:
    for row in rows:
        row["bbox"][3] = round(row["bbox"][3] / 2, 2)


def decimals(document: Document) -> None:
    for row in document["annotations"]:
        x, y, w, h = row["bbox"]
        row["bbox"] = [x + 0.1, y + 0.3, w + 0.7, h + 0.2]


def area(value: float) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        for row in document["annotations"]:
            row["area"] = value

    return change


def crowded(rows: list[Document]) -> None:
    """A hundred better boxes before each true one of the first image."""
    first = [row for row in rows if row["image_id"] == 1]
    for row in first:
        row["score"] = 0.1
        rows += [{**row, "bbox": [i % 10, i // 10, 2, 2], "score": 0.5} for i in range(100)]


def twice(document: Document) -> None:
    document["annotations"] += [{**row, "id": row["id"] + 100} for row in document["annotations"]]


SCORE = "score predictions.json train.json"
SCORE_A = "score a.parquet train.json"
COMPARE = "score a.parquet train.json --other b.parquet"
ENSEMBLE = "ensemble a.parquet b.parquet --data train.json --out e.json --budget 1s"
ONE = ("AP │ 1.0000", "AP50 │ 1.0000")
SCORES = [
    Case("perfect", scored(), SCORE, says=ONE),
    Case("boxes_that_stick_out", scored(stick_out), SCORE, says=(*ONE, "AR100 │ 1.0000")),
    Case(
        "boxes_that_stick_out_by_half", scored(stick_out, half_height), SCORE, says=("AP50 │ 1.0000", "AP75 │ 0.0000")
    ),
    Case("a_crowd_takes_several", scored(crowd, several_in_a_crowd), SCORE, says=(*ONE, "crowd regions")),
    Case(
        "all_is_crowd", scored(lambda d: [r.update(iscrowd=1) for r in d["annotations"]]), SCORE, 2, ("not one object",)
    ),
    Case("an_iou_at_the_threshold", scored(None, half_height), SCORE, says=("AP50 │ 1.0000", "IoU 0.55 │ 0.0000")),
    Case("decimals", scored(decimals), SCORE, says=ONE),
    Case("area_at_the_small_border", scored(area(1024)), SCORE, says=("AP small │ 1.0000", "AP medium │ 1.0000")),
    Case("area_beyond_the_small_border", scored(area(1025)), SCORE, says=("AP small │ – ", "AP medium │ 1.0000")),
    Case("area_at_the_large_border", scored(area(9216)), SCORE, says=("AP medium │ 1.0000", "AP large │ 1.0000")),
    Case("a_box_annotated_twice", scored(twice), SCORE, says=("annotated twice", *ONE, "AR1 │ 0.5000")),
    Case("more_than_100_detections", scored(None, crowded), SCORE, says=("AR100 │ 0.7", "AR10 │ 0.7")),
    Case("no_detections", scored(None, list.clear), SCORE, says=("AP │ 0.0000", "AR100 │ 0.0000")),
    Case(
        "a_class_without_annotations",
        scored(lambda d: d["categories"].append({"id": 9, "name": "unicorn"})),
        SCORE,
        says=(*ONE, "unicorn │ 0 │ – │ –"),
    ),
    Case(
        "images_without_annotations",
        scored(lambda d: d["images"].append({"id": 50, "file_name": "x.jpg", "width": 96, "height": 64})),
        SCORE,
        says=ONE,
    ),
    Case(
        "half_of_the_images_are_not_in_the_results",
        scored(None, lambda rows: rows.__delitem__(slice(4, None))),
        SCORE,
        says=("has no box on 2 of the 4 images with objects", "AP50 │ 0.5"),
    ),
    Case(
        "results_of_one_class", scored(None, lambda r: r.__delitem__(slice(1, None))), SCORE, says=("dog │ 3 │ 0.0000",)
    ),
    Case(
        "two_files",
        members(("a.parquet", {}), ("b.parquet", {"shift": 40.0})),
        COMPARE,
        says=("a.parquet minus b.parquet", "+1.0000"),
    ),
    Case(
        "a_part_of_the_images",
        members(("a.parquet", {"images": (2, 3)})),
        SCORE_A,
        says=(*ONE, "scored on the 2 of 4 images that are predicted"),
    ),
    Case(
        "no_image_in_common",
        members(("a.parquet", {"images": (1,)}), ("b.parquet", {"images": (2,)})),
        COMPARE,
        2,
        ("no image of train.json is predicted by every file",),
    ),
]


def _only_a(folder: Path) -> None:
    assert set(read_ensemble(folder / "e.json").weights) == {"a"}


HELD_OUT = {"images": (1, 2), "learnt": (3, 4)}
ALL = {"learnt": (3, 4)}
LEARNT = [
    Case(
        "score_warns",
        members(("a.parquet", ALL)),
        SCORE_A,
        says=("WARNING: a.parquet: its run has learnt from 2 of the 4 images", *ONE),
    ),
    Case(
        "score_of_held_out_images",
        members(("a.parquet", HELD_OUT)),
        SCORE_A,
        says=("scored on the 2 of 4 images that are predicted: the run has learnt from 2 of the others", *ONE),
        never=("WARNING",),
    ),
    Case(
        "ensemble_refuses",
        members(("a.parquet", ALL), ("b.parquet", {})),
        ENSEMBLE,
        2,
        ("a: 2 of its 4 images, such as image id 3", "without --all"),
    ),
    Case(
        "ensemble_of_held_out_images",
        members(("a.parquet", HELD_OUT), ("b.parquet", {"shift": 3.0})),
        ENSEMBLE,
        says=("chosen on the 2 of 4 images that every member predicts",),
    ),
    Case(
        "ensemble_of_different_folds",
        members(("a.parquet", HELD_OUT), ("b.parquet", {"images": (3, 4)})),
        ENSEMBLE,
        2,
        ("no image of train.json is predicted by every member (a 2, b 2 images)",),
    ),
    Case(
        "ensemble_drops_a_member_without_boxes",
        members(("a.parquet", {}), ("b.parquet", {"empty": True})),
        ENSEMBLE,
        right=_only_a,
    ),
    Case(
        "rescore_refuses",
        members(("a.parquet", ALL), with_images=True),
        "rescore a.parquet --data train.json --out rescored",
        2,
        ("has learnt from",),
    ),
    Case(
        "fuse_keeps_what_was_learnt",
        members(("a.parquet", ALL), ("b.parquet", {"learnt": (1, 2)})),
        "fuse a.parquet b.parquet --data train.json --out out.parquet",
        right=lambda f: _learnt(f, {1, 2, 3, 4}),
    ),
    Case(
        "convert_keeps_what_was_learnt",
        members(("a.parquet", ALL)),
        "convert a.parquet train.json --out out.parquet",
        right=lambda f: _learnt(f, {3, 4}),
    ),
    Case("submit_needs_no_images", members(("a.parquet", {})), "submit a.parquet train.json --out s.csv"),
]


def _learnt(folder: Path, ids: set[int]) -> None:
    assert read_predictions(folder / "out.parquet", read(folder / "train.json")).learnt_ids == ids


@parametrize(SCORES)
def test_scores(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(case, tmp_path, monkeypatch, capsys)


@parametrize(LEARNT)
def test_learnt_images(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(case, tmp_path, monkeypatch, capsys)
