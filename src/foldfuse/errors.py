"""The exception for wrong input, whose message is written for the user."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path


class InputError(ValueError):
    """A file, a value or a name given by the user is wrong.

    The message says where, what was found, what was expected and how to fix it. The command line prints the
    message without a traceback and exits with status 2. A mistake in Foldfuse itself is an `assert`, never an InputError.
    """

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of a traceback: the sentence."""
        return [f"{type(self).__name__}: {self}"]


class Interrupted(KeyboardInterrupt):
    """Work that was interrupted; the message says what is kept and how to resume in a terminal.

    Attributes:
        command: the command that resumes the work: "train" or "campaign"; None where nothing is to be resumed.
        folder: what its option --resume takes.
    """

    def __init__(self, message: str, *, command: str | None = None, folder: Path | None = None) -> None:
        super().__init__(message)
        self.command, self.folder = command, folder

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of a traceback: the sentence."""
        return [f"{type(self).__name__}: {self}"]


def shown(value: object, limit: int = 60) -> str:
    """A value as a message shows it: text in quotes, other values as JSON writes them, shortened to `limit` characters.

    Any value is safe to show: large, nested deep, with control characters, or a number of thousands of digits.
    """
    if isinstance(value, str):
        return repr(value if len(value) <= limit else value[: limit - 1] + "…")
    text = _json_text(value, limit, depth=4)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def kind_of(value: object) -> str:
    """What a decoded JSON value is, in words: "an object", "a list", "text", "a number", "true", "false" or "null"."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    kinds = ((Mapping, "an object"), (list | tuple, "a list"), (str, "text"), (int | float, "a number"))
    return next((words for kind, words in kinds if isinstance(value, kind)), type(value).__name__)


def _json_text(value: object, limit: int, depth: int) -> str:
    """At least the first `limit` characters of a value's JSON; lists and objects below `depth` are left out."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return repr(value[: limit + 1])
    if isinstance(value, int) and abs(value) >= 10**limit:
        return "a whole number of many digits"
    if not isinstance(value, Mapping | list | tuple):
        return str(value)[: limit + 1]
    items: Iterable[object] = value.items() if isinstance(value, Mapping) else value
    parts: list[str] = []
    for item in itertools.islice(items, limit):
        if depth == 0 or sum(map(len, parts)) > limit:
            parts.append("…")
            break
        parts.append(
            ": ".join(_json_text(part, limit, depth - 1) for part in item)
            if isinstance(value, Mapping) and isinstance(item, tuple)
            else _json_text(item, limit, depth - 1)
        )
    text = ", ".join(parts)
    return f"{{{text}}}" if isinstance(value, Mapping) else f"[{text}]"


def unknown_name(kind: str, got: str, known: Iterable[str]) -> InputError:
    """An InputError for a name that is not one of `known`, with the nearest one suggested."""
    known = sorted(known)
    near = difflib.get_close_matches(got[:100], known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return InputError(f"no {kind} is called {shown(got)}.{hint} Known: {', '.join(known)}.")


def counted(number: int, noun: str) -> str:
    """A number with its noun, such as "1 step" or "1,200 steps"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
