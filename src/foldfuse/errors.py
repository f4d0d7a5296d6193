"""The exception for wrong input, whose message is written for the user."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A file, a value or a name given by the user is wrong.

    The message says where, what was found, what was expected and how to fix it. The command line prints the
    message without a traceback and exits with status 2. A mistake in Foldfuse itself is an `assert`, never an InputError.
    """


def unknown_name(kind: str, got: str, known: Iterable[str]) -> InputError:
    """An InputError for a name that is not one of `known`, with the nearest one suggested."""
    known = sorted(known)
    near = difflib.get_close_matches(got, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return InputError(f"no {kind} is called {got!r}.{hint} Known: {', '.join(known)}.")
