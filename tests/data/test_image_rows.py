"""Names of image files in a dataset."""

import os
from pathlib import Path

from foldfuse.data.readers.image_rows import relative_names


def test_images_on_two_drives_are_named_by_their_whole_paths(monkeypatch):
    paths = [Path("/c:/a/1.png"), Path("/d:/b/1.png")]
    assert list(relative_names(paths, Path("/c:/a")).values()) == ["c:/a/1.png", "d:/b/1.png"]

    def refuse(paths):
        raise ValueError("Paths don't have the same drive")

    monkeypatch.setattr(os.path, "commonpath", refuse)
    assert list(relative_names(paths, Path("/c:/a")).values()) == ["c/a/1.png", "d/b/1.png"]
    assert list(relative_names(paths[:1], Path("/c:/a")).values()) == ["1.png"]
