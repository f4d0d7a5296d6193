"""Writes commands.md, recipes.md and api.md beside this file: `python docs/generate.py`.

The text comes from the signatures and docstrings of the commands, as in their help pages, from the fields of the recipes, and
from the docstrings of the public names.
"""

from __future__ import annotations

import inspect
import io
import re
import tokenize
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from cyclopts.help import HelpEntry, HelpPanel
from rich.console import Console

from api_page import api_page
from foldfuse import cli, recipes

HERE = Path(__file__).parent
NOTICE = "<!-- Made from the code by `python docs/generate.py`: change the code, then run it again. -->"
COMMANDS_HEAD = f"""# Commands

{NOTICE}

Every command of Foldfuse, with all of its arguments and options. `foldfuse COMMAND --help` shows the same in the terminal.
[Files, outputs and the terminal](files.md) says what is read, what is overwritten and what is printed.

* Durations are written as `90s`, `10m`, `1h30m`.
* Several values of one option stand in one word with commas between them, or the option is repeated.
* Without `--overwrite` no file or folder is replaced.
* The exit status is 0, 1 after a failure, 2 for input that cannot be used (one sentence says why), 130 after Ctrl-C.
"""
RECIPES_HEAD = f"""# Recipes

{NOTICE}

A recipe is every choice of a training but the data, the budget and the seed. `--recipe NAME` chooses one, `--set FIELD=VALUE`
changes a field (repeat it for more), and the run folder keeps the result in `recipe.json`. `train` and `campaign` take both:

    foldfuse train data/train.json --out run1 --recipe lite1_fpn --set hflip=0 --set mosaic=0.5 --budget 20m

`--image-size`, `--batch-size` and `--lr` are short for `--set image_size=`, `batch_size=` and `lr=`. A value out of its range is
refused with the range. [Training](training.md) explains schedules, image sizes and starts;
[benchmarks/ablations.md](../benchmarks/ablations.md) has what some fields gain.

## Detectors
"""
LIMITS = {
    "image_size": "a multiple of 32, up to 4096",
    "batch_size": f"1 to {recipes.MAX_BATCH_SIZE}",
    "micro_batch": f"0 to {recipes.MAX_BATCH_SIZE}",
    "frozen_stages": "0 to 3",
    "numerics": "1 (runs of earlier versions) or 2",
    "precision": "`auto`, `float32`, `bfloat16`, `float16`",
    "init_weights": "a word, or a path",
    "detector": "a name of `foldfuse models`, or `compose:...`",
    "ema_decay": "0 to 1",
}
CLASSIFIER_LIMITS = LIMITS | {
    "image_size": "8 to 4096",
    "frozen_stages": "0 to 1000",
    "classifier": "a name of `foldfuse models`, or `timm:...`",
}


class Collector:
    """A formatter of help pages that keeps the panels instead of printing them."""

    def __init__(self) -> None:
        self.entries: list[HelpEntry] = []

    def __call__(self, console: Console, options: Any, panel: HelpPanel) -> None:
        """Keeps the entries of a panel."""
        self.entries += panel.entries


def cell(text: str) -> str:
    """`text` as one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(row)} |" for row in lines]


def anchor(heading: str) -> str:
    """The name by which GitHub links to a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


# The commands


def entries_of(app: Any, name: str) -> list[HelpEntry]:
    """The arguments and options of a command, as its help page shows them."""
    collector = Collector()
    page = app[name]
    page.help_formatter = collector
    app.help_print([name], console=Console(file=io.StringIO(), width=100))
    return [entry for entry in collector.entries if "--help" not in entry.names and "--version" not in entry.names]


def words_of(entry: HelpEntry) -> str:
    """The help text of an argument, with its choices and its default."""
    text = getattr(entry.description.primary_renderable, "markup", "") if entry.description is not None else ""
    text = cell(text)
    if entry.choices:
        text += f" One of {', '.join(f'`{choice}`' for choice in entry.choices)}."
    return text


