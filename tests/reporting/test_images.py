"""Example images show the best, typical and worst matches, with every box marked."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.detections import Annotations, Detections, Predictions
from foldfuse.errors import InputError
from foldfuse.reporting.images import data_uri, draw_comparison, draw_predictions, evenly_spaced, pick_examples

CLASSES = ("cup", "jar", "lid")


def annotated(boxes: list[list[float]], labels: list[int], crowd: list[bool] | None = None) -> Annotations:
    array = np.array(boxes, np.float64).reshape(-1, 4)
    sides = array[:, 2:] - array[:, :2]
    return Annotations(array, np.array(labels, np.int64), np.array(crowd or [False] * len(labels), bool), sides.prod(1))


def detected(boxes: list[list[float]], labels: list[int], scores: list[float]) -> Detections:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(array, np.array(scores, np.float32), np.array(labels, np.int64))


def dataset_of(annotations: list[Annotations]) -> Dataset:
    samples = tuple(Sample(i, Path(f"{i}.jpg"), f"{i}.jpg", 200, 150, a) for i, a in enumerate(annotations))
    return Dataset(samples, CLASSES, (0, 1, 2), Path("made.json"))


def test_examples_are_the_best_middle_and_worst_images():
    # Image i holds 8 boxes, of which i are detected: image 8 is the best and image 0 the worst.
    row = [[20.0 * i, 0.0, 20.0 * i + 10, 10.0] for i in range(8)]
    dataset = dataset_of([annotated(row, [0] * 8) for _ in range(9)])
    predictions = Predictions.of({i: detected(row[:i], [0] * i, [0.9] * i) for i in range(9)}, CLASSES)
    chosen = [(kind, sample.id) for kind, sample in pick_examples(dataset, predictions, 0.5)]
    assert chosen == [("best", 8), ("best", 7), ("typical", 5), ("typical", 4), ("worst", 0), ("worst", 1)]
    ids = [s.id for _, s in pick_examples(dataset.subset([2, 5, 7]), predictions, 0.5)]
    assert sorted(ids) == [2, 5, 7]


@pytest.mark.parametrize(("number", "ids"), [(3, [0, 4, 8]), (1, [0]), (20, list(range(9)))])
def test_evenly_spaced_samples_include_both_ends(number, ids):
    samples = dataset_of([Annotations.empty()] * 9).samples
    assert [s.id for s in evenly_spaced(samples, number)] == ids
    assert evenly_spaced([], 4) == []


@pytest.fixture
def sample(tmp_path):
    Image.new("RGB", (1000, 400), (90, 120, 90)).save(tmp_path / "a.png")
    return Sample(
        0, tmp_path / "a.png", "a.png", 1000, 400, annotated([[0, 0, 100, 100], [500, 200, 600, 300]], [0, 1])
    )


def test_a_comparison_marks_true_positives_false_positives_and_missed_boxes(sample):
    figure = draw_comparison(
        sample, detected([[0, 0, 100, 90], [900, 5, 990, 50]], [0, 2], [0.8, 0.6]), CLASSES, kind="typical"
    )
    root = ElementTree.fromstring(figure.markup)
    kinds = [r.attrib["class"] for r in root.findall("rect") if r.attrib["class"] != "halo"]
    assert sorted(kinds) == ["annotation", "fn", "fp", "tp"]
    assert {t.text for t in root.findall("text")} == {"jar", "cup 0.80", "lid 0.60"}
    assert root.attrib["viewBox"] == "0 0 1000 400"
    missed = root.find("rect[@class='fn']").attrib
    assert [missed[k] for k in ("x", "y", "width", "height")] == ["500", "200", "100", "100"]
    assert (figure.title, figure.caption) == ("Typical, F1 0.50", "a.png: 1 of 2 found, 1 false positive")


def test_an_image_with_many_boxes_shows_no_labels(sample):
    many = detected(
        [[300.0 * (i % 3), 10.0 * i, 300.0 * (i % 3) + 80, 10.0 * i + 8] for i in range(30)], [0] * 30, [0.5] * 30
    )
    assert "<text" not in draw_predictions(sample, many, CLASSES).markup
    assert draw_predictions(sample, many[:3], CLASSES).markup.count("<text") == 3
    assert draw_predictions(sample, many[:1], CLASSES).title == "1 box"


def test_labels_stay_inside_the_image_and_off_each_other(sample):
    corner = detected([[960, 380, 999, 399], [955, 375, 999, 399], [-5, -5, 50, 50]], [0, 1, 2], [0.9, 0.8, 0.7])
    root = ElementTree.fromstring(draw_predictions(sample, corner, CLASSES).markup)
    texts = root.findall("text")
    assert len(texts) == 2
    size = float(root.attrib["font-size"])
    for text in texts:
        x, y = float(text.attrib["x"]), float(text.attrib["y"])
        assert 0 <= x <= 1000 - 0.6 * size * len(text.text)
        assert 0.5 * size <= y <= 400


def test_a_detection_in_a_crowd_is_no_false_positive(sample):
    crowd = Sample(0, sample.path, "a.png", 1000, 400, annotated([[0, 0, 500, 400]], [0], [True]))
    figure = draw_comparison(crowd, detected([[5, 5, 60, 60]], [0], [0.9]), CLASSES, kind="best")
    assert "false positive:" not in figure.markup
    assert "in a crowd: cup 0.90" in figure.markup
    assert figure.caption == "a.png: 0 of 0 found, no false positives"


def test_embedded_images_are_small(sample):
    jpeg = base64.b64decode(data_uri(sample).removeprefix("data:image/jpeg;base64,"))
    with Image.open(io.BytesIO(jpeg)) as image:
        assert (image.format, image.size) == ("JPEG", (960, 384))


def test_an_unreadable_image_is_an_input_error(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a\.jpg"):
        data_uri(Sample(0, tmp_path / "a.jpg", "a.jpg", 4, 4, None))
