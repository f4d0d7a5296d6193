"""Writes zips whose bytes depend on the names and the content of their files alone."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

EPOCH = (1980, 1, 1, 0, 0, 0)  # the time of every file


def write_zip(target: Path | BinaryIO, files: Mapping[str, Path | bytes]) -> None:
    """Writes a zip with the same bytes for the same files, whatever their times, owners and order.

    Args:
        target: the file, which is replaced, or an open one.
        files: {name in the zip: its file, or its content}; what is compressed already is stored as it is.
    """
    with zipfile.ZipFile(target, "w") as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, EPOCH)
            info.create_system, info.external_attr = 3, 0o644 << 16
            is_dense = name.endswith((".safetensors", ".onnx", ".whl"))
            info.compress_type = zipfile.ZIP_STORED if is_dense else zipfile.ZIP_DEFLATED
            content = files[name]
            info.file_size = len(content) if isinstance(content, bytes) else content.stat().st_size
            with (
                io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as source,
                archive.open(info, "w") as entry,
            ):
                while block := source.read(2**20):
                    entry.write(block)
