"""What the readers of files return; what they refuse is in tests/corpus/test_hostile.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foldfuse.errors import InputError, kind_of, shown
from foldfuse.system import files


def test_text_is_read_in_every_unicode_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"):
        path.write_bytes("Müll 猫 \N{CAT}\n".encode(encoding))
        assert files.read_text(path, what="text") == "Müll 猫 \N{CAT}\n", encoding


def test_a_limit_of_the_size_is_kept_also_where_the_size_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 100)
    assert len(files.read_bytes(path, what="text", limit=100)) == 100
    with pytest.raises(InputError, match=r"has 100 bytes, expected text of at most 99 bytes"):
        files.read_bytes(path, what="text", limit=99)
    unknown = Path("/proc/self/status")  # its size is stated as 0
    if unknown.exists():
        assert files.read_bytes(unknown, what="text").startswith(b"Name:")
        with pytest.raises(InputError, match="expected text of at most 9 bytes"):
            files.read_bytes(unknown, what="text", limit=9)


def test_json_that_needs_more_memory_than_there_is_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text("[" + "1," * 1000 + "1]")
    monkeypatch.setattr(files, "_memory_bytes", lambda: 5000)
    with pytest.raises(InputError, match=r"need about 9\.78 KB of memory, and this machine has 4\.88 KB"):
        files.read_json(tmp_path / "a.json", what="JSON")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1, "a": 1}', {"a": 1}),  # nothing is lost
        ('["[[[[[", "]]"]', ["[[[[[", "]]"]),
        ("[" * 64 + "]" * 64, None),
        ('["\\ud83d\\ude00"]', ["😀"]),
        ('["\\\\ud800"]', ["\\ud800"]),
        ("9" * 300, int("9" * 300)),
        ('"' + "9" * 1000 + '"', "9" * 1000),
    ],
)
def test_odd_json_that_is_sound_is_read(tmp_path: Path, text: str, value: Any) -> None:
    (tmp_path / "a.json").write_text(text)
    read = files.read_json(tmp_path / "a.json", what="JSON")
    assert value is None or read == value


def test_yaml_keeps_words_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text('a: [no, 012, 1:30, 1.50, 2024-13-45, true, "7", 7, -3, ~, null, 0x10, 1_000]\n3: x\n4:\n')
    assert files.read_yaml(path, what="YAML") == {
        "a": ["no", "012", "1:30", "1.50", "2024-13-45", "true", "7", 7, -3, None, None, "0x10", "1_000"],
        3: "x",
        4: None,
    }


@pytest.mark.parametrize("encoding", ["gb2312", "gbk", "gb18030", "utf-8", "utf-16", "big5", "shift_jis", "euc-kr"])
def test_xml_is_read_in_the_encoding_that_it_names(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.xml"
    word = "日本"
    path.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>\n<a>{word}</a>'.encode(encoding))
    assert files.read_xml(path, what="XML").text == word


@pytest.mark.parametrize(
    "value",
    [None, pytest.param(10**5000, id="long"), "x" * 10**5, ["x" * 99] * 99, {"a": [{}] * 99}, float("nan"), "\x1b[31m"],
)
def test_values_are_shown_short(value: object) -> None:
    assert len(shown(value)) <= 62
    assert "\x1b" not in shown(value)


def test_any_value_can_be_shown() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    assert shown(deep) == "[[[[[…]]]]]"
    assert shown({"a": [None, True, "ü"]}) == "{'a': [null, true, 'ü']}"
    assert shown(10**5000) == "a whole number of many digits"
    assert len(shown("x" * 5000)) == 62
    assert len(shown(list(range(10**6)))) == 60
    assert [kind_of(value) for value in ({}, [], "", 1.5, True, None)] == [
        *("an object", "a list", "text", "a number", "true", "null")
    ]
