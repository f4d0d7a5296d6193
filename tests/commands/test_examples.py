"""The help page of every command ends with examples, and each of them runs."""

import importlib
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

import example_lines
from foldfuse import cli
from hub_samples import connected

NEEDS_A_CHECKPOINT = {"import"}  # tests/models/test_yolov5_import.py makes one and imports it
SLOW = {"export", "train", "sweep"}
ON_THE_HUB = {"predict", "publish"}
ANSWER_TO_AN_EXISTING_OUT = {"sweep", "campaign", "demo"}  # sweep resumes; the others do not run a campaign here


def lines_of(name):
    """The examples of a command."""
    module, _, attribute = cli.COMMANDS[name][0].partition(":")
    return cli.documented(getattr(importlib.import_module(module), attribute))[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        example_lines.make_everything_small(patch)
        example_lines.make_files(folder)
        example_lines.make_runs(folder, lambda line: example_lines.run_line(line, folder))
    return folder


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_examples_are_there_and_fit_a_terminal(name):
    lines = lines_of(name)
    assert lines, f"{name} has no examples"
    for line in lines:
        assert line.startswith(f"foldfuse {name}")
        assert len(line) <= 110, f"too long to copy from a terminal: {line}"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in cli.COMMANDS
        if name not in NEEDS_A_CHECKPOINT
    ],
)
def test_examples_run(name, files, tmp_path, monkeypatch, capsys):
    folder = Path(shutil.copytree(files, tmp_path / "work"))
    monkeypatch.chdir(folder)
    example_lines.make_everything_small(monkeypatch)
    with ExitStack() as stack:
        if name in ON_THE_HUB:
            stack.enter_context(connected(monkeypatch, tmp_path, owner="owner"))
            assert cli.main(["publish", "run1", "owner/litter", "--private"]) == 0
        for line in lines_of(name):
            status = example_lines.run_line(line, folder)
            assert status in ({0, 1} if name == "check" else {0}), f"{line}: {capsys.readouterr().err}"
    if "--out" in line and name not in ANSWER_TO_AN_EXISTING_OUT:
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        assert cli.main(example_lines.shortened(line)) == 2, "an output is overwritten"
        assert "--overwrite" in capsys.readouterr().err
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
