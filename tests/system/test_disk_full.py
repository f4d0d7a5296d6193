"""A full disk is recognised by errno or by the words of torch, SQLite and safetensors; other errors pass through."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

import pytest

from foldfuse.errors import InputError
from foldfuse.system.disk_full import disk_full_as_input_error, disk_full_reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "no words that help"), "the disk is full"),
        (OSError(errno.EFBIG, "File too large"), "the disk is full"),
        (sqlite3.OperationalError("database or disk is full"), "the disk is full"),
        (sqlite3.OperationalError("disk I/O error"), "the disk is broken, over its quota or full"),
        (RuntimeError("[enforce fail at inline_container.cc] . unexpected pos 64 vs 0"), "the disk is full"),
        (OSError(errno.EACCES, "Permission denied"), None),
        (ValueError("wrong"), None),
    ],
)
def test_a_full_disk_is_recognised(error, reason):
    assert disk_full_reason(error) == reason


def test_a_full_disk_becomes_one_sentence_with_the_hint():
    with (
        pytest.raises(InputError, match=r"^out: the disk is full\. Make room\.$"),
        disk_full_as_input_error(Path("out"), lambda: "Make room."),
    ):
        raise OSError(errno.ENOSPC, "no space")


def test_another_error_stays_what_it_is():
    with pytest.raises(ZeroDivisionError), disk_full_as_input_error(Path("out"), lambda: "Make room."):
        raise ZeroDivisionError
