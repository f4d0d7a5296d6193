"""The pages that docs/generate.py makes from the code are those of this code."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


@pytest.mark.parametrize("page", generate.PAGES)
def test_the_page_is_up_to_date(page):
    written = (DOCS / page).read_text(encoding="utf-8")
    assert written == generate.PAGES[page](), f"docs/{page} is not what the code says. Run: python docs/generate.py"


def test_every_option_has_a_meaning():
    rows = [line for line in generate.commands_page().splitlines() if line.startswith("| `")]
    assert len(rows) > 150
    assert not [row for row in rows if not row.split(" | ")[1].strip()]
