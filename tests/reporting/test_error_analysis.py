"""Types of error: their cost in AP50, the most frequent one of an image, and the curve over all classes."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from foldfuse.commands.score_tables import error_table
from foldfuse.data.dataset import Dataset, Sample
from foldfuse.detections import Annotations, Detections, Predictions
from foldfuse.evaluation.diagnosis import ERRORS, Curve, diagnose
from foldfuse.reporting.error_analysis import (
    ALL_CLASSES,
    analyse_errors,
    dominant_error,
    precision_chart,
)

CLASSES = ("cup", "jar")
BOX = [10.0, 10.0, 50.0, 50.0]
FAR = [150.0, 100.0, 190.0, 140.0]


def annotated(*boxes: list[float], crowd: bool = False) -> Annotations:
    """Annotations of cups."""
    array = np.array(boxes, np.float64).reshape(-1, 4)
    area = (array[:, 2:] - array[:, :2]).prod(1)
    return Annotations(array, np.zeros(len(boxes), np.int64), np.full(len(boxes), crowd), area)


def detected(*rows: tuple[list[float], int, float]) -> Detections:
    return Detections(
        np.array([r[0] for r in rows], np.float32).reshape(-1, 4),
        np.array([r[2] for r in rows], np.float32),
        np.array([r[1] for r in rows], np.int64),
    )


def dataset_of(*images: tuple[Annotations, Detections]) -> tuple[Dataset, Predictions]:
    samples = tuple(Sample(i, Path(f"{i}.jpg"), f"{i}.jpg", 200, 150, a) for i, (a, _) in enumerate(images))
    detections = {i: d for i, (_, d) in enumerate(images)}
    return Dataset(samples, CLASSES, (0, 1), Path("made.json")), Predictions.of(detections, CLASSES)


@pytest.mark.parametrize(
    ("truth", "detections", "words"),
    [
        ([BOX], [(BOX, 0, 0.9)], ""),
        ([BOX], [(BOX, 1, 0.9)], "mostly classification (1 of 1 error)"),
        ([BOX], [([10.0, 10.0, 50.0, 100.0], 0, 0.9)], "mostly localisation (1 of 1 error)"),
        ([BOX], [(BOX, 0, 0.9), (BOX, 0, 0.8), (BOX, 0, 0.7), (FAR, 0, 0.6)], "mostly duplicate (2 of 3 errors)"),
        ([BOX], [(BOX, 0, 0.9), (FAR, 0, 0.6)], "mostly background (1 of 1 error)"),
        ([BOX], [(BOX, 0, 0.1)], "mostly missed (1 of 1 error)"),
        ([BOX], [(FAR, 0, 0.9)], "as often background as missed (1 each of 2 errors)"),
        ([], [(FAR, 0, 0.9), (BOX, 0, 0.9), (BOX, 1, 0.1)], "mostly background (2 of 2 errors)"),
        ([], [], ""),
    ],
)
def test_the_most_frequent_error_type_is_named(truth, detections, words):
    dataset, predictions = dataset_of((annotated(*truth), detected(*detections)))
    assert dominant_error(dataset, predictions, dataset.samples[0], 0.5) == words


def test_costs_agree_with_the_diagnosis_and_are_counted_at_the_threshold():
    dataset, predictions = dataset_of(
        (annotated(BOX), detected((BOX, 1, 0.9), (FAR, 0, 0.95), (FAR, 0, 0.2))),
        (annotated(BOX, FAR), detected((BOX, 0, 0.8))),
    )
    diagnosis = diagnose(predictions, dataset)
    rows = diagnosis.error_costs
    assert diagnosis.best.score == pytest.approx(0.8)
    assert analyse_errors(dataset, predictions, []).costs == rows
    printed = [list(column.cells) for column in error_table(diagnosis, "").columns]
    assert [str(cell) for cell in printed[0]] == [row.name for row in rows]
    assert [str(cell) for cell in printed[1]] == [f"{row.ap50:.3f}" for row in rows]
    assert [str(cell) for cell in printed[2]] == [str(row.count) for row in rows]
    assert [row.ap50 for row in rows] == sorted((row.ap50 for row in rows), reverse=True)
    assert {row.name: row.count for row in rows if row.count} == {"classification": 1, "background": 1, "missed": 1}
    assert {row.meaning for row in rows} == set(ERRORS.values())


def test_images_without_annotated_objects_have_no_costs():
    for truth in (annotated(), annotated(BOX, crowd=True)):
        dataset, predictions = dataset_of((truth, detected((BOX, 0, 0.9))))
        warnings: list[str] = []
        analysis = analyse_errors(dataset, predictions, warnings)
        assert (analysis.precision, analysis.costs, analysis.confusion) == (None, (), None)
        assert len(warnings) == 1, "the image does not exist"


def test_the_mean_over_all_classes_is_drawn_above_the_others():
    curves = [Curve("cup", 9, np.linspace(1, 0, 101)), Curve("jar", 1, np.ones(101))]
    chart = precision_chart(curves)
    assert chart is not None
    assert (chart.lead, chart.legend) == (ALL_CLASSES, ("cup", "jar"))
    root = ElementTree.fromstring(chart.svg)
    last = root.findall(".//path")[-1]
    assert last.attrib["class"] == "line strong"
    assert last.attrib["d"].split()[-1] == "1000,500"  # at recall 1 the mean of 0 and 1
    assert f"{ALL_CLASSES} together 0.75" in root.attrib["aria-label"]


def test_one_class_alone_has_no_mean():
    chart = precision_chart([Curve("cup", 9, np.ones(101))])
    assert chart is not None
    assert chart.lead is None
    assert ALL_CLASSES not in chart.svg
    assert precision_chart([]) is None
