"""What is called right, missed or false agrees with COCO's own tool, and the pictures shown tell most."""

from __future__ import annotations

import base64
import contextlib
import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from foldfuse.boxes import xyxy_to_xywh
from foldfuse.data.dataset import Dataset, Sample
from foldfuse.detections import Annotations, Detections, Predictions
from foldfuse.errors import InputError
from foldfuse.evaluation.matching import best_threshold, f1_of, match, matches, precision_recall
from foldfuse.reporting.images import data_uri, draw_comparison, draw_predictions, evenly_spaced, pick_examples

CLASSES = ("cup", "jar", "lid")


def drawn(boxes: list[list[float]], labels: list[int], crowd: list[bool] | None = None) -> Annotations:
    array = np.array(boxes, np.float64).reshape(-1, 4)
    sides = array[:, 2:] - array[:, :2]
    return Annotations(array, np.array(labels, np.int64), np.array(crowd or [False] * len(labels), bool), sides.prod(1))


def found(boxes: list[list[float]], labels: list[int], scores: list[float]) -> Detections:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(array, np.array(scores, np.float32), np.array(labels, np.int64))


def dataset_of(annotations: list[Annotations]) -> Dataset:
    samples = tuple(Sample(i, Path(f"{i}.jpg"), f"{i}.jpg", 200, 150, a) for i, a in enumerate(annotations))
    return Dataset(samples, CLASSES, (0, 1, 2), Path("made.json"))


