"""Random faults in files, and what must hold of a command that is given one."""

from __future__ import annotations

import copy
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from fuzz_worker import Worker

DEEP: Any = "deep"
for _ in range(40):
    DEEP = [DEEP]
ATOMS = st.sampled_from(
    [
        *(
            None,
            True,
            False,
            "",
            "0",
            "1",
            "true",
            "nan",
            "x",
            "a/../b",
            "\x1b[31m",
            "[/]",
            "=1+1",
            "ü猫",
            "\u202e",
            "\0",
        ),
        *(0, 1, -1, 2, 3, 0.5, -0.0, 1e-320, 1e308, -1e308, float("nan"), float("inf"), -float("inf")),
        *(2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**100, 10**299, -(10**299)),
        *([], {}, [[]], [1], [None], [1, 2, 3, 4], [[1, 2, 3, 4, 5, 6]], {"a": 1}, {"counts": "1", "size": [1, 1]}),
        *(DEEP, "x" * 5000, [0] * 1000, ["a", "b"], {"0": "a"}, "2024-13-45", "../../etc/passwd", "/etc/passwd"),
    ]
).map(copy.deepcopy)
BYTES = st.sampled_from(
    [
        *(
            b"",
            b"\0",
            b"\xff",
            b"\xef\xbb\xbf",
            b"\xff\xfe",
            b"[",
            b"]",
            b"{",
            b'"',
            b"\\ud800",
            b"&lt;",
            b"<",
            b">",
            b"&",
            b"<!",
        ),
        *(
            b",",
            b":",
            b"-",
            b"\n",
            b"\r",
            b"\t",
            b" ",
            b"#",
            b"*",
            b"&a ",
            b"*a",
            b"!!",
            b"|",
            b"%",
            b"@",
            b"\x1b[2J",
            b"\xe2\x80\xae",
        ),
        *(b"9" * 400, b"1e999", b"nan", b"inf", b"0x1", b"NaN", b"Infinity", b"null", b"true", b"PK\x03\x04", b"PAR1"),
        *(b"[" * 2000, b"- " * 2000, b"<a>" * 500),
    ]
)


def check(worker: Worker, files: Mapping[str, bytes], command: Sequence[str]) -> None:
    """Runs a command on files, and checks what holds whatever they hold."""
    outcome = worker.run(files, command)
    context = f"{' '.join(command)}\nprinted: {outcome.printed[:2000]}\nfiles: {files!r}"[:20_000]
    assert not outcome.traceback, f"{outcome.traceback}\n{context}"
    assert outcome.status in (0, 1, 2), context
    assert not re.search("not enough memory|memory that is left|needs more memory", outcome.printed), context
    assert not re.search(r"Traceback|NoneType|<class '|Error\(", outcome.printed), context
    control = re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", outcome.printed)
    assert not control, f"printed a control character: {context}"
    if outcome.status == 2:
        errors = [line for line in outcome.printed.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, context
        assert len(errors[0]) < 2100, context
        assert not outcome.written, f"wrote {outcome.written}: {context}"


@st.composite
def changed(draw: st.DrawFn, sound: Any) -> Any:
    """A decoded JSON value with some of its parts exchanged, removed or doubled."""
    value = copy.deepcopy(sound)
    for _ in range(draw(st.integers(1, 3))):
        parent: Any = None
        part: Any = value
        key: Any = None
        while isinstance(part, dict | list) and part and (parent is None or draw(st.integers(0, 3))):
            parent = part
            key = draw(st.sampled_from(sorted(part))) if isinstance(part, dict) else draw(st.integers(0, len(part) - 1))
            part = part[key]
        action = draw(st.sampled_from(["exchange", "exchange", "exchange", "remove", "double", "add"]))
        if parent is None or (action == "exchange" and part is value):
            return draw(ATOMS)
        if action == "remove":
            del parent[key]
        elif action == "double" and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(part))
        elif action == "add" and isinstance(parent, dict):
            parent[draw(st.sampled_from(["", "id", "x", "bbox", "format"]))] = draw(ATOMS)
        else:
            parent[key] = draw(ATOMS)
    return value


@st.composite
def damaged(draw: st.DrawFn, sound: bytes) -> bytes:
    """Bytes of a file with some ranges exchanged."""
    content = sound
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.sampled_from([0, 0, 1, 2, 10, 10**9])))
        content = content[:start] + draw(BYTES) + content[end:]
    return content


def dump(value: Any) -> bytes:
    return json.dumps(value).encode()


def image(format: str) -> bytes:
    """The bytes of an image of 96 x 64 pixels, the same in every run."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    memory = io.BytesIO()
    Image.fromarray(pixels).save(memory, format)
    return memory.getvalue()
