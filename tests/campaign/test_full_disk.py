"""A full disk at each kind of write of a campaign: one sentence says so, no file is broken, and `--resume` continues."""

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
from foldfuse.campaign.planning.segments import plan_segments
from foldfuse.campaign.planning.state import CampaignState
from foldfuse.data.readers.coco import read
from foldfuse.formats.predictions import read_predictions
from foldfuse.formats.submission import validate_submission
from foldfuse.storage import ledger, ledger_file
from learning_samples import write_dataset

resource = pytest.importorskip("resource")  # limits of a process, which Windows does not have

WRITES = (  # beginnings of file names, in the order in which a campaign writes them
    "folds.json",
    "recipe.json",
    "checkpoint.pt",
    "weights.safetensors",
    "run.json",
    "val@1",
    "log.jsonl",
    "test@1",
    "submission.csv",
    "submission.json",
    "fused_oof.parquet",
    "ensemble.json",
    "report.html",
    "campaign.json",
)


@contextmanager
def full_from(name: str) -> Iterator[list[str]]:
    """Makes writing fail from the first file on whose name begins with `name`; yields the names of such files."""
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


def one_short_base_run(state: CampaignState) -> Decision:
    """A strategy: the first base run has a second of training, and no segment follows."""
    base = plan_segments(state)[0]
    return Decision(base, 1.0) if state.is_open(base.name) else Decision(None)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("foldfuse.campaign.campaign.to_the_deadline", one_short_base_run)
    monkeypatch.setattr("foldfuse.campaign.runner.rescoring_seconds", lambda state: 0.0)
    monkeypatch.setattr("foldfuse.campaign.constants.FIRST_SEARCH_SECONDS", 0.1)
    monkeypatch.setattr("foldfuse.campaign.runner.last_search_seconds", lambda state: 0.1)
    monkeypatch.setattr("foldfuse.campaign.runner.spend_on_views", lambda *_, **__: None)
    return write_dataset(tmp_path / "d", 16)


def test_a_campaign_resumes_after_every_kind_of_failed_write(data: Path, tmp_path: Path, capsys: Any) -> None:
    test = write_dataset(tmp_path / "t", 6, seed=9)
    images, out = read(test, annotated=False), tmp_path / "out"
    words = ["campaign", str(data), "--test", str(test), "--deadline", "3m", "--out", str(out), "--folds", "3"]
    words += ["--set", "image_size=64", "--set", "batch_size=2"]
    for name in WRITES:
        with full_from(name) as tried:  # from there on, writes to the ledger fail too
            status = cli.main(words)
        said = capsys.readouterr()
        assert tried, f"the campaign ended before it wrote {name}"
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
            validate_submission(out / "submission.csv", images)
        words = ["campaign", "--resume", str(out)]
    assert cli.main(words) == 0
    found = validate_submission(out / "submission.csv", images)
    assert list(found.image_ids) == list(images.image_ids)
    assert len(read_predictions(out / "submission.json", images).boxes) == len(found.boxes)
    assert ledger.snapshot(out)["state"] == "finished"
    assert (out / "report.html").is_file()


def test_without_room_for_the_ledger_the_same_command_works_later(
    data: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_inode(**options: object) -> tuple[int, str]:
        raise OSError(28, os.strerror(28))

    out = tmp_path / "out"
    for full, value in (
        ("foldfuse.system.atomic_files.tempfile.mkstemp", no_inode),
        ("foldfuse.storage.ledger_file.SCHEMA", None),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(full, value or "PRAGMA max_page_count = 1;" + ledger_file.SCHEMA)
            assert cli.main(["campaign", str(data), "--out", str(out)]) == 2
        assert "the disk is full. Nothing was started; make room, then give the same command again" in (
            capsys.readouterr().err
        )
        assert not (out / ledger.NAME).exists()