def made_up(seed: int) -> tuple[Dataset, Predictions]:
    """20 pictures with boxes, some of them crowd regions, and predictions that are often right."""
    rng = np.random.default_rng(seed)
    pictures, guesses = [], {}
    for i in range(20):
        n = int(rng.integers(0, 8))
        corner = rng.random((n, 2)) * 100
        boxes = np.hstack([corner, corner + 10 + rng.random((n, 2)) * 40])
        labels = rng.integers(0, 3, n)
        pictures.append(drawn(boxes.tolist(), labels.tolist(), (rng.random(n) < 0.15).tolist()))
        again = np.repeat(np.arange(n), 2)  # two guesses for each box, so that they compete
        moved = boxes[again] + rng.normal(0, 3, (2 * n, 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        kinds = np.where(rng.random(2 * n) < 0.9, labels[again], rng.integers(0, 3, 2 * n))
        guesses[i] = found(moved.tolist(), kinds.tolist(), rng.random(2 * n).tolist())
    return dataset_of(pictures), Predictions.of(guesses, CLASSES)


def ap50_by_pycocotools(dataset: Dataset, predictions: Predictions) -> np.ndarray:
    """(classes,) AP at IoU 0.5, by the reference implementation."""
    truth = COCO()
    rows = [
        {"image_id": s.id, "category_id": int(k), "bbox": b.tolist(), "area": float(a), "iscrowd": int(c)}
        for s in dataset.samples
        for b, k, a, c in zip(
            xyxy_to_xywh(s.annotations.boxes),
            s.annotations.labels,
            s.annotations.area,
            s.annotations.crowd,
            strict=True,
        )
    ]
    truth.dataset = {
        "images": [{"id": s.id, "width": s.width, "height": s.height} for s in dataset.samples],
        "categories": [{"id": i, "name": n} for i, n in enumerate(dataset.classes)],
        "annotations": [{"id": i + 1} | row for i, row in enumerate(rows)],
        "info": {},
    }
    results = [
        {"image_id": i, "category_id": int(k), "bbox": b.tolist(), "score": float(s)}
        for i, d in predictions.items()
        for b, k, s in zip(xyxy_to_xywh(d.boxes.astype(np.float64)), d.labels, d.scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][0, :, :, 0, -1].mean(0)


@pytest.mark.parametrize("seed", range(5))
def test_the_area_under_the_curves_is_cocos_ap50(seed):
    dataset, predictions = made_up(seed)
    curves = precision_recall(dataset, predictions, matches(dataset, predictions))
    assert [c.name for c in curves] == list(CLASSES)
    ours = [c.precision.mean() for c in curves]
    np.testing.assert_allclose(ours, ap50_by_pycocotools(dataset, predictions), rtol=0, atol=1e-9)


def test_each_box_is_found_once_and_by_the_surest():
    truth = drawn([[0, 0, 10, 10]], [0])
    result = match(found([[0, 0, 10, 9], [0, 0, 10, 10]], [0, 0], [0.9, 0.8]), truth)
    assert result.is_tp.tolist() == [True, False]
    assert result.matched_detection.tolist() == [0]


def test_the_class_must_be_right():
    truth = drawn([[0, 0, 10, 10]], [0])
    result = match(found([[0, 0, 10, 10]], [1], [0.9]), truth)
    assert result.is_tp.tolist() == [False]
    assert result.matched_detection.tolist() == [-1]


def test_detections_on_a_crowd_count_neither_way():
    truth = drawn([[0, 0, 100, 100]], [0], [True])
    result = match(found([[5, 5, 15, 15], [5, 5, 15, 15]], [0, 1], [0.9, 0.9]), truth)
    assert result.not_ignored.tolist() == [False, True]  # another class is no part of the crowd
    assert result.is_tp.tolist() == [False, False]


def test_the_threshold_is_where_f1_is_best():
    dataset, predictions = made_up(3)
    matched = matches(dataset, predictions)
    chosen = best_threshold(dataset, predictions, matched)
    truths = sum(int((~s.annotations.crowd).sum()) for s in dataset.samples)

    def f1(threshold: float) -> float:
        kept = [(match(d[d.scores >= threshold], dataset.samples[i].annotations)) for i, d in predictions.items()]
        right, made = (sum(int(x.sum()) for x in xs) for xs in ([m.is_tp for m in kept], [m.not_ignored for m in kept]))
        return 2 * right / (made + truths)

    assert f1(chosen) == pytest.approx(max(f1(t) for t in np.unique(predictions.scores)))


def test_where_nothing_is_right_every_box_is_shown():
    dataset = dataset_of([drawn([[0, 0, 10, 10]], [0])])
    predictions = Predictions.of({0: found([[50, 50, 60, 60]], [0], [0.9])}, CLASSES)
    assert best_threshold(dataset, predictions, matches(dataset, predictions)) == 0


def test_f1_of_one_picture():
    truth = drawn([[0, 0, 10, 10], [20, 20, 30, 30]], [0, 1])
    assert f1_of(found([[0, 0, 10, 10]], [0], [0.9]), truth) == pytest.approx(2 / 3)
    assert f1_of(Detections.empty(), Annotations.empty()) == 1
    assert f1_of(Detections.empty(), truth) == 0


def test_telling_pictures_are_the_best_the_middle_and_the_worst():
    # Image i holds 8 boxes, of which i are found: so picture 8 is the best and picture 0 the worst.
    row = [[20.0 * i, 0.0, 20.0 * i + 10, 10.0] for i in range(8)]
    dataset = dataset_of([drawn(row, [0] * 8) for _ in range(9)])
    predictions = Predictions.of({i: found(row[:i], [0] * i, [0.9] * i) for i in range(9)}, CLASSES)
    chosen = [(kind, sample.id) for kind, sample in pick_examples(dataset, predictions, 0.5)]
    assert chosen == [("best", 8), ("best", 7), ("typical", 5), ("typical", 4), ("worst", 0), ("worst", 1)]
    ids = [s.id for _, s in pick_examples(dataset.subset([2, 5, 7]), predictions, 0.5)]
    assert sorted(ids) == [2, 5, 7]


@pytest.mark.parametrize(("number", "ids"), [(3, [0, 4, 8]), (1, [0]), (20, list(range(9)))])
def test_spread_takes_even_steps(number, ids):
    samples = dataset_of([Annotations.empty()] * 9).samples
    assert [s.id for s in evenly_spaced(samples, number)] == ids
    assert evenly_spaced([], 4) == []


@pytest.fixture
def sample(tmp_path):
    Image.new("RGB", (1000, 400), (90, 120, 90)).save(tmp_path / "a.png")
    return Sample(0, tmp_path / "a.png", "a.png", 1000, 400, drawn([[0, 0, 100, 100], [500, 200, 600, 300]], [0, 1]))


def test_a_compared_picture_marks_what_is_right_false_and_missed(sample):
    picture = draw_comparison(
        sample, found([[0, 0, 100, 90], [900, 5, 990, 50]], [0, 2], [0.8, 0.6]), CLASSES, kind="typical"
    )
    root = ElementTree.fromstring(picture.markup)
    kinds = [r.attrib["class"] for r in root.findall("rect") if r.attrib["class"] != "halo"]
    assert sorted(kinds) == ["annotation", "fn", "fp", "tp"]
    assert {t.text for t in root.findall("text")} == {"jar", "cup 0.80", "lid 0.60"}
    assert root.attrib["viewBox"] == "0 0 1000 400"
    missed = root.find("rect[@class='fn']").attrib
    assert [missed[k] for k in ("x", "y", "width", "height")] == ["500", "200", "100", "100"]
    assert (picture.title, picture.caption) == ("Typical, F1 0.50", "a.png: 1 of 2 found, 1 false positive")


def test_a_predicted_picture_with_many_boxes_shows_no_names(sample):
    many = found(
        [[300.0 * (i % 3), 10.0 * i, 300.0 * (i % 3) + 80, 10.0 * i + 8] for i in range(30)], [0] * 30, [0.5] * 30
    )
    assert "<text" not in draw_predictions(sample, many, CLASSES).markup
    assert draw_predictions(sample, many[:3], CLASSES).markup.count("<text") == 3
    assert draw_predictions(sample, many[:1], CLASSES).title == "1 box"


def test_names_stay_inside_the_picture_and_off_each_other(sample):
    corner = found([[960, 380, 999, 399], [955, 375, 999, 399], [-5, -5, 50, 50]], [0, 1, 2], [0.9, 0.8, 0.7])
    root = ElementTree.fromstring(draw_predictions(sample, corner, CLASSES).markup)
    texts = root.findall("text")
    assert len(texts) == 2
    size = float(root.attrib["font-size"])
    for text in texts:
        x, y = float(text.attrib["x"]), float(text.attrib["y"])
        assert 0 <= x <= 1000 - 0.6 * size * len(text.text)
        assert 0.5 * size <= y <= 400


def test_what_lies_on_a_crowd_is_not_called_false(sample):
    crowd = Sample(0, sample.path, "a.png", 1000, 400, drawn([[0, 0, 500, 400]], [0], [True]))
    picture = draw_comparison(crowd, found([[5, 5, 60, 60]], [0], [0.9]), CLASSES, kind="best")
    assert "false positive:" not in picture.markup
    assert "in a crowd: cup 0.90" in picture.markup
    assert picture.caption == "a.png: 0 of 0 found, no false positives"


def test_inlined_pictures_are_small(sample):
    jpeg = base64.b64decode(data_uri(sample.path).removeprefix("data:image/jpeg;base64,"))
    with Image.open(io.BytesIO(jpeg)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (480, 192))


def test_a_picture_that_cannot_be_read_is_an_input_error(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"a\.jpg"):
        data_uri(tmp_path / "a.jpg")
