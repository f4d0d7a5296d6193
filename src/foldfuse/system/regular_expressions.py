"""Regular expressions of the user, which may need years: they run in a process that can be ended."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from foldfuse.errors import InputError, shown

SECONDS = 20.0  # a million names take one second

_PROGRAM = """
import json, re, sys
pattern, texts = json.load(sys.stdin)
try:
    expression = re.compile(pattern)
    group = min(1, expression.groups)
    found = [(match.group(group) or "") if (match := expression.search(text)) else None for text in texts]
    print(json.dumps({"found": found}))
except (re.error, OverflowError, RecursionError, MemoryError) as error:
    print(json.dumps({"error": str(error) or type(error).__name__}))
"""


def first_matches(pattern: str, texts: Sequence[str], *, seconds: float | None = None) -> list[str | None]:
    """The first match of a regular expression in each text, or that of its first group in parentheses; None for no match.

    Raises:
        InputError: `pattern` is not a regular expression, or takes longer than `seconds`, by default SECONDS.
    """
    seconds = SECONDS if seconds is None else seconds
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _PROGRAM],
            input=json.dumps([pattern, list(texts)]),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"the regular expression {shown(pattern)} took longer than {seconds:g} s. Write it without repetitions within "
            "repetitions, such as (a+)+."
        ) from None
    answer = json.loads(done.stdout or "{}")
    if "found" not in answer:
        raise InputError(
            f"the group {shown(pattern)} is not a regular expression ({answer.get('error', 'it needs too much memory')})."
        )
    found: list[str | None] = answer["found"]
    return found
