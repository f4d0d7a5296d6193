"""Corrections are made in a fixed copy, and refused in a sentence where they do not belong to the data."""

from __future__ import annotations

import json
import re

import pytest

from foldfuse import cli
from foldfuse.data.readers.coco import read
from learning_samples import write_dataset


@pytest.fixture
def data(tmp_path):
    return write_dataset(tmp_path / "d", 4)


def write_file(data, *corrections, **changes):
    path = data.parent / "corrections.json"
    document = {
        "format": 1,
        "kind": "foldfuse corrections",
        "fingerprint": read(data).fingerprint,
        "data": str(data),
        "corrections": list(corrections),
    }
    path.write_text(json.dumps(document | changes))
    return path


def named(data, number):
    """The fields that name an annotation of the document."""
    document = json.loads(data.read_text())
    row = document["annotations"][number]
    name = {3: "red", 7: "blue"}[row["category_id"]]
    image = document["images"][row["image_id"]]
    return {
        "image": image["file_name"],
        "image_id": image["id"],
        "annotation_class": name,
        "annotation_box": row["bbox"],
    }


def check(data, path, *words):
    out = data.parent / "fixed.json"
    status = cli.main(
        ["check", str(data), "--fix", "--corrections", str(path), "--out", str(out), "--json-only", *words]
    )
    return status, out


def test_corrections_are_made_in_the_copy_alone(data, capsys):
    before = data.read_text()
    old = json.loads(before)["annotations"]
    red = named(data, 1)
    new_class = "blue" if red["annotation_class"] == "red" else "red"
    path = write_file(
        data,
        {"action": "remove", **named(data, 0), "reason": "x", "score": 0.9},
        {"action": "change", **red, "new_class": new_class},
        {"action": "change", **named(data, 2), "new_box": [1, 2, 30.5, 20]},
        {"action": "add", "image": "003.png", "image_id": 3, "new_class": "blue", "new_box": [5, 6, 7, 8]},
    )
    status, out = check(data, path)
    assert status == 0
    rows = json.loads(out.read_text())["annotations"]
    assert data.read_text() == before
    assert [row["id"] for row in rows] == [*(row["id"] for row in old[1:]), max(row["id"] for row in old) + 1]
    assert rows[0] == old[1] | {"category_id": 7 if new_class == "blue" else 3}
    assert rows[1] == old[2] | {"bbox": [1, 2, 30.5, 20], "area": 610}
    assert rows[-1]["bbox"] == [5, 6, 7, 8]
    assert rows[-1]["category_id"] == 7
    assert "4 corrections applied" in (err := capsys.readouterr().err)
    assert "1 added, 2 changed, 1 removed" in err
    assert len(read(out)) == 4


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"annotation_box": [1, 1, 3, 3]}, "correction 0: no '.*' is annotated at .* it is gone"),
        ({"annotation_class": "green"}, "no class is called 'green'"),
        ({"image": "gone.png"}, "the image 'gone.png' with id 0 is not in"),
        ({"action": "change"}, "has neither 'new_class' nor 'new_box'"),
        ({"action": "change", "new_box": [500, 0, 5, 5]}, "lies outside the image"),
        ({"action": "change", "new_box": [5, 0, -5, 5]}, "expected \\[left, top, width, height\\] above 0"),
        ({"action": "add"}, "has no 'new_class'"),
        ({"action": "sell"}, "which is none of its values"),
        ({"annotation_box": [1, 1, 3]}, "length"),
    ],
)
def test_a_correction_that_does_not_fit_is_refused_and_nothing_is_written(data, capsys, change, sentence):
    path = write_file(data, {"action": "remove", **named(data, 0)} | change)
    status, out = check(data, path)
    assert status == 2
    assert not out.exists()
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert re.search(sentence, err), err


def test_a_file_of_other_data_is_refused(data, tmp_path, capsys):
    path = write_file(data, {"action": "remove", **named(data, 0)}, fingerprint="2-0123456789abcdef")
    assert check(data, path)[0] == 2
    assert "its corrections are of other data" in capsys.readouterr().err
    for changes, sentence in (
        ({"kind": "foldfuse suggestions"}, "expected 'foldfuse corrections'"),
        ({"format": 9}, "reads up to 1"),
        ({"extra": 1}, "no field is called 'extra'"),
    ):
        assert check(data, write_file(data, **changes))[0] == 2
        assert sentence in capsys.readouterr().err
    path.write_text("[")
    assert check(data, path)[0] == 2
    assert cli.main(["check", str(data), "--corrections", str(path)]) == 2
    assert "Add --fix --out FILE" in capsys.readouterr().err
    assert cli.main(["check", str(data), "--fix", "--corrections", str(path), "--out", str(path), "--overwrite"]) == 2
    assert "is an input of this command" in capsys.readouterr().err


def test_two_corrections_of_one_annotation_are_refused(data, capsys):
    one = {"action": "remove", **named(data, 0)}
    assert check(data, write_file(data, one, one))[0] == 2
    assert "correction 1" in capsys.readouterr().err


def test_a_file_without_corrections_says_so(data, capsys):
    assert check(data, write_file(data))[0] == 0
    assert "holds no accepted correction" in capsys.readouterr().err


def test_a_mask_goes_with_its_box(data):
    document = json.loads(data.read_text())
    x, y, w, h = document["annotations"][0]["bbox"]
    document["annotations"][0]["segmentation"] = [[x, y, x + w, y, x + w, y + h]]
    data.write_text(json.dumps(document))
    path = write_file(data, {"action": "change", **named(data, 0), "new_box": [x, y, w, h + 1]})
    status, out = check(data, path)
    assert status == 0
    assert "segmentation" not in json.loads(out.read_text())["annotations"][0]
