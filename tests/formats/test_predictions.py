"""Predictions survive writing and reading in every format; a bad file ends in a sentence that names the row."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foldfuse.cli import main
from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.readers.coco import read
from foldfuse.detections import Detections, Predictions
from foldfuse.errors import InputError
from foldfuse.formats.parquet import parquet_classes
from foldfuse.formats.predictions import (
    FORMATS,
    OF_TOOLS,
    read_prediction_file,
    read_predictions,
    write_predictions,
)

WIDTH, HEIGHT = 200, 100
# Ids, file names and category ids that have nothing to do with positions, so that none can stand in for another.
DATASET = Dataset(
    tuple(
        Sample(i, Path(name), name, WIDTH, HEIGHT, None)
        for i, name in ((7, "a/x.jpg"), (3, "a/y.jpg"), (11, "b/z.jpg"))
    ),
    ("cat", "dog", "owl"),
    (2, 5, 90),
    Path("test.json"),
)
ONE_CLASS = Dataset(DATASET.samples, ("wheat",), (1,), Path("test.json"))

thousandth = st.integers(0, 1000).map(lambda n: n / 1000)
one_box = st.tuples(thousandth, thousandth, thousandth, thousandth, thousandth, st.integers(0, 2))
each_image = st.lists(st.lists(one_box, max_size=4), min_size=3, max_size=3)
share = st.floats(0, 1, width=32)
box_of_any_digits = st.tuples(share, share, share, share, share, st.integers(0, 2))
# Two boxes that, as numbers of any one layout, can be meant in no other.
TELLING = [(0.75, 0.8, 0.6, 0.9, 0.5, 2), (0.0, 0.15, 0.0, 0.3, 0.5, 0)]


def predictions_of(images: list[list[tuple[float, ...]]], dataset: Dataset = DATASET) -> Predictions:
    found = {}
    for image_id, rows in zip(dataset.image_ids, images, strict=True):
        table = np.array(rows, np.float64).reshape(-1, 6)
        xs, ys = np.sort(table[:, 0:2] * WIDTH, 1), np.sort(table[:, 2:4] * HEIGHT, 1)
        boxes = np.stack([xs[:, 0], ys[:, 0], xs[:, 1], ys[:, 1]], 1).astype(np.float32)
        found[image_id] = Detections(boxes, table[:, 4].astype(np.float32), table[:, 5].astype(np.int64))
    return Predictions.of(found, dataset.classes)


def assert_same(got: Predictions, want: Predictions, *, atol: float = 0.0) -> None:
    np.testing.assert_array_equal(got.image_ids, want.image_ids)
    np.testing.assert_array_equal(got.offsets, want.offsets)
    np.testing.assert_array_equal(got.labels, want.labels)
    np.testing.assert_allclose(got.boxes, want.boxes, rtol=0, atol=atol)
    np.testing.assert_allclose(got.scores, want.scores, rtol=0, atol=min(atol, 1e-6))
    assert got.classes == want.classes
    assert (got.scores.dtype, got.labels.dtype) == (np.float64, np.int64)


@settings(deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(each_image)
@pytest.mark.parametrize(("ending", "atol"), [(".parquet", 0.0), (".json", 1e-3), (".csv", 1e-3)])
def test_written_predictions_are_read_back(
    tmp_path: Path, ending: str, atol: float, images: list[list[tuple[float, ...]]]
) -> None:
    want = predictions_of(images)
    path = write_predictions(want, tmp_path / f"found{ending}", DATASET)
    format = {".csv": "label_score_xyxy", ".json": "coco_json"}.get(ending)
    assert_same(read_predictions(path, DATASET, format=format), want, atol=atol)


@settings(deadline=None, derandomize=True, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(box_of_any_digits, max_size=4), min_size=3, max_size=3))
@pytest.mark.parametrize("format", [name for name in FORMATS if name not in OF_TOOLS])
def test_each_format_is_read_back_and_detected(
    tmp_path: Path, format: str, images: list[list[tuple[float, ...]]]
) -> None:
    dataset = DATASET if "label" in format or not format.startswith("score") else ONE_CLASS
    last = len(dataset.classes) - 1
    rows = [[(*box, min(label, last)) for *box, label in image] for image in [TELLING + images[0], *images[1:]]]
    want = predictions_of(rows, dataset)
    path = Path(tempfile.mkdtemp(dir=tmp_path)) / "found"  # no ending: the content has to tell
    assert write_predictions(want, path, dataset, format=format) == path
    digits_px = 0.0 if format == "parquet" else 2e-5 if format == "yolo" or format.endswith("normalized") else 1.1e-3
    assert_same(read_predictions(path, dataset, format=format), want, atol=digits_px)
    file = read_prediction_file(path, dataset)
    assert file.format == format
    assert_same(file.predictions, want, atol=digits_px)


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (
            "label_score_xyxy",
            "PredictionString,image_id\n2 0.5 150.000 60.000 160.000 90.000 ,a/x.jpg\n,a/y.jpg\n",
        ),
        ("score_label_xywh", "image_id,PredictionString\na/x.jpg,0.5 2 150.000 60.000 10.000 30.000 \na/y.jpg,\n"),
        (
            "label_score_cxcywh",
            "image_id,PredictionString\na/x.jpg,2 0.5 155.000 75.000 10.000 30.000 \na/y.jpg,\n",
        ),
        (
            "label_score_xywh_normalized",
            "image_id,PredictionString\na/x.jpg,2 0.5 0.75000000 0.60000000 0.05000000 0.30000000 \na/y.jpg,\n",
        ),
    ],
)
def test_prediction_strings_of_each_layout(tmp_path: Path, layout: str, text: str) -> None:
    found = predictions_of([TELLING[:1], [], []])
    path = write_predictions(found, tmp_path / "found.csv", DATASET.subset([7, 3]), format=layout)
    assert path.read_text() == text


def test_a_format_that_cannot_hold_the_predictions_is_refused(tmp_path: Path) -> None:
    found = predictions_of([TELLING, [], []])
    with pytest.raises(InputError, match=r"score_xywh has no labels, and test.json has 3 classes.*label_score_xywh\."):
        write_predictions(found, tmp_path / "found.csv", DATASET, format="score_xywh")
    for format in ("yolo", "label_score_xyxy"):
        with pytest.raises(InputError, match="lack 1 of 3 images, such as image id 11"):
            write_predictions(found.select_images([7, 3]), tmp_path / "found", DATASET, format=format)
    with pytest.raises(InputError, match="Did you mean 'score_xywh'"):
        write_predictions(found, tmp_path / "found.csv", DATASET, format="score_xwyh")
    with pytest.raises(InputError, match="is a folder, expected the name of a file for coco_json"):
        write_predictions(found, tmp_path, DATASET, format="coco_json")
    assert not list(tmp_path.iterdir())


def test_convert_through_formats_and_back(
    make_dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_dataset(images=3)
    dataset = read(data, annotated=False)
    start = write_predictions(predictions_of([TELLING, [], TELLING], dataset), tmp_path / "start.parquet", dataset)
    (tmp_path / "labels").mkdir()
    assert main(["convert", str(start), str(data), "--out", str(tmp_path / "labels")]) == 0
    assert sorted(file.name for file in (tmp_path / "labels").iterdir()) == ["0000.txt", "0001.txt", "0002.txt"]
    strings = [
        str(tmp_path / "labels"),
        str(data),
        "-o",
        str(tmp_path / "strings.csv"),
        "--format",
        "score_label_xywh_normalized",
    ]
    assert main(["convert", *strings]) == 0
    back = [
        str(tmp_path / "strings.csv"),
        str(data),
        "--out",
        str(tmp_path / "back.json"),
        "--input-format",
        "score_label_xywh_normalized",
    ]
    assert main(["convert", *back]) == 0
    out, err = capsys.readouterr()
    assert out.split() == [str(tmp_path / name) for name in ("labels", "strings.csv", "back.json")]
    assert f"{tmp_path / 'labels'}: read as yolo" in err
    assert_same(read_predictions(tmp_path / "back.json", dataset), read_predictions(start, dataset), atol=1.1e-3)
    assert main(["convert", str(start), str(data), "--out", str(tmp_path / "labels")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_parquet_keeps_the_predicted_images(tmp_path: Path) -> None:
    some = predictions_of([[], [(0.1, 0.2, 0.1, 0.2, 0.5, 1)], []]).select_images([11, 3])
    path = write_predictions(some, tmp_path / "run=1" / "found.parquet", DATASET)  # not a partition called run
    assert_same(read_predictions(path, DATASET), some)


def test_parquet_finds_images_by_file_name_where_ids_are_of_another_list(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = predictions_of([[], [(0.1, 0.2, 0.1, 0.2, 0.5, 1)], []]).select_images([7, 3])
    path = write_predictions(replace(found, learnt_ids=frozenset({3})), tmp_path / "found.parquet", DATASET)
    other_ids = replace(
        DATASET,
        samples=tuple(
            replace(s, id=i, file_name=f"images/{s.file_name}") for s, i in zip(DATASET.samples, (3, 7, 1), strict=True)
        ),
    )
    with caplog.at_level("INFO"):
        again = read_predictions(path, other_ids)
    assert "found by their file names" in caplog.text
    assert (again.image_ids.tolist(), again.learnt_ids) == ([3, 7], {7})
    assert (len(again[3]), len(again[7])) == (0, 1)
    names = ["a/x.jpg", "y.jpg", "b/y.jpg"]  # y.jpg may be either
    doubtful = replace(
        other_ids, samples=tuple(replace(s, file_name=n) for s, n in zip(other_ids.samples, names, strict=True))
    )
    assert read_predictions(path, doubtful).image_ids.tolist() == [3, 7], "a/y.jpg is not b/y.jpg"
    twice = replace(doubtful, samples=(*doubtful.samples, replace(doubtful.samples[0], id=20, file_name="y.jpg")))
    with pytest.raises(InputError, match=r"image id 7 was a/x.jpg when it was predicted, and is y.jpg"):
        read_predictions(path, twice)


def test_parquet_is_refused_where_an_id_belongs_to_another_image_than_before(tmp_path: Path) -> None:
    found = predictions_of([[], [(0.1, 0.2, 0.1, 0.2, 0.5, 1)], []])
    path = write_predictions(found, tmp_path / "found.parquet", DATASET)
    moved = replace(
        DATASET, samples=tuple(replace(s, file_name=f"c/{Path(s.file_name).stem}.png") for s in DATASET.samples)
    )
    assert_same(read_predictions(path, moved), found)
    names = ["a/y.jpg", "a/w.jpg", "b/z.jpg"]
    swapped = replace(
        DATASET, samples=tuple(replace(s, file_name=n) for s, n in zip(DATASET.samples, names, strict=True))
    )
    with pytest.raises(
        InputError, match=r"image id 7 was a/x.jpg when it was predicted, and is a/y.jpg.*so are 2 of 3 images"
    ):
        read_predictions(path, swapped)


def test_parquet_keeps_category_ids_that_are_words(tmp_path: Path) -> None:
    own = DATASET.with_classes(DATASET.classes, ("c", "d", "o"))
    assert own.category_ids == (1, 2, 3)
    assert own.organiser_category_ids == ("c", "d", "o")
    path = write_predictions(predictions_of([[], [], []], own), tmp_path / "found.parquet", own)
    assert parquet_classes(path) == (("cat", "dog", "owl"), ("c", "d", "o"))


def test_coco_results_use_the_organisers_ids(tmp_path: Path) -> None:
    found = predictions_of([[], [(0.1, 0.4, 0.2, 0.5, 0.75, 2)], []])
    path = write_predictions(found, tmp_path / "found.json", DATASET)
    (row,) = json.loads(path.read_text())
    assert row == {"image_id": 3, "category_id": 90, "bbox": [20.0, 20.0, 60.0, 30.0], "score": 0.75}


@pytest.mark.parametrize("image_id", [3, "3", "a/y.jpg", "y"])
def test_coco_results_may_use_other_names_of_the_image(tmp_path: Path, image_id: int | str) -> None:
    path = tmp_path / "found.json"
    path.write_text(json.dumps([{"image_id": image_id, "category_id": 5, "bbox": [1, 2, 3, 4], "score": 1}]))
    found = read_predictions(path, DATASET)
    assert list(found) == [7, 3, 11]
    assert found[3].boxes.tolist() == [[1, 2, 4, 6]]
    assert found[3].labels.tolist() == [1]
    assert len(found[7]) == len(found[11]) == 0


def test_repeated_boxes_are_noted(tmp_path: Path) -> None:
    row = {"image_id": DATASET.image_ids[0], "category_id": DATASET.category_ids[0], "bbox": [1, 2, 3, 4], "score": 0.5}
    other = row | {"score": 0.25}
    path = tmp_path / "twice.json"
    path.write_text(json.dumps([row, other, row]))
    file = read_prediction_file(path, DATASET)
    assert len(file.predictions.boxes) == 3
    assert "1 of 3 boxes repeat another box of the same class and score" in " ".join(file.notes())
    assert f"such as in image id {row['image_id']}" in " ".join(file.notes())
    path.write_text(json.dumps([row, other]))
    assert "repeat" not in " ".join(read_prediction_file(path, DATASET).notes())


def text_file(folder: Path, text: str) -> Path:
    path = folder / "found.csv"
    path.write_text(text)
    return path


def test_the_contests_csv(tmp_path: Path) -> None:
    path = text_file(
        tmp_path, "PredictionString,image_id\n,a/x.jpg\n2 0.5 10 20 30 40 0 1 1 1 2 2 ,a/y.jpg\n,b/z.jpg\n"
    )
    file = read_prediction_file(path, DATASET)
    found = file.predictions
    assert file.format == "label_score_xyxy"
    assert "PredictionString,image_id" in file.notes()[0]
    assert [len(found[i]) for i in (7, 3, 11)] == [0, 2, 0]
    assert found[3].boxes.tolist() == [[10, 20, 30, 40], [1, 1, 2, 2]]
    assert found[3].labels.tolist() == [2, 0]
    assert found[3].scores.tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("layout", "string"),
    [
        ("label_score_xyxy", "2 0.5 150 60 160 90"),
        ("score_label_xyxy", "0.5 2 150 60 160 90"),
        ("label_score_xywh", "2 0.5 150 60 10 30"),
        ("label_score_cxcywh", "2 0.5 155 75 10 30"),
        ("label_score_xyxy_normalized", "2 0.5 0.75 0.6 0.8 0.9"),
        ("label_score_xywh_normalized", "2 0.5 0.75 0.6 0.05 0.3"),
        ("label_score_xyxy", "owl 0.5 150 60 160 90"),
    ],
)
def test_every_layout_can_be_named(tmp_path: Path, layout: str, string: str) -> None:
    path = text_file(tmp_path, f"image_id,PredictionString\nx,{string}\n")
    found = read_predictions(path, DATASET, format=layout)
    np.testing.assert_allclose(found[7].boxes, [[150, 60, 160, 90]], rtol=1e-6)
    assert found[7].labels.tolist() == [2]
    assert found[7].scores.tolist() == [0.5]


@pytest.mark.parametrize(
    ("layout", "string"),
    [
        ("label_score_xyxy", "2 0.5 150 60 160 90"),  # as xywh it would end at x = 310
        ("score_label_xyxy", "0.5 2 150 60 160 90"),
        ("label_score_xyxy_normalized", "2 0.5 0.75 0.6 0.8 0.9"),
    ],
)
def test_the_only_layout_that_fits_the_numbers_is_taken(tmp_path: Path, layout: str, string: str) -> None:
    path = text_file(tmp_path, f"image_id,PredictionString\nx,{string}\n")
    assert read_prediction_file(path, DATASET).format == layout


def test_boxes_without_labels_are_of_the_only_class(tmp_path: Path) -> None:
    path = text_file(tmp_path, "image_id,PredictionString\nx,0.5 150 60 160 90\ny,\n")
    file = read_prediction_file(path, ONE_CLASS)
    found = file.predictions
    assert file.format == "score_xyxy"
    assert list(found) == [7, 3]  # b/z.jpg has no row, so it was not predicted
    assert found[7].labels.tolist() == [0]


def test_an_ambiguous_layout_must_be_named(tmp_path: Path) -> None:
    path = text_file(tmp_path, "image_id,PredictionString\nx,1 0.5 20 20 30 30\n")
    with pytest.raises(InputError, match=r"fit the layouts label_score_xyxy or label_score_xywh.*format="):
        read_predictions(path, DATASET)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1 nan 1 1 2 2,a/x.jpg", "line 2: a box has the word 'nan', expected a finite"),
        ("1 1.2 1 1 2 2,a/x.jpg", "line 2: a box has the score 1.2"),
        (
            "1 0.5 9 1 2 2,a/x.jpg",
            "the header stands for label_score_xyxy, and the numbers fit label_score_xywh or label",
        ),
        ("1 0.5 1 1 inf 2,a/x.jpg", "line 2: a box has the word 'inf', expected a finite"),
        (
            "3 0.5 1 1 2 2,a/x.jpg",
            "line 2: a box: label 3 is not in test.json \\(known: 0, 1, 2\\). All .* from 1 \\(--category-ids from_one\\)",
        ),
        ("1.5 0.5 1 1 2 2,a/x.jpg", "line 2: a box: label '1.5' is not in test.json"),
        ("1 0.5 1 1 2,a/x.jpg", "line 2 has 5 words, expected 6 a box"),
        ("bat 0.5 1 1 2 2,a/x.jpg", "line 2: a box: label 'bat' is not in test.json \\(known: cat, dog, owl\\)"),
        ("1 0.5 1 1 2 2,a/w.jpg", "line 2: 'a/w.jpg' names no image of test.json"),
        ("1 0.5 1 1 2 2,a/x.jpg\n,a/x.jpg", "line 3: 'a/x.jpg' has two rows"),
        ("1 0.5 1 1 2 2,a/x.jpg,0", "line 2 has 3 columns, expected 2"),
    ],
)
def test_a_bad_row_of_a_csv_is_named(tmp_path: Path, row: str, message: str) -> None:
    path = text_file(tmp_path, f"PredictionString,image_id\n{row}\n")
    with pytest.raises(InputError, match=message) as caught:
        read_predictions(path, DATASET)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": 4}, "row 1: 4 names no image"),
        ({"image_id": None}, "row 1: null names no image"),
        ({"category_id": 1}, r"row 1: category_id 1 is not in test.json \(known: 2, 5, 90\)"),
        ({"score": float("nan")}, "row 1 has the score nan"),
        ({"score": "high"}, "row 1: 'score' is 'high', expected a number"),
        ({"bbox": [1, 2, 3]}, r"row 1: 'bbox' is \[1, 2, 3\], expected \[left"),
        ({"bbox": [1, 2, float("inf"), 4]}, "row 1 has the corners 1 2 inf 6, expected finite"),
        ({"bbox": [1, 2, -3, 4]}, "row 1 has the corners 1 2 -2 6"),
    ],
)
def test_a_bad_row_of_coco_results_is_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    good = {"image_id": 3, "category_id": 5, "bbox": [1, 2, 3, 4], "score": 0.5}
    path = tmp_path / "found.json"
    path.write_text(json.dumps([good, good | changes]))
    with pytest.raises(InputError, match=message):
        read_predictions(path, DATASET)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("found.csv", "", "no prediction file of a known format"),
        ("found.csv", ",PredictionString,image_id\n0,,a/x.jpg\n", "There is an index column"),
        ("found.csv", "PredictionString,when\n", "the header is 'PredictionString,when'"),
        ("found.json", '[{"image_id": 3,', "is not JSON"),
        ("found.json", '{"images": []}', "holds an object without a list of predictions"),
        ("found.json", '[{"image_id": 3}]', "row 0 is .* expected an object with image_id"),
        ("found.parquet", "PAR1 and then nothing", "is not a Parquet file of predictions"),
    ],
)
def test_a_file_of_no_known_format_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_predictions(tmp_path / name, DATASET)


def test_a_missing_file_or_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        read_predictions(tmp_path / "none.parquet", DATASET)
    with pytest.raises(InputError, match="folder without"):
        read_predictions(tmp_path, DATASET)
    with pytest.raises(InputError, match="Did you mean 'score_xywh'"):
        read_predictions(tmp_path, DATASET, format="score_xwyh")
    with pytest.raises(InputError, match="one of these endings"):
        write_predictions(predictions_of([[], [], []]), tmp_path / "found.txt", DATASET)
    (tmp_path / "x.txt").write_text("1 0.5 0.5 0.1 0.2\n")
    with pytest.raises(InputError, match=r"x.txt: line 1 is .* expected six numbers: class cx cy w h score"):
        read_predictions(tmp_path, DATASET)


def test_other_classes_are_refused_when_writing_and_reading(tmp_path: Path) -> None:
    found = predictions_of([[], [], []])
    with pytest.raises(InputError, match="has the classes cat, dog, owl, but test"):
        write_predictions(found, tmp_path / "found.parquet", ONE_CLASS)
    path = write_predictions(found, tmp_path / "found.parquet", DATASET)
    with pytest.raises(InputError, match="has the classes"):
        read_predictions(path, ONE_CLASS)


def parquet(path: Path, **columns: pa.Array) -> Path:
    whole = {
        "image_id": pa.array([7, 3]),
        "boxes": pa.array([[[1, 2, 3, 4]], []], pa.list_(pa.list_(pa.float64()))),
        "scores": pa.array([[0.5], []], pa.list_(pa.float64())),
        "labels": pa.array([[1], []], pa.list_(pa.int32())),
    } | columns
    table = pa.table(whole).replace_schema_metadata({"foldfuse": json.dumps({"classes": list(DATASET.classes)})})
    pq.write_table(table, path)
    return path


def test_parquet_of_other_widths_is_read(tmp_path: Path) -> None:
    found = read_predictions(parquet(tmp_path / "found.parquet"), DATASET)
    assert found[7].boxes.tolist() == [[1, 2, 3, 4]]
    assert len(found[3]) == 0


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image_id": pa.array([7, 7])}, "image id 7 has 2 rows"),
        ({"image_id": pa.array([7, 8])}, "row 1: 8 names no image"),
        ({"image_id": pa.array([7, None])}, r"empty cells \(null\)"),
        ({"scores": pa.array([[None], []], pa.list_(pa.float64()))}, r"empty cells \(null\)"),
        ({"scores": pa.array([[0.5, 0.6], []])}, "row 0 has 1 boxes and 2 scores"),
        ({"scores": pa.array([[-0.5], []])}, r"row 0 \(image 7\): a box has the score -0.5"),
        ({"labels": pa.array([[4], []])}, r"row 0 \(image 7\): a box has the label 4"),
        ({"labels": pa.array([["dog"], []])}, "is not a Parquet file of predictions"),
    ],
)
def test_a_bad_row_of_parquet_is_named(tmp_path: Path, columns: dict[str, pa.Array], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_predictions(parquet(tmp_path / "found.parquet", **columns), DATASET)


def test_in_the_contests_layout_ids_do_not_count_as_file_names(
    make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    dataset = read(make_dataset(images=3), annotated=False)
    path = text_file(tmp_path, "PredictionString,image_id\n0 0.5 1 2 3 4 ,train/0002.jpg\n")
    assert list(read_predictions(path, dataset)) == [2]
