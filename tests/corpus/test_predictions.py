"""Prediction files as the usual tools write them: the right scores, or the sentence and the option that settles it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from corpus_samples import CLASSES, Case, coco, parametrize, run, write_coco

Rows = list[dict[str, Any]]


def _data(folder: Path, document: dict[str, Any] | None = None, name: str = "train.json") -> dict[str, Any]:
    """Writes a dataset without image files, and returns it."""
    document = coco() if document is None else document
    write_coco(folder, document, name, with_images=False)
    return document


def _rows(document: dict[str, Any], **changes: Callable[[dict[str, Any]], Any]) -> Rows:
    """COCO results equal to the annotations, best first, each field changed by a function of the annotation."""
    rows = []
    for i, a in enumerate(document["annotations"]):
        row = {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9 - i / 100}
        rows.append(row | {key: change(a) for key, change in changes.items()})
    return rows


def _json(folder: Path, content: Any, name: str = "p.json") -> None:
    (folder / name).write_text(json.dumps(content))


def _results(**changes: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda folder: _json(folder, _rows(_data(folder), **changes))


def _csv(text: str, **document: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        _data(folder, coco(**document))
        (folder / "p.csv").write_text(text)

    return make


def _corners(a: dict[str, Any]) -> list[float]:
    x, y, w, h = a["bbox"]
    return [x, y, x + w, y + h]


def _permuted() -> dict[str, Any]:
    """Image ids 1..4 of files called 0003.jpg, 0004.jpg, 0001.jpg, 0002.jpg."""
    document = coco()
    for row, number in zip(document["images"], (3, 4, 1, 2), strict=True):
        row["file_name"] = f"{number:04}.jpg"
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] < 4]
    for a in document["annotations"]:
        a["bbox"] = [a["bbox"][0] + 3 * a["image_id"], *a["bbox"][1:]]
    return document


def _numbers_in_names(folder: Path) -> None:
    document = _data(folder, _permuted())
    number = {row["id"]: int(row["file_name"][:4]) for row in document["images"]}
    _json(folder, _rows(document, image_id=lambda a: number[a["image_id"]]))


def _numbers_in_names_of_two_sizes(folder: Path) -> None:
    document = _permuted()
    for row in document["images"][2:]:  # images 3 and 4 are smaller
        row.update(width=40, height=40)
    document["annotations"] = [
        {**a, "bbox": [1, 1, 30, 30]} if a["image_id"] == 3 else a
        for a in document["annotations"]
        if a["image_id"] != 3 or a["id"] == 5
    ]
    _data(folder, document)
    number = {row["id"]: int(row["file_name"][:4]) for row in document["images"]}
    _json(folder, _rows(document, image_id=lambda a: number[a["image_id"]]))


def _large_ids(folder: Path) -> None:
    document = coco()
    for row in document["images"]:
        row["id"] += 1000
    for a in document["annotations"]:
        a["image_id"] += 1000
    _data(folder, document)
    _json(folder, _rows(document, image_id=lambda a: a["image_id"] - 1001))


def _text_ids(folder: Path) -> None:
    document = coco()
    for row in document["images"]:
        row["id"] = f"frame-{row['id']}"
    for a in document["annotations"]:
        a["image_id"] = f"frame-{a['image_id']}"
    _data(folder, document)
    _json(folder, _rows(document))


def _from_zero(folder: Path) -> None:
    """A dataset that counts its classes from 0; the last class is not annotated."""
    document = coco()
    for row in document["categories"]:
        row["id"] -= 1
    for a in document["annotations"]:
        a["category_id"] = (a["id"] - 1) % 2
    _data(folder, document)
    _json(folder, _rows(document, category_id=lambda a: a["category_id"] + 1))


def _small_centres(folder: Path) -> None:
    document = coco()
    for a in document["annotations"]:
        a["bbox"] = [a["bbox"][0], a["bbox"][1], 10, 12]
    _data(folder, document)
    _json(folder, _rows(document, bbox=lambda a: [a["bbox"][0] + 5, a["bbox"][1] + 6, 10, 12]))


def _classes_from_zero_unseen(folder: Path) -> None:
    """Classes counted from 0 where the data counts from 1, and the first class is never predicted."""
    rows = _rows(_data(folder), category_id=lambda a: a["category_id"] - 1)
    _json(folder, [row for row in rows if row["category_id"]])


def _whole_document(folder: Path) -> None:
    document = _data(folder)
    theirs = json.loads(json.dumps(document))
    for row in theirs["images"]:
        row["id"] = 10 - row["id"]
        row["file_name"] = row["file_name"].replace("images/", "")
    for row in theirs["categories"]:
        row["id"] += 5
    for i, a in enumerate(theirs["annotations"]):
        a.update(image_id=10 - a["image_id"], category_id=a["category_id"] + 5, score=0.9 - i / 100)
    _json(folder, theirs)


def _by_image(folder: Path) -> None:
    document = _data(folder)
    found: dict[str, Any] = {}
    for i, a in enumerate(document["annotations"]):
        one = found.setdefault(str(a["image_id"]), {"boxes": [], "labels": [], "scores": []})
        one["boxes"].append(_corners(a))
        one["labels"].append(a["category_id"])
        one["scores"].append(0.9 - i / 100)
    _json(folder, found)


def _tiny_scores(folder: Path) -> None:
    """Right boxes with scores of 2e-9, wrong ones with 1e-9; float32 and six decimals keep the first apart, or none."""
    document = _data(folder)
    rows = _rows(document, score=lambda a: 2e-9)
    rows += _rows(document, score=lambda a: 1e-9, bbox=lambda a: [60, 2, 20, 10])
    _json(folder, rows)


def _close_scores(folder: Path) -> None:
    document = _data(folder)
    rows = _rows(document, score=lambda a: 0.5, bbox=lambda a: [60, 2, 20, 10])
    rows += _rows(document, score=lambda a: 0.5 + 1e-12)
    _json(folder, rows)


def _score(
    name: str,
    make: Callable[[Path], None],
    *,
    ap: str = "1.0000",
    file: str = "p.json",
    options: str = "",
    says: tuple[str, ...] = (),
) -> Case:
    return Case(name, make, f"score {file} train.json {options}", says=(f"AP │ {ap}", *says))


def _refused(name: str, make: Callable[[Path], None], *says: str, file: str = "p.json") -> Case:
    return Case(name, make, f"score {file} train.json", status=2, says=says)


LONG = "image_id,class,confidence,xmin,ymin,xmax,ymax\n"


def _long(header: str = LONG, line: str = "{image},{name},{score},{x1},{y1},{x2},{y2}") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        document = _data(folder)
        lines = []
        for i, a in enumerate(document["annotations"]):
            x1, y1, x2, y2 = _corners(a)
            name = CLASSES[a["category_id"] - 1]
            values = {"image": a["image_id"], "name": name, "id": a["category_id"], "score": round(0.9 - i / 100, 2)}
            values |= {
                "x1": x1,
                "y1": y1,
                "x2": x2,
                "y2": y2,
                "w": x2 - x1,
                "h": y2 - y1,
                "cx": (x1 + x2) / 2,
                "cy": (y1 + y2) / 2,
            }
            lines.append(line.format(**values) + "\n")
        (folder / "p.csv").write_text(header + "".join(lines))

    return make


def _strings(
    box: str, *, image: str = "{}", header: str = "image_id,PredictionString\n", rest: str = ""
) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        document = _data(folder)
        cells: dict[int, list[str]] = {row["id"]: [] for row in document["images"]}
        for i, a in enumerate(document["annotations"]):
            x1, y1, x2, y2 = _corners(a)
            values = {"label": a["category_id"] - 1, "id": a["category_id"], "name": CLASSES[a["category_id"] - 1]}
            values |= {
                "score": round(0.9 - i / 100, 2),
                "x1": x1,
                "y1": y1,
                "x2": x2,
                "y2": y2,
                "w": x2 - x1,
                "h": y2 - y1,
            }
            cells[a["image_id"]].append(box.format(**values))
        lines = [f"{image.format(i)},{' '.join(words)}\n" for i, words in cells.items()]
        (folder / "p.csv").write_text(header + "".join(lines) + rest)

    return make


READING = [
    _score("plain", _results(), says=("images by the dataset's image ids; classes by the dataset's category ids",)),
    _refused(
        "ids_or_numbers_in_names", _numbers_in_names, "can be read in two ways", "--image-ids id or --image-ids name"
    ),
    _score("ids_or_numbers_in_names_named", _numbers_in_names, options="--image-ids name"),
    _score(
        "ids_or_numbers_in_names_by_size",
        _numbers_in_names_of_two_sizes,
        says=("only so 100% of the boxes fit into their images",),
    ),
    _refused("positions", _large_ids, "names no image", "add --image-ids position"),
    _score("positions_named", _large_ids, options="--image-ids position"),
    _score("text_ids", _text_ids),
    _score("ids_as_text", _results(image_id=lambda a: str(a["image_id"]), category_id=lambda a: str(a["category_id"]))),
    _score(
        "ids_as_floats",
        _results(image_id=lambda a: float(a["image_id"]), category_id=lambda a: float(a["category_id"])),
    ),
    _score(
        "paths_of_another_machine",
        _results(image_id=lambda a: f"/content/test/{a['image_id']}.jpg"),
        says=("images by file names",),
    ),
    _score("windows_paths", _results(image_id=lambda a: f"D:\\data\\images\\{a['image_id']}.JPG")),
    _score("stems", _results(image_id=lambda a: f"images/{a['image_id']}")),
    _score("other_endings", _results(image_id=lambda a: f"{a['image_id']}.png")),
    _refused(
        "unknown_image",
        _results(image_id=lambda a: a["image_id"] + 2),
        "5 names no image of train.json",
        "(2 of the file's 4 images are unknown)",
    ),
    _refused("id_is_true", _results(image_id=lambda a: True), "image_id is true"),
    _score(
        "class_names", _results(category_id=lambda a: CLASSES[a["category_id"] - 1]), says=("classes by class names",)
    ),
    _refused(
        "unknown_class_name",
        _results(category_id=lambda a: "cow"),
        "'cow' is not in train.json (known: cat, dog, bird)",
    ),
    _refused(
        "classes_from_zero",
        _results(category_id=lambda a: a["category_id"] - 1),
        "category_id 0 is not in train.json",
        "--category-ids from_zero",
    ),
    _score(
        "classes_from_zero_named",
        _results(category_id=lambda a: a["category_id"] - 1),
        options="--category-ids from_zero",
    ),
    _refused(
        "classes_from_one", _from_zero, "may count from 1 where train.json counts from 0", "--category-ids from_one"
    ),
    _score("classes_from_one_named", _from_zero, options="--category-ids from_one"),
    _refused(
        "shares",
        _results(bbox=lambda a: [a["bbox"][0] / 96, a["bbox"][1] / 64, a["bbox"][2] / 96, a["bbox"][3] / 64]),
        "look like shares",
        "--input-format coco_json_normalized",
    ),
    _score(
        "shares_named",
        _results(bbox=lambda a: [a["bbox"][0] / 96, a["bbox"][1] / 64, a["bbox"][2] / 96, a["bbox"][3] / 64]),
        options="--input-format coco_json_normalized",
    ),
    _refused("corners", _results(bbox=_corners), "all fit as corners", "--input-format coco_json_xyxy"),
    _score("corners_named", _results(bbox=_corners), options="--input-format coco_json_xyxy"),
    _score("numbers_as_text", _results(bbox=lambda a: [str(v) for v in a["bbox"]], score=lambda a: "0.9")),
    _score("box_as_text", _results(bbox=lambda a: str(a["bbox"]))),
    _refused("score_true", _results(score=lambda a: True), "'score' is true, expected a number"),
    _refused("score_nan", _results(score=lambda a: float("nan")), "has the score nan"),
    _refused("score_percent", _results(score=lambda a: 90), "has the score 90", "divide percentages by 100"),
    _refused("score_negative", _results(score=lambda a: -0.1), "has the score -0.1"),
    _refused(
        "no_scores",
        lambda folder: _json(folder, _data(folder)["annotations"]),
        "its boxes have no scores, as annotations have none",
    ),
    _score("whole_document", _whole_document),
    _score("boxes_by_image", _by_image),
    _score("tiny_scores", _tiny_scores),
    _score("close_scores", _close_scores),
    _score(
        "empty_list",
        lambda folder: (_data(folder), _json(folder, []))[1],
        ap="0.0000",
        says=("holds no box: 4 images",),
    ),
    _score("rows", _long(), file="p.csv"),
    _score(
        "rows_zindi",
        _long("Image_ID,class,confidence,ymin,xmin,ymax,xmax\n", "{image}.jpg,{name},{score},{y1},{x1},{y2},{x2}"),
        file="p.csv",
    ),
    _score(
        "rows_semicolons",
        _long("filename;label;score;x;y;w;h\n", "images/{image}.jpg;{name};{score};{x1};{y1};{w};{h}"),
        file="p.csv",
    ),
    _score(
        "rows_centres_and_ids",
        _long("image,category_id,conf,x_center,y_center,width,height\n", "{image},{id},{score},{cx},{cy},{w},{h}"),
        file="p.csv",
    ),
    _score(
        "rows_one_column",
        _long("image_id,class,score,bbox\n", '{image},{name},{score},"[{x1}, {y1}, {w}, {h}]"'),
        file="p.csv",
        options="--input-format csv_boxes_xywh",
    ),
    _refused(
        "rows_without_scores",
        _long("image_id,class,xmin,ymin,xmax,ymax\n", "{image},{name},{x1},{y1},{x2},{y2}"),
        "is the score",
        file="p.csv",
    ),
    _score(
        "strings",
        _strings("{label} {score} {x1} {y1} {x2} {y2}"),
        file="p.csv",
        options="--input-format label_score_xyxy",
    ),
    _score(
        "strings_of_names",
        _strings("{name} {score} {x1} {y1} {x2} {y2}", image="{}_image"),
        file="p.csv",
        says=("read as label_score_xyxy",),
    ),
    _score(
        "strings_of_shares",
        _strings("{score} {name} 0 0 0.5 0.5"),
        file="p.csv",
        ap="0.0000",
        options="--input-format score_label_xyxy_normalized",
    ),
    _refused(
        "strings_from_one",
        _strings("{id} {score} {x1} {y1} {x2} {y2}"),
        "label 3 is not in train.json",
        "--category-ids from_one",
        file="p.csv",
    ),
    _refused(
        "contest_header_of_shares",
        _csv("PredictionString,image_id\n0 0.9 0.1 0.1 0.5 0.5,1\n1 0.9 0.1 0.2 0.3 0.4,2\n,3\n,4\n"),
        "the header stands for label_score_xyxy, and the numbers fit label_score_xyxy_normalized",
        file="p.csv",
    ),
    _score(
        "small_centres_are_warned_of",
        _small_centres,
        ap="0.0000",
        says=("WARNING: p.json: has AP50 0.0000 as it was read, and 1.0000 with --input-format coco_json_cxcywh",),
    ),
    _score(
        "classes_from_zero_are_warned_of",
        _classes_from_zero_unseen,
        ap="0.0000",
        says=("no box has the category_id 3 (bird)", "WARNING", "with --category-ids from_zero"),
    ),
    _score("ids_as_floats_in_a_csv", _long(line="{image}.0,{name},{score},{x1},{y1},{x2},{y2}"), file="p.csv"),
    _refused(
        "rows_of_shares",
        _long(line="{image},{name},{score},0.1,0.1,0.5,0.5"),
        "look like shares",
        "csv_boxes_xyxy_normalized",
        file="p.csv",
    ),
    _score(
        "images_without_boxes",
        lambda folder: _json(folder, _rows(_data(folder))[:2]),
        ap="0.2244",
        says=("3 of 4 images have no box in it",),
    ),
    _score(
        "no_finding",
        _csv("image_id,PredictionString\n1,0 0.9 8 8 32 24\n2,3 1 0 0 1 1\n3,3 1 0 0 1 1\n4,\n"),
        file="p.csv",
        ap="0.1122",
        options="--input-format label_score_xyxy",
        says=("2 boxes of one pixel",),
    ),
    _score(
        "studies",
        _csv("id,PredictionString\n1_study,negative 1 0 0 1 1\n1_image,cat 0.9 8 8 32 24\n2_image,none 1 0 0 1 1\n"),
        file="p.csv",
        ap="0.1683",
        options="--input-format label_score_xyxy",
        says=("1 rows about studies", "scored on the 2 of 4"),
    ),
]


@parametrize(READING)
def test_prediction_files_are_read_right_or_refused(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(case, tmp_path, monkeypatch, capsys)
