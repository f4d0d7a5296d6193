"""Values of annotation files are parsed as they are meant, and nothing is taken by its truth."""

from __future__ import annotations

import math
from typing import Any

import pytest

from foldfuse.data.values import Ids, flag, name, number, numbers, whole_number


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3.0),
        ("12.5", 12.5),
        (" 7 ", 7.0),
        ("-1e2", -100.0),
        (".5", 0.5),
        ("5.", 5.0),
        *(
            (value, None)
            for value in (None, True, False, "", "x", "nan", "inf", "1e999", "1,5", "1_0", "0x10", [1], {})
        ),
        *((value, None) for value in (math.nan, math.inf, "1" * 500)),
    ],
)
def test_numbers(value: Any, expected: float | None) -> None:
    assert number(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, 7),
        (7.0, 7),
        ("7", 7),
        ("7.0", 7),
        ("-7", -7),
        (2**63 - 1, 2**63 - 1),
        *(
            (value, None)
            for value in (2**63, "9" * 20, 1e30, 7.5, "7.5", True, None, "", "a", "٣", [7], math.nan, math.inf)
        ),
    ],
)
def test_whole_numbers(value: Any, expected: int | None) -> None:
    assert whole_number(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((value, True) for value in (1, 1.0, True, "1", "true", "YES", "1.0")),
        *((value, False) for value in (0, 0.0, False, None, "", "0", "false", "No", "0.0", "null")),
        *((value, None) for value in (2, -1, 0.5, "maybe", [], [0], {}, math.nan)),
    ],
)
def test_flags(value: Any, expected: bool | None) -> None:
    assert flag(value) is expected


def test_names() -> None:
    assert name("cat") == "cat"
    assert name(7) == "7"
    assert name(" cat") == " cat"
    for value in (None, "", "  ", True, [], {}, ["cat"], math.nan, "\ud800"):
        assert name(value) is None, value


def test_lists_of_numbers() -> None:
    assert numbers([1, "2.5"]) == [1, 2.5]
    assert numbers([[1, 2]]) == [1, 2]
    assert numbers("[1, 2, 3.5]") == [1, 2, 3.5]
    assert numbers("1 2") == [1, 2]
    assert numbers([]) == []
    for value in (None, 7, [1, None], [1, True], {"x": 1}, "a b", [[1], [2]]):
        assert numbers(value) is None, value


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ([3, 1, 2], [3, 1, 2]),
        (["3", 1.0, "2.0"], [3, 1, 2]),
        (["b", "a"], [1, 2]),
        (["b", 7, "a"], [8, 7, 9]),
        (["07", 7], [8, 7]),
        (["07", "08"], [7, 8]),
        (["7", 7], [7, 7]),
        ([10**20, 10**20 + 1], [1, 2]),
        ([2**63 - 1, "a"], [2**63 - 1, 1]),
        ([-5, "a"], [-5, 1]),
        ([None, True, 1.5, [], "", "a"], [None, None, None, None, None, 1]),
    ],
)
def test_ids_become_whole_numbers_of_64_bits(raw: list[Any], expected: list[int | None]) -> None:
    ids = Ids(raw)
    assert [ids.number(value) for value in raw] == expected
    assert all(value is None or abs(value) < 2**63 for value in expected)


def test_ids_that_are_kept_as_they_are_written() -> None:
    ids = Ids(["a", "007", "12", 5])
    assert [ids.original(value) for value in ("a", "007", "12", 5)] == ["a", "007", "12", None]
    assert [ids.fixed(value) for value in ("a", "007", "12", 5)] == ["a", "007", 12, 5]
    assert ids.number("unknown") is None
    assert ids.number(7) == ids.number("007")
