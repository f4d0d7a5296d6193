"""The folder of the user's cache, for files that Foldfuse can make again."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """The folder for files that Foldfuse can make again."""
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(given) if given else Path.home() / ".cache") / "foldfuse"
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / "foldfuse-cache"
