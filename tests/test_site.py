"""The docs site: every page is in its navigation, it builds without a warning, and its checker finds what is broken."""

import base64
import importlib.util
import inspect
import json
import math
import tomllib
from pathlib import Path

import pytest

import api_page
import build_site
import check_site
import foldfuse
import site_pages

ROOT = Path(__file__).parent.parent
needs_zensical = pytest.mark.skipif(
    importlib.util.find_spec("zensical") is None, reason="pip install 'foldfuse[docs]' brings Zensical"
)
PAGE = '<html><body><article><h1 id="top-of-it">A page</h1>{}</article></body></html>'


def nav() -> list[str]:
    config = tomllib.loads((ROOT / build_site.CONFIG).read_text(encoding="utf-8"))
    return list(build_site.nav_pages(config["project"]["nav"]))


# The pages


def test_every_page_is_in_the_navigation_once():
    folders = [name[1:] for name in nav() if name.startswith("@")]
    pages = {page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md")}
    missing = {page for page in pages if str(Path(page).parent) not in folders} - set(nav())
    assert not missing, f"add a line to nav in docs/zensical.toml for each of {sorted(missing)}"
    assert len(nav()) == len(set(nav()))


def test_the_navigation_names_only_pages_that_exist():
    made = {"benchmarks/README.md", "docs/adr/README.md"}
    assert not [name for name in nav() if name not in made and not (ROOT / name.removeprefix("@")).exists()]


def test_the_results_page_copies_no_number_by_hand():
    page = site_pages.results_page(ROOT / "benchmarks")
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.md")]
    assert all(f"## {site_pages.title_of(text)}\n" in page for text in sources)
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) > 50
    assert not [row for row in rows if not any(row in text for text in sources)]


def test_a_long_table_is_cut_and_says_so():
    table = ["| a | b |", "|---|---|", *(f"| {i} | x |" for i in range(13))]
    text = "\n".join(["# Title", "", "    a command", "", "measures it.", "", "More.", "", *table])
    lines = site_pages.excerpt(text)
    assert lines[:4] == ["    a command", "", "measures it.", ""]
    assert [line for line in lines if line.startswith("|")] == table[:12]
    assert lines[-2] == "The table has 3 more rows."


def test_a_notebook_becomes_a_page_with_its_images(tmp_path):
    output = {
        "output_type": "display_data",
        "data": {"image/png": base64.b64encode(b"png").decode(), "text/plain": "<>"},
    }
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {
            "cell_type": "code",
            "source": "print('```')",
            "outputs": [{"output_type": "stream", "text": ["\x1b[1mred\n"]}],
        },
        {"cell_type": "code", "source": "plot()", "outputs": [output]},
    ]
    (tmp_path / "one.ipynb").write_text(json.dumps({"cells": cells}))
    written = {}
    page = site_pages.notebook_page(tmp_path / "one.ipynb", written.__setitem__)
    assert page.startswith("# Title\ntext\n\n")
    assert "with the outputs of one run" in page
    assert "````python\nprint('```')\n````\n\n```text\nred\n```" in page
    assert written == {"one_2_0.png": b"png"}
    assert "(one_2_0.png)" in page


def test_a_notebook_without_outputs_says_so():
    page = site_pages.notebook_page(ROOT / "examples" / "apply_and_explore.ipynb", lambda *_: pytest.fail("no output"))
    assert "stored without outputs" in page


# The Python API


def test_every_public_name_is_on_the_api_page():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert sorted(line[4:] for line in page.splitlines() if line.startswith("### ")) == sorted(foldfuse.__all__[1:])
    assert "## Others" not in page, "add the room of the new name to GROUPS in docs/api_page.py"


@pytest.mark.parametrize("name", ["fuse", "soft_nms", "make_folds", "write_submission", "Detections", "Budget"])
def test_signatures_are_those_of_python(name):
    value = getattr(foldfuse, name)
    shown = "\n".join(api_page.entry(name, api_page.public_names()[name])).split("```")[1]
    for argument in inspect.signature(value).parameters.values():
        assert f"{argument.name}:" in shown or argument.name.startswith("_")
        if isinstance(argument.default, int | float | str) and argument.default != math.inf:
            default = json.dumps(argument.default) if isinstance(argument.default, str) else argument.default
            assert f" = {default}" in shown


# The checker


def faults(folder: Path, body: str) -> list[str]:
    (folder / "a.html").write_text(PAGE.format(body), encoding="utf-8")
    return check_site.faults_of(folder)


