"""COCO annotations as exporters write them: values of any kind, boxes in any format, classes counted in any way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corpus_samples import Case, coco, parametrize, run, save_image, write_coco
from foldfuse.data.dataset import Dataset
from foldfuse.data.readers.coco import read

Document = dict[str, Any]
BOXES = [[8, 8, 24, 16], [48, 24, 32, 32]]  # of every image of `coco`
COMPRESSED = "X`0`0`1" + "0" * 45 + "ho3"  # the same mask, as pycocotools writes it
MASK = {"size": [64, 96], "counts": [8 * 64 + 8, 16, *[48, 16] * 23, 96 * 64 - (31 * 64 + 24)]}  # of the first box


def made(change: Callable[[Document], object] = lambda d: None, *, images: int = 4) -> Callable[[Path], None]:
    """Writes the faultless document after a change."""

    def make(folder: Path) -> None:
        document = coco(images)
        change(document)
        path = write_coco(folder, document, with_images=False)
        assert path.is_file()
        for i in range(1, images + 1):
            save_image(folder / "images" / f"{i}.jpg", seed=i)

    return make


def each(**fields: Any) -> Callable[[Document], None]:
    """Sets fields of every annotation; a value that is a function is called with the row."""

    def change(document: Document) -> None:
        for row in document["annotations"]:
            row.update({key: value(row) if callable(value) else value for key, value in fields.items()})

    return change


def without(*keys: str, **fields: Any) -> Callable[[Document], None]:
    """Removes keys from every annotation, and sets others."""

    def change(document: Document) -> None:
        each(**fields)(document)
        for row in document["annotations"]:
            for key in keys:
                row.pop(key)

    return change


def first(**fields: Any) -> Callable[[Document], None]:
    """Sets fields of the first annotation."""
    return lambda document: document["annotations"][0].update(fields)


def both(*changes: Callable[[Document], object]) -> Callable[[Document], None]:
    """All of the changes."""

    def change(document: Document) -> None:
        for one in changes:
            one(document)

    return change


def polygon(row: Document) -> list[list[float]]:
    x, y, w, h = row["bbox"]
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def two_polygons(row: Document) -> list[list[float]]:
    x, y, w, h = row["bbox"]
    return [[x, y, x + 4, y, x + 4, y + 4], [x + w - 4, y + h - 4, x + w, y + h - 4, x + w, y + h]]


def corners(row: Document) -> list[float]:
    x, y, w, h = row["bbox"]
    return [x, y, x + w, y + h]


def shares(row: Document) -> list[float]:
    x, y, w, h = row["bbox"]
    return [x / 96, y / 64, w / 96, h / 64]


def centres(row: Document) -> list[float]:
    x, y, w, h = row["bbox"]
    return [x + w / 2, y + h / 2, w, h]


def at_the_border(document: Document) -> None:
    """Moves the second box of each image to the right border."""
    for row in document["annotations"][1::2]:
        row["bbox"] = [64, 24, 32, 32]


def reads(
    *,
    boxes: list[list[float]] = BOXES,
    crowd: int = 0,
    area: float | None = None,
    classes: tuple[str, ...] = ("cat", "dog", "bird"),
    ids: tuple[int, ...] | None = None,
    labels: tuple[int, ...] | None = (0, 1),
    name: str = "train.json",
    images: int = 4,
) -> Callable[[Path], None]:
    """Checks what is read: xywh boxes and labels of the first image, the number of crowd regions, names and ids."""

    def right(folder: Path) -> None:
        dataset = read(folder / name)
        own = dataset.samples[0].annotations
        assert own is not None
        np.testing.assert_allclose(own.boxes[:, 2:] - own.boxes[:, :2], np.array(boxes)[:, 2:], atol=1e-9)
        np.testing.assert_allclose(own.boxes[:, :2], np.array(boxes)[:, :2], atol=1e-9)
        assert _crowds(dataset) == crowd
        assert dataset.classes == classes
        assert len(dataset) == images
        if area is not None:
            assert own.area.tolist() == [area] * len(own)
        if ids is not None:
            assert dataset.image_ids == ids
        if labels is not None:
            assert own.labels.tolist() == list(labels)

    return right


def _crowds(dataset: Dataset) -> int:
    return sum(int(s.annotations.crowd.sum()) for s in dataset.samples if s.annotations is not None)


def all_of(*checks: Callable[[Path], None]) -> Callable[[Path], None]:
    """Checks several things."""

    def right(folder: Path) -> None:
        for check in checks:
            check(folder)

    return right


def has(key: str, value: Any) -> Callable[[Path], None]:
    """Checks a value of the first annotation of the fixed copy as it is written."""

    def right(folder: Path) -> None:
        written = json.loads((folder / "fixed.json").read_text())["annotations"][0][key]
        assert written == value
        assert '"' not in json.dumps(written)

    return right


def area_is(area: float) -> Callable[[Path], None]:
    """Checks the area of the first annotation."""

    def right(folder: Path) -> None:
        own = read(folder / "train.json").samples[0].annotations
        assert own is not None
        assert own.area[0] == area

    return right


def originals(ids: list[Any]) -> Callable[[Path], None]:
    """Checks that the organiser's ids are kept, in the data and in the fixed copy."""

    def right(folder: Path) -> None:
        for path in (folder / "train.json", folder / "fixed.json"):
            if path.exists():
                assert [sample.organiser_id for sample in read(path).samples] == ids

    return right


