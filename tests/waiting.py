"""Waiting for a state, for the tests that watch another process or thread."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], *, what: str, seconds: float = 300.0) -> None:
    """Poll until `condition()` is true. The limit is generous, for the tests may share the machine."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds:g} s for {what}"
        time.sleep(0.01)
