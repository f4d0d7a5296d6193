"""Values of another kind than hoped for are absent, never an exception."""

from __future__ import annotations

import pytest

from foldfuse.reporting.values import (
    decoded,
    finite,
    list_of,
    number_of,
    object_of,
    pairs_of,
    path_of,
    rows_of,
    text_of,
)


@pytest.mark.parametrize("odd", [None, "4", [4], {"a": 4}, True, float("nan"), float("-inf")])
def test_what_is_no_number_is_none(odd):
    assert finite(odd) is None
    assert number_of({"key": odd}, "key") is None
    assert number_of({}, "key") is None


@pytest.mark.parametrize("text", ["", "{", "[1]", "4", '"a"', "null"])
def test_what_is_no_object_is_empty(text):
    assert decoded(text) == {}


def test_values_are_read_as_they_stand():
    row = {"number": 4, "text": "a", "list": [{"a": 1}, 2], "yes": True, "object": {"a": [1, None]}, "none": None}
    assert decoded('{"a": 4}') == {"a": 4}
    assert number_of(row, "number") == 4.0
    assert (text_of(row, "text"), text_of(row, "yes"), text_of(row, "none")) == ("a", "yes", None)
    assert (list_of(row, "list"), list_of(row, "text")) == ([{"a": 1}, 2], [])
    assert rows_of(row, "list") == [{"a": 1}]
    assert object_of(row["text"]) == {}
    assert pairs_of(row["object"]) == (("a", "1, none"),)
    assert path_of({"path": ""}, "path") is None
