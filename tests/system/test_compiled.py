"""Compiled loops run where machine code can be kept, and where it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foldfuse.system.compiled import compiled


def double(x: float) -> float:
    """Twice the number."""
    return 2 * x


def test_without_a_place_for_the_cache_the_loop_is_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    assert compiled()(double)(2.0) == 4.0


def test_a_cache_that_fails_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", full)
    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.load", full)
    assert compiled(error_model="numpy")(double)(3.0) == 6.0
