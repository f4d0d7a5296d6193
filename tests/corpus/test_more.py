"""Annotations of contests and tools as they are handed out: columns, marks of empty images, and classes counted from one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from corpus_samples import Case, coco, parametrize, run, save_image, write_coco

FIX = "--fix --out fixed.json"


def csv(
    text: str, *images: str, name: str = "train.csv", also: Mapping[str, str] | None = None
) -> Callable[[Path], None]:
    """Writes a CSV file and the images, and other text files."""

    def make(folder: Path) -> None:
        for other, content in (also or {}).items():
            (folder / other).write_text(content, encoding="utf-8")
        (folder / name).write_text(text, encoding="utf-8")
        for seed, image in enumerate(images):
            save_image(folder / image, seed=seed)

    return make


def yolo(lines: str, names: str = "[cat, dog]") -> Callable[[Path], None]:
    """Writes a YOLO dataset of four images with the same lines."""

    def make(folder: Path) -> None:
        (folder / "data.yaml").write_text(f"names: {names}\ntrain: images\n", encoding="utf-8")
        (folder / "labels").mkdir()
        for i in range(4):
            save_image(folder / "images" / f"{i}.jpg", seed=i)
            (folder / "labels" / f"{i}.txt").write_text(lines, encoding="utf-8")

    return make


def beside(labels: str, line: str) -> Callable[[Path], None]:
    """Writes four images, and text files of their names into the folder `labels`, if any."""

    def make(folder: Path) -> None:
        for i in range(4):
            save_image(folder / "images" / f"{i}.jpg", seed=i)
            if labels:
                (folder / labels).mkdir(exist_ok=True)
                (folder / labels / f"{i}.txt").write_text(line + "\n", encoding="utf-8")

    return make


def holds(expected: list[tuple[str, str, list[float], int]]) -> Callable[[Path], None]:
    """Checks (image, class, box, crowd) of all annotations of fixed.json."""

    def right(folder: Path) -> None:
        document: dict[str, Any] = json.loads((folder / "fixed.json").read_text(encoding="utf-8"))
        names = {row["id"]: row["file_name"] for row in document["images"]}
        classes = {row["id"]: row["name"] for row in document["categories"]}
        found = [
            (names[a["image_id"]], classes[a["category_id"]], pytest.approx(a["bbox"]), a["iscrowd"])
            for a in document["annotations"]
        ]
        assert expected == found

    return right


def _roboflow_predictions(folder: Path) -> None:
    document = coco(6, classes=("cat", "dog"))
    for row in document["categories"]:
        row["supercategory"] = "animals"
    document["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
    annotations = document.pop("annotations")
    write_coco(folder, document, "test.json", with_images=False)
    found = [{key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5} for a in annotations]
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


def _same_classes(one: Path, other: Path) -> None:
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in (one, other)]
    keys = [sorted((row["image_id"], row["category_id"], row["bbox"][0]) for row in each) for each in rows]
    assert keys[0] == keys[1]


def yolo_predictions(lines: str) -> Callable[[Path], None]:
    """Writes a YOLO dataset of four images, and a folder of predictions with these lines for each."""

    def make(folder: Path) -> None:
        yolo("0 0.3 0.3 0.2 0.25\n1 0.6 0.5 0.3 0.3\n")(folder)
        (folder / "found").mkdir()
        for i in range(4):
            (folder / "found" / f"{i}.txt").write_text(lines, encoding="utf-8")

    return make


def boxes_far_outside(folder: Path) -> None:
    document = coco(10)
    for row in document["annotations"][:4]:
        row["bbox"] = [60, 40, 60, 20]
    write_coco(folder, document)


def all_boxes_broken(folder: Path) -> None:
    document = coco()
    for row in document["annotations"][:2]:
        row["bbox"] = [8, 8, 0, 16]
    write_coco(folder, document)


CASES = [
    Case(
        "siim_label_holds_boxes",
        csv(
            "id,boxes,label,StudyInstanceUID\n"
            "\"a_image\",\"[{'x': 10, 'y': 12, 'width': 20, 'height': 30}]\",opacity 1 10 12 30 42,s1\n"
            "b_image,,none 1 0 0 1 1,s2\n"
            "\"c_image\",\"[{'x': 1, 'y': 2, 'width': 20, 'height': 30}, {'x': 50, 'y': 2, 'width': 20, 'height': 30}]\","
            "opacity 1 1 2 21 32 opacity 1 50 2 70 32,s3\n",
            "train/a.png",
            "train/b.png",
            "train/c.png",
        ),
        f"check train.csv {FIX}",
        says=("no faults", "3 images, 3 boxes"),
        right=holds(
            [
                ("train/a.png", "opacity", [10, 12, 20, 30], 0),
                ("train/c.png", "opacity", [1, 2, 20, 30], 0),
                ("train/c.png", "opacity", [50, 2, 20, 30], 0),
            ]
        ),
    ),
    Case(
        "starfish",
        csv(
            "video_id,sequence,video_frame,sequence_frame,image_id,annotations\n0,40258,0,0,0-0,[]\n"
            "0,40258,16,1,0-16,\"[{'x': 59, 'y': 13, 'width': 20, 'height': 22}]\"\n",
            "train_images/video_0/0.jpg",
            "train_images/video_0/16.jpg",
        ),
        f"check train.csv {FIX}",
        says=("no faults", "2 images, 1 boxes"),
        right=holds([("train_images/video_0/16.jpg", "object", [59, 13, 20, 22], 0)]),
    ),
    Case(
        "rsna_patient_id",
        csv(
            "patientId,x,y,width,height,Target\na,,,,,0\nb,14.0,12.0,21.0,37.0,1\nb,52.0,12.0,21.0,37.0,1\n",
            "stage_2_train_images/a.png",
            "stage_2_train_images/b.png",
        ),
        f"check train.csv {FIX}",
        says=("no faults", "2 images, 2 boxes"),
        right=holds(
            [
                ("stage_2_train_images/b.png", "object", [14, 12, 21, 37], 0),
                ("stage_2_train_images/b.png", "object", [52, 12, 21, 37], 0),
            ]
        ),
    ),
    Case(
        "open_images_group_is_a_crowd",
        csv(
            "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf\n"
            "a,xclick,/m/01,1,0.25,0.5,0.125,0.75,0,0,0\nb,xclick,/m/01,1,0.25,0.5,0.125,0.75,0,0,1\n",
            "train/a.jpg",
            "train/b.jpg",
        ),
        f"check train.csv {FIX}",
        says=("no faults", "1 of 2 boxes are crowd regions"),
        right=holds([("train/a.jpg", "/m/01", [24, 8, 24, 40], 0), ("train/b.jpg", "/m/01", [24, 8, 24, 40], 1)]),
    ),
    Case(
        "zindi_negative_images",
        csv(
            "Image_ID,class,confidence,ymin,xmin,ymax,xmax\na.jpg,WBC,1.0,10,20,30,50\nb.jpg,NEG,1.0,0.0,0.0,0.0,0.0\n",
            "images/a.jpg",
            "images/b.jpg",
        ),
        f"check train.csv {FIX}",
        says=("no faults", "2 images, 1 boxes", "ignored, as all are 1"),
        never=("NEG",),
        right=holds([("images/a.jpg", "WBC", [20, 10, 30, 20], 0)]),
    ),
    Case(
        "scores_that_differ_are_a_fault",
        csv("image,class,score,xmin,ymin,xmax,ymax\na.jpg,cat,0.9,1,2,30,40\na.jpg,cat,1,9,2,30,40\n", "a.jpg"),
        "check train.csv",
        1,
        ("these may be predictions",),
    ),
    Case(
        "shares_a_little_above_one",
        csv("image,class,xmin,ymin,xmax,ymax\na.jpg,cat,0.5,0.25,1.0000001,0.75\na.jpg,cat,0,0,0.5,0.5\n", "a.jpg"),
        f"check train.csv {FIX}",
        says=("shares of the image's sides",),
        right=holds([("a.jpg", "cat", [48, 16, 48, 32], 0), ("a.jpg", "cat", [0, 0, 48, 32], 0)]),
    ),
    Case(
        "separator_line_of_excel",
        csv("sep=;\nfilename;class;xmin;ymin;xmax;ymax\na.jpg;cat;1,5;2;31,5;42\n", "a.jpg"),
        f"check train.csv {FIX}",
        says=("no faults",),
        right=holds([("a.jpg", "cat", [1.5, 2, 30, 40], 0)]),
    ),
    Case(
        "yolo_classes_from_one",
        yolo("1 0.5 0.5 0.25 0.25\n2 0.25 0.25 0.25 0.25\n"),
        "split . --out folds.json",
        2,
        ("seem to count the classes from 1", "--category-ids from_one"),
    ),
    Case(
        "yolo_classes_from_one_no_copy_by_chance",
        yolo("1 0.5 0.5 0.25 0.25\n2 0.25 0.25 0.25 0.25\n"),
        f"check . {FIX}",
        2,
        ("seem to count the classes from 1",),
    ),
    Case(
        "yolo_classes_from_one_copy",
        yolo("1 0.5 0.5 0.25 0.25\n2 0.25 0.25 0.25 0.25\n"),
        f"check . {FIX} --category-ids from_one",
        1,
        right=holds(
            [
                row
                for i in range(4)
                for row in (
                    (f"images/{i}.jpg", "cat", [36.0, 24.0, 24.0, 16.0], 0),
                    (f"images/{i}.jpg", "dog", [12.0, 8.0, 24.0, 16.0], 0),
                )
            ]
        ),
    ),
    Case(
        "yolo_classes_from_one_in_names_too",
        yolo("1 0.5 0.5 0.25 0.25\n2 0.25 0.25 0.25 0.25\n", "{1: cat, 2: dog}"),
        "check .",
        says=("no faults", "4 images, 8 boxes"),
    ),
    Case(
        "yolo_one_class_too_many_is_no_shift",
        yolo("0 0.5 0.5 0.25 0.25\n2 0.25 0.25 0.25 0.25\n"),
        "split . --out folds.json",
        2,
        ("the class is 2, but 'names' has 0, 1",),
    ),
    Case(
        "yolo_pixels_reason_in_check",
        yolo("0 48 32 20 10\n"),
        "check .",
        1,
        ("0.txt: line 1: holds 48", "These look like pixels"),
    ),
    Case(
        "dota_text_beside_images",
        beside("labelTxt", "10 10 30 12 28 30 8 28 plane 0"),
        "check .",
        1,
        ("labelTxt/0.txt",),
    ),
    Case(
        "visdrone_text_beside_images",
        beside("annotations", "10,10,20,20,1,4,0,0"),
        "check .",
        1,
        ("annotations/0.txt",),
    ),
    Case("test_images_alone", beside("", ""), "check .", says=("no faults", "4 images, 0 boxes")),
    Case(
        "folder_of_a_contest",
        csv(
            "Image_ID,class,confidence,ymin,xmin,ymax,xmax\na.jpg,WBC,1.0,10,20,30,50\n",
            "images/a.jpg",
            name="Train.csv",
            also={"SampleSubmission.csv": "Image_ID,class,confidence,ymin,xmin,ymax,xmax\nt.jpg,WBC,0.5,1,2,3,4\n"},
        ),
        f"check . {FIX}",
        says=("Train.csv: no faults",),
        right=holds([("images/a.jpg", "WBC", [20, 10, 30, 20], 0)]),
    ),
    Case(
        "folder_of_the_starfish_contest",
        csv(
            "video_id,sequence,video_frame,sequence_frame,image_id,annotations\n"
            "0,40258,16,1,0-16,\"[{'x': 59, 'y': 13, 'width': 20, 'height': 22}]\"\n",
            "train_images/video_0/16.jpg",
            also={"example_sample_submission.csv": "index,annotations\n0,0.5 0 0 100 100\n"},
        ),
        f"check . {FIX}",
        right=holds([("train_images/video_0/16.jpg", "object", [59, 13, 20, 22], 0)]),
    ),
    Case(
        "class_in_a_column_called_name",
        csv("filename,name,xmin,ymin,xmax,ymax\na.jpg,cat,1,2,30,40\na.jpg,dog,50,2,80,40\n", "a.jpg"),
        f"check train.csv {FIX}",
        says=("no faults",),
        right=holds([("a.jpg", "cat", [1, 2, 29, 38], 0), ("a.jpg", "dog", [50, 2, 30, 38], 0)]),
    ),
    Case(
        "csv_row_reason_in_check",
        csv("filename,label,xmin,ymin,xmax,ymax\na.jpg,,1,2,30,40\na.jpg,dog,50,2,80,40\n", "a.jpg"),
        "check train.csv",
        1,
        ("line 2: has a box, but no class",),
    ),
    Case(
        "yolo_predictions_with_the_score_first",
        yolo_predictions("0 0.97 0.3 0.3 0.2 0.25\n1 0.88 0.6 0.5 0.3 0.3\n"),
        "convert found data.yaml --out found.csv",
        2,
        ("look like class, score, cx, cy, w, h", "Write the score last"),
    ),
    Case(
        "yolo_predictions_with_the_score_last",
        yolo_predictions("0 0.3 0.3 0.2 0.25 0.97\n1 0.6 0.5 0.3 0.3 0.88\n"),
        "convert found data.yaml --out found.csv",
    ),
    Case(
        "an_image_whose_boxes_are_all_broken",
        all_boxes_broken,
        "check train.json",
        1,
        ("the box has no size", "all boxes of the image are left out: it would be learnt from as an image without"),
        never=("the image has no annotations",),
    ),
    Case(
        "a_fifth_of_the_boxes_far_outside",
        boxes_far_outside,
        "check train.json",
        1,
        ("many boxes stick far out of their images", "4 of 20 boxes"),
    ),
    Case(
        "roboflow_project_class_is_never_predicted",
        _roboflow_predictions,
        "convert found.json test.json --out same.json",
        right=lambda folder: _same_classes(folder / "found.json", folder / "same.json"),
    ),
]


@parametrize(CASES)
def test_more_inputs(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(case, tmp_path, monkeypatch, capsys)
