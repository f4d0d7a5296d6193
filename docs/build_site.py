"""Builds the docs site in site/: `make docs`, or `python docs/build_site.py`. Zensical (MIT) renders the pages.

The site has the tree of the repository, so that links between pages are the same there and here. Links to what GitHub alone shows
are changed in a copy of the pages: a link to a folder leads to its README.md, a link to a notebook to its page, and a link to
another file of the repository to a copy of it. Warnings of Zensical and broken links end the build, and the old site stays.
"""

from __future__ import annotations

import importlib.util
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import check_site
import site_pages

ROOT = Path(__file__).parent.parent
CONFIG = "docs/zensical.toml"
PAGES = (
    "README.md",
    "LOG.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/*.md",
    "docs/adr/*.md",
    "benchmarks/*.md",
    "examples/*.md",
)
SHOWN = (".txt", ".svg", ".jpg", ".png")  # files that a browser shows as they are; others get the ending .txt
LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)\s]*)?(\))")
ANSI = re.compile(r"\x1b\[[0-9;]*m")
ROW = re.compile(r"^\|.*$", re.MULTILINE)
CODE = re.compile(r"`[^`]*`")  # in a table GitHub wants \| there, Zensical |


def nav_pages(nav: Any) -> Iterator[str]:
    """The pages of a navigation, and the folders ("@folder") that stand for several."""
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from nav_pages(part)


class Stage:
    """A folder with the copies of the pages, of what they link to, and of the configuration."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root
        self.pages = folder / "pages"

    def site_path(self, path: str) -> str:
        """The path in the site of a path of the repository."""
        if (self.root / path).is_dir():
            return posixpath.join(path, "README.md")
        if path.endswith(".ipynb"):
            return path.removesuffix(".ipynb") + ".md"
        return path if path.endswith((".md", *SHOWN)) else f"{path}.txt"

    def write(self, path: str, content: bytes) -> None:
        """Writes a file of the site."""
        target = self.pages / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    def add_page(self, path: str, text: str) -> None:
        """Adds a page with its links changed, and the files that it links to; Zensical reports links to nothing."""
        folder = posixpath.dirname(path)

        def change(link: re.Match[str]) -> str:
            target = posixpath.normpath(posixpath.join(folder, link[2]))
            source = self.root / target
            if target.startswith("..") or not source.exists():
                return link[0]
            new = self.site_path(target)
            if source.is_file() and source.suffix not in (".md", ".ipynb"):
                self.write(new, source.read_bytes())
            return f"{link[1]}{posixpath.relpath(new, folder or '.')}{link[3] or ''}{link[4]}"

        text = ROW.sub(lambda row: CODE.sub(lambda code: code[0].replace("\\|", "|"), row[0]), LINK.sub(change, text))
        self.write(path, text.encode())

    def add_notebook(self, notebook: Path) -> None:
        """Adds a notebook as a page, with its images and the notebook itself."""
        folder = notebook.parent.relative_to(self.root).as_posix()
        text = site_pages.notebook_page(notebook, lambda name, content: self.write(f"{folder}/{name}", content))
        self.write(f"{folder}/{notebook.name}", notebook.read_bytes())
        self.add_page(f"{folder}/{notebook.stem}.md", text)

    def add_all(self) -> None:
        """Adds all pages, and the configuration with the pages of "@folder" in its navigation."""
        for pattern in PAGES:
            for page in sorted(self.root.glob(pattern)):
                self.add_page(page.relative_to(self.root).as_posix(), page.read_text(encoding="utf-8"))
        for notebook in sorted((self.root / "examples").glob("*.ipynb")):
            self.add_notebook(notebook)
        results, decisions = self.root / "benchmarks", self.root / "docs" / "adr"
        if results.is_dir():
            self.add_page("benchmarks/README.md", site_pages.results_page(results))
        if decisions.is_dir():
            self.add_page("docs/adr/README.md", site_pages.list_page("Decisions", decisions))
        self.write("docs/site.css", (self.root / "docs" / "site.css").read_bytes())
        text = (self.root / CONFIG).read_text(encoding="utf-8")
        for name in nav_pages(tomllib.loads(text)["project"]["nav"]):
            if name.startswith("@"):
                others = sorted((self.pages / name[1:]).glob("*.md"))
                names = [f'"{name[1:]}/{page.name}"' for page in others if page.name != "README.md"]
                text = text.replace(f'"{name}"', ", ".join(names))
        (self.folder / "zensical.toml").write_text(text, encoding="utf-8")


def build(root: Path, out: Path) -> None:
    """Builds the site of a repository in `out`, which it replaces. Exits with a sentence if the site has a fault."""
    if importlib.util.find_spec("zensical") is None:
        sys.exit("Zensical, which renders the site, is not installed. Install it: pip install '.[docs]'")
    with tempfile.TemporaryDirectory() as name:
        stage = Stage(Path(name), root)
        stage.add_all()
        command = [sys.executable, "-m", "zensical", "build", "--strict"]
        env = os.environ | {"NO_COLOR": "1"}
        rendered = subprocess.run(
            command, cwd=stage.folder, capture_output=True, encoding="utf-8", errors="replace", env=env
        )
        if rendered.returncode:
            fault = ANSI.sub("", rendered.stdout + rendered.stderr).partition("Traceback")[0].strip()
            sys.exit(f"{fault}\nThe site was not built: the fault is named above.")
        if faults := check_site.faults_of(stage.folder / "site"):
            sys.exit("\n".join([*faults, "The site was not built: its faults are named above."]))
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(stage.folder / "site", out)


if __name__ == "__main__":
    build(ROOT, ROOT / "site")
    print("The site is in site/. To look at it: python -m http.server --directory site")
