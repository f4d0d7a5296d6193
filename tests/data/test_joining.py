"""Annotated sets become one: classes by name, images where they are; what cannot be joined is refused in a sentence."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from foldfuse import cli
from foldfuse.data.readers.coco import read
from learning_samples import write_dataset


@pytest.fixture
def sets(tmp_path):
    return write_dataset(tmp_path / "data", 5), write_dataset(tmp_path / "next", 3, seed=1)


def refused(capsys, *words):
    assert cli.main(["join", *map(str, words)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def change(path, edit):
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def test_two_sets_become_one_that_every_command_reads(sets, tmp_path, capsys):
    change(sets[1], lambda document: document["categories"].reverse())
    out = tmp_path / "joined.json"
    assert cli.main(["join", *map(str, sets), "--out", str(out)]) == 0
    assert "joined.json: 5 images + 3 images" in capsys.readouterr().err
    joined, parts = read(out), [read(path) for path in sets]
    assert joined.classes == parts[0].classes
    assert joined.image_ids == tuple(range(8))
    for got, want in zip(joined, [*parts[0], *parts[1]], strict=True):
        assert got.path.samefile(want.path)
        np.testing.assert_array_equal(got.annotations.boxes, want.annotations.boxes)
    names = [[data.classes[label] for s in data for label in s.annotations.labels] for data in (joined, *parts)]
    assert names[0] == names[1] + names[2]


def test_a_class_that_a_later_set_does_not_list_is_said(sets, tmp_path, capsys):
    def only_red(document):
        document["annotations"] = [row for row in document["annotations"] if row["category_id"] == 3]
        document["categories"] = document["categories"][:1]

    change(sets[1], only_red)
    assert cli.main(["join", *map(str, sets), "--out", str(tmp_path / "joined.json")]) == 0
    assert "lists no 'blue', so its 3 images are taken as images without such objects" in capsys.readouterr().err


def test_a_class_that_the_first_set_lacks_is_refused(sets, tmp_path, capsys):
    change(sets[1], lambda document: document["categories"].append({"id": 9, "name": "green"}))
    out = tmp_path / "joined.json"
    assert "has the class 'green', which" in refused(capsys, *sets, "--out", out)
    assert not out.exists()


def test_an_image_in_two_sets_is_refused(sets, tmp_path, capsys):
    copy = sets[0].with_name("copy.json")
    shutil.copy(sets[0], copy)
    assert "An image may be in one of them only" in refused(capsys, sets[0], copy, "--out", tmp_path / "joined.json")


def test_images_outside_the_folder_of_the_joined_file_are_refused_with_a_folder_that_does(sets, tmp_path, capsys):
    out = tmp_path / "data" / "joined.json"
    error = refused(capsys, *sets, "--out", out)
    assert f"such as {tmp_path / 'joined.json'}" in error
    assert not out.exists()


def test_one_set_and_a_set_without_annotations_are_refused(sets, tmp_path, capsys):
    out = tmp_path / "joined.json"
    assert "name two or more" in refused(capsys, sets[0], "--out", out)
    change(sets[1], lambda document: document.pop("annotations"))
    assert "annotations" in refused(capsys, *sets, "--out", out)
    assert cli.main(["join", str(sets[0]), str(sets[0]), "--out", str(sets[0]), "--overwrite"]) == 2, "an input"
