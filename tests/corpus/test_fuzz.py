"""Files with random faults are read right or refused in one sentence: no traceback, nothing written, no hang, bounded memory."""

from __future__ import annotations

import copy
import io
import json
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from corpus_samples import coco
from foldfuse.storage import ledger
from fuzz_worker import Worker
from ledger_samples import a_record

pytest.importorskip("resource", reason="limits of memory")

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))  # of each reader; more find rarer faults
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.generate,),  # shrinking takes minutes; the message has the whole input
    suppress_health_check=list(HealthCheck),
)

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


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    started = Worker()
    yield started
    started.close()


def check(worker: Worker, files: Mapping[str, bytes], command: Sequence[str]) -> None:
    """Runs a command on files, and checks what holds whatever they hold."""
    outcome = worker.run(files, command)
    context = f"{' '.join(command)}\nprinted: {outcome.printed[:2000]}\nfiles: {files!r}"[:20_000]
    assert not outcome.traceback, f"{outcome.traceback}\n{context}"
    assert outcome.status in (0, 1, 2), context
    assert "memory" not in outcome.printed, context
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


def jpeg(width: int = 96, height: int = 64) -> bytes:
    memory = io.BytesIO()
    Image.effect_noise((width, height), 60).convert("RGB").save(memory, "JPEG")
    return memory.getvalue()


COCO = coco()
RESULTS = [
    {"image_id": row["image_id"], "category_id": row["category_id"], "bbox": row["bbox"], "score": 0.5}
    for row in COCO["annotations"]
]
CSV = b"image_id,PredictionString\n" + b"".join(b"%d.jpg,0 0.5 8 8 24 16 1 0.25 48 24 32 32\n" % i for i in range(1, 5))
YAML = b"path: .\ntrain: images/train\nval: images/train\nnc: 2\nnames:\n  0: cat\n  1: dog\n"
LABELS = b"0 0.5 0.5 0.2 0.2\n1 0.25 0.25 0.1 0.1\n1 0.1 0.1 0.2 0.1 0.2 0.2\n"
XML = b"""<?xml version="1.0" encoding="UTF-8"?>
<annotation><folder>JPEGImages</folder><filename>a.jpg</filename><size><width>96</width><height>64</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>32</xmax><ymax>24</ymax></bndbox></object>
</annotation>
"""
ENSEMBLE = {
    "format": 1,
    "method": "wbf",
    "iou": 0.55,
    "score_threshold": 0.0,
    "weights": {"p": 1.0, "q": 0.5},
    "score_exponents": {"p": 1.0},
}


@fuzz
@given(
    files=st.one_of(changed(COCO).map(dump), damaged(dump(COCO))),
    command=st.sampled_from(["check", "convert", "score"]),
)
def test_coco_json(worker: Worker, files: bytes, command: str) -> None:
    words = {
        "check": ["check", "train.json", "--json-only"],
        "convert": ["convert", "p.json", "train.json", "--out", "o.csv"],
        "score": ["score", "p.json", "train.json"],
    }
    check(worker, {"train.json": files, "p.json": dump(RESULTS)}, words[command])


@fuzz
@given(
    content=st.one_of(changed(RESULTS).map(dump), damaged(dump(RESULTS))),
    command=st.sampled_from(["convert", "score", "submit"]),
)
def test_results_json(worker: Worker, content: bytes, command: str) -> None:
    out = [] if command == "score" else ["--out", "o.csv"]
    check(worker, {"train.json": dump(COCO), "p.json": content}, [command, "p.json", "train.json", *out])


@fuzz
@given(content=damaged(CSV), layout=st.sampled_from([None, "label_score_xywh"]))
def test_csv(worker: Worker, content: bytes, layout: str | None) -> None:
    more = [] if layout is None else ["--input-format", layout]
    check(
        worker,
        {"train.json": dump(COCO), "p.csv": content},
        ["convert", "p.csv", "train.json", "--out", "o.json", *more],
    )


@fuzz
@given(yaml=st.one_of(damaged(YAML), st.just(YAML)), labels=st.one_of(damaged(LABELS), st.just(LABELS)))
def test_yolo(worker: Worker, yaml: bytes, labels: bytes) -> None:
    files = {
        "data.yaml": yaml,
        "labels/train/a.txt": labels,
        "images/train/a.jpg": jpeg(),
        "images/train/b.jpg": jpeg(),
    }
    check(worker, files, ["check", "data.yaml", "--json-only"])


@fuzz
@given(xml=damaged(XML))
def test_voc(worker: Worker, xml: bytes) -> None:
    files = {"Annotations/a.xml": xml, "Annotations/b.xml": XML.replace(b"a.jpg", b"b.jpg")}
    files |= {"JPEGImages/a.jpg": jpeg(), "JPEGImages/b.jpg": jpeg()}
    check(worker, files, ["check", ".", "--json-only"])


@fuzz
@given(content=st.one_of(changed(ENSEMBLE).map(dump), damaged(dump(ENSEMBLE))))
def test_ensemble_json(worker: Worker, content: bytes) -> None:
    files = {"train.json": dump(COCO), "p.json": dump(RESULTS), "q.json": dump(RESULTS), "e.json": content}
    words = ["fuse", "p.json", "q.json", "--data", "train.json", "--ensemble", "e.json", "--out", "o.parquet"]
    check(worker, files, words)