def command_section(app: Any, name: str) -> Iterator[str]:
    """The lines on one command."""
    path, summary = cli.COMMANDS[name]
    module, _, attribute = path.partition(":")
    description, examples = cli.documented(getattr(import_module(module), attribute))
    entries = entries_of(app, name)
    positional = [entry for entry in entries if entry.positional_label]
    options = [entry for entry in entries if not entry.positional_label]
    usage = [e.positional_label if e.required else f"[{e.positional_label}]" for e in positional]
    yield from (f"### {name}", "", summary)
    if description:
        yield from ("", description)
    yield from ("", "```", " ".join(["foldfuse", name, *usage, *(["[OPTIONS]"] if options else [])]), "```")
    if positional:
        rows = [[f"`{e.positional_label}`" + ("" if e.required else " (optional)"), words_of(e)] for e in positional]
        yield from ("", *table(["argument", "meaning"], rows))
    if options:
        rows = []
        for entry in options:
            labels = ", ".join(f"`{cell(label)}`" for label in entry.display_labels_with_metavar)
            default = "required" if entry.required else f"`{entry.default}`" if entry.default else ""
            rows.append([labels, words_of(entry), default])
        yield from ("", *table(["option", "meaning", "default"], rows))
    yield from ("", "```bash", *examples, "```", "")


def commands_page() -> str:
    """The page on all commands."""
    app = cli.make_app()
    lines = [COMMANDS_HEAD]
    for heading, names in cli.GROUPS.items():
        links = ", ".join(f"[{name}](#{anchor(name)})" for name in names)
        lines.append(f"* **{heading}**: {links}")
    lines.append("")
    for heading, names in cli.GROUPS.items():
        lines += [f"## {heading}", ""]
        for name in names:
            lines += command_section(app, name)
    return "\n".join(lines).rstrip() + "\n"


# The recipes


def comments_of(kind: type) -> dict[str, str]:
    """{field: the comment beside it in the source}."""
    source = inspect.getsource(kind)
    found, field = {}, None
    names = {f.name for f in fields(kind)}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and token.start[1] == 4 and token.string in names:
            field = token.string
        elif token.type == tokenize.COMMENT and field is not None:
            found.setdefault(field, token.string.lstrip("# "))
        elif token.type == tokenize.NAME and token.string == "def":
            break
    return found


def limits_of(name: str, words: Mapping[str, str]) -> str:
    """What values a field may have, in words."""
    if name in words:
        return words[name]
    if name in recipes.SHARES:
        return "0 to 1"
    if name in recipes.POSITIVE:
        high = recipes.POSITIVE[name]
        return f"above 0, at most {high:g}" if high < 1e9 else "above 0"
    return f"0 to {recipes.NOT_NEGATIVE[name]:g}"


def value_text(name: str, value: Any) -> str:
    """A value of a field as `--set` takes it."""
    if name == "image_size" and value == recipes.AUTO:
        return recipes.AUTO_WORD
    return f"{value:g}" if isinstance(value, float) else str(value)


def field_rows(kind: type, words: Mapping[str, str]) -> list[list[str]]:
    """A row for each field of a kind of recipe."""
    comments = comments_of(kind)
    rows = []
    for field in fields(kind):
        default = "" if field.default is MISSING else f"`{value_text(field.name, field.default)}`"
        rows.append([f"`{field.name}`", default, limits_of(field.name, words), cell(comments[field.name])])
    return rows


def recipe_rows(makers: Mapping[str, Callable[[], Any]]) -> list[list[str]]:
    """A row for each recipe: its purpose, and the fields in which it differs from the defaults."""
    rows = []
    for name, maker in makers.items():
        recipe = maker()
        others = [f for f in fields(recipe) if f.default is MISSING or getattr(recipe, f.name) != f.default]
        changes = [f"`{f.name}={value_text(f.name, getattr(recipe, f.name))}`" for f in others]
        rows.append([f"`{name}`", cell((maker.__doc__ or "").split("\n")[0]), " ".join(changes)])
    return rows


def recipes_page() -> str:
    """The page on the recipes and their fields."""
    lines = [
        RECIPES_HEAD,
        *table(
            ["recipe", "purpose", "differs from the defaults in"],
            recipe_rows(recipes.RECIPES),
        ),
        "",
        "### Fields",
        "",
        *table(["field", "default", "values", "meaning"], field_rows(recipes.Recipe, LIMITS)),
        "",
        "## Classifiers",
        "",
        "They classify whole images or the crops of objects ([classification.md](classification.md)).",
        "",
        *table(
            ["recipe", "purpose", "differs from the defaults in"],
            recipe_rows(recipes.CLASSIFIER_RECIPES),
        ),
        "",
        "### Fields of classifiers",
        "",
        *table(["field", "default", "values", "meaning"], field_rows(recipes.ClassifierRecipe, CLASSIFIER_LIMITS)),
    ]
    return "\n".join(lines) + "\n"


PAGES: Mapping[str, Callable[[], str]] = {
    "commands.md": commands_page,
    "recipes.md": recipes_page,
    "api.md": lambda: api_page(NOTICE),
}

if __name__ == "__main__":
    for page, make in PAGES.items():
        (HERE / page).write_text(make(), encoding="utf-8")
