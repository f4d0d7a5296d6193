"""COCO files are read, written back the same, and refused in one sentence that names the broken entry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corpus_samples import coco, write_coco
from foldfuse.data.dataset import require_annotations
from foldfuse.data.pixels import open_images
from foldfuse.data.readers.coco import locate, read, write
from foldfuse.errors import InputError

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def path(make_dataset: Callable[..., Path]) -> Path:
    """A dataset in the contest's layout: train.json with train/0000.jpg and so on, all ids from 0."""
    return make_dataset()


def changed(path: Path, change: Change) -> Path:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


def test_the_contests_layout_is_read(path: Path) -> None:
    dataset = read(path)
    document = json.loads(path.read_text())
    assert dataset.classes == ("class 0", "class 1", "class 2")
    assert dataset.category_ids == (0, 1, 2)
    assert dataset.image_ids == (0, 1, 2, 3, 4, 5)
    assert dataset.samples[2].file_name == "train/0002.jpg"
    assert dataset.samples[2].path == path.parent / "train" / "0002.jpg"
    assert dataset.num_boxes == len(document["annotations"])
    for row, (box, label) in zip(
        document["annotations"],
        [(b, k) for s in dataset.samples if s.annotations for b, k in zip(s.annotations.boxes, s.annotations.labels)],
        strict=True,
    ):
        x, y, w, h = row["bbox"]
        assert box.tolist() == [x, y, x + w, y + h]
        assert label == row["category_id"]
    nothing = dataset.samples[1].annotations
    assert nothing is not None
    assert len(nothing) == 0


def test_real_data_is_read(shared_data: Path) -> None:
    for name, images, boxes, classes in (("bccd", 291, 3966, 3), ("coco_val2017_128", 102, 727, 80)):
        dataset = read(shared_data / name)
        assert (len(dataset), dataset.num_boxes, len(dataset.classes)) == (images, boxes, classes)


def test_labels_are_positions_among_sorted_category_ids(path: Path) -> None:
    def renumber(document: dict[str, Any]) -> None:
        new = {0: 40, 1: 7, 2: 90}
        for row in document["categories"]:
            row["id"] = new[row["id"]]
        for row in document["annotations"]:
            row["category_id"] = str(new[row["category_id"]])  # some exporters write ids as words

    before = read(path)
    after = read(changed(path, renumber))
    assert after.category_ids == (7, 40, 90)
    assert after.classes == ("class 1", "class 0", "class 2")
    for old, new in zip(before.samples, after.samples, strict=True):
        assert old.annotations is not None
        assert new.annotations is not None
        assert [before.classes[k] for k in old.annotations.labels] == [after.classes[k] for k in new.annotations.labels]


def test_a_dataset_is_written_as_it_was_read(path: Path) -> None:
    before = read(path)
    after = read(write(before, path.with_name("again.json")))
    assert after.fingerprint == before.fingerprint
    for old, new in zip(before.samples, after.samples, strict=True):
        assert old.annotations is not None
        assert new.annotations is not None
        np.testing.assert_array_equal(old.annotations.boxes, new.annotations.boxes)
        np.testing.assert_array_equal(old.annotations.area, new.annotations.area)


def test_the_fingerprint_covers_crowd_flags_and_areas_and_knows_its_first_version(path: Path) -> None:
    before = read(path)
    assert before.fingerprint.startswith("2-")
    assert before.has_fingerprint(before.fingerprint)
    assert not before.has_fingerprint("0123456789abcdef")
    assert not before.has_fingerprint(None)
    digest = hashlib.sha256(json.dumps([before.classes, before.category_ids]).encode())
    for s in before.samples:
        assert s.annotations is not None
        digest.update(f"{s.id}|{s.file_name}|{s.width}x{s.height}".encode())
        digest.update(s.annotations.boxes.tobytes() + s.annotations.labels.tobytes())
    assert before.has_fingerprint(digest.hexdigest()[:16]), (
        "boxes within their images had this fingerprint in version 1"
    )
    crowd = read(changed(path, lambda d: d["annotations"][0].update(iscrowd=1)))
    area = read(changed(path, lambda d: d["annotations"][0].update(iscrowd=0, area=1)))
    assert len({before.fingerprint, crowd.fingerprint, area.fingerprint}) == 3
    assert not crowd.has_fingerprint(before.fingerprint)


