"""A resumed campaign removes what a killed process was writing, and nothing of anybody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from foldfuse.campaign.leftovers import is_leftover, remove_leftovers
from foldfuse.storage import ledger as ledgers
from foldfuse.system.atomic_files import atomic, atomic_folder

OWN = ("submission.csv", "fused_oof.parquet", "report.html", "campaign.json", "folds.json", "members/base-256/run.json")
OWN += ("members/base-256/weights.safetensors", "members/x/val@1+hflip.parquet", "members/x/test@0.83.parquet")
OWN += ("members/x/checkpoint.pt", "members/x/log.jsonl", "members/x/learnt_images.json", "notes/1234567890.json")
OTHERS = (".git/config", ".gitignore", ".notes", ".DS_Store", "members/.keep", "members/base-256/.run.json.swp")
OTHERS += (
    "submissions/.cache/x",
    "notes/.1.json.swp",
    ".env",
    ".submission.csv.swp",
    "deep/er/.submission.csv.abcdefgh.csv",
)
OTHERS += (".mine.json.abcdefgh.json", ".submission.csv.lock.abcdefgh")


@pytest.mark.parametrize("name", OWN)
def test_a_file_in_writing_is_removed(tmp_path, name, monkeypatch):
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # as if the process had been killed
    with pytest.raises(KeyboardInterrupt), atomic(tmp_path / name) as temporary:
        raise KeyboardInterrupt
    monkeypatch.undo()
    assert is_leftover(temporary.name)
    remove_leftovers(tmp_path)
    assert not temporary.exists()


def test_a_submission_in_writing_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "submissions" / "12") as temporary:
        raise KeyboardInterrupt
    (temporary / "submission.csv").write_text("")
    monkeypatch.undo()
    remove_leftovers(tmp_path)
    assert not temporary.exists()
    (tmp_path / f".{ledgers.NAME}.new").touch()
    remove_leftovers(tmp_path)
    assert not (tmp_path / f".{ledgers.NAME}.new").exists()


def test_hidden_files_of_others_stay(tmp_path):
    for name in OTHERS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    remove_leftovers(tmp_path)
    assert [name for name in OTHERS if not (tmp_path / name).exists()] == []


def test_links_are_not_followed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    campaign = tmp_path / "campaign"
    (elsewhere / "x").mkdir(parents=True)
    campaign.mkdir()
    left = [elsewhere / ".run.json.abcdefgh.json", elsewhere / "x" / ".run.json.abcdefgh.json"]
    for path in left:
        path.write_text("theirs")
    (campaign / "members").symlink_to(elsewhere)
    (campaign / "submissions").mkdir()
    (campaign / "submissions" / ".1.abcdefgh").symlink_to(elsewhere)
    (campaign / "submissions" / "1").symlink_to(elsewhere)
    remove_leftovers(campaign)
    assert all(path.exists() for path in left)
    assert (campaign / "submissions" / ".1.abcdefgh").is_symlink()
