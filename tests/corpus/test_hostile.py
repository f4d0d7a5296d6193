"""Hostile and broken files, and what is no file: each is refused in one sentence, at once, and nothing is written."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from corpus_samples import Case, coco, parametrize, run, save_image
from hostile_samples import DIGITS, sound, with_file, with_node

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes and links of files")


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket may have 100 characters
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(path.name)
    os.chdir(here)


def _yolo(yaml: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        save_image(folder / "images" / "train" / "a.jpg")
        (folder / "labels" / "train").mkdir(parents=True)
        (folder / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
        (folder / "data.yaml").write_text(yaml)

    return make


def _voc(xml: bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        save_image(folder / "JPEGImages" / "a.jpg")
        (folder / "Annotations").mkdir()
        (folder / "Annotations" / "a.xml").write_bytes(xml)

    return make


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
)
ENTITIES = b'<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;&b;&b;">]><annotation>&d;</annotation>'

READERS = [
    Case("json_deep", with_file("train.json", "[" * 100_000), "check train.json", 2, ("nested more than 64 deep",)),
    Case(
        "json_deep_inside",
        with_file("train.json", '{"images": ' + "[" * 900 + "]" * 900 + "}"),
        "check train.json",
        2,
        ("nested more than",),
    ),
    Case(
        "json_digits",
        with_file("train.json", '{"images": [{"id": ' + DIGITS + "}]}"),
        "check train.json",
        2,
        ("a whole number of 5,000 digits",),
    ),
    Case("json_empty", with_file("train.json", ""), "check train.json", 2, ("train.json: is not JSON", "It is empty")),
    Case(
        "json_cut",
        with_file("train.json", '{"images": ['),
        "check train.json",
        2,
        ("is not JSON (line 1, column 13", "Was it cut off"),
    ),
    Case(
        "json_trailing_comma",
        with_file("train.json", '{"images": [],}'),
        "check train.json",
        2,
        ("is not JSON",),
        ("cut off",),
    ),
    Case(
        "json_twice",
        with_file("train.json", '{"images": [], "images": [1]}'),
        "check train.json",
        2,
        ("has the key 'images' twice",),
    ),
    Case(
        "json_latin1",
        with_file("train.json", '{"é": 1}'.encode("latin-1")),
        "check train.json",
        2,
        ("is not text in UTF-8 (line 1 has the byte 0xe9)", "Save it as UTF-8"),
    ),
    Case(
        "json_binary",
        with_file("train.json", b"\x89PNG\r\n\x1a\n\0\0\0"),
        "check train.json",
        2,
        ("is not a text file",),
    ),
    Case(
        "json_half_a_character",
        with_file("train.json", '{"categories": [{"id": 1, "name": "\\ud800"}]}'),
        "check train.json",
        2,
        ("half of a character",),
    ),
    Case(
        "json_utf16",
        with_file("train.json", json.dumps(coco()).encode("utf-16")),
        "check train.json",
        0,
        ("no faults",),
    ),
    Case(
        "json_bom",
        with_file("train.json", b"\xef\xbb\xbf" + json.dumps(coco()).encode()),
        "check train.json",
        0,
        ("no faults",),
    ),
    Case("predictions_bom", with_file("p.json", b"\xef\xbb\xbf[]"), "convert p.json train.json --out o.parquet", 0),
    Case(
        "predictions_deep", with_file("p.json", "[" * 9999), "score p.json train.json", 2, ("p.json: is nested more",)
    ),
    Case(
        "folds_deep",
        with_file("f.json", "[" * 9999),
        "train train.json --folds f.json --out r",
        2,
        ("f.json: is nested more", "a file of folds"),
    ),
    Case(
        "folds_nan",
        with_file("f.json", '{"fold_of": {"1": NaN}, "num_folds": 2}'),
        "train train.json --folds f.json --out r",
        2,
        ("f.json: holds NaN",),
    ),
    Case(
        "folds_huge",
        with_file("f.json", '{"fold_of": {}, "num_folds": 1e400}'),
        "train train.json --folds f.json --out r",
        2,
        ("f.json: holds the number '1e400'",),
    ),
    Case(
        "folds_is_a_list",
        with_file("f.json", "[]"),
        "train train.json --folds f.json --out r",
        2,
        ("f.json: holds a list, expected the JSON object of a file of folds",),
    ),
    Case(
        "ensemble_deep",
        with_file("e.json", "[" * 9999),
        "fuse p.json q.json --data train.json --ensemble e.json --out o.parquet",
        2,
        ("e.json: is nested",),
    ),
    Case(
        "yaml_laughs",
        _yolo("names: [cat]\ntrain: images/train\n" + LAUGHS),
        "check data.yaml",
        2,
        ("refers to the anchor",),
    ),
    Case(
        "yaml_merge",
        _yolo("x: &x {train: images/train}\nnames: [cat]\n<<: *x\n"),
        "check data.yaml",
        2,
        ("refers to the anchor",),
    ),
    Case("yaml_deep", _yolo("[" * 5000), "check data.yaml", 2, ("nested too deep",)),
    Case(
        "yaml_tag", _yolo("names: !!python/object/apply:os.system ['true']\n"), "check data.yaml", 2, ("has the tag",)
    ),
    Case(
        "yaml_bad_date",
        _yolo("made: 2024-13-45\nnames: [cat]\ntrain: images/train\n"),
        "check data.yaml",
        0,
        ("no faults",),
    ),
    Case("yaml_number_as_path", _yolo("names: [cat]\ntrain: 12\n"), "check data.yaml", 2, ("data.yaml",)),
    Case(
        "yaml_twice",
        _yolo("names: [cat]\nnames: [dog]\ntrain: images/train\n"),
        "check data.yaml",
        2,
        ("has the key 'names' a second time",),
    ),
    Case("yaml_truth", _yolo("names: [no]\ntrain: images/train\n"), "check data.yaml", 0, ("│ no ",)),
    Case("yaml_binary", _yolo("\x00\x01"), "check data.yaml", 2, ("is not a text file",)),
    Case("xml_entities", _voc(ENTITIES), "split . --folds 2 --out f.json", 2, ("declares XML entities",)),
    Case(
        "xml_entities_utf16",
        _voc(ENTITIES.decode().encode("utf-16")),
        "split . --folds 2 --out f.json",
        2,
        ("declares XML entities",),
    ),
    Case(
        "xml_unknown_encoding",
        _voc(b'<?xml version="1.0" encoding="rot13"?><annotation/>'),
        "split . --folds 2 --out f.json",
        2,
        ("unknown encoding 'rot13'",),
    ),
    Case("xml_empty", _voc(b""), "split . --folds 2 --out f.json", 2, ("a.xml: is not XML",)),
    Case(
        "csv_binary",
        with_file("p.csv", b"image_id,PredictionString\n\0\1"),
        "score p.csv train.json",
        2,
        ("p.csv: is not a text file",),
    ),
    Case(
        "csv_latin1",
        with_file("p.csv", "image_id,PredictionString\né,\n".encode("latin-1")),
        "score p.csv train.json",
        2,
        ("p.csv: is not text in UTF-8",),
    ),
]


def endless_ledger(folder: Path) -> None:
    """A ledger whose facts are a view without an end."""
    (folder / "c").mkdir()
    with closing(sqlite3.connect(folder / "c" / "campaign.sqlite")) as db, db:
        db.execute(
            "CREATE VIEW facts AS WITH RECURSIVE n(name, value) AS (SELECT 1, 1 UNION ALL SELECT name + 1, 1 FROM n) "
            "SELECT * FROM n"
        )
        for table in ("events", "segments", "submissions"):
            db.execute(f"CREATE TABLE {table} (id)")


LEDGERS = [
    Case("ledger_without_an_end", endless_ledger, "watch c", 2, ("c/campaign.sqlite",)),
    Case("ledger_report_without_an_end", endless_ledger, "report c --out o.html", 0, ("o.html",)),
    Case("ledger_is_text", with_file("c/campaign.sqlite", b"x" * 9999), "watch c", 2, ("c/campaign.sqlite",)),
    Case(
        "ledger_is_a_pipe",
        with_node("c/campaign.sqlite", lambda path: (path.parent.mkdir(), os.mkfifo(path))),
        "watch c",
        2,
        ("c",),
    ),
]

NODES = [
    Case(
        "fifo", with_node("train.json", os.mkfifo), "check train.json", 2, ("train.json: is a pipe, expected a file",)
    ),
    Case("fifo_predictions", with_node("p.json", os.mkfifo), "score p.json train.json", 2, ("p.json: is a pipe",)),
    Case(
        "fifo_folds",
        with_node("f.json", os.mkfifo),
        "train train.json --folds f.json --out r",
        2,
        ("f.json: is a pipe",),
    ),
    Case("socket", with_node("train.json", _socket), "check train.json", 2, ("train.json: is a socket",)),
    Case(
        "folder",
        with_node("f.json", Path.mkdir),
        "train train.json --folds f.json --out r",
        2,
        ("f.json: is a folder",),
    ),
    Case(
        "loop",
        with_node("train.json", lambda path: path.symlink_to(path)),
        "check train.json",
        2,
        ("levels of symbolic links",),
    ),
    Case(
        "a_loop_beside_the_data",
        with_node("other.json", lambda path: path.symlink_to(path)),
        "check .",
        0,
        ("no faults",),
    ),
    Case(
        "a_loop_beside_images",
        with_node("x", lambda path: path.symlink_to(path)),
        "split images --out f.json",
        2,
        ("holds images, but no annotations",),
    ),
    Case("zero", sound, "check /dev/zero", 2, ("/dev/zero: is a device",)),
    Case("zero_predictions", sound, "score /dev/zero train.json", 2, ("/dev/zero: is a device",)),
    Case("long_name", sound, f"check {'n' * 300}", 2, ("file name too long",)),
    Case("long_path", sound, f"check {'n/' * 3000}", 2, ("name too long",)),
    Case("below_a_file", sound, "check train.json/x", 2, ("train.json/x: there is no such file",)),
]


@parametrize(READERS + NODES + LEDGERS)
def test_hostile_inputs(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(case, tmp_path, monkeypatch, capsys)
