"""A disk that is full at each kind of write of a campaign: told in a sentence, nothing is broken, `--resume` goes on."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from foldfuse import cli
from foldfuse.campaign.planning.allocation import Decision
from foldfuse.campaign.planning.segments import plan
from foldfuse.campaign.planning.state import CampaignState
from foldfuse.data.readers.coco import read
from foldfuse.formats.predictions import read_predictions
from foldfuse.formats.submission import validate_submission
from foldfuse.storage import ledger
from learning_samples import write_dataset

resource = pytest.importorskip("resource")  # limits of a process, which Windows does not have

WRITES = (  # beginnings of the names of files, in the order in which a campaign comes to them
    "folds.json",
    "recipe.json",
    "log.jsonl",
    "checkpoint.pt",
    "weights.safetensors",
    "run.json",
    "held@1",
    "target@1",
    "submission.csv",
    "submission.json",
    "fused_oof.parquet",
    "ensemble.json",
    "report.html",
    "campaign.json",
)


@contextmanager
def full_from(name: str) -> Iterator[list[str]]:
    """From the first file on whose name begins with `name`, this process can write to no file; those names."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    tried: list[str] = []
    mkstemp = tempfile.mkstemp

    def made(*, prefix: str, suffix: str, dir: Path) -> tuple[int, str]:
        if prefix.startswith(f".{name}"):
            tried.append(prefix)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        return mkstemp(prefix=prefix, suffix=suffix, dir=dir)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("foldfuse.system.atomic_files.tempfile.mkstemp", made)
        try:
            yield tried
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


def one_short_trunk(standing: CampaignState) -> Decision:
    """A strategy: the first trunk has a second of training, and nothing follows."""
    trunk = plan(standing)[0]
    over = standing.states.get(trunk.name, "running") != "running"
    return Decision(None) if over else Decision(trunk, 1.0)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("foldfuse.campaign.campaign.successive_halving", one_short_trunk)
    monkeypatch.setattr("foldfuse.campaign.runner.opinion_seconds", lambda standing: 0.0)
    monkeypatch.setattr("foldfuse.campaign.submissions.FIRST_SEARCH", 0.1)
    monkeypatch.setattr("foldfuse.campaign.submissions.search_seconds", lambda deadline: 0.1)
    return write_dataset(tmp_path / "d", 16)


def test_a_campaign_goes_on_from_every_kind_of_write_that_failed(data: Path, tmp_path: Path, capsys: Any) -> None:
    test = write_dataset(tmp_path / "t", 6, seed=9)
    target, out = read(test, annotated=False), tmp_path / "out"
    words = ["campaign", str(data), "--test", str(test), "--deadline", "3m", "--out", str(out), "--folds", "3"]
    words += ["--change", "image_size=64", "--change", "batch_size=2"]
    for name in WRITES:
        with full_from(name) as tried:  # from there on the ledger cannot be written to either
            status = cli.main(words)
        said = capsys.readouterr()
        assert tried, f"the campaign ended before it came to write {name}"
        assert status == 2, f"{name}: {said.err}"
        errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, name
        assert "full" in errors[0], name
        assert f"foldfuse campaign --resume {out}" in errors[0], name
        assert "Traceback" not in said.err, name
        assert not list(out.rglob(".*")), f"a temporary file was left by {name}"
        with closing(sqlite3.connect(out / ledger.NAME)) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",), name
        if (out / "submission.csv").exists():
            validate_submission(out / "submission.csv", target)
        words = ["campaign", "--resume", str(out)]
    assert cli.main(words) == 0
    found = validate_submission(out / "submission.csv", target)
    assert list(found.image_ids) == list(target.image_ids)
    assert len(read_predictions(out / "submission.json", target).boxes) == len(found.boxes)
    assert ledger.snapshot(out)["state"] == "finished"
    assert (out / "report.html").is_file()


def test_where_not_even_the_ledger_finds_room_the_same_command_begins_later(
    data: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_inode(**options: object) -> tuple[int, str]:
        raise OSError(28, os.strerror(28))

    out = tmp_path / "out"
    for full, value in (
        ("foldfuse.system.atomic_files.tempfile.mkstemp", no_inode),
        ("foldfuse.storage.ledger._SCHEMA", None),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(full, value or "PRAGMA max_page_count = 1;" + ledger._SCHEMA)
            assert cli.main(["campaign", str(data), "--out", str(out)]) == 2
        assert "the disk is full. Nothing was begun; make room, then give the same command again" in (
            capsys.readouterr().err
        )
        assert not (out / ledger.NAME).exists()
