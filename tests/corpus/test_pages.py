"""Names that are HTML are text in every page."""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path

import pytest

from corpus_samples import Case, coco, parametrize, run, write_coco
from foldfuse.storage import ledger
from ledger_samples import a_record

HTML = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
FOLDER = "<i>c&"


def campaigns(folder: Path) -> None:
    """Two campaigns whose every name is HTML, on data whose class and file names are HTML."""
    document = coco(classes=[HTML, "dog", "bird"])
    write_coco(folder, document)
    facts = {
        "state": "finished",
        "data": str(folder / "train.json"),
        "classes": [HTML, "dog", "bird"],
        "metric": "ap50",
        "command": f"foldfuse campaign {HTML}",
        "ranking": [HTML],
        "plan": {"segments": [{"name": HTML + "b", "image_size": 64, "seconds": 3.0}]},
        "left_out": [{"name": HTML, "reason": HTML}],
        "fingerprints": {"data": HTML},
        "fused": {"ap50": 0.5, "ap": 0.3, "metric": "ap50", "value": 0.5},
        "members": [{"name": HTML, "ap50": 0.5, "ap": 0.3, "weight": 1.0}],
    }
    for name in (FOLDER, "d"):
        (folder / name).mkdir()
        with closing(ledger.create(folder / name, facts, deadline=600.0, start=time.monotonic())) as made:
            result = {"ap50": 0.5, "ap": 0.3, "weight": 1.0}
            made.put_segment(a_record(HTML, state="done", seconds=5.0, ended=6.0, result=result))
            made.add_submission(0.5, facts["fused"])
            made.log(HTML)


def a_run(folder: Path) -> None:
    """A run whose every name is HTML."""
    write_coco(folder, coco(classes=[HTML, "dog", "bird"]))
    (folder / FOLDER).mkdir()
    metadata = {"format": 1, "classes": [HTML], "category_ids": [1], "data": HTML, "device": HTML, "trackers": [HTML]}
    (folder / FOLDER / "run.json").write_text(json.dumps(metadata))
    (folder / FOLDER / "recipe.json").write_text(json.dumps({"format": 1, "detector": HTML, "image_size": 64}))
    (folder / FOLDER / "log.jsonl").write_text('{"step": 1, "seconds": 0.1, "loss": 1.5}\n' * 3)


def is_text(folder: Path) -> None:
    """Checks that the page has no element or attribute of the names' making."""
    page = (folder / "o.html").read_text(encoding="utf-8")
    for part in ("<script>alert", "<img src=x", "<i>c&", "onerror=alert(1)>"):
        assert part not in page.replace("onerror=alert(1)&gt;", ""), part
    assert "&lt;" in page


CASES = [
    Case("report", campaigns, f"report '{FOLDER}' --out o.html", right=is_text),
    Case("compare", campaigns, f"compare '{FOLDER}' d --out o.html", right=is_text),
    Case("run", a_run, f"report '{FOLDER}' --out o.html", right=is_text),
    Case("watch", campaigns, f"watch '{FOLDER}'", says=("<script>alert(1)</script>",)),
]


@parametrize(CASES)
def test_pages(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(case, tmp_path, monkeypatch, capsys)
