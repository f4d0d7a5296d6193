"""Parses the values of annotation files: numbers, flags, ids and names, as exporters write them.

Exporters write numbers as text, flags as words, and ids as names. Each function here either returns the value that was meant or
None; no value is taken by its truth, under which the text "0" would be a yes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

INT64_MAX = 2**63 - 1
MAX_DIGITS = 400  # of a number as text; a float has at most 309 before the point
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
WHOLE_NUMBER = re.compile(r"[+-]?\d+(\.0*)?", re.ASCII)
YES = frozenset({"1", "1.0", "true", "yes", "y", "t", "on"})
NO = frozenset({"", "0", "0.0", "false", "no", "n", "f", "off", "none", "null"})


def number(value: Any) -> float | None:
    """A finite number, also one written as text ("12.5"); None for anything else, such as True, NaN, 1e400 or a list."""
    if type(value) is float and math.isfinite(value):
        return value
    if isinstance(value, str):
        text = value.strip()
        value = float(text) if len(text) <= MAX_DIGITS and NUMBER.fullmatch(text) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        value = float(value)
    except OverflowError:  # an integer beyond a float
        return None
    return value if math.isfinite(value) else None


def whole_number(value: Any) -> int | None:
    """A whole number within 64 bits, also one written as 7.0, "7" or "7.0"; None for anything else."""
    if type(value) is int and -INT64_MAX <= value <= INT64_MAX:
        return value
    if isinstance(value, str):
        text = value.strip()
        if len(text) > 40 or not WHOLE_NUMBER.fullmatch(text):
            return None
        value = int(text.split(".")[0])
    elif (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or (isinstance(value, float) and not value.is_integer())
    ):
        return None
    return int(value) if -INT64_MAX <= value <= INT64_MAX else None


def flag(value: Any) -> bool | None:
    """Yes or no, also as a number or a word ("0", "false", "no"); None and "" are no; None for anything else."""
    if isinstance(value, str):
        word = value.strip().lower()
        return True if word in YES else False if word in NO else None
    if value is None:
        return False
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    return None


def name(value: Any) -> str | None:
    """A name that is not blank, or a number as text; None for anything else."""
    if isinstance(value, str):
        return value if value.strip() and is_text(value) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (isinstance(value, float) and value != value):
        return None
    return str(value) if abs(value) < 10**40 else None


def is_text(value: str) -> bool:
    """Whether UTF-8 can hold a text; it cannot hold half of a surrogate pair, which JSON can."""
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def numbers(value: Any) -> list[float] | None:
    """The numbers in a list, in a list within a list, or in a text such as "[1, 2, 3, 4]"; None where something else is in it."""
    if isinstance(value, str):
        value = value.strip()[:MAX_DIGITS].strip("[]()").replace(",", " ").split()
    if isinstance(value, (list, tuple)) and len(value) == 1 and isinstance(value[0], (list, tuple)):
        value = value[0]
    if not isinstance(value, (list, tuple)):
        return None
    found = [number(item) for item in value]
    return None if None in found else [item for item in found if item is not None]


class Ids:
    """The ids of a list as whole numbers within 64 bits.

    Whole numbers stay as they are, also where they are written as text. Other ids (words, numbers beyond 64 bits, and texts such
    as "007" where 7 is another row) are numbered above the largest number, in the order of the list.
    """

    def __init__(self, raw: Iterable[Any]) -> None:
        keys = list(dict.fromkeys(key for value in raw if (key := id_key(value)) is not None))
        self._of_text: dict[str, int] = {}
        taken: set[int] = set()
        others: list[str | int] = []
        for key in sorted(keys, key=lambda key: isinstance(key, str)):  # numbers come before texts that look like them
            value = whole_number(key)
            if value is None or (value in taken and str(value) != key):
                others.append(key)
            else:
                taken.add(value)
                if isinstance(key, str):
                    self._of_text[key] = value
        others.sort(key={key: i for i, key in enumerate(keys)}.__getitem__)
        free = max((value for value in taken if value < INT64_MAX - len(others)), default=0)
        free = max(free, 0)
        self.renumbered: dict[str | int, int] = {}
        for key in others:
            free += 1
            while free in taken:
                free += 1
            self.renumbered[key] = free
            self._of_text[str(key)] = free

    def number(self, raw: Any) -> int | None:
        """The number of an id; None for a value that is no id of this list and no whole number."""
        if type(raw) is int and -INT64_MAX <= raw <= INT64_MAX:
            return raw
        key = id_key(raw)
        if key is None:
            return None
        if isinstance(key, str) and key in self._of_text:
            return self._of_text[key]
        value = whole_number(key)
        if value is None:
            return self._of_text.get(str(key))
        return value

    def original(self, raw: Any) -> str | int | None:
        """The id as it is written, where it is not the whole number itself."""
        key = id_key(raw)
        return None if key is None or key == self.number(raw) else key

    def fixed(self, raw: Any) -> Any:
        """The id in a fixed copy: a plain whole number as a number, any other id as it is."""
        value = self.number(raw)
        return value if value is not None and str(value) == str(id_key(raw)) else raw


def id_key(value: Any) -> str | int | None:
    """An id as it is compared: text without blanks around it, or a whole number of any size; None for anything else."""
    if isinstance(value, str):
        return value.strip() if value.strip() and is_text(value) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, float):
        return int(value) if math.isfinite(value) and value.is_integer() else None
    return value if abs(value) < 10**100 else None