FACTS: dict[str, Any] = {
    "format": 1,
    "state": "finished",
    "data": "train.json",
    "test": None,
    "started": "2026-01-01T00:00:00+00:00",
    "finished": "2026-01-01T00:10:00+00:00",
    "seed": 0,
    "metric": "ap50",
    "classes": ["cat", "dog"],
    "ranking": ["a"],
    "plan": {"segments": [{"name": "b", "image_size": 64, "seconds": 3.0}]},
    "left_out": [{"name": "c", "reason": "no time"}],
    "fingerprints": {"labeled": "x"},
    "fused": {"ap50": 0.5, "ap": 0.3, "metric": "ap50", "value": 0.5},
    "members": [{"name": "a", "ap50": 0.5, "ap": 0.3, "weight": 1.0}],
}


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the ledger of a small campaign and its export."""
    folder = tmp_path_factory.mktemp("campaign")
    with closing(ledger.create(folder, FACTS, deadline=600.0, start=time.monotonic())) as made:
        made.put_segment(
            a_record("a", state="done", seconds=5.0, ended=6.0, result={"ap50": 0.5, "ap": 0.3, "weight": 1.0})
        )
        made.put_segment(a_record("b"))
        made.add_submission(0.5, FACTS["fused"])
        made.log("a sentence")
        made.export()
    return folder


@pytest.fixture(scope="module")
def tables(campaign: Path) -> dict[str, list[str]]:
    """{table: names of its columns} of a ledger."""
    with closing(sqlite3.connect(campaign / ledger.NAME)) as db:
        names = [
            row[0]
            for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'")
        ]
        return {name: [row[1] for row in db.execute(f"PRAGMA table_info({name})")] for name in names}


CELLS = st.one_of(
    st.sampled_from(
        [
            None,
            0,
            -1,
            2**62,
            1e308,
            float("inf"),
            "",
            "x",
            "null",
            "[]",
            "{}",
            "NaN",
            "1e400",
            "[" * 3000,
            b"\xff\0",
            "\x1b[31m",
        ]
    ),
    ATOMS.map(lambda value: json.dumps(value)),
)


@fuzz
@given(data=st.data(), command=st.sampled_from(["report", "watch", "compare", "note"]))
def test_ledger(
    worker: Worker, campaign: Path, tables: dict[str, list[str]], data: st.DataObject, command: str
) -> None:
    sound = (campaign / ledger.NAME).read_bytes()
    path = campaign / "changed.sqlite"
    path.write_bytes(sound)
    with closing(sqlite3.connect(path)) as db, db:
        for _ in range(data.draw(st.integers(1, 2))):
            table = data.draw(st.sampled_from(sorted(tables)))
            column = data.draw(st.sampled_from(tables[table]))
            key, row = tables[table][0], data.draw(st.integers(0, 12))
            of_row = f"{key} = (SELECT {key} FROM {table} LIMIT 1 OFFSET {row})"
            with suppress(sqlite3.IntegrityError):  # the table itself refuses the value
                db.execute(f"UPDATE OR REPLACE {table} SET {column} = ? WHERE {of_row}", (data.draw(CELLS),))
    content = path.read_bytes()
    if data.draw(st.integers(0, 4)) == 0:
        content = data.draw(damaged(content))
    words = {
        "report": ["report", "c", "--out", "o.html"],
        "watch": ["watch", "c"],
        "compare": ["compare", "c", "d"],
        "note": ["note", "c", "text"],
    }
    check(worker, {"c/campaign.sqlite": content, "d/campaign.sqlite": sound}, words[command])


METADATA = {
    "classes": ["cat", "dog"],
    "category_ids": [1, 2],
    "data": "train.json",
    "seed": 0,
    "steps": 10,
    "seconds": 3.0,
}
RUN: dict[str, Any] = {
    "run.json": {"format": 1, **METADATA},
    "recipe.json": {"format": 1, "detector": "lite0_fpn", "image_size": 64},
    "log.jsonl": {"step": 1, "seconds": 0.1, "loss": 1.5},
}


@fuzz
@given(data=st.data(), name=st.sampled_from(sorted(RUN)))
def test_run_folder(worker: Worker, data: st.DataObject, name: str) -> None:
    files = {f"r/{key}": dump(value) + b"\n" for key, value in RUN.items()}
    files[f"r/{name}"] = data.draw(st.one_of(changed(RUN[name]).map(dump), damaged(files[f"r/{name}"]))) + b"\n"
    check(worker, files, ["report", "r", "--out", "o.html"])


@fuzz
@given(data=st.data())
def test_exported_campaign(worker: Worker, campaign: Path, data: st.DataObject) -> None:
    sound = json.loads((campaign / "campaign.json").read_text())
    content = data.draw(st.one_of(changed(sound).map(dump), damaged(dump(sound))))
    name = data.draw(st.sampled_from(["report", "watch"]))
    check(worker, {"c/campaign.json": content}, [name, "c", *(["--out", "o.html"] if name == "report" else [])])
