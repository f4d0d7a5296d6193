"""A YOLO folder holds a file for each image, under a name that leads back to it, and is written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.detections import Detections, Predictions
from foldfuse.errors import InputError
from foldfuse.formats.predictions import read_prediction_file, read_predictions, write_predictions


def dataset_of(*file_names: str) -> Dataset:
    """Images of 200 x 100 with the ids 0, 1 and so on."""
    samples = tuple(Sample(i, Path(name), name, 200, 100, None) for i, name in enumerate(file_names))
    return Dataset(samples, ("cat", "dog"), (1, 2), Path("test.json"))


def one_box_each(dataset: Dataset) -> Predictions:
    """In image i, a dog whose left side is at 10 i."""
    return Predictions.of(
        {
            i: Detections(np.array([[10.0 * i, 40, 110, 60]]), np.array([0.25]), np.array([1]))
            for i in dataset.image_ids
        },
        dataset.classes,
    )


def files_in(folder: Path) -> dict[str, str]:
    return {file.relative_to(folder).as_posix(): file.read_text() for file in folder.rglob("*") if file.is_file()}


def test_a_folder_of_any_tool_is_read(tmp_path: Path) -> None:
    (tmp_path / "labels" / "a").mkdir(parents=True)
    (tmp_path / "labels" / "a" / "y.txt").write_text("1 0.5 0.5 0.1 0.2 0.25\n")
    file = read_prediction_file(tmp_path / "labels", dataset_of("a/x.jpg", "a/y.jpg"))
    found = file.predictions
    assert file.format == "yolo"
    np.testing.assert_allclose(found[1].boxes, [[90, 40, 110, 60]])
    assert found[1].scores.tolist() == [0.25]
    assert list(found) == [0, 1]


def test_every_image_has_a_file(tmp_path: Path) -> None:
    dataset = dataset_of("train/x.jpg", "train/y.v2.jpg")
    box = Detections(np.array([[90.0, 40, 110, 60]]), np.array([0.25]), np.array([1]))
    found = Predictions.of({1: box, 0: box[:0]}, dataset.classes)
    path = write_predictions(found, tmp_path / "labels", dataset, format="yolo")
    line = "1 0.50000000 0.50000000 0.10000000 0.20000000 0.25\n"
    assert files_in(path) == {"x.txt": "", "y.v2.txt": line}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("file_names", "written"),
    [
        (("2.jpg", "1.jpg", "0.jpg"), {"2.txt", "1.txt", "0.txt"}),  # each name but one is the id of another image
        (("a/0.jpg", "b/0.jpg"), {"a/0.txt", "b/0.txt"}),
        (("x.jpg", "a/x.jpg"), {"x.txt", "a/x.txt"}),
    ],
)
def test_a_file_name_leads_back_to_its_image(tmp_path: Path, file_names: tuple[str, ...], written: set[str]) -> None:
    dataset = dataset_of(*file_names)
    path = write_predictions(one_box_each(dataset), tmp_path / "labels", dataset, format="yolo")
    assert set(files_in(path)) == written
    found = read_predictions(path, dataset)
    assert [found[i].boxes[0, 0].round(3) for i in dataset.image_ids] == [10.0 * i for i in dataset.image_ids]


@pytest.mark.parametrize("file_names", [("x.jpg", "x.png"), ("x.jpg", "../x.jpg"), ("x.jpg", "/x.jpg")])
def test_names_that_would_clash_or_leave_the_folder_are_refused(tmp_path: Path, file_names: tuple[str, ...]) -> None:
    dataset = dataset_of(*file_names)
    with pytest.raises(InputError, match=r"images of test.json differ only in their endings or lie outside"):
        write_predictions(one_box_each(dataset), tmp_path / "labels", dataset, format="yolo")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_stays_unchanged(tmp_path: Path) -> None:
    dataset = dataset_of("x.jpg")
    path = write_predictions(one_box_each(dataset), tmp_path / "labels", dataset, format="yolo")
    before = files_in(path)
    with pytest.raises(InputError, match="is a folder that is not empty, expected a new or an empty folder"):
        write_predictions(one_box_each(dataset), path, dataset)
    assert files_in(path) == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 0.5 0.5 0.1 0.2", "line 2 is .* expected six numbers: class cx cy w h score"),
        ("1 0.5 0.5 0.1 high 0.2", "line 2: .* is not numbers"),
        ("1 0.5 0.5 0.1 0.2 \udcff", "is not text in UTF-8"),
        ("1 0.5 0.5 0.1 0.2 1.5", "line 2 has the score 1.5"),
        ("2 0.5 0.5 0.1 0.2 0.5", r"line 2: class 2 is not in test.json"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "x.txt").write_bytes(f"0 0.5 0.5 0.1 0.2 0.5\n{line}\n".encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=rf"x\.txt: {message}"):
        read_predictions(tmp_path, dataset_of("x.jpg"))
