"""Python in the docs: what it imports exists."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import foldfuse as ff

DOCS = Path(__file__).parent.parent / "docs"
PAGES = [  # api.md has signatures, and is generated
    path
    for path in sorted(DOCS.glob("*.md"))
    if "```python" in path.read_text(encoding="utf-8") and path.name != "api.md"
]


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_everything_that_an_example_imports_is_there(page):
    for code in blocks(page):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("foldfuse"):
                module = importlib.import_module(node.module)
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert not missing, f"{page.name}: {node.module} has no {', '.join(missing)}"


def test_every_name_of_the_package_that_an_example_uses_is_there():
    used = {name for page in PAGES for code in blocks(page) for name in re.findall(r"\bff\.(\w+)", code)}
    assert len(used) > 5
    assert not [name for name in sorted(used) if not hasattr(ff, name)]
