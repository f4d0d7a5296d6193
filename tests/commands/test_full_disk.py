"""A full disk in every command that writes: one sentence says so, and nothing half-written is left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from corpus_samples import contents
from foldfuse import cli
from hostile_samples import sound
from learning_samples import write_dataset

resource = pytest.importorskip("resource")  # limits of a process, which Windows does not have

WRITING = [
    "split train.json --folds 2 --out new.json",
    "check train.json --fix --out new.json",
    "convert p.json train.json --out new.csv",
    "convert p.json train.json --out new.json",
    "convert p.json train.json --out new.parquet",
    "convert p.json train.json --format yolo --out new",
    "submit p.json train.json --out new.csv",
    "submit p.json train.json --format coco_json --out new.json",
    "fuse p.json q.json --data train.json --out new.parquet",
    "ensemble p.json q.json --data train.json --budget 1s --out new.json",
    "report r --out new.html",
]


@contextmanager
def full_disk() -> Iterator[None]:
    """Makes every write to a file fail for the block, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sound(tmp_path)
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "run.json").write_text(json.dumps({"format": 1, "classes": ["cat"], "category_ids": [1]}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(words: list[str], folder: Path, capsys: Any) -> None:
    before = contents(folder)
    with full_disk():
        status = cli.main(words)
    err = capsys.readouterr().err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 2, err
    assert len(errors) == 1, err
    assert "the disk is full" in errors[0]
    assert "Traceback" not in err
    assert contents(folder) == before


@pytest.mark.parametrize("command", WRITING)
def test_a_full_disk_is_one_sentence(command: str, folder: Path, capsys: Any) -> None:
    refused(command.split(), folder, capsys)


def test_a_full_disk_under_a_run_and_what_comes_of_it(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    data = write_dataset(tmp_path / "d", 4)
    small = ["--set", "image_size=64", "--set", "batch_size=2", "--steps", "1"]
    monkeypatch.chdir(tmp_path)
    refused(["train", str(data), "--out", "run", *small], tmp_path, capsys)
    assert cli.main(["train", str(data), "--out", "run", *small]) == 0
    capsys.readouterr()
    refused(["predict", "run", str(data), "--all", "--out", "p.parquet"], tmp_path, capsys)


def test_a_full_disk_under_standard_output(folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert cli.main(["recipes"]) == 2
        monkeypatch.undo()
    assert "the disk is full" in capsys.readouterr().err
