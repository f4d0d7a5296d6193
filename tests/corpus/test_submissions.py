"""Submissions as the usual contests want them: the exact bytes, or the sentence and the option that settles it."""

# ruff: noqa: E501 (rows of files as they are)

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from corpus_samples import CLASSES, Case, coco, parametrize, run, write_coco


def _data(folder: Path, document: dict[str, Any], name: str) -> None:
    """Writes a dataset without image files."""
    write_coco(folder, document, name, with_images=False)


def _json(folder: Path, content: Any, name: str = "p.json") -> None:
    (folder / name).write_text(json.dumps(content))


# The layouts of public contests' sample submissions, and what must be written for two boxes in image 1, one in image 3, none else.
def _contest(
    sample: str, *, classes: tuple[str, ...] = CLASSES, first_id: int = 0, names: str = "{}.jpg"
) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        document = coco(classes=classes)
        for row in document["images"]:
            row["file_name"] = names.format(row["id"])
        for row in document["categories"]:
            row["id"] += first_id - 1
        _data(folder, {k: v for k, v in document.items() if k != "annotations"}, "test.json")
        last = first_id + len(classes) - 1
        found = [
            (1, first_id, [8, 8, 24, 16], 0.9),
            (3, last, [48, 24, 32, 32], 0.123456789),
            (1, last, [0, 1, 10, 20], 1e-7),
        ]
        _json(folder, [{"image_id": i, "category_id": c, "bbox": b, "score": s} for i, c, b, s in found])
        (folder / "sample.csv").write_bytes(sample.encode())

    return make


def _written(expected: str) -> Callable[[Path], None]:
    def right(folder: Path) -> None:
        assert (folder / "s.csv").read_bytes().decode() == expected

    return right


def _like(
    name: str, make: Callable[[Path], None], expected: str, options: str = "", says: tuple[str, ...] = ()
) -> Case:
    return Case(
        name,
        make,
        f"submit p.json test.json --like sample.csv --out s.csv {options}",
        says=says,
        right=_written(expected),
    )


def _not_like(name: str, make: Callable[[Path], None], *says: str, options: str = "") -> Case:
    return Case(name, make, f"submit p.json test.json --like sample.csv --out s.csv {options}", status=2, says=says)


WHEAT = "image_id,PredictionString\n2,1.0 0 0 50 50\n1,1.0 0 0 50 50\n3,1.0 0 0 50 50\n4,1.0 0 0 50 50\n"
VINBIG = "image_id,PredictionString\n3,14 1 0 0 1 1\n1,14 1 0 0 1 1\n2,14 1 0 0 1 1\n4,14 1 0 0 1 1\n"
FINDINGS = tuple(f"finding {i}" for i in range(14))
ZINDI = "Image_ID,class,confidence,ymin,xmin,ymax,xmax\n1.jpg,NEG,1.0,0,0,0,0\n3.jpg,NEG,1.0,0,0,0,0\n2.jpg,NEG,1.0,0,0,0,0\n4.jpg,NEG,1.0,0,0,0,0\n"
ALL = "1,\n2,\n3,\n4,\n"


def _two_ways(folder: Path) -> None:
    """A test set whose ids are the numbers in the names of other images."""
    _contest("image_id,PredictionString\n" + ALL)(folder)
    document = json.loads((folder / "test.json").read_text())
    for row in document["images"]:
        row["file_name"] = f"{5 - row['id']}.jpg"
    (folder / "test.json").write_text(json.dumps(document))