@pytest.mark.parametrize(
    "body",
    [
        '<p><a href="b.html#there">b</a> <a href="#top-of-it">top</a> <a href="https://example.org/x#y">x</a></p>',
        '<p><a href="">here</a> <img src="i.png" alt="an image"></p>',
        "<pre>| a |\n| --- |\n* a `list`</pre><p>a - b, 2 * 3 is <code>`**`</code>, in\n16. May</p>",
    ],
)
def test_a_page_without_faults(tmp_path, body):
    (tmp_path / "b.html").write_text(PAGE.format('<p id="there">b</p>'), encoding="utf-8")
    (tmp_path / "i.png").write_bytes(b"")
    assert faults(tmp_path, body) == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('<a href="c.html">c</a>', "leads to no file"),
        ('<a href="../a.html">c</a>', "leads to no file"),
        ('<a href="#nowhere">c</a>', "leads to no anchor"),
        ('<a href="a.html#nowhere">c</a>', "leads to no anchor"),
        ('<img src="i.png" alt="an image">', "leads to no file"),
        ('<script src="https://unpkg.com/x"></script>', "from another server"),
        ('<link rel="stylesheet" href="//fonts.example.org/x.css">', "from another server"),
        ('<p><a href="a.html"><img src="a.html"></a></p>', "no text"),
        ("<p>It has:\n* one\n* two</p>", "a list is not rendered"),
        ("<p>| a | b |\n|---|---|</p>", "a table is not rendered"),
        ("<p>see [the page](page.md#part)</p>", "a link is not rendered"),
        ("<li>This is **bold</li>", "bold text is not rendered"),
        ("<p>```bash</p>", "code is not rendered"),
    ],
)
def test_a_fault_is_found(tmp_path, body, words):
    found = faults(tmp_path, body)
    assert len(found) == 1
    assert found[0].startswith("a.html: ")
    assert words in found[0]


def test_a_site_without_pages_is_a_fault(tmp_path):
    assert check_site.faults_of(tmp_path)


# The build


@pytest.fixture
def small_root(tmp_path):
    """A repository of two pages."""
    root = tmp_path / "root"
    (root / "docs" / "adr").mkdir(parents=True)
    (root / "docs" / "adr" / "0001-one.md").write_text("# 1. One\n\nText.\n")
    (root / "docs" / "site.css").write_text("")
    (root / "NOTICE").write_text("notice\n")
    lines = (ROOT / build_site.CONFIG).read_text(encoding="utf-8").partition("nav = [")
    after = lines[2].partition("\n]\n")[2]
    pages = '"README.md", "docs/a.md", { "Decisions" = ["docs/adr/README.md", "@docs/adr"] }'
    (root / build_site.CONFIG).write_text(f"{lines[0]}nav = [{pages}]\n{after}")
    (root / "README.md").write_text("# Home\n\n[a](docs/a.md#a-part-of-a) [decisions](docs/adr/) [notice](NOTICE)\n")
    (root / "docs" / "a.md").write_text("# A\n\n## A part of `a`\n\n| option |\n|---|\n| `X\\|Y` |\n")
    return root


@needs_zensical
def test_a_small_site(small_root, tmp_path):
    build_site.build(small_root, tmp_path / "site")
    home = check_site.Page((tmp_path / "site" / "index.html").read_text(encoding="utf-8"))
    assert {"docs/a.html#a-part-of-a", "docs/adr/index.html", "NOTICE.txt"} <= set(home.links)
    assert "<code>X|Y</code>" in (tmp_path / "site" / "docs" / "a.html").read_text(encoding="utf-8")
    assert "1. One" in (tmp_path / "site" / "docs" / "adr" / "index.html").read_text(encoding="utf-8")


@needs_zensical
@pytest.mark.parametrize("link", ["b.md", "../NOTHING", "a.md#no-part", "missing.png"])
def test_a_broken_link_ends_the_build_and_the_old_site_stays(small_root, tmp_path, link):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("the old site")
    with (small_root / "docs" / "a.md").open("a") as file:
        file.write(f"\n[broken]({link})\n")
    with pytest.raises(SystemExit, match="The site was not built"):
        build_site.build(small_root, tmp_path / "site")
    assert (tmp_path / "site" / "index.html").read_text() == "the old site"


def test_without_zensical_a_sentence_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="not installed"):
        build_site.build(ROOT, tmp_path / "site")


@pytest.mark.slow
@needs_zensical
def test_the_site_builds_without_a_warning(tmp_path):
    site = tmp_path / "site"
    build_site.build(ROOT, site)
    pages = {page.relative_to(site).as_posix() for page in site.rglob("*.html")}
    for name in nav():
        if not name.startswith("@"):
            assert name.replace("README.md", "index.md").removesuffix(".md") + ".html" in pages
    assert {f"benchmarks/{page.stem}.html" for page in (ROOT / "benchmarks").glob("*.md")} <= pages
    assert (site / "examples" / "vit_paper.ipynb").is_file()
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 20_000_000
