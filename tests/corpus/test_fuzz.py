"""Files with random faults are read right or refused in one sentence: no traceback, nothing written, no hang, bounded memory."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from corpus_samples import coco
from foldfuse.data.readers.coco import read
from foldfuse.formats.predictions import read_predictions, write_predictions
from foldfuse.storage import ledger
from fuzz_samples import ATOMS, changed, check, damaged, dump, image
from fuzz_worker import Worker
from ledger_samples import a_record

pytest.importorskip("resource", reason="limits of memory")

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "100"))  # of each reader; more find rarer faults
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.generate,),  # shrinking takes minutes; the message has the whole input
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    started = Worker()
    yield started
    started.close()


IMAGES = [image(format) for format in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")]
JPEG = IMAGES[0]
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
    "format": 2,
    "method": "wbf",
    "iou": 0.55,
    "score_threshold": 0.0,
    "weights": {"p": 1.0, "q": 0.5},
    "score_exponents": {"p": 1.0},
    "calibrations": {"p": {"slope": 0.8, "offset": -0.3}},
    "stack": {
        "coefficients": {"score": -0.1, "agreement": 1.5, "size_squared": -0.2},
        "intercept": -0.5,
        "class_sizes": [[3.0, 0.5], [3.5, 0.4]],
        "voters": {},
    },
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
        "images/train/a.jpg": JPEG,
        "images/train/b.jpg": JPEG,
    }
    check(worker, files, ["check", "data.yaml", "--json-only"])


@fuzz
@given(content=st.sampled_from(IMAGES).flatmap(damaged))
def test_images(worker: Worker, content: bytes) -> None:
    check(worker, {"train.json": dump(coco(1)), "images/1.jpg": content}, ["check", "train.json"])


@fuzz
@given(labels=damaged(b"0 0.5 0.5 0.2 0.2 0.9\n"))
def test_yolo_predictions(worker: Worker, labels: bytes) -> None:
    check(worker, {"train.json": dump(coco(1)), "p/1.txt": labels}, ["convert", "p", "train.json", "--out", "o.json"])


@fuzz
@given(xml=damaged(XML))
def test_voc(worker: Worker, xml: bytes) -> None:
    files = {"Annotations/a.xml": xml, "Annotations/b.xml": XML.replace(b"a.jpg", b"b.jpg")}
    files |= {"JPEGImages/a.jpg": JPEG, "JPEGImages/b.jpg": JPEG}
    check(worker, files, ["check", ".", "--json-only"])


ANNOTATION_TABLES = [
    b'image_id,width,height,bbox,source\na,96,64,"[36.0, 16.0, 24.0, 32.0]",x\nb,96,64,"[36, 16, 24, 32]",x\n',
    b"filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,96,64,dog,36,16,60,48\nb.jpg,96,64,dog,36,16,60,48\n",
    b"image_id,PredictionString\na,3 1 36 16 60 48\nb,14 1 0 0 1 1\n",
    b"image_name,BoxesString,domain\na.jpg,36 16 60 48,1\nb.jpg,no_box,1\n",
]
CVAT = b"""<annotations><version>1.1</version><meta><job><labels><label><name>cat</name></label></labels></job></meta>
<image id="0" name="a.jpg" width="96" height="64"><box label="cat" xtl="36.0" ytl="16.0" xbr="60.0" ybr="48.0" occluded="0">
</box><tag label="cat"></tag></image><image id="1" name="b.jpg" width="96" height="64"></image></annotations>
"""
REGION = {"original_width": 96, "original_height": 64, "image_rotation": 0, "type": "rectanglelabels", "id": "r"}
SQUARE = {"x": 37.5, "y": 25.0, "width": 25.0, "height": 50.0, "rotation": 0, "rectanglelabels": ["cat"]}
POINTS = {"points": [[10, 10], [20.5, 10], [15, 30]], "polygonlabels": ["dog"]}
TASKS = [
    {
        "id": 1,
        "data": {"image": "/data/local-files/?d=images/a.jpg", "image_id": 4},
        "annotations": [{"result": [REGION | {"value": SQUARE}, REGION | {"value": POINTS}], "was_cancelled": False}],
        "predictions": [],
    },
    {
        "id": 2,
        "data": {"image": "/data/upload/1/0a1b2c3d-b.jpg", "image_id": 5},
        "annotations": [{"result": [], "ground_truth": True}, {"result": [REGION | {"value": SQUARE}]}],
    },
]
SMALL_TASKS = [
    {"image": "s3://x/a.jpg", "id": 1, "label": [REGION | SQUARE], "annotation_id": 1},
    {"image": "s3://x/b.jpg", "id": 2, "label": [REGION | POINTS], "annotation_id": 2},
]
BOX_TABLES = [
    b"image_id,category_id,score,x1,y1,x2,y2\n1,1,0.5,8,8,32,24\n2,2,0.25,48,24,80,56\n",
    b"filename,class,conf,xmin,ymin,xmax,ymax\n1.jpg,cat,0.5,8,8,32,24\n2.jpg,dog,0.25,48,24,80,56\n",
]
SAMPLES = [
    b"image_id,PredictionString\n1,14 1 0 0 1 1\n2,14 1 0 0 1 1\n3,14 1 0 0 1 1\n4,14 1 0 0 1 1\n",
    b"image_id,class,confidence,xmin,ymin,xmax,ymax\n1,1,0.5,0,0,1,1\n2,1,0.5,0,0,1,1\n3,1,0.5,0,0,1,1\n4,1,0.5,0,0,1,1\n",
]


@fuzz
@given(table=st.sampled_from(ANNOTATION_TABLES).flatmap(damaged))
def test_annotation_tables(worker: Worker, table: bytes) -> None:
    files = {"train.csv": table, "images/a.jpg": JPEG, "images/b.jpg": JPEG}
    check(worker, files, ["check", "train.csv", "--json-only"])


@fuzz
@given(xml=damaged(CVAT))
def test_cvat(worker: Worker, xml: bytes) -> None:
    files = {"annotations.xml": xml, "images/a.jpg": JPEG, "images/b.jpg": JPEG}
    check(worker, files, ["check", "annotations.xml", "--json-only"])


@fuzz
@given(tasks=st.sampled_from([TASKS, SMALL_TASKS]).flatmap(changed))
def test_label_studio(worker: Worker, tasks: Any) -> None:
    files = {"tasks.json": dump(tasks), "images/a.jpg": JPEG, "images/b.jpg": JPEG}
    check(worker, files, ["check", "tasks.json", "--json-only"])


@fuzz
@given(table=st.sampled_from(BOX_TABLES).flatmap(damaged))
def test_box_tables(worker: Worker, table: bytes) -> None:
    files = {"train.json": dump(COCO), "p.csv": table}
    check(worker, files, ["convert", "p.csv", "train.json", "--out", "o.json"])


@fuzz
@given(sample=st.sampled_from(SAMPLES).flatmap(damaged))
def test_sample_submissions(worker: Worker, sample: bytes) -> None:
    files = {"train.json": dump(COCO), "p.json": dump(RESULTS), "s.csv": sample}
    more = ["--format", "label_score_xyxy"] if b"PredictionString" in sample else []
    check(
        worker, files, ["submit", "p.json", "train.json", "--like", "s.csv", "--labels", "id", "--out", "o.csv", *more]
    )


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Predictions in Foldfuse's Parquet."""
    folder = tmp_path_factory.mktemp("parquet")
    for name, content in (("train.json", COCO), ("p.json", RESULTS)):
        (folder / name).write_bytes(dump(content))
    dataset = read(folder / "train.json")
    write_predictions(read_predictions(folder / "p.json", dataset), folder / "p.parquet", dataset)
    return (folder / "p.parquet").read_bytes()


