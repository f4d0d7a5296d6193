"""The page on the Python API, from the source: signatures and docstrings of the public names, without importing them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "foldfuse"
HEAD = """# Python API

{notice}

Every public name of `foldfuse`. [Python and notebooks](python.md) shows them in use. The functions that are commands take the
arguments of [the commands](commands.md). Input that cannot be used raises `InputError`.
"""
GROUPS = {  # heading: the rooms whose names it holds, in this order
    "Commands as functions": ("api",),
    "Data": ("data",),
    "Boxes and predictions": ("detections", "formats"),
    "Training": ("recipes", "models", "training", "storage"),
    "Prediction": ("inference",),
    "Fusion and ensembles": ("fusion", "ensemble"),
    "Scores and campaigns": ("evaluation", "campaign", "errors"),
}
SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Yields")
WIDE = 88  # a longer signature has a line for each argument
Function = ast.FunctionDef | ast.AsyncFunctionDef


def public_names(source: Path = SOURCE) -> dict[str, str]:
    """{public name: its module}, as `foldfuse/__init__.py` has them."""
    tree = ast.parse((source / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_MODULE_OF":
            return dict(ast.literal_eval(node.value))
    raise AssertionError("foldfuse/__init__.py names its public names in _MODULE_OF")


def tree_of(module: str, source: Path = SOURCE) -> ast.Module:
    """The syntax tree of a module."""
    path = source / module.replace(".", "/")
    file = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
    return ast.parse(file.read_text(encoding="utf-8"))


def definition(tree: ast.Module, name: str) -> ast.stmt:
    """The statement of a module that defines a name."""
    for node in tree.body:
        targets = (
            [node.target] if isinstance(node, ast.AnnAssign) else node.targets if isinstance(node, ast.Assign) else []
        )
        if getattr(node, "name", None) == name or name in [ast.unparse(target) for target in targets]:
            return node
    raise AssertionError(f"{name} is defined in the module that foldfuse/__init__.py names")


def constants_of(tree: ast.Module) -> dict[str, str]:
    """{name: value} of the plain constants that a module has or imports, which signatures use as defaults."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("foldfuse."):
            names = {alias.name: alias.asname or alias.name for alias in node.names if alias.name.isupper()}
            theirs = constants_of(tree_of(node.module.removeprefix("foldfuse."))) if names else {}
            found |= {names[name]: value for name, value in theirs.items() if name in names}
        elif isinstance(node, ast.Assign):
            pairs = zip(
                *(each.elts if isinstance(each, ast.Tuple) else [each] for each in (node.targets[0], node.value))
            )
            found |= {ast.unparse(to): ast.unparse(value) for to, value in pairs if isinstance(value, ast.Constant)}
    return found


# Signatures


def argument(arg: ast.arg, default: ast.expr | None, constants: Mapping[str, str]) -> str:
    """An argument as a signature shows it."""
    text = arg.arg if arg.annotation is None else f"{arg.arg}: {ast.unparse(arg.annotation)}"
    if default is None:
        return text
    value = constants.get(ast.unparse(default), ast.unparse(default)).replace("'", '"')
    value = re.sub(r"field\(default_factory=(\w+)[^)]*\)", r"\1()", value)
    return f"{text} = {value}" if arg.annotation is not None else f"{text}={value}"


def signature(name: str, function: Function, constants: Mapping[str, str]) -> str:
    """The signature of a function or method, without `self`."""
    args = function.args
    plain = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(plain) - len(args.defaults)) + list(args.defaults)
    parts = [
        argument(arg, default, constants) for arg, default in zip(plain, defaults) if arg.arg not in ("self", "cls")
    ]
    if args.vararg is not None:
        parts.append("*" + argument(args.vararg, None, constants))
    elif args.kwonlyargs:
        parts.append("*")
    parts += [argument(arg, default, constants) for arg, default in zip(args.kwonlyargs, args.kw_defaults)]
    end = ")" if function.returns is None else f") -> {ast.unparse(function.returns)}"
    return joined(name, parts, end)


def joined(name: str, parts: list[str], end: str) -> str:
    """A signature on one line, or on a line for each part where it is long."""
    line = f"{name}({', '.join(parts)}{end}"
    return line if len(line) <= WIDE else "\n".join([f"{name}(", *(f"    {part}," for part in parts), end])


