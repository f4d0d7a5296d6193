"""Reprs are short and notebook pages small, however large a value is; boxes go to other libraries and come back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import foldfuse as ff
from foldfuse.data.dataset import Dataset, Sample
from foldfuse.detections import Annotations, Detections, Predictions
from foldfuse.ensemble.ensemble import Ensemble
from foldfuse.errors import InputError
from foldfuse.evaluation.coco import ClassScore, Score
from foldfuse.storage.run import LearntImages, Run, RunMetadata

NUM_IMAGES = 20_000
NAMES = tuple(f"<b>class {k}</b>\n" for k in range(300))
MAX_REPR = 400  # characters
MAX_HTML = 400_000


def many_images() -> Dataset:
    boxes = Annotations(np.tile([1.0, 1, 9, 9], (3, 1)), np.arange(3), np.zeros(3, bool), np.full(3, 64.0))
    samples = (Sample(i, Path(f"gone/{i}.jpg"), f"{i}.jpg", 20, 20, boxes) for i in range(NUM_IMAGES))
    return Dataset(tuple(samples), NAMES, tuple(range(300)), Path("x/" * 300 + "train.json"))


def many_boxes() -> Predictions:
    one = Detections(np.float32([[1, 1, 9, 9]] * 5), np.linspace(0.1, 0.9, 5, dtype=np.float32), np.arange(5))
    return Predictions.of(dict.fromkeys(range(NUM_IMAGES), one), NAMES)


LARGE: dict[str, Callable[[], Any]] = {
    "Dataset": many_images,
    "Predictions": many_boxes,
    "Detections": lambda: Detections(np.zeros((90_000, 4)), np.ones(90_000), np.arange(90_000) % 300, NAMES),
    "Annotations": lambda: Annotations(
        np.zeros((90_000, 4)), np.zeros(90_000, int), np.ones(90_000, bool), np.ones(90_000)
    ),
    "Sample": lambda: Sample(1, Path("gone.jpg"), "a" * 5000, 20, 20, None),
    "Score": lambda: Score(*[0.5] * 9, tuple(ClassScore(name, 3, None, 0.5) for name in NAMES)),
    "Ensemble": lambda: Ensemble({f"member {i} {'m' * 90}": 1.0 + i for i in range(5000)}),
    "Folds": lambda: ff.Folds({i: i % 5 for i in range(NUM_IMAGES)}, 5),
    "RunMetadata": lambda: RunMetadata(NAMES, tuple(range(300)), val_ids=tuple(range(NUM_IMAGES))),
    "LearntImages": lambda: LearntImages(tuple(map(str, range(NUM_IMAGES)))),
    "Run": lambda: Run(Path("gone")),
}


@pytest.mark.parametrize("name", LARGE)
def test_every_repr_and_page_is_bounded(name: str) -> None:
    value = LARGE[name]()
    assert repr(value).startswith(name)
    assert len(repr(value)) <= (900 if name == "RunMetadata" else MAX_REPR)
    assert "\n" not in repr(value)
    if hasattr(value, "_repr_html_"):
        html = value._repr_html_()
        assert len(html) <= MAX_HTML
        assert "<b>class" not in html, "names are escaped"


def test_short_texts() -> None:
    found = Detections(
        np.float32([[0, 0, 9, 9]] * 3), np.float32([0.5, 0.91, 0.2]), np.int64([0, 0, 1]), ("Metal", "Paper")
    )
    assert repr(found) == "Detections(3 boxes: 2 Metal, 1 Paper; best score 0.91)"
    assert repr(Score(0.4, 0.7, None, *[None] * 6, ())) == "Score(AP 0.4000, AP50 0.7000, AP75 –; 0 classes)"
    assert repr(Ensemble({"a": 3.0, "b": 1.0})) == "Ensemble(wbf of 2 members: a 0.75, b 0.25; IoU threshold 0.55)"


def test_a_dataset_is_shown_with_images(make_dataset: Callable[..., Path]) -> None:
    dataset = ff.read(make_dataset(images=9))
    assert [sample.id for sample in dataset] == list(range(9))
    assert dataset[3] is dataset.samples[3]
    with pytest.raises(InputError, match="no image has the id 99; the first has the id 0"):
        dataset[99]
    html = dataset._repr_html_()
    assert html.count("data:image/jpeg;base64,") == 6
    assert ">class 0<" in html
    plain, drawn = (np.asarray(image).astype(int) for image in (dataset[0].load(), dataset.plot(0)))
    assert plain.shape == drawn.shape == (64, 96, 3)
    assert (plain != drawn).any()
    assert np.array_equal(np.asarray(dataset[0]), plain), "a Sample is an image where one is expected"
    assert "data:image" in dataset[0]._repr_html_()
    assert dataset.plot(0, longest=48).size == (48, 32)
    assert dataset[0].annotations.plot(dataset[0]).size == (96, 64)


def test_boxes_on_a_turned_image_are_drawn_where_they_were_annotated(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (120, 60)).save(tmp_path / "a.jpg", exif=exif)
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 60, "height": 120}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 90, 20, 20], "area": 400, "iscrowd": 0}
        ],
        "categories": [{"id": 1, "name": "a"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(document))
    sample = ff.read(tmp_path / "train.json")[1]
    drawn = np.asarray(Detections(sample.annotations.boxes, np.ones(1), np.zeros(1, int), image=sample).plot())
    assert drawn.shape == (120, 60, 3)
    assert drawn[89:91, 10:30].any()
    assert not drawn[:60].any()


def test_detections_show_their_image(tmp_path: Path) -> None:
    Image.new("RGB", (3000, 2000)).save(tmp_path / "a.png")
    boxes = (np.float32([[100, 100, 900, 900]]), np.float32([0.9]), np.int64([0]), ("Metal",))
    html = Detections(*boxes, tmp_path / "a.png")._repr_html_()
    assert "data:image/jpeg" in html
    assert len(html) < 60_000
    assert "no such image" in Detections(*boxes, tmp_path / "gone.png")._repr_html_()


def test_boxes_as_coco_results_are_those_of_the_file(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    dataset = ff.read(make_dataset())
    found = Detections(np.float32([[1.5, 2, 30.25, 40]]), np.float32([0.9]), np.int64([2]))
    predictions = Predictions.of(dict.fromkeys(dataset.image_ids, found), dataset.classes)
    ff.write_predictions(predictions, tmp_path / "a.json", dataset)
    assert predictions.to_coco(dataset) == json.loads((tmp_path / "a.json").read_text())
    row = {"image_id": "7", "category_id": 3, "bbox": [1.5, 2.0, 28.75, 38.0], "score": 0.9}
    assert found.to_coco("7") == [row]
    assert found.to_coco("7", ("x", "y", "z")) == [row | {"category_id": "z"}]


def test_boxes_as_a_table() -> None:
    pytest.importorskip("pandas", reason="the extra 'notebook' has it")
    found = Detections(np.float32([[1, 2, 3, 4], [5, 6, 7, 8]]), np.float32([0.9, 0.5]), np.int64([1, 0]), ("a", "b"))
    frame = found.to_pandas()
    assert list(frame.columns) == ["class", "label", "score", "x1", "y1", "x2", "y2"]
    assert frame["class"].tolist() == ["b", "a"]
    predictions = Predictions.of({7: found, 8: Detections.empty()}, ("a", "b"))
    assert predictions.to_pandas()["image_id"].tolist() == [7, 7]
    named = Predictions.of({7: Detections(found.boxes, found.scores, found.labels, image="x/7.jpg")}, ("a", "b"))
    assert named.to_pandas()["file_name"].tolist() == ["7.jpg", "7.jpg"]


def test_boxes_of_supervision_come_in() -> None:
    theirs = SimpleNamespace(xyxy=np.float32([[1, 2, 3, 4]]), confidence=None, class_id=np.array([2]), data={})
    ours = Detections.from_supervision(theirs)
    assert (ours.scores.tolist(), ours.labels.tolist(), ours.classes) == ([1.0], [2], ())
    theirs.data["class_name"] = np.array(["c"])
    assert Detections.from_supervision(theirs).classes == ("class 0", "class 1", "c")
    with pytest.raises(InputError, match="the class_id 2, expected a position in the 2 classes"):
        Detections.from_supervision(theirs, classes=("a", "b"))


def test_supervision_and_back() -> None:
    supervision = pytest.importorskip(
        "supervision", reason="it needs matplotlib and PyAV: not among the tests' packages"
    )
    ours = Detections(np.float32([[1, 2, 3, 4], [5, 6, 7, 8]]), np.float32([0.9, 0.5]), np.int64([1, 0]), ("a", "b"))
    theirs = ours.to_supervision()
    assert isinstance(theirs, supervision.Detections)
    assert theirs["class_name"].tolist() == ["b", "a"]
    back = Detections.from_supervision(theirs)
    assert back.classes == ours.classes
    assert all(np.array_equal(getattr(back, name), getattr(ours, name)) for name in ("boxes", "scores", "labels"))
    assert len(Detections.from_supervision(supervision.Detections.empty())) == 0
    by_image = Predictions.of({3: ours, 4: Detections.empty()}, ("a", "b")).to_supervision()
    assert {i: len(one) for i, one in by_image.items()} == {3: 2, 4: 0}


@pytest.mark.parametrize("method", ["to_pandas", "to_supervision"])
def test_an_absent_package_is_named(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = method.removeprefix("to_")
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(InputError, match=f"pip install {name}"):
        getattr(Detections.empty(), method)()