@fuzz
@given(data=st.data())
def test_parquet(worker: Worker, parquet: bytes, data: st.DataObject) -> None:
    files = {"train.json": dump(COCO), "p.parquet": data.draw(damaged(parquet))}
    check(worker, files, ["convert", "p.parquet", "train.json", "--out", "o.json"])


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
    "fingerprints": {"data": "x"},
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
    "evaluation.json": {
        "format": 1,
        "held_out": "fold 0 of folds.json",
        "data": "train.json",
        "num_images": 2,
        "num_objects": 3,
        "num_learnt": 0,
        "steps": 10,
        "predictions": "oof.parquet",
        "score": {
            **dict.fromkeys(("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100"), 0.5),
            "per_class": [{"name": "cat", "boxes": 3, "ap": 0.5, "ap50": None}],
        },
    },
}
THRESHOLD = {
    "name": "cat",
    "score": 0.4,
    "low": 0.3,
    "high": 0.5,
    "objects": 3,
    "f": 0.6,
    "precision": 0.5,
    "recall": 0.7,
    "is_own": True,
}
SCORES = {"all_boxes": 0.6, "class_mean": 0.5}
THRESHOLDS = {
    "format": 1,
    "beta": 1.0,
    "num_images": 9,
    "best": THRESHOLD,
    "by_class": [THRESHOLD],
    "steps": None,
    **dict.fromkeys(("one", "each", "one_cv", "each_cv"), SCORES),
}


@fuzz
@given(data=st.data())
def test_thresholds(worker: Worker, data: st.DataObject) -> None:
    sound = {"images": [{"id": 1, "file_name": "a.png", "width": 9, "height": 9}], "annotations": [], "categories": []}
    sound["categories"] = [{"id": 1, "name": "cat"}]
    rows = [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "score": 0.5}]
    content = data.draw(st.one_of(changed(THRESHOLDS).map(dump), damaged(dump(THRESHOLDS))))
    files = {"thresholds.json": content, "d.json": dump(sound), "p.json": dump(rows)}
    words = ["submit", "p.json", "d.json", "--out", "s.json", "--score-threshold", "best-by-class"]
    check(worker, files, [*words, "--input-format", "coco_json"])


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
