"""The one exception that a user is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something that the user gave is wrong: a file, a value, a name.

    The message says where, what was found, what was expected and how to mend it. The command line prints it
    without a traceback and exits with status 2. Our own mistakes are `assert`s, never this.
    """


def unknown_name(kind: str, got: str, known: Iterable[str]) -> InputError:
    """An InputError for a name that is not one of `known`, with the nearest one suggested."""
    known = sorted(known)
    near = difflib.get_close_matches(got, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return InputError(f"no {kind} is called {got!r}.{hint} Known: {', '.join(known)}.")
