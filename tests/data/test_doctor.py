"""The doctor names every fault of a sick dataset, mends what it can, and finds nothing wrong with a healthy one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from foldfuse.cli import main
from foldfuse.commands.data import check
from foldfuse.data.doctor import unreadable_images
from foldfuse.data.readers.coco import read
from foldfuse.errors import InputError

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def path(make_dataset: Callable[..., Path]) -> Path:
    """A healthy dataset."""
    return make_dataset()


def changed(path: Path, change: Change) -> Path:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


def box(*bbox: float, **other: Any) -> dict[str, Any]:
    """One more annotation, of picture 0 unless said otherwise."""
    return {"id": 1000, "image_id": 0, "category_id": 0, "bbox": list(bbox), "iscrowd": 0} | other


def turn(path: Path, orientation: int) -> None:
    """Give a picture an EXIF orientation."""
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = orientation
        image.copy().save(path, exif=exif)


def test_a_healthy_dataset_has_no_faults(path: Path) -> None:
    checkup = check(path)
    assert checkup.faults == ()
    assert checkup.exit_status == 0
    assert str(checkup) == f"{path}: no faults."
    assert Counter(f.kind for f in checkup.findings)["nothing is drawn on the picture"] == 1


def test_real_data_has_no_faults(shared_data: Path) -> None:
    assert check(shared_data / "playing_cards").faults == ()


@pytest.mark.parametrize(
    ("change", "kind", "mended"),
    [
        (lambda d: d["annotations"].append(box(1, 2, 0, 3)), "the box has no size", "left out"),
        (lambda d: d["annotations"].append(box(96, 2, 9, 3)), "the box lies outside its picture", "left out"),
        (lambda d: d["annotations"].append(box(1, 2, 3)), "the box is not four numbers", "left out"),
        (lambda d: d["annotations"].append(d["annotations"][0] | {"id": 1000}), "the box is drawn twice", "left out"),
        (
            lambda d: d["annotations"].append(box(1, 2, 5, 5, image_id=9)),
            "the annotation is of no usable image",
            "left out",
        ),
        (lambda d: d["annotations"].append("?"), "the annotation is of no usable image", "left out"),
        (
            lambda d: d["annotations"].append(box(1, 2, 5, 5, category_id=9)),
            "the annotation is of no known category",
            "left out",
        ),
        (lambda d: d["images"].append(d["images"][0]), "the image id repeats", "left out"),
        (
            lambda d: d["images"].append(d["images"][0] | {"id": 9}),
            "the picture is listed under two ids",
            "boxes joined",
        ),
        (lambda d: d["images"].append({"id": 9}), "the image has no whole-number id or no file_name", "left out"),
        (lambda d: d["images"].append({"id": 9, "file_name": "gone.jpg"}), "the picture is missing", "left out"),
        (lambda d: d["images"][0].pop("width"), "the image has no width or height", "taken from the picture"),
        (lambda d: d["images"][0].update(height=65), "the size is not the JSON's", "left out"),
        (lambda d: d["categories"].append({"id": 0, "name": "again"}), "the category id repeats", "left out"),
        (lambda d: d["categories"].append({"name": "no id"}), "the category has no whole-number id", "left out"),
    ],
)
def test_each_fault_is_found_and_mended(path: Path, change: Change, kind: str, mended: str) -> None:
    healthy = read(path)
    checkup = check(changed(path, change), mend=path.with_name("mended.json"))
    assert (kind, mended) in {(f.kind, f.mended) for f in checkup.faults}
    assert checkup.exit_status == 1
    again = check(path.with_name("mended.json"))
    assert again.faults == ()
    left_out = {"the size is not the JSON's": {0}}.get(kind, set())
    assert again.mended.fingerprint == healthy.subset(set(healthy.image_ids) - left_out).fingerprint


def test_repeated_annotation_ids_are_all_renumbered(path: Path) -> None:
    healthy = read(path)
    checkup = check(
        changed(path, lambda d: [row.update(id=7) for row in d["annotations"]]), mend=path.with_name("m.json")
    )
    assert {f.kind for f in checkup.faults} == {"the annotation id repeats"}
    ids = [row["id"] for row in json.loads(path.with_name("m.json").read_text())["annotations"]]
    assert ids == list(range(1, healthy.num_boxes + 1))


def test_boxes_of_a_picture_under_two_ids_are_joined(path: Path) -> None:
    def list_again(document: dict[str, Any]) -> None:
        document["images"].append(document["images"][0] | {"id": 9})
        document["annotations"].append(box(1, 2, 11, 12, image_id=9))

    before = read(path).samples[0].annotations
    after = check(changed(path, list_again)).mended.samples[0].annotations
    assert before is not None
    assert after is not None
    assert len(after) == len(before) + 1
    assert after.boxes[-1].tolist() == [1, 2, 12, 14]


def test_pictures_that_cannot_be_decoded_are_named(path: Path) -> None:
    dataset = read(path)
    whole = dataset.samples[2].path.read_bytes()
    dataset.samples[2].path.write_bytes(whole[: len(whole) // 2])
    dataset.samples[4].path.write_bytes(b"no picture")
    Image.new("RGB", (64, 96)).save(dataset.samples[5].path)
    assert [sample.id for sample, _ in unreadable_images(dataset)] == [2, 4, 5]
    assert "is 64 x 96 pixels, and the JSON says 96 x 64" in unreadable_images(dataset)[2][1]
    faults = Counter(f.kind for f in check(path).faults)
    assert faults["the picture cannot be decoded"] == 2
    assert faults["the size is not the JSON's"] == 1
    assert check(path, pictures=False).faults == ()


def test_a_picture_turned_by_its_exif_tag_is_a_trap(path: Path) -> None:
    dataset = read(path)
    turn(dataset.samples[0].path, 6)
    notes = {f.kind: f.where for f in check(path).findings if not f.fault}
    assert notes["an EXIF tag turns the picture; boxes must be drawn on it as stored"] == "train/0000.jpg"
    changed(path, lambda d: d["images"][0].update(width=64, height=96))
    (fault,) = [f for f in check(path).faults if f.kind == "the size is not the JSON's"]
    assert "as its EXIF tag turns it" in fault.where


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda d: d["annotations"].append(box(90, 2, 20, 9)), "the box sticks out of its picture"),
        (lambda d: d["annotations"].append(box(9, 2, 20, 1.5)), "the box has a side below 2 px"),
        (lambda d: d["categories"].append({"id": 9, "name": "unicorn"}), "the class never occurs"),
    ],
)
def test_what_is_worth_knowing_is_a_note(path: Path, change: Change, kind: str) -> None:
    checkup = check(changed(path, change), mend=path.with_name("mended.json"))
    assert kind in {f.kind for f in checkup.findings}
    assert checkup.faults == ()
    assert read(path.with_name("mended.json")).fingerprint == read(path).fingerprint


def test_near_duplicates_are_noted(path: Path) -> None:
    dataset = read(path)
    with Image.open(dataset.samples[0].path) as first:
        first.copy().save(dataset.samples[3].path, quality=60)
    notes = [f.where for f in check(path).findings if f.kind == "pictures look almost the same"]
    assert notes == ["train/0000.jpg and train/0003.jpg"]


def test_a_copy_elsewhere_finds_its_pictures(path: Path, tmp_path: Path) -> None:
    check(path, mend=tmp_path / "far" / "away" / "mended.json")
    mended = read(tmp_path / "far" / "away" / "mended.json")
    assert [s.path.resolve() for s in mended.samples] == [s.path.resolve() for s in read(path).samples]


def test_what_cannot_be_mended_is_told(path: Path) -> None:
    with pytest.raises(InputError, match="is the dataset itself"):
        check(path, mend=path)
    with pytest.raises(InputError, match="not one usable image"):
        check(changed(path, lambda d: d.update(images=[])))
    path.write_text("[]")
    with pytest.raises(InputError, match="holds a list, expected a COCO object"):
        check(path)


def test_the_command_shows_the_findings_and_its_status(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(path)]) == 0
    changed(path, lambda d: d["annotations"].append(box(1, 2, 0, 3)))
    capsys.readouterr()
    assert main(["check", str(path), "--mend", str(path.with_name("mended.json"))]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "the box has no size" in printed
    assert "1 fault." in printed
    assert main(["check", str(path.with_name("none.json"))]) == 2
