"""The README and the pages are true: links lead somewhere, command lines are valid, the README's examples run."""

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import pytest
from cyclopts import CycloptsError

import example_lines
from foldfuse import cli

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = [line.partition("#")[0].strip() for line in TEXT.splitlines() if line.startswith("    ")]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
OF_OTHER_TOOLS = {"--help", "--index-url", "--no-deps", "--nproc-per-node"}
OF_OTHER_TOOLS |= {
    "--constraint",
    "--dest",
    "--dry-run",
    "--find-links",
    "--inplace",
    "--no-index",
    "--quiet",
    "--report",
    "--requirement",
}
OF_OTHER_TOOLS |= {"--signal", "--wheel-dir", "--quick"}  # --quick: of benchmarks/gpu.py
COMMAND = re.compile(r"(?:timeout --signal INT \S+ |torchrun --nproc-per-node \d -m )?(foldfuse [a-z])")
BUDGET = "90s"  # in place of the README's deadline


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The working directory, with the files that the examples name."""
    example_lines.make_files(tmp_path)
    truth = json.loads((tmp_path / "data" / "truth.json").read_text())
    keys = ("image_id", "category_id", "bbox")
    found = [{key: row[key] for key in keys} | {"score": 0.9} for row in truth["annotations"]]
    (tmp_path / "a.json").write_text(json.dumps(found))
    rows = [f"0 0.8 10 10 30 30,{image['file_name']}" for image in truth["images"]]
    (tmp_path / "b.csv").write_text("\n".join(["PredictionString,image_id", *rows]) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command_lines(page: Path) -> list[str]:
    """The command lines of a page, indented or in ```bash, after timeout or torchrun too; after a backslash a line goes on."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("    ")]
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        lines += block.splitlines()
    lines = [line.partition(" #")[0].strip().removesuffix(" &") for line in lines]
    return [line[found.start(1) :] for line in lines if (found := COMMAND.match(line))]


def test_it_names_every_command():
    cells = " ".join(re.findall(r"^\| (`.*?`) \|", TEXT, re.MULTILINE))
    assert not [name for name in cli.COMMANDS if f"`{name}`" not in cells]


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_command_lines_have_only_arguments_that_exist(page):
    app = cli.make_app()
    for line in command_lines(page):
        try:
            app.parse_args(shlex.split(line)[1:], exit_on_error=False, print_error=False)
        except CycloptsError as error:
            pytest.fail(f"{line}: {error}")


def test_pages_name_only_options_that_exist():
    app, known = cli.make_app(), set(OF_OTHER_TOOLS)
    for name in cli.COMMANDS:
        for argument in app[name].assemble_argument_collection(parse_docstring=True):
            known |= set(argument.names)
    named = {
        (page.name, option)
        for page in PAGES
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]+", page.read_text(encoding="utf-8"))
    }
    assert not {(page, option) for page, option in named if option not in known}


def test_make_has_the_targets_that_the_readme_names():
    rules = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [line.split()[1] for line in EXAMPLES if line.startswith("make ")]
    assert targets
    assert all(f"\n{target}: " in rules for target in targets)


@pytest.mark.slow
def test_the_commands_run(files, monkeypatch):
    lines = dict.fromkeys(line for line in EXAMPLES if line.startswith("foldfuse "))
    example_lines.make_everything_small(monkeypatch, campaigns=True)
    assert lines
    for line in lines:
        words = shlex.split(line.replace("--deadline 2h", f"--deadline {BUDGET} --overwrite"))[1:]
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