def test_the_fingerprint_changes_with_a_box_and_a_name(path: Path) -> None:
    prints = {read(path).fingerprint}
    prints.add(read(changed(path, lambda d: d["annotations"][0]["bbox"].__setitem__(0, 0.5))).fingerprint)
    prints.add(read(changed(path, lambda d: d["categories"][0].update(name="other"))).fingerprint)
    assert len(prints) == 3


def test_images_may_lie_in_a_folder_called_images(path: Path) -> None:
    (path.parent / "images").mkdir()
    (path.parent / "train").rename(path.parent / "images" / "train")
    assert read(path).samples[0].path == path.parent / "images" / "train" / "0000.jpg"


def test_a_box_that_sticks_out_is_read_as_annotated_and_clipped_where_it_is_asked(path: Path) -> None:
    def stick_out(document: dict[str, Any]) -> None:
        document["annotations"] = [
            {"id": 1, "image_id": 0, "category_id": 0, "bbox": [-4, 50, 24, 30], "area": 700, "iscrowd": 1},
            {"id": 2, "image_id": 0, "category_id": 1, "bbox": [90.5, -1, 10, 3]},
        ]

    annotations = read(changed(path, stick_out)).samples[0].annotations
    assert annotations is not None
    assert annotations.boxes.tolist() == [[-4, 50, 20, 80], [90.5, -1, 100.5, 2]]
    assert annotations.clipped(96, 64).boxes.tolist() == [[0, 50, 20, 64], [90.5, 0, 96, 2]]
    assert annotations.area.tolist() == annotations.clipped(96, 64).area.tolist() == [700, 30]
    assert annotations.crowd.tolist() == [True, False]


def test_a_box_that_is_annotated_twice_is_read_twice(path: Path) -> None:
    before = read(path).num_boxes
    assert read(changed(path, lambda d: d["annotations"].append(d["annotations"][0]))).num_boxes == before + 1


def test_a_test_set_needs_no_annotations(path: Path) -> None:
    assert read(changed(path, lambda d: d.pop("annotations")), annotated=False).samples[0].annotations is None
    with pytest.raises(InputError, match="has no 'annotations'"):
        read(path)


def test_annotations_of_a_test_set_are_ignored(path: Path) -> None:
    dataset = read(changed(path, lambda d: d.update(annotations="nonsense")), annotated=False)
    assert not dataset.is_labeled
    assert "annotations" not in json.loads(write(dataset, path.with_name("again.json")).read_text())


def test_datasets_and_samples_have_a_short_repr(path: Path) -> None:
    dataset = read(path)
    assert repr(dataset) == f"Dataset(6 images, {dataset.num_boxes} boxes of 3 classes, source={str(path)!r})"
    assert repr(dataset.samples[1]) == "Sample(id=1, 'train/0001.jpg', 96x64, 0 boxes)"
    assert repr(dataset.without_annotations().samples[1]).endswith("no annotations)")