def write_yolo(folder: Path) -> None:
    """Writes a YOLO dataset of one image."""
    save_image(folder / "images" / "1.jpg")
    (folder / "labels").mkdir()
    (folder / "labels" / "1.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    (folder / "data.yaml").write_text("train: images\nnames: [cat]\n")


def write_folds(folder: Path, fold_of: dict[int, int], num_folds: int) -> None:
    """Writes a file of folds as an earlier version did."""
    record = {"format": 1, "num_folds": num_folds, "fold_of": {str(i): fold for i, fold in fold_of.items()}}
    (folder / "f.json").write_text(json.dumps(record))


def fixed_camera(folder: Path) -> None:
    """Writes twelve images that are all the same."""
    made(images=12)(folder)
    for i in range(2, 13):
        (folder / "images" / f"{i}.jpg").write_bytes((folder / "images" / "1.jpg").read_bytes())


SPLIT = "split train.json --folds 2 --out folds.json"
CHECK = "check train.json"
FIX = "check train.json --fix --out fixed.json"
TEXT = "numbers are written as text"

CASES = [
    # flags
    *(
        Case(f"crowd_{name}", made(each(iscrowd=value)), SPLIT, right=reads())
        for name, value in [
            ("text_0", "0"),
            ("text_false", "false"),
            ("text_no", "No"),
            ("false", False),
            ("float_0", 0.0),
            ("text_float", "0.0"),
            ("null", None),
            ("empty", ""),
        ]
    ),
    Case("crowd_true_once", made(first(iscrowd="true")), SPLIT, right=reads(crowd=1), says=("1 of 8 boxes are crowd",)),
    Case("crowd_true_bool", made(first(iscrowd=True)), CHECK, right=reads(crowd=1), says=("'cat' 1 of 3",)),
    *(
        Case(
            f"crowd_unclear_{name}",
            made(first(iscrowd=value)),
            SPLIT,
            status=2,
            says=(f"annotation 1 of images/1.jpg, [8, 8, 24, 16]: 'iscrowd' is {shown}, expected 0 or 1",),
        )
        for name, value, shown in [
            ("word", "maybe", "'maybe'"),
            ("list", [0], "[0]"),
            ("two", 2, "2"),
            ("object", {}, "{}"),
        ]
    ),
    Case(
        "crowd_unclear_fixed",
        made(first(iscrowd="maybe")),
        FIX,
        status=1,
        says=("counted as an object",),
        right=reads(name="fixed.json"),
    ),
    Case(
        "crowd_all",
        made(each(iscrowd=1)),
        SPLIT,
        status=2,
        says=("not one object is annotated on its 4 images: all 8 boxes are crowd regions", "--ignore-crowd"),
    ),
    Case("crowd_all_checked", made(each(iscrowd=1)), CHECK, status=1, says=("8 of 8 boxes are crowd regions", "CVAT")),
    Case(
        "crowd_all_ignored",
        made(each(iscrowd=1)),
        f"{FIX} --ignore-crowd",
        says=("no faults",),
        right=reads(name="fixed.json"),
    ),
    Case(
        "crowd_one_class",
        made(each(iscrowd=lambda row: int(row["category_id"] == 2))),
        CHECK,
        status=1,
        says=("all boxes of the class are crowd regions", "dog: 3 boxes"),
    ),
    # numbers
    Case("box_of_texts", made(each(bbox=lambda row: [str(v) for v in row["bbox"]])), FIX, says=(TEXT,), right=reads()),
    Case(
        "box_of_texts_fixed",
        made(each(bbox=lambda row: [f"{v}.0" for v in row["bbox"]])),
        FIX,
        right=all_of(reads(name="fixed.json"), has("bbox", BOXES[0])),
    ),
    Case("box_as_one_text", made(each(bbox=lambda row: str(row["bbox"]))), SPLIT, right=reads()),
    Case("box_in_a_list", made(each(bbox=lambda row: [row["bbox"]])), SPLIT, right=reads()),
    *(
        Case(
            f"box_{name}",
            made(first(bbox=value)),
            SPLIT,
            status=2,
            says=("annotation 1 of images/1.jpg:", says),
        )
        for name, value, says in [
            ("with_null", [8, None, 24, 16], "'bbox' is [8, null, 24, 16], expected [left, top, width, height]"),
            ("with_true", [8, True, 24, 16], "'bbox' is [8, true, 24, 16]"),
            ("of_words", ["a", "b", "c", "d"], "'bbox' is ['a', 'b', 'c', 'd']"),
            ("huge", [8, 8, 10**90, 16], "'bbox' is [8, 8, a whole number of many digits, 16]"),
            ("infinite", [8, 8, float("inf"), 16], "'bbox' is [8, 8, inf, 16]"),
            ("nan", [8, float("nan"), 24, 16], "'bbox' is [8, nan, 24, 16]"),
            ("object", {"x": 8}, "'bbox' is {'x': 8}"),
            ("three", [8, 8, 24], "'bbox' is [8, 8, 24]"),
            ("oriented", [20, 16, 24, 16, 0.3], "oriented boxes"),
            ("empty", [], "has neither a box nor a polygon or mask"),
            ("null", None, "has neither a box nor a polygon or mask"),
            ("zero", [8, 8, 0, 16], "has no size"),
            ("outside", [200, 8, 24, 16], "lies outside its 96 x 64 image"),
        ]
    ),
    Case("area_null", made(each(area=None)), FIX, says=("area taken from the box",), right=reads()),
    Case("area_text", made(each(area="384.0")), FIX, right=reads(area=384)),
    Case("area_zero", made(each(area=0, bbox=BOXES[0])), SPLIT, status=0, says=("the area is not a positive number",)),
    *(
        Case(
            f"area_{name}",
            made(first(area=value)),
            SPLIT,
            says=("the area is not a positive number: annotation 1",),
            right=area_is(384),
        )
        for name, value in [("word", "big"), ("true", True), ("negative", -3), ("nan", float("nan")), ("list", [1])]
    ),
    Case("area_missing", made(without("area")), CHECK, says=("no faults",), right=area_is(384)),
    Case("area_of_mask", made(each(area=99)), CHECK, says=("no faults",), right=reads(area=99)),
    Case(
        "sizes_as_text",
        made(lambda d: [row.update(width="96", height="64.0", id=str(row["id"])) for row in d["images"]]),
        CHECK,
        says=("no faults",),
        right=reads(ids=(1, 2, 3, 4)),
    ),
    Case(
        "everything_as_text",
        made(
            lambda d: [
                row.update({k: str(v) if not isinstance(v, list) else [str(x) for x in v] for k, v in row.items()})
                for rows in d.values()
                for row in rows
            ]
        ),
        FIX,
        says=("no faults",),
        right=all_of(reads(ids=(1, 2, 3, 4), name="fixed.json"), has("category_id", 1)),
    ),
    # ids
    Case(
        "image_ids_are_words",
        made(
            lambda d: [
                [row.update(id=f"img_{row['id']}") for row in d["images"]],
                [row.update(image_id=f"img_{row['image_id']}") for row in d["annotations"]],
            ]
        ),
        FIX,
        says=("image ids are no whole numbers", "'img_1' as 1", "no faults"),
        right=all_of(reads(ids=(1, 2, 3, 4), name="fixed.json"), originals(["img_1", "img_2", "img_3", "img_4"])),
    ),
    Case(
        "image_ids_of_twenty_digits",
        made(
            lambda d: [
                [row.update(id=10**19 + row["id"]) for row in d["images"]],
                [row.update(image_id=10**19 + row["image_id"]) for row in d["annotations"]],
            ]
        ),
        SPLIT,
        says=("image ids are no whole numbers of 64 bits", "10000000000000000001 as 1"),
        right=all_of(reads(ids=(1, 2, 3, 4)), originals([10**19 + i for i in range(1, 5)])),
    ),
    Case(
        "image_ids_with_zeros",
        made(
            lambda d: [
                [row.update(id=f"00{row['id']}") for row in d["images"]],
                [row.update(image_id=f"00{row['image_id']}") for row in d["annotations"]],
            ]
        ),
        CHECK,
        right=all_of(reads(ids=(1, 2, 3, 4)), originals(["001", "002", "003", "004"])),
    ),
    Case(
        "image_ids_7_and_007",
        made(
            lambda d: [
                d["images"][0].update(id="02"),
                [row.update(image_id="02") for row in d["annotations"] if row["image_id"] == 1],
            ]
        ),
        CHECK,
        right=reads(ids=(5, 2, 3, 4)),
    ),
    Case(
        "image_id_twice_as_text",
        made(lambda d: d["images"][1].update(id="1")),
        CHECK,
        status=1,
        says=("the image id repeats", "image '1' (images/2.jpg)"),
    ),
    *(
        Case(
            f"image_id_{name}",
            made(lambda d, value=value: d["images"][1].update(id=value)),
            CHECK,
            status=1,
            says=("the image has no id", "image 1 of the list"),
        )
        for name, value in [("null", None), ("true", True), ("list", [1]), ("fraction", 1.5), ("blank", " ")]
    ),
    Case(
        "category_ids_are_words",
        made(
            lambda d: [
                [row.update(id=row["name"]) for row in d["categories"]],
                each(category_id=lambda row: ["cat", "dog", "bird"][row["category_id"] - 1])(d),
            ]
        ),
        CHECK,
        says=("category ids are no whole numbers", "no faults"),
        right=reads(),
    ),
    Case(
        "category_id_unknown",
        made(first(category_id=9)),
        SPLIT,
        status=2,
        says=("category_id 9 is not in 'categories' (known: 1, 2, 3)",),
    ),
    Case(
        "image_twice_by_another_path",
        made(
            lambda d: [
                d["images"].append(d["images"][0] | {"id": 9, "file_name": "./images/1.jpg"}),
                d["annotations"][1].update(image_id=9),
            ]
        ),
        FIX,
        status=1,
        says=("the image is listed under two ids", "boxes joined"),
        right=reads(name="fixed.json"),
    ),
    # names
    *(
        Case(f"name_{name}", made(lambda d, value=value: d["categories"][1].update(name=value)), CHECK, **expected)
        for name, value, expected in [
            ("number", 7, {"right": reads(classes=("cat", "7", "bird"))}),
            ("null", None, {"status": 1, "says": ("the category has no name", "called by its id")}),
            ("empty", "", {"status": 1, "says": ("the category has no name",)}),
            ("list", ["dog"], {"status": 1, "says": ("the name of the category is no text",)}),
            ("object", {}, {"status": 1, "says": ("the name of the category is no text",)}),
            ("true", True, {"status": 1, "says": ("the name of the category is no text",)}),
            ("equal", "cat", {"status": 1, "says": ("two categories have one name", "category 1 ('cat')")}),
            ("alike", " Cat", {"says": ("differ in case or blanks alone", "no faults")}),
        ]
    ),
    Case(
        "name_list_refused",
        made(lambda d: d["categories"][1].update(name=["dog"])),
        SPLIT,
        status=2,
        says=("'name' is ['dog'], expected text",),
    ),
    Case("names_equal_told", made(lambda d: d["categories"][1].update(name="cat")), SPLIT, says=("have one name",)),
    Case(
        "roboflow_class_0",
        made(
            lambda d: [
                d["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"}),
                [row.update(supercategory="animals") for row in d["categories"][1:]],
            ]
        ),
        FIX,
        says=("class 0 has no boxes and names the project", "left out"),
        right=reads(name="fixed.json"),
    ),
    Case(
        "categories_as_texts",
        made(lambda d: d.update(categories=["cat", "dog", "bird"])),
        SPLIT,
        status=2,
        says=("category 0 of the list: is no object with 'id' and 'name'.", "There are 2 more of this kind"),
    ),
    Case(
        "annotation_as_text",
        made(lambda d: d["annotations"].append("?")),
        FIX,
        status=1,
        says=("the annotation is of no usable image", "annotation number 8"),
        right=reads(name="fixed.json"),
    ),
    # boxes from segmentations
    Case("box_from_polygon", made(without("bbox", segmentation=polygon)), SPLIT, right=reads()),
    Case(
        "box_from_flat_polygon", made(without("bbox", segmentation=lambda row: polygon(row)[0])), SPLIT, right=reads()
    ),
    Case("box_from_two_polygons", made(each(segmentation=two_polygons, bbox=[])), SPLIT, right=reads()),
    Case(
        "box_from_polygon_told",
        made(both(each(segmentation=polygon), first(bbox=None))),
        SPLIT,
        says=("has a segmentation and no box: annotation 1 of images/1.jpg",),
        right=reads(),
    ),
    Case(
        "box_zero_with_polygon", made(both(each(segmentation=polygon), each(bbox=[0, 0, 0, 0]))), SPLIT, right=reads()
    ),
    Case("box_from_counts", made(each(segmentation=MASK, bbox=None)), SPLIT, right=reads(boxes=[BOXES[0]] * 2)),
    Case(
        "box_from_compressed_counts",
        made(each(segmentation={"size": [64, 96], "counts": COMPRESSED}, bbox=None)),
        SPLIT,
        right=reads(boxes=[BOXES[0]] * 2),
    ),
    Case(
        "mask_broken",
        made(each(segmentation={"size": [64, 96], "counts": "~~~"}, bbox=None)),
        SPLIT,
        status=2,
        says=("has neither a box nor a polygon or mask",),
    ),
    Case(
        "mask_of_another_size",
        made(each(segmentation=MASK | {"size": [96, 64]}, bbox=None)),
        SPLIT,
        status=2,
        says=("its mask is of [height, width] [96, 64] on a 96 x 64 image",),
    ),
    Case(
        "polygons_in_shares",
        made(
            each(
                segmentation=lambda row: [[v / (64 if i % 2 else 96) for i, v in enumerate(polygon(row)[0])]], bbox=None
            )
        ),
        f"{FIX} --box-format shares_xywh",
        status=1,
        right=reads(name="fixed.json"),
    ),
    Case(
        "polygons_in_shares_refused",
        made(each(segmentation=[[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]], bbox=None)),
        SPLIT,
        status=2,
        says=("as shares of the image's sides",),
    ),
    Case(
        "box_broken_with_polygon",
        made(both(each(segmentation=polygon), first(bbox="?"))),
        FIX,
        status=1,
        says=("box taken from the segmentation",),
        right=reads(name="fixed.json"),
    ),
    Case(
        "keypoints_only",
        made(without("bbox", keypoints=[10, 10, 2])),
        SPLIT,
        status=2,
        says=("has keypoints, but neither a box nor a polygon", "There are 7 more of this kind"),
    ),
    # conventions that all boxes show together
    Case(
        "corners",
        made(each(bbox=corners)),
        SPLIT,
        status=2,
        says=("the boxes look like corners [x1, y1, x2, y2]: 4 of 8 boxes stick far out", "--box-format xyxy"),
    ),
    Case("corners_checked", made(each(bbox=corners)), CHECK, status=1, says=("only with --box-format xyxy",)),
    Case("corners_not_fixed_blindly", made(each(bbox=corners)), FIX, status=2, says=("Say which: add --box-format",)),
    Case(
        "corners_converted",
        made(each(bbox=corners)),
        f"{FIX} --box-format xyxy",
        status=1,
        says=("converted to [left, top, width, height]",),
        right=reads(name="fixed.json"),
    ),
    Case(
        "corners_insisted_on",
        made(each(bbox=corners)),
        f"{FIX} --box-format xywh",
        right=reads(name="fixed.json", boxes=[[8, 8, 32, 24], [48, 24, 80, 56]]),
    ),
    Case(
        "box_format_of_another_layout",
        write_yolo,
        "check data.yaml --box-format xyxy",
        status=2,
        says=("--box-format xyxy: tells how COCO JSON is meant, and data.yaml is a dataset of another layout.",),
    ),
    Case(
        "shares",
        made(each(bbox=shares)),
        SPLIT,
        status=2,
        says=("as shares of the image's sides", "no number of 8 boxes is above 1.5"),
    ),
    Case(
        "shares_converted",
        made(each(bbox=shares)),
        f"{FIX} --box-format shares_xywh",
        status=1,
        right=reads(name="fixed.json"),
    ),
    Case(
        "centres",
        made(both(at_the_border, each(bbox=centres)), images=6),
        SPLIT,
        status=2,
        says=("look like [centre x, centre y, width, height]",),
    ),
    Case(
        "centres_converted",
        made(both(at_the_border, each(bbox=centres)), images=6),
        f"{FIX} --box-format cxcywh",
        status=1,
        right=reads(name="fixed.json", boxes=[BOXES[0], [64, 24, 32, 32]], images=6),
    ),
    Case(
        "one_box_sticks_out",
        made(first(bbox=[80, 8, 24, 16])),
        CHECK,
        says=("the box sticks out of its image", "no faults"),
        right=reads(boxes=[[80, 8, 24, 16], BOXES[1]]),
    ),
    Case(
        "categories_from_0",
        made(lambda d: [row.update(id=row["id"] - 1) for row in d["categories"]]),
        SPLIT,
        status=2,
        says=("seem to count the classes from 1", "--category-ids from_one"),
    ),
    Case(
        "categories_from_0_not_fixed_blindly",
        made(lambda d: [row.update(id=row["id"] - 1) for row in d["categories"]]),
        FIX,
        status=2,
        says=("Say which: add --category-ids from_one",),
    ),
    Case(
        "categories_from_0_fixed",
        made(lambda d: [row.update(id=row["id"] - 1) for row in d["categories"]]),
        f"{FIX} --category-ids from_one",
        status=1,
        right=reads(name="fixed.json"),
    ),
    Case(
        "annotations_from_0_fixed",
        made(each(category_id=lambda row: row["category_id"] - 1)),
        f"{FIX} --category-ids from_zero",
        status=1,
        right=reads(name="fixed.json"),
    ),
    Case(
        "categories_with_gaps",
        made(lambda d: [row.update(id=row["id"] * 10) for row in d["categories"]]),
        SPLIT,
        status=2,
        says=("seem to count the classes from 1: their ids go from 1 to 3, and those of 'categories' from 10 to 30",),
    ),
    Case(
        "one_stray_category_among_gaps",
        made(
            lambda d: [
                d.update(categories=[{"id": i, "name": f"c{i}"} for i in (1, 2, 3, 7, 9, 11, 13, 15)]),
                d["annotations"][0].update(category_id=5),
            ]
        ),
        SPLIT,
        status=2,
        says=("category_id 5 is not in 'categories'",),
    ),
    # the whole dataset
    Case(
        "most_images_empty",
        made(lambda d: d.update(annotations=d["annotations"][:6]), images=12),
        CHECK,
        says=("most images have no annotations", "9 of 12 images"),
    ),
    Case(
        "most_boxes_whole_image", made(each(bbox=[0, 0, 96, 64]), images=6), CHECK, status=1, says=("the whole image",)
    ),
    Case("boxes_of_one_size", made(each(bbox=BOXES[0]), images=18), CHECK, says=("are all of one size",)),
    Case(
        "most_boxes_tiny",
        made(each(bbox=[8, 8, 1, 9]), images=6),
        CHECK,
        status=1,
        says=("most boxes have a side below",),
    ),
    Case(
        "box_twice",
        made(lambda d: d["annotations"].append(d["annotations"][0] | {"id": 99})),
        SPLIT,
        says=("the box is annotated twice: annotation 99 of images/1.jpg",),
        right=reads(boxes=[*BOXES, BOXES[0]], labels=(0, 1, 0)),
    ),
    Case(
        "box_twice_fixed",
        made(lambda d: d["annotations"].append(d["annotations"][0] | {"id": 99})),
        FIX,
        status=1,
        right=reads(name="fixed.json"),
    ),
    Case(
        "nothing_usable",
        made(lambda d: [row.update(id=None) for row in d["images"]]),
        CHECK,
        status=1,
        says=("Not one usable image is left: the image has no id (4 times)",),
    ),
    Case(
        "nothing_usable_refused",
        made(lambda d: [row.update(id=None) for row in d["images"]]),
        SPLIT,
        status=2,
        says=("'id' is null", "There are 3 more of this kind"),
    ),
    Case("one_fixed_camera", fixed_camera, SPLIT, says=("12 of 12 images are near-duplicates",)),
    Case(
        "too_many_folds_of_a_campaign",
        made(),
        "campaign train.json --folds 1000 --deadline 10m --out c",
        status=2,
        says=("4 of its 4 images hold objects, fewer than 1000 folds",),
    ),
    Case(
        "two_folds_of_a_campaign_without_test_images",
        made(),
        "campaign train.json --folds 2 --deadline 10m --out c",
        status=2,
        says=("--folds 2: without test images, fold 1 stands in for them", "Give --test, or --folds 3 or more."),
    ),
    Case(
        "folds_whose_fold_1_is_empty",
        lambda folder: (made()(folder), write_folds(folder, {1: 0, 2: 0, 3: 2, 4: 2}, 3))[0],
        "campaign train.json --folds f.json --deadline 10m --out c",
        status=2,
        says=("f.json: without test images", "Here fold 1 has no image."),
    ),
    Case(
        "folds_of_fewer_images",
        lambda folder: (made()(folder), write_folds(folder, {1: 0, 2: 1}, 2))[0],
        "train train.json --folds f.json --out r",
        status=2,
        says=("f.json: gives a fold to only 2 of the 4 images of train.json; image id 3 (images/3.jpg) has none",),
    ),
    Case(
        "folds_of_other_ids",
        lambda folder: (made()(folder), write_folds(folder, {11: 0, 12: 1}, 2))[0],
        "train train.json --folds f.json --out r",
        status=2,
        says=("f.json: gives a fold to none of the 4 images",),
    ),
    Case(
        "folds_with_nothing_to_learn_from",
        lambda folder: (
            made(lambda d: d.update(annotations=d["annotations"][:2]))(folder),
            write_folds(folder, {1: 0, 2: 1, 3: 1, 4: 0}, 2),
        )[0],
        "train train.json --folds f.json --fold 0 --out r",
        status=2,
        says=("f.json: the rest besides fold 0 of train.json has 2 images and no object to learn from",),
    ),
    Case(
        "too_many_folds",
        made(),
        "split train.json --folds 1000 --out folds.json",
        status=2,
        says=("4 of its 4 images hold objects, fewer than 1000 folds", "Ask for at most 4 folds."),
    ),
]


@parametrize(CASES)
def test_annotations(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(case, tmp_path, monkeypatch, capsys)
