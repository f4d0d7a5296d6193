"""Records come back as they were written, and each kind of damage is named in one sentence."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from foldfuse.errors import InputError
from foldfuse.system.records import from_plain_tolerantly, read_record, write_record


@dataclass(frozen=True)
class Inner:
    name: str
    scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class Outer:
    number: int
    rate: float
    place: Path
    inner: Inner
    weights: Mapping[str, float]
    note: str | None = None


RECORD = Outer(3, 0.5, Path("a/b"), Inner("x", (0.1, 2.0)), {"m": 1.0})


def read(path):
    return read_record(path, Outer, version=2, what="a test record", hint="Make it first.")


def test_a_record_comes_back_as_it_was(tmp_path):
    path = tmp_path / "r.json"
    write_record(path, RECORD, version=2)
    assert read(path) == RECORD
    assert json.loads(path.read_text())["format"] == 2


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": 3}, "is a test record of format 3, and this version of Foldfuse reads up to 2"),
        ({"number": "3"}, "'number' is text, expected a whole number"),
        ({"inner": {"name": "x", "scores": [True]}}, "'inner.scores[0]' is true or false, expected a number"),
        ({"nmber": 3}, "no field is called 'nmber'. Did you mean 'number'?"),
        ({"rate": None}, "'rate' is null, expected a number"),
    ],
)
def test_damage_is_named(tmp_path, change, sentence):
    path = tmp_path / "r.json"
    write_record(path, RECORD, version=2)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=r"r\.json") as caught:
        read(path)
    assert sentence in str(caught.value)


def test_a_missing_field_a_missing_file_and_a_cut_file_are_named(tmp_path):
    path = tmp_path / "r.json"
    with pytest.raises(InputError, match=r"no such file. Make it first\."):
        read(path)
    path.write_text('{"number": 3}')
    with pytest.raises(InputError, match="it has no 'rate'"):
        read(path)
    path.write_text('{"number": 3')
    with pytest.raises(InputError, match="is not JSON"):
        read(path)


def test_a_whole_number_is_a_float_and_a_nan_is_never_written(tmp_path):
    path = tmp_path / "r.json"
    write_record(path, Outer(1, 2, Path("a"), Inner("x"), {}), version=1)
    assert read(path).rate == 2.0
    with pytest.raises(ValueError, match="Out of range"):
        write_record(path, Outer(1, float("nan"), Path("a"), Inner("x"), {}), version=1)
    assert read(path).rate == 2.0


@dataclass(frozen=True)
class Row:
    at: float
    name: str = "?"


@dataclass(frozen=True)
class Page:
    inner: Inner | None = None
    rows: tuple[Row, ...] = ()
    total: int = 7


@pytest.mark.parametrize(
    ("value", "page"),
    [
        ({}, Page()),
        ({"unknown": 1, "total": 3}, Page(total=3)),
        ({"total": "3", "rows": None}, Page()),
        (
            {"rows": [{"at": 1, "name": None}, {"name": "no time"}, {"at": "1"}, 4, {"at": 2}]},
            Page(rows=(Row(1), Row(2))),
        ),
        ({"inner": {"name": "x", "scores": "odd"}}, Page(inner=Inner("x"))),
        ({"inner": {"scores": [1.0]}}, Page()),
        ([1], None),
    ],
)
def test_a_tolerant_reader_takes_what_fits(value, page):
    assert from_plain_tolerantly(value, Page) == page