def test_subsets_keep_the_order(path: Path) -> None:
    dataset = read(path)
    assert dataset.subset([4, 0, 99]).image_ids == (0, 4)
    assert dataset.is_labeled
    assert not dataset.without_annotations().is_labeled


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(images=[]), "lists no images"),
        (lambda d: d.update(categories=[]), "lists no categories"),
        (lambda d: d.pop("images"), "has no 'images'"),
        (lambda d: d.update(images={"0": 1}), "'images' is an object, and must be a list of objects"),
        (lambda d: d["images"][3].pop("id"), "image 3 of the list: 'id' is null"),
        (lambda d: d["images"][3].update(id=2), "image id 2 is listed twice"),
        (lambda d: d["images"][3].update(file_name="train/0002.jpg"), "file_name train/0002.jpg is listed twice"),
        (lambda d: d["images"][3].update(file_name=None), "image 3: 'file_name' is null"),
        (lambda d: d["images"][3].update(width=-5), "image 3: 'width' is -5, expected a positive whole number"),
        (
            lambda d: d["images"][3].update(height=float("nan")),
            "image 3: 'height' is nan, expected a positive whole number",
        ),
        (lambda d: d["categories"][1].update(id=0), "category id 0 is listed twice"),
        (lambda d: d["annotations"][0].update(image_id=77), "annotation 0: is of image 77, which is not in 'images'"),
        (
            lambda d: d["annotations"][0].update(category_id=3),
            r"category_id 3 is not in 'categories' \(known: 0, 1, 2\)",
        ),
        (lambda d: d["annotations"][0].update(category_id=True), "'category_id' is true"),
        (lambda d: d["annotations"][0].pop("bbox"), "annotation 0 of train/0000.jpg: has neither a box nor a polygon"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, float("inf"), 3]), r"'bbox' is \[1, 2, inf, 3\]"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, 0, 3]), r"the box \[1, 2, 0, 3\] has no size"),
        (lambda d: d["annotations"][0].update(bbox=[96, 2, 4, 3]), "lies outside its 96 x 64 image"),
        (lambda d: d["annotations"][0].update(bbox=[3, -5, 4, 5]), "lies outside its 96 x 64 image"),
        (lambda d: d["annotations"][0].update(iscrowd="maybe"), "'iscrowd' is 'maybe', expected 0 or 1"),
    ],
)
def test_a_broken_entry_is_named(path: Path, change: Change, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(changed(path, change))
    assert str(path) in str(caught.value)


def test_images_are_needed_only_where_pixels_are_read(path: Path) -> None:
    dataset = read(changed(path, lambda d: d["images"][3].update(file_name="gone.jpg")))
    assert dataset.samples[3].file_name == "gone.jpg"
    with pytest.raises(InputError, match=r"image 3: there is no image .*gone.jpg nor .*images"):
        open_images(dataset)


@pytest.mark.parametrize("unstated", [None, 0, -1])
def test_a_size_that_is_not_stated_is_taken_from_the_file(path: Path, unstated: int | None) -> None:
    whole = read(path)
    assert read(changed(path, lambda d: d["images"][3].update(width=unstated))).fingerprint == whole.fingerprint
    changed(path, lambda d: d["images"][3].update(width=unstated, file_name="gone.jpg"))
    with pytest.raises(InputError, match=r"image 3: there is no image .*gone.jpg nor .*images"):
        read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"images": [', r"is not JSON \(line 1, column 13"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "is not a text file"),
        (b"[]", "holds a list, expected a COCO object"),
        (b"", "is not JSON"),
    ],
)
def test_a_file_other_than_coco_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "train.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.json: there is no such file"):
        read(tmp_path / "none.json")


def test_training_needs_an_object(path: Path) -> None:
    assert require_annotations(read(path)).num_boxes > 0
    only_crowds = read(changed(path, lambda d: [row.update(iscrowd=1) for row in d["annotations"]]))
    with pytest.raises(
        InputError, match=r"not one object is annotated on its 6 images: all \d+ boxes are crowd regions"
    ):
        require_annotations(only_crowds)


def test_a_folder_is_located(path: Path, make_dataset: Callable[..., Path]) -> None:
    assert locate(path.parent) == (path, None)
    assert locate(path) == (path, None)
    test = make_dataset(name="test")
    assert locate(path.parent) == (path, test)
    with pytest.raises(InputError, match="holds images, but no annotations"):
        read(path.parent / "train")


def test_a_finding_names_the_file_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    document = coco()
    for row in document["annotations"]:
        row["iscrowd"] = 1
    write_coco(tmp_path, document)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    read(Path("../train.json"))
    assert caplog.messages[0].startswith("../train.json: all boxes are crowd regions")
