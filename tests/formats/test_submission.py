"""A submission has a row for every image, survives reading back, and a bad one never takes its place."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foldfuse.commands.predictions import submit
from foldfuse.data.dataset import Dataset
from foldfuse.data.readers.coco import read
from foldfuse.detections import Detections, Predictions
from foldfuse.errors import InputError
from foldfuse.formats.predictions import write_predictions
from foldfuse.formats.submission import validate_submission, write_submission


@pytest.fixture
def dataset(make_dataset: Callable[..., Path]) -> Dataset:
    return read(make_dataset(images=3, name="test"), annotated=False)


def some(dataset: Dataset) -> Predictions:
    """Two boxes on image 0, none on 1, three on 2: one reaches beyond the image, one lies outside."""
    return Predictions.of(
        {
            0: Detections(np.float32([[1.5, 2, 30.25, 40], [3, 4, 5, 6]]), np.float32([0.9, 0.001]), np.int64([2, 0])),
            1: Detections.empty(),
            2: Detections(
                np.float32([[-4, -4, 10, 10], [200, 10, 220, 20], [90, 60, 100, 70]]),
                np.float32([0.1, 0.8, 0.7]),
                np.int64([1, 1, 0]),
            ),
        },
        dataset.classes,
    )


def test_the_contests_csv_to_the_letter(dataset: Dataset, tmp_path: Path) -> None:
    path = write_submission(some(dataset), dataset, tmp_path / "submission.csv", "contest_csv")
    assert path.read_bytes().decode() == (
        "PredictionString,image_id\n"
        "2 0.9 1.500 2.000 30.250 40.000 0 0.001 3.000 4.000 5.000 6.000 ,test/0000.jpg\n"
        ",test/0001.jpg\n"
        "1 0.1 0.000 0.000 10.000 10.000 0 0.7 90.000 60.000 96.000 64.000 ,test/0002.jpg\n"
    )
    with path.open(newline="") as file:
        assert [row["PredictionString"] for row in csv.DictReader(file)][1] == ""  # empty, not NaN


def test_coco_results_to_the_letter(dataset: Dataset, tmp_path: Path) -> None:
    path = write_submission(some(dataset), dataset, tmp_path / "submission.json", "coco_json")
    rows = json.loads(path.read_text())
    assert len(rows) == 4
    assert rows[0] == {"image_id": 0, "category_id": 2, "bbox": [1.5, 2.0, 28.75, 38.0], "score": 0.9}
    assert rows[2] == {"image_id": 2, "category_id": 1, "bbox": [0.0, 0.0, 10.0, 10.0], "score": 0.1}


def test_the_best_boxes_of_each_image_are_kept(dataset: Dataset, tmp_path: Path) -> None:
    path = write_submission(some(dataset), dataset, tmp_path / "submission.csv", "contest_csv", max_detections=1)
    found = validate_submission(path, dataset)
    assert [found[i].scores.tolist() for i in range(3)] == [[np.float32(0.9)], [], [np.float32(0.7)]]


def test_a_submission_may_hold_no_boxes(dataset: Dataset, tmp_path: Path) -> None:
    nothing = Predictions.of({i: Detections.empty() for i in dataset.image_ids}, dataset.classes)
    for format, name in (("contest_csv", "s.csv"), ("coco_json", "s.json")):
        found = validate_submission(write_submission(nothing, dataset, tmp_path / name, format), dataset, format)
        assert list(found) == [0, 1, 2]
        assert len(found.boxes) == 0


def test_a_missing_image_is_refused_and_the_old_file_stays(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    path.write_text("the one before")
    with pytest.raises(InputError, match="lack 1 of 3 images, such as image id 2"):
        write_submission(some(dataset).select_images([0, 1]), dataset, path, "contest_csv")
    assert path.read_text() == "the one before"
    assert list(tmp_path.glob(".submission*")) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("PredictionString,image_id", "image_id,PredictionString"), "line 2"),
        (lambda text: text.replace(",test/0001.jpg\n", ""), "has 2 rows, expected 3, .*; test/0001.jpg has none"),
        (lambda text: text.replace("test/0001.jpg", "0001.jpg"), "line 3: image_id '0001.jpg' is no file_name"),
        (lambda text: text.replace(",test/0001.jpg", "nan,test/0001.jpg"), "line 3: holds .nan."),
        (lambda text: text.replace("0.9", "90"), "line 2: a box has the score 90"),
    ],
)
def test_a_broken_submission_is_named(
    dataset: Dataset, tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    path = write_submission(some(dataset), dataset, tmp_path / "submission.csv", "contest_csv")
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=message):
        validate_submission(path, dataset)


def test_swapped_columns_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    path.write_text("image_id,PredictionString\ntest/0000.jpg,\ntest/0001.jpg,\ntest/0002.jpg,\n")
    with pytest.raises(InputError, match="line 1 is 'image_id,PredictionString', expected"):
        validate_submission(path, dataset)


def test_the_command_names_the_format_that_it_read(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, note in (("found.parquet", ""), ("found.json", "read as coco_json: the file is a JSON list")):
        source = write_predictions(some(dataset), tmp_path / name, dataset)
        path = submit(source, dataset.source, out=tmp_path / "submission.csv", overwrite=True)
        assert note in (told := capsys.readouterr().err), told
        assert bool(told) == bool(note), "Parquet can be read in one way only"
        assert len(validate_submission(path, dataset)) == 3


def test_the_command_takes_an_input_format(dataset: Dataset, tmp_path: Path) -> None:
    source = tmp_path / "theirs.csv"
    source.write_text("image_id,PredictionString\n0000,1 0.5 20 20 10 10\n0001,\n0002,\n")
    with pytest.raises(InputError, match="fit the layouts"):
        submit(source, dataset.source, out=tmp_path / "submission.csv")
    path = submit(source, dataset.source, out=tmp_path / "submission.csv", input_format="label_score_xywh")
    assert validate_submission(path, dataset)[0].boxes.tolist() == [[20, 20, 30, 30]]


def test_wrong_options_are_named(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'coco_json'"):
        write_submission(some(dataset), dataset, tmp_path / "s", "coco_jason")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="max_detections is 0"):
        write_submission(some(dataset), dataset, tmp_path / "s", "coco_json", max_detections=0)
