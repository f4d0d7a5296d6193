"""Values out of JSON that somebody else wrote: each may be missing or of another kind, and is then None or empty."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def decoded(text: str) -> dict[str, Any]:
    """The JSON object in a text; {} where it holds none."""
    try:
        return object_of(json.loads(text))
    except ValueError:
        return {}


def object_of(value: object) -> dict[str, Any]:
    """The value, if it is a JSON object; else {}."""
    return value if isinstance(value, dict) else {}


def finite(value: object) -> float | None:
    """The value, if it is a number that is neither infinite nor NaN."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good and isinstance(value, (int, float)) else None


def number_of(row: Mapping[str, Any], key: str) -> float | None:
    """The number under `key`, or None."""
    return finite(row.get(key))


def text_of(row: Mapping[str, Any], key: str) -> str | None:
    """What stands under `key`, as people write it; None where nothing does."""
    value = row.get(key)
    return None if value is None else word_of(value)


def path_of(row: Mapping[str, Any], key: str) -> Path | None:
    """The path under `key`, or None."""
    text = text_of(row, key)
    return Path(text) if text else None


def list_of(row: Mapping[str, Any], key: str) -> list[Any]:
    """The list under `key`; empty where there is none."""
    value = row.get(key)
    return value if isinstance(value, list) else []


def rows_of(row: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """The objects in the list under `key`; what is no object is passed over."""
    return [value for value in list_of(row, key) if isinstance(value, dict)]


def pairs_of(value: object) -> tuple[tuple[str, str], ...]:
    """The keys of an object with their values as people write them; empty where it is no object."""
    return tuple((str(k), word_of(v)) for k, v in value.items()) if isinstance(value, dict) else ()


def word_of(value: object) -> str:
    """A JSON value as people write it."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {word_of(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(word_of, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