SUBMISSIONS = [
    _like(
        "litter",
        _contest(
            "PredictionString,image_id\n,test/4.jpg\n,test/3.jpg\n,test/2.jpg\n,test/1.jpg\n", names="test/{}.jpg"
        ),
        "PredictionString,image_id\n,test/4.jpg\n2 0.123456789 48.000 24.000 80.000 56.000,test/3.jpg\n,test/2.jpg\n"
        "0 0.9 8.000 8.000 32.000 24.000 2 1e-07 0.000 1.000 10.000 21.000,test/1.jpg\n",
    ),
    _like(
        "wheat",
        _contest(WHEAT, classes=("wheat",), first_id=1),
        "image_id,PredictionString\n2,\n1,0.9 8.000 8.000 24.000 16.000 1e-07 0.000 1.000 10.000 20.000\n"
        "3,0.123456789 48.000 24.000 32.000 32.000\n4,\n",
        "--format score_xywh",
        ("the sample shows no image without boxes: such an image gets an empty string",),
    ),
    _not_like(
        "wheat_left_open", _contest(WHEAT, classes=("wheat",)), "leaves open", "--format score_xyxy or score_xywh"
    ),
    _like(
        "vinbig",
        _contest(VINBIG, classes=FINDINGS, names="test/{}.png"),
        "image_id,PredictionString\n3,13 0.123456789 48.000 24.000 80.000 56.000\n"
        "1,0 0.9 8.000 8.000 32.000 24.000 13 1e-07 0.000 1.000 10.000 21.000\n2,14 1 0 0 1 1\n4,14 1 0 0 1 1\n",
        "--format label_score_xyxy",
    ),
    _like(
        "vinbig_ids_from_one",
        _contest(VINBIG, classes=FINDINGS, first_id=1),
        "image_id,PredictionString\n3,13 0.123456789 48.000 24.000 80.000 56.000\n"
        "1,0 0.9 8.000 8.000 32.000 24.000 13 1e-07 0.000 1.000 10.000 21.000\n2,14 1 0 0 1 1\n4,14 1 0 0 1 1\n",
        "--format label_score_xyxy",
    ),
    _not_like("vinbig_left_open", _contest(VINBIG, classes=FINDINGS), "leaves open", "--format label_score_xyxy or "),
    _like(
        "siim",
        _contest(
            "id,PredictionString\n0a_study,negative 1 0 0 1 1\n1_image,none 1 0 0 1 1\n2_image,none 1 0 0 1 1\n"
            "3_image,none 1 0 0 1 1\n4_image,none 1 0 0 1 1\n",
            classes=("opacity",),
            names="{}.dcm",
        ),
        "id,PredictionString\n0a_study,negative 1 0 0 1 1\n"
        "1_image,opacity 0.9 8.000 8.000 32.000 24.000 opacity 1e-07 0.000 1.000 10.000 21.000\n2_image,none 1 0 0 1 1\n"
        "3_image,opacity 0.123456789 48.000 24.000 80.000 56.000\n4_image,none 1 0 0 1 1\n",
        "--format label_score_xyxy",
        ("1 rows about studies are copied",),
    ),
    _like(
        "open_images",
        _contest("ImageID,PredictionString\n1,dog 0.5 0.1 0.1 0.9 0.9 bird 0.5 0.3 0.4 0.5 0.5\n2,\n3,\n4,\n"),
        "ImageID,PredictionString\n1,cat 0.9 0.08333333 0.12500000 0.33333333 0.37500000 bird 1e-07 0.00000000 0.01562500 "
        "0.10416667 0.32812500\n2,\n3,bird 0.123456789 0.50000000 0.37500000 0.83333333 0.87500000\n4,\n",
        "--format label_score_xyxy_normalized",
    ),
    _like(
        "rsna",
        _contest(
            "patientId,PredictionString\n1,0.5 0 0 90 60\n2,0.5 0 0 90 60\n3,0.5 0 0 90 60\n4, \n",
            classes=("pneumonia",),
            names="{}.dcm",
        ),
        "patientId,PredictionString\n1,0.9 8.000 8.000 24.000 16.000 1e-07 0.000 1.000 10.000 20.000\n2, \n"
        "3,0.123456789 48.000 24.000 32.000 32.000\n4, \n",
        "--format score_xywh",
    ),
    _like(
        "zindi",
        _contest(ZINDI),
        "Image_ID,class,confidence,ymin,xmin,ymax,xmax\n1.jpg,cat,0.9,8.000,8.000,24.000,32.000\n"
        "1.jpg,bird,1e-07,1.000,0.000,21.000,10.000\n3.jpg,bird,0.123456789,24.000,48.000,56.000,80.000\n2.jpg,NEG,1.0,0,0,0,0\n"
        "4.jpg,NEG,1.0,0,0,0,0\n",
    ),
    _like(
        "rows_of_ids",
        _contest(
            "image_id,category_id,score,x,y,width,height\n1,3,0.5,1,2,3,4\n2,0,0.5,1,2,3,4\n3,0,0.5,1,2,3,4\n4,2,0.5,1,2,3,4\n",
            classes=("a", "b", "c", "d"),
        ),
        "image_id,category_id,score,x,y,width,height\n1,0,0.9,8.000,8.000,24.000,16.000\n1,3,1e-07,0.000,1.000,10.000,20.000\n"
        "3,3,0.123456789,48.000,24.000,32.000,32.000\n",
        says=("such an image gets no row",),
    ),
    _like(
        "semicolons_quotes_windows",
        _contest(
            '"image_id";"PredictionString"\r\n"1.jpg";"0 0.5 60 10 90 20"\r\n"2.jpg";""\r\n"3.jpg";""\r\n"4.jpg";""'
        ),
        '"image_id";"PredictionString"\r\n"1.jpg";"0 0.9 8.000 8.000 32.000 24.000 2 1e-07 0.000 1.000 10.000 21.000"\r\n"2.jpg";""\r\n'
        '"3.jpg";"2 0.123456789 48.000 24.000 80.000 56.000"\r\n"4.jpg";""',
    ),
    _like(
        "nan",
        _contest("image_id,PredictionString\n1,nan\n2,nan\n3,nan\n4,nan\n"),
        "image_id,PredictionString\n1,0 0.9 8.000 8.000 32.000 24.000 2 1e-07 0.000 1.000 10.000 21.000\n2,nan\n"
        "3,2 0.123456789 48.000 24.000 80.000 56.000\n4,nan\n",
        "--format label_score_xyxy",
    ),
    _like(
        "labels_named",
        _contest("image_id,PredictionString\n" + ALL, first_id=1),
        "image_id,PredictionString\n1,1 0.9 8.000 8.000 32.000 24.000 3 1e-07 0.000 1.000 10.000 21.000\n2,\n"
        "3,3 0.123456789 48.000 24.000 80.000 56.000\n4,\n",
        "--format label_score_xyxy --labels id",
    ),
    _not_like(
        "labels_left_open",
        _contest("image_id,PredictionString\n" + ALL, first_id=1),
        "leaves open whether a label is",
        "--labels id or from_zero",
        options="--format label_score_xyxy",
    ),
    _not_like(
        "sample_of_other_images", _contest("image_id,PredictionString\n1,\n2,\n9,\n"), "'9' names no image of test.json"
    ),
    _not_like(
        "sample_of_fewer_images",
        _contest("image_id,PredictionString\n1,\n2,\n"),
        "names 2 of the 4 images",
        "lacks 2, such as '3.jpg'",
    ),
    _not_like("sample_with_a_repeat", _contest("image_id,PredictionString\n1,\n2,\n3,\n4,\n1,\n"), "'1' has two rows"),
    _not_like(
        "sample_of_other_classes",
        _contest("image_id,PredictionString\n1,cow 0.5 60 10 90 20\n2,\n3,\n4,\n"),
        "cow",
        options="--format label_score_xyxy",
    ),
    _not_like("sample_of_no_boxes", _contest("id,target\n1,0\n"), "no sample of a submission of boxes"),
    _not_like("sample_is_json", _contest("[]"), "is JSON"),
    _like(
        "no_finding_is_a_class",
        _contest(VINBIG, classes=(*FINDINGS, "No finding")),
        "image_id,PredictionString\n3,14 0.123456789 48.000 24.000 80.000 56.000\n"
        "1,0 0.9 8.000 8.000 32.000 24.000 14 1e-07 0.000 1.000 10.000 21.000\n2,14 1 0 0 1 1\n4,14 1 0 0 1 1\n",
        "--format label_score_xyxy",
    ),
    _like(
        "further_columns",
        _contest("Usage,image_id,PredictionString\nPublic,1,\nPrivate,2,\nPublic,3,\nPublic,4,\n"),
        "Usage,image_id,PredictionString\nPublic,1,0 0.9 8.000 8.000 32.000 24.000 2 1e-07 0.000 1.000 10.000 21.000\nPrivate,2,\n"
        "Public,3,2 0.123456789 48.000 24.000 80.000 56.000\nPublic,4,\n",
        "--format label_score_xyxy",
    ),
    _not_like(
        "sample_of_ids_or_names",
        _two_ways,
        "can be read in two ways",
        "--image-names id or --image-names name",
        options="--format label_score_xyxy",
    ),
    _like(
        "sample_of_ids",
        _two_ways,
        "image_id,PredictionString\n1,0 0.9 8.000 8.000 32.000 24.000 2 1e-07 0.000 1.000 10.000 21.000\n2,\n"
        "3,2 0.123456789 48.000 24.000 80.000 56.000\n4,\n",
        "--format label_score_xyxy --image-names id --image-ids id",
    ),
    Case(
        "by_the_ending",
        _contest(""),
        "submit p.json test.json --out s.json",
        right=lambda folder: _check(json.loads((folder / "s.json").read_text())[1]["score"] == 1e-7),
    ),
    Case(
        "by_no_ending",
        _contest(""),
        "submit p.json test.json --out s.txt",
        status=2,
        says=("a submission ends in .csv or .json",),
    ),
    Case(
        "json_in_a_csv",
        _contest(""),
        "submit p.json test.json --format coco_json --out s.csv",
        status=2,
        says=("ends in .csv",),
    ),
    Case(
        "stems",
        _contest("", names="test/{}.jpg"),
        "convert p.json test.json --format csv_boxes --image-names stem --out s.csv",
        right=_written(
            "image_id,class,confidence,xmin,ymin,xmax,ymax\n1,cat,0.9,8.000,8.000,32.000,24.000\n1,bird,1e-07,0.000,1.000,10.000,21.000\n3,bird,0.123456789,48.000,24.000,80.000,56.000\n"
        ),
    ),
    Case(
        "images_missing",
        lambda folder: (
            _contest(VINBIG, classes=FINDINGS)(folder),
            (folder / "p.csv").write_text("image_id,PredictionString\n1,0 0.5 1 2 3 4\n"),
        )[0],
        "submit p.csv test.json --input-format label_score_xyxy --like sample.csv --format label_score_xyxy --out s.csv",
        status=2,
        says=("lack 3 of 4 images",),
    ),
]


def _check(holds: bool) -> None:
    assert holds


@parametrize(SUBMISSIONS)
def test_submissions_are_written_as_the_sample_shows(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(case, tmp_path, monkeypatch, capsys)
