"""Inputs without a fault: the corpus's own ground, on which every other case changes one thing."""

from __future__ import annotations

from pathlib import Path

import pytest

from corpus_samples import Case, coco, parametrize, run, write_coco


def _plain(folder: Path) -> None:
    write_coco(folder, coco())


CASES = [
    Case("coco", _plain, "check train.json", says=("no faults", "4 images, 8 boxes")),
    Case("coco_folder", _plain, "check .", says=("no faults", "4 images, 8 boxes")),
    Case("missing_file", _plain, "check other.json", status=2, says=("other.json: there is no such file",)),
]


@parametrize(CASES)
def test_sound_inputs(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(case, tmp_path, monkeypatch, capsys)
