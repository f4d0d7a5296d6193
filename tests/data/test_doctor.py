"""The doctor names every fault of a sick dataset, fixes it in a copy, and finds no fault in a healthy one."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from foldfuse.cli import main
from foldfuse.commands.data import check
from foldfuse.data.doctor import examine, unreadable_images
from foldfuse.data.readers.coco import read
from foldfuse.errors import InputError

VALUES = [
    *(None, True, "7", "x", "", -1, 0, 2.5, float("inf"), float("nan"), [], {}, 99, [1, 2, 3, 4], ["1", "2", "3", "4"]),
    *("[1, 2, 3, 4]", [[1, 2, 5, 2, 5, 9]], {"size": [64, 96], "counts": [9, 9]}, 10**20, "1e999", "false"),
]
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
    """An annotation, of image 0 by default."""
    return {"id": 1000, "image_id": 0, "category_id": 0, "bbox": list(bbox), "iscrowd": 0} | other


def rotate(path: Path, orientation: int) -> None:
    """Give an image file an EXIF orientation."""
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = orientation
        image.copy().save(path, exif=exif)


def test_a_healthy_dataset_has_no_faults(path: Path) -> None:
    report = check(path)
    assert report.faults == ()
    assert report.exit_status == 0
    assert str(report) == f"{path}: no faults."
    assert Counter(f.kind for f in report.findings)["the image has no annotations"] == 1


def test_real_data_has_no_faults(shared_data: Path) -> None:
    assert check(shared_data / "playing_cards").faults == ()


@pytest.mark.parametrize(
    ("change", "kind", "fix"),
    [
        (lambda d: d["annotations"].append(box(1, 2, 0, 3)), "the box has no size", "left out"),
        (lambda d: d["annotations"].append(box(96, 2, 9, 3)), "the box lies outside its image", "left out"),
        (lambda d: d["annotations"].append(box(1, 2, 3)), "the box is not four numbers", "left out"),
        (
            lambda d: d["annotations"].append(d["annotations"][0] | {"id": 1000}),
            "the box is annotated twice",
            "left out",
        ),
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
            "the image is listed under two ids",
            "boxes joined",
        ),
        (lambda d: d["images"].append({"id": 9}), "the image has no file_name", "left out"),
        (lambda d: d["images"].append({"file_name": "a.jpg"}), "the image has no id", "left out"),
        (lambda d: d["images"].append(9), "the image has no id", "left out"),
        (
            lambda d: d["annotations"][0].update(area="big"),
            "the area is not a positive number",
            "area taken from the box",
        ),
        (lambda d: d["images"].append({"id": 9, "file_name": "gone.jpg"}), "the image is missing", "left out"),
        (lambda d: d["images"][0].update(width=[9]), "the image has no width or height", "size taken from the file"),
        (lambda d: d["images"][0].update(height=65), "the size differs from the annotations'", "left out"),
        (lambda d: d["categories"].append({"id": 0, "name": "again"}), "the category id repeats", "left out"),
        (lambda d: d["categories"].append({"name": "no id"}), "the category has no id", "left out"),
    ],
)
def test_each_fault_is_found_and_fixed(path: Path, change: Change, kind: str, fix: str) -> None:
    healthy = read(path)
    report = check(changed(path, change), fix=True, out=path.with_name("fixed.json"))
    assert (kind, fix) in {(f.kind, f.fix) for f in report.faults}
    assert report.exit_status == 1
    again = check(path.with_name("fixed.json"))
    assert again.faults == ()
    left_out = {"the size differs from the annotations'": {0}}.get(kind, set())
    assert again.fixed.fingerprint == healthy.subset(set(healthy.image_ids) - left_out).fingerprint


def test_repeated_annotation_ids_are_all_renumbered(path: Path) -> None:
    healthy = read(path)
    report = check(
        changed(path, lambda d: [row.update(id=7) for row in d["annotations"]]), fix=True, out=path.with_name("m.json")
    )
    assert {f.kind for f in report.faults} == {"the annotation id repeats"}
    ids = [row["id"] for row in json.loads(path.with_name("m.json").read_text())["annotations"]]
    assert ids == list(range(1, healthy.num_boxes + 1))


def test_boxes_of_an_image_under_two_ids_are_joined(path: Path) -> None:
    def list_again(document: dict[str, Any]) -> None:
        document["images"].append(document["images"][0] | {"id": 9})
        document["annotations"].append(box(1, 2, 11, 12, image_id=9))

    before = read(path).samples[0].annotations
    after = check(changed(path, list_again)).fixed.samples[0].annotations
    assert before is not None
    assert after is not None
    assert len(after) == len(before) + 1
    assert after.boxes[-1].tolist() == [1, 2, 12, 14]


def test_images_that_cannot_be_decoded_are_named(path: Path) -> None:
    dataset = read(path)
    whole = dataset.samples[2].path.read_bytes()
    dataset.samples[2].path.write_bytes(whole[: len(whole) // 2])
    dataset.samples[4].path.write_bytes(b"no image")
    Image.new("RGB", (64, 96)).save(dataset.samples[5].path)
    assert [sample.id for sample, _ in unreadable_images(dataset)] == [2, 4, 5]
    assert "is 64 x 96 pixels, and the annotations say 96 x 64" in unreadable_images(dataset)[2][1]
    faults = Counter(f.kind for f in check(path).faults)
    assert faults["the image cannot be decoded"] == 2
    assert faults["the size differs from the annotations'"] == 1
    assert check(path, json_only=True).faults == ()


def test_an_image_with_an_orientation_tag_is_kept_whatever_pixels_its_boxes_are_drawn_on(path: Path) -> None:
    dataset = read(path)
    for i, tag in ((0, 6), (2, 8), (3, 3)):
        rotate(dataset.samples[i].path, tag)
    changed(path, lambda d: d["images"][2].update(width=64, height=96))
    report = check(path)
    assert not [f for f in report.faults if "size" in f.kind]
    assert len(report.fixed) == len(dataset)
    notes = {f.where: f.kind for f in report.findings if not f.is_fault and "EXIF" in f.kind}
    assert notes["train/0000.jpg"].endswith("its boxes are drawn on the pixels as stored")
    assert notes["train/0002.jpg"] == "the image is turned as its EXIF tag says"
    assert notes["train/0003.jpg"].endswith("its size does not tell whether the boxes are")
    (fault,) = [f for f in check(path, ignore_orientation=True).faults if "size" in f.kind]
    assert "leave out --ignore-orientation" in fault.error


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda d: d["annotations"].append(box(90, 2, 20, 9)), "the box sticks out of its image"),
        (lambda d: d["annotations"].append(box(9, 2, 20, 1.5)), "the box has a side below 2 px"),
        (lambda d: d["categories"].append({"id": 9, "name": "unicorn"}), "the class never occurs"),
    ],
)
def test_doubtful_rows_are_notes_and_the_fixed_copy_reads_the_same(path: Path, change: Change, kind: str) -> None:
    report = check(changed(path, change), fix=True, out=path.with_name("fixed.json"))
    assert kind in {f.kind for f in report.findings}
    assert report.faults == ()
    assert read(path.with_name("fixed.json")).fingerprint == read(path).fingerprint


@pytest.mark.parametrize("seed", range(60))
def test_reading_refuses_exactly_the_documents_with_an_error_and_the_fixed_copy_is_read(path: Path, seed: int) -> None:
    rng = random.Random(seed)

    def spoil(document: dict[str, Any]) -> None:
        for _ in range(rng.randint(1, 3)):
            row = rng.choice(document[rng.choice(["images", "categories", "annotations"])])
            row[rng.choice(list(row))] = rng.choice(VALUES)

    changed(path, spoil)
    report = examine(path, decode=False)
    errors = [finding.error for finding in report.findings if finding.error]
    if errors:
        with pytest.raises(InputError) as caught:
            read(path)
        assert str(caught.value).startswith(errors[0])
    else:
        assert read(path).fingerprint == report.fixed.fingerprint


def test_a_test_set_without_annotations_is_checked(path: Path) -> None:
    report = check(changed(path, lambda d: d.pop("annotations")), fix=True, out=path.with_name("fixed.json"))
    assert report.findings == ()
    assert "annotations" not in json.loads(path.with_name("fixed.json").read_text())


def test_a_clipped_box_keeps_its_area(path: Path) -> None:
    changed(path, lambda d: d["annotations"].append(box(90, 2, 20, 9)))
    fixed = check(path).fixed.samples[0].annotations
    assert fixed is not None
    assert fixed.area[-1] == 180


def test_near_duplicates_are_noted(path: Path) -> None:
    dataset = read(path)
    with Image.open(dataset.samples[0].path) as first:
        first.copy().save(dataset.samples[3].path, quality=60)
    notes = [f.where for f in check(path).findings if f.kind == "images look almost the same"]
    assert notes == ["train/0000.jpg and train/0003.jpg"]


def test_a_copy_in_another_folder_finds_its_images(path: Path, tmp_path: Path) -> None:
    report = check(path, fix=True, out=tmp_path / "far" / "away" / "fixed.json")
    assert report.copy_images == path.parent
    assert f"give --images {path.parent} with it" in str(report)
    fixed = read(tmp_path / "far" / "away" / "fixed.json", images=report.copy_images)
    assert [s.file_name for s in fixed.samples] == [s.file_name for s in read(path).samples]
    assert [s.path.resolve() for s in fixed.samples] == [s.path.resolve() for s in read(path).samples]


def test_data_that_cannot_be_fixed_is_refused(path: Path) -> None:
    with pytest.raises(InputError, match="is an input of this command"):
        check(path, fix=True, out=path, overwrite=True)
    for half in ({"fix": True}, {"out": path.with_name("fixed.json")}):
        with pytest.raises(InputError, match="--fix and --out go together"):
            check(path, **half)
    with pytest.raises(InputError, match="lists no images"):
        check(changed(path, lambda d: d.update(images=[])))
    path.write_text("[]")
    with pytest.raises(InputError, match="holds a list, expected a COCO object"):
        check(path)


def test_an_existing_file_is_overwritten_on_demand_alone(path: Path) -> None:
    out = path.with_name("fixed.json")
    out.write_text("mine")
    with pytest.raises(InputError, match="--overwrite"):
        check(path, fix=True, out=out)
    assert out.read_text() == "mine"
    check(path, fix=True, out=out, overwrite=True)
    assert read(out).fingerprint == read(path).fingerprint


def test_the_command_shows_the_findings_and_its_status(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(path)]) == 0
    changed(path, lambda d: d["annotations"].append(box(1, 2, 0, 3)))
    capsys.readouterr()
    assert main(["check", str(path), "--fix", "--out", str(path.with_name("fixed.json"))]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "the box has no size" in printed
    assert "1 fault." in printed
    assert main(["check", str(path.with_name("none.json"))]) == 2