def fields_of(node: ast.ClassDef, constants: Mapping[str, str]) -> list[str]:
    """The fields of a dataclass as arguments; empty for other classes."""
    if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return []
    fields = [
        each for each in node.body if isinstance(each, ast.AnnAssign) and not ast.unparse(each.target).startswith("_")
    ]
    return [argument(ast.arg(ast.unparse(each.target), each.annotation), each.value, constants) for each in fields]


def is_property(method: Function) -> bool:
    """Whether a method is read like an attribute."""
    return any(
        ast.unparse(decorator) in ("property", "functools.cached_property", "cached_property")
        for decorator in method.decorator_list
    )


# Docstrings


def plain(text: str) -> str:
    """Text of a docstring for Markdown: what could be taken for HTML is escaped."""
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in re.split(r"(`[^`]*`)", text))


def items(lines: list[str]) -> Iterator[str]:
    """The entries of a section of a docstring, each as an item of a list."""
    entry: list[str] = []
    for line in [*lines, "end"]:
        if line and not line.startswith("     ") and entry:
            name, colon, text = " ".join(entry).partition(": ")
            is_name = bool(colon) and re.fullmatch(r"[\w.,* ]+", name) is not None
            yield f"* `{name}`: {plain(text)}" if is_name else f"* {plain(' '.join(entry))}"
            entry = []
        if line.strip():
            entry.append(line.strip())


def docstring_lines(text: str) -> Iterator[str]:
    """A docstring as Markdown."""
    lines, section, held = text.splitlines(), "", list[str]()
    for line in [*lines, "End:"]:
        word = line.removesuffix(":")
        if section and line and not line.startswith(" "):
            yield from ("", f"**{section}**", "", *items(held))
            section, held = "", []
        if line.endswith(":") and word in SECTIONS:
            section = word
        elif section:
            held.append(line)
        elif line != "End:":
            yield plain(line)


def short(text: str | None) -> str:
    """The first paragraph of a docstring on one line."""
    return plain(" ".join((text or "").split("\n\n")[0].split()))


# The page


def method_lines(node: ast.ClassDef, constants: Mapping[str, str]) -> Iterator[str]:
    """A list of the documented public methods of a class."""
    methods = [each for each in node.body if isinstance(each, Function)]
    shown = [each for each in methods if each.name == "__call__" or not each.name.startswith("_")]
    rows = []
    for method in shown:
        if any(ast.unparse(decorator) == "overload" for decorator in method.decorator_list):
            continue
        call = " ".join(signature(method.name, method, constants).split()).replace("( ", "(").replace(", )", ")")
        call = call.replace("() -> ", ": ", 1) if is_property(method) else call
        rows.append(f"* `{call}`" + (f": {short(ast.get_docstring(method))}" if ast.get_docstring(method) else ""))
    if rows:
        yield from ("", "**Methods and properties**", "", *rows)


def entry(name: str, module: str) -> Iterator[str]:
    """The lines on one public name."""
    tree = tree_of(module)
    node, constants = definition(tree, name), constants_of(tree)
    yield from (f"### {name}", "")
    if isinstance(node, Function):
        yield from ("```python", signature(f"foldfuse.{name}", node, constants), "```", "")
        yield from docstring_lines(ast.get_docstring(node) or "")
    elif isinstance(node, ast.ClassDef):
        fields = fields_of(node, constants)
        yield from (
            "```python",
            "class " + (joined(f"foldfuse.{name}", fields, ")") if fields else f"foldfuse.{name}"),
            "```",
            "",
        )
        yield from docstring_lines(ast.get_docstring(node) or "")
        yield from method_lines(node, constants)
    else:
        kind = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else ""
        yield from (
            "```python",
            f"foldfuse.{name}: {kind}",
            "```",
            "",
            plain((ast.get_docstring(tree) or "").split("\n")[0]),
        )
    yield ""


def api_page(notice: str) -> str:
    """The page on all public names."""
    names, lines = public_names(), [HEAD.format(notice=notice)]
    groups: dict[str, list[str]] = {}
    for heading, rooms in GROUPS.items():
        groups[heading] = [
            name for room in rooms for name, module in sorted(names.items()) if module.split(".")[0] == room
        ]
    groups["Others"] = sorted(set(names) - {name for listed in groups.values() for name in listed})
    groups = {heading: listed for heading, listed in groups.items() if listed}
    for heading, listed in groups.items():
        lines.append(f"* **{heading}**: " + ", ".join(f"[{name}](#{name.lower()})" for name in listed))
    lines.append("")
    for heading, listed in groups.items():
        lines += [f"## {heading}", ""]
        for name in listed:
            lines += entry(name, names[name])
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"
