"""Pages that the site alone has: the results of all benchmarks, the list of decisions, and the notebooks."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS_HEAD = """# Results

A script made this page from the pages of `benchmarks/`: of each it shows the first paragraph and the first table. The whole page
says how its numbers were measured and what they do not show.
[LOG.md](../LOG.md) has all experiments, also the bad ones.
"""
FIRST = ("campaign", "time_to_ap", "pretraining", "ensemble_study", "rescore", "review")  # the others follow by name
MAX_ROWS = 10
IMAGE_TYPES = {"image/png": ".png", "image/jpeg": ".jpg"}
NAMELESS = re.compile(r"<[^<>\n]*>")  # such as "<IPython.core.display.HTML object>": it says nothing
ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def title_of(text: str) -> str:
    """The words of the first heading of a page."""
    found = re.search(r"^# (.+)$", text, re.MULTILINE)
    assert found, "a page begins with a heading"
    return found[1]


def excerpt(text: str) -> list[str]:
    """A page up to the end of its first paragraph, without its title, and its first table, of which MAX_ROWS rows are kept."""
    blocks = [block for block in re.split(r"\n\s*\n", text) if block.strip()]
    lines = []
    for block in blocks[1:]:
        if block.startswith(("#", "|")):
            break
        lines += [block, ""]
        if not block.startswith(("    ", "```")):
            break
    tables = [block.strip().splitlines() for block in blocks if block.startswith("|")]
    if tables:
        rows = tables[0]
        lines += [*rows[: 2 + MAX_ROWS], ""]
        if (left := len(rows) - 2 - MAX_ROWS) > 0:
            lines += [f"The table has {left} more {'row' if left == 1 else 'rows'}.", ""]
    return lines


def results_page(folder: Path) -> str:
    """The page on all benchmarks in a folder."""
    order = {name: i for i, name in enumerate(FIRST)}
    pages = sorted(folder.glob("*.md"), key=lambda page: (order.get(page.stem, len(order)), page.stem))
    lines = [RESULTS_HEAD]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        lines += [f"## {title_of(text)}", "", *excerpt(text), f"[The whole page]({page.name})", ""]
    return "\n".join(lines)


def list_page(title: str, folder: Path) -> str:
    """A page that lists the pages of a folder."""
    links = [f"* [{title_of(page.read_text(encoding='utf-8'))}]({page.name})" for page in sorted(folder.glob("*.md"))]
    return "\n".join([f"# {title}", "", *links, ""])


def fence(text: str, language: str) -> str:
    """A code block that no line of the text can end."""
    marks = "`" * max(3, 1 + max((len(found) for found in re.findall("`+", text)), default=0))
    return f"{marks}{language}\n{text.rstrip()}\n{marks}"


def notebook_page(notebook: Path, write: Callable[[str, bytes], None]) -> str:
    """A notebook as Markdown; `write` gets name and bytes of each image in its outputs.

    Outputs are those that are stored in the notebook. A notebook without any says so.
    """
    document = json.loads(notebook.read_text(encoding="utf-8"))
    parts, has_outputs = [], False
    for number, cell in enumerate(document["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        if cell["cell_type"] != "code":
            continue
        parts.append(fence(source, "python"))
        for place, output in enumerate(cell["outputs"]):
            has_outputs = True
            parts += output_parts(output, f"{notebook.stem}_{number}_{place}", write)
    note = f'This page is the notebook <a href="{notebook.name}" download>{notebook.name}</a>'
    note += ", with the outputs of one run." if has_outputs else ". It is stored without outputs: run it to see them."
    return "\n\n".join([parts[0], f"*{note}*", *parts[1:]]) + "\n"


def output_parts(output: dict[str, Any], name: str, write: Callable[[str, bytes], None]) -> list[str]:
    """The Markdown of one stored output: its image, or its text."""
    data = output.get("data", {"text/plain": output.get("text", "")})
    for kind, ending in IMAGE_TYPES.items():
        if kind in data:
            write(name + ending, base64.b64decode("".join(data[kind])))
            return [f"![output]({name}{ending})"]
    text = ESCAPES.sub("", "".join(data.get("text/plain", ""))).strip("\n")
    return [] if not text.strip() or NAMELESS.fullmatch(text) else [fence(text, "text")]
