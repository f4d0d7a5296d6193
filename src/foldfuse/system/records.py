"""Typed records: frozen dataclasses as JSON files that are checked field by field when they are read.

A file holds the fields of one dataclass and "format", the version of its layout. A file of a later version than this package
knows is refused, and so is a field that is missing, unknown or of the wrong type: the sentence names it.

msgspec does the checking (https://jcristharif.com/msgspec/supported-types.html). Integers are taken where a float is expected;
nothing else is converted.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

import msgspec

from foldfuse.errors import InputError, kind_of, shown, unknown_name
from foldfuse.system.atomic_files import write_text
from foldfuse.system.files import read_json

R = TypeVar("R")
VERSION_KEY = "format"
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def to_plain(record: Any, *, version: int | None = None) -> dict[str, Any]:
    """The fields of a dataclass as JSON values: dicts, lists, str, int, float, bool and None.

    Args:
        record: a dataclass, whose fields may be dataclasses, tuples, mappings and paths.
        version: the version of the layout, written as "format" before the fields; nothing is added without one.
    """
    plain: dict[str, Any] = msgspec.to_builtins(record, enc_hook=_plain)
    return plain if version is None else {VERSION_KEY: version, **plain}


def from_plain(value: Any, kind: type[R], *, where: str, what: str, version: int | None = None) -> R:
    """The record of type `kind` in a decoded JSON value.

    Args:
        value: an output of `to_plain`, perhaps of another version of this package.
        kind: a dataclass.
        where: names the file in messages.
        what: the kind of record in messages, such as "a recipe".
        version: the latest layout that this package reads; without one the value carries no version.

    Raises:
        InputError: a later version; a field that is missing, unknown or of the wrong type; or a number that is not finite.
    """
    if not isinstance(value, dict):
        raise InputError(f"{where}: holds {kind_of(value)}, expected the JSON object of {what}.")
    if version is not None:
        value = dict(value)
        found = value.pop(VERSION_KEY, 1)
        if not isinstance(found, int) or isinstance(found, bool) or not 0 < found <= version:
            raise InputError(
                f"{where}: is {what} of format {shown(found)}, and this version of Foldfuse reads up to {version}. "
                "Update Foldfuse, or use the version that wrote it."
            )
    if (number := _non_finite(value)) is not None:
        raise InputError(f"{where}: is not {what}: it holds {number}, expected finite numbers.")
    if is_dataclass(kind):
        known = [field.name for field in fields(kind)]
        for name in value:
            if name not in known:
                raise InputError(f"{where}: is not {what} of this version: {unknown_name('field', str(name), known)}")
    try:
        return msgspec.convert(value, kind, dec_hook=_typed, str_keys=True)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: is not {what}: {in_words(str(error))}.") from None


def from_plain_tolerantly(value: Any, kind: type[R]) -> R | None:
    """The record of type `kind` with the fields that a decoded JSON value gives, for pages that show all readable fields.

    A field that is missing or of the wrong type takes its default, and an unknown field is ignored; this holds in nested
    records too. A tuple of records leaves out None. None for a value that is no JSON object or
    lacks a field without a default.
    """
    if not isinstance(value, Mapping):
        return None
    fields_read = {}
    for field, hint in _typed_fields(cast(Any, kind)):
        if field.name in value:
            with suppress(msgspec.ValidationError):
                fields_read[field.name] = _tolerant(value[field.name], hint)
        if field.name not in fields_read and field.default is MISSING and field.default_factory is MISSING:
            return None
    return kind(**fields_read)


def write_record(path: Path, record: Any, *, version: int) -> None:
    """Write a dataclass as a JSON file, whole or not at all. Raises ValueError for a number that is not finite."""
    write_text(path, json.dumps(to_plain(record, version=version), indent=1, allow_nan=False) + "\n")


def read_record(path: Path, kind: type[R], *, version: int, what: str, hint: str = "") -> R:
    """The dataclass in a JSON file that `write_record` wrote.

    Args:
        path: the file.
        kind: the dataclass.
        version: the latest layout that this package reads.
        what: the kind of record in messages, such as "a recipe".
        hint: a sentence for the reader where the file is missing.

    Raises:
        InputError: the file is missing, is not JSON, or is not such a record.
    """
    value = read_json(path, what=what, hint=hint, allow_nan=False)
    return from_plain(value, kind, where=str(path), what=what, version=version)


def in_words(message: str) -> str:
    """A message of msgspec in the words of JSON, such as "'seed' is null, expected a whole number"."""
    message = re.sub(
        r"`([a-z]+(?: \| [a-z]+)*)`",
        lambda match: " or ".join(_WORDS.get(name, f"`{name}`") for name in match[1].split(" | ")),
        message,
    )
    if missing := re.fullmatch(r"Object missing required field `(.*?)`(?: - at `\$\.?(.*)`)?", message):
        return f"{repr(missing[2]) if missing[2] else 'it'} has no {missing[1]!r}"
    message = re.sub(r" matching regex .*?(?= - at `|$)", " of another form", message)
    if unknown := re.fullmatch(r"Invalid enum value (.*?)(?: - at `\$\.?(.*)`)?", message):
        return f"{repr(unknown[2]) if unknown[2] else 'it'} is {unknown[1]}, which is none of its values"
    found = re.fullmatch(r"Expected (.*?)(?:, got (.*?))?(?: - at `\$\.?(.*)`)?", message)
    if found is None:
        return message[:1].lower() + message[1:].replace(" - at `$.", " in `")
    expected, got, place = found.groups()
    if got is not None and got.isdigit():
        return f"{place!r} has length {got}, expected {expected}"
    subject = repr(place) if place else "it"
    return f"{subject} is {got or 'something else'}, expected {expected}"


def _non_finite(value: Any) -> float | None:
    """A number in a decoded JSON value that is not finite; None where there is none."""
    stack = [value]
    while stack:
        part = stack.pop()
        if isinstance(part, dict | list | tuple):
            stack.extend(part.values() if isinstance(part, dict) else part)
        elif isinstance(part, float) and not math.isfinite(part):
            return part
    return None


@cache
def _typed_fields(kind: Any) -> list[tuple[Field[Any], Any]]:
    """The fields of a dataclass with their types."""
    hints = get_type_hints(kind)
    return [(field, hints[field.name]) for field in fields(kind)]


def _tolerant(value: Any, hint: Any) -> Any:
    """A value of the type `hint`. Raises msgspec.ValidationError for a value of another type."""
    records: list[Any] = [kind for kind in get_args(hint) if is_dataclass(kind)]
    if not records or value is None:
        return msgspec.convert(value, hint, dec_hook=_typed)
    if get_origin(hint) is not tuple:
        return from_plain_tolerantly(value, records[0])
    rows = (from_plain_tolerantly(row, records[0]) for row in msgspec.convert(value, list[Any]))
    return tuple(row for row in rows if row is not None)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be part of a record")


def _typed(kind: type, value: Any) -> Any:
    if issubclass(kind, Path) and isinstance(value, str):
        return kind(value)
    raise TypeError(f"{kind.__name__} cannot be part of a record")
