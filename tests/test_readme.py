"""The README is true: it names every command, its links lead somewhere, and all of its examples run."""

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import pytest

from foldfuse import cli
from learning_samples import write_dataset

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = [line.split("#")[0].strip() for line in TEXT.splitlines() if line.startswith("    ")]
DEADLINE = "90s"  # in place of the README's


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files that the examples name, in the working directory."""
    train = write_dataset(tmp_path / "data", 24)
    other = json.loads(write_dataset(tmp_path / "other", 6, seed=1).read_text())
    for image in other["images"]:
        old = tmp_path / "other" / "images" / image["file_name"]
        image["file_name"] = f"test-{image['file_name']}"
        old.rename(train.parent / "images" / image["file_name"])
    (train.parent / "truth.json").write_text(json.dumps(other))
    (train.parent / "test.json").write_text(json.dumps(other | {"annotations": []}))
    boxes = [
        {key: row[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9} for row in other["annotations"]
    ]
    (tmp_path / "a.json").write_text(json.dumps(boxes))
    rows = [f"0 0.8 10 10 30 30,{image['file_name']}" for image in other["images"]]
    (tmp_path / "b.csv").write_text("\n".join(["PredictionString,image_id", *rows]) + "\n")
    monkeypatch.chdir(tmp_path)


def test_it_names_every_command():
    assert not [name for name in cli.COMMANDS if f"| `{name}` |" not in TEXT]


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 120


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=str
)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


def test_make_has_the_targets_that_the_readme_names():
    rules = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [line.split()[1] for line in EXAMPLES if line.startswith("make ")]
    assert targets
    assert all(f"\n{target}: " in rules for target in targets)


@pytest.mark.slow
def test_the_commands_run(files):
    lines = dict.fromkeys(line for line in EXAMPLES if line.startswith("foldfuse "))
    assert lines
    for line in lines:
        words = shlex.split(line.replace("--deadline 2h", f"--deadline {DEADLINE}"))[1:]
        assert cli.main(words) == 0, line


def test_the_python_example_prints_a_score(files):
    code = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)[1]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "README.md", "exec"), {})
    assert 0 < float(out.getvalue()) <= 1


def test_the_architecture_names_every_module():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree, rooms, named = re.search(r"```\nfoldfuse/\n(.*?)```", text, re.DOTALL)[1], {0: ""}, set()
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        words = line.split()
        if words[0].endswith("/"):
            rooms[depth] = rooms.get(depth - 1, "") + words[0]
        named |= {rooms.get(depth - 1, "") + word for word in words if word.endswith(".py")}
    source = ROOT / "src" / "foldfuse"
    modules = {path.relative_to(source).as_posix() for path in source.rglob("*.py") if path.stat().st_size}
    assert named == modules
