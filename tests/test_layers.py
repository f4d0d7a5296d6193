"""Imports point one way: a room may import only from the rooms before its own, and modules form no circles."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent / "src" / "foldfuse"
LAYERS = [  # rooms of one line do not know each other
    {"errors", "boxes"},
    {"detections"},
    {"system"},
    {"recipes"},
    {"data", "models", "fusion", "storage"},
    {"evaluation", "formats"},
    {"ensemble"},
    {"inference"},
    {"training"},
    {"reporting"},
    {"campaign"},
    {"demo"},
    {"commands"},
    {"cli"},
]
RANK = {room: i for i, layer in enumerate(LAYERS) for room in layer}
OUTSIDE = {"__init__", "__main__", "ensemble_boxes"}  # the front door; nothing inside imports them
NEEDS_NO_TORCH = {  # rooms, and modules of others
    *("errors", "boxes", "detections", "recipes", "data", "fusion", "evaluation", "formats", "ensemble", "cli"),
    *("commands.data", "commands.fusion", "commands.predictions", "commands.campaign", "commands.report"),
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in ROOT.rglob("*.py")}


def imports(path: Path, *, inner: bool) -> set[str]:
    """Modules of foldfuse that a file imports: at its top, or with `inner` within its functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [n for n in ast.walk(tree) if n not in tree.body] if inner else tree.body
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("foldfuse"):
            parent = node.module.removeprefix("foldfuse").lstrip(".")
            for alias in node.names:
                child = f"{parent}.{alias.name}".lstrip(".")
                found.add(child if child in MODULES else parent)
        if isinstance(node, ast.Import):
            found |= {a.name.removeprefix("foldfuse.") for a in node.names if a.name.startswith("foldfuse.")}
    return found - {""}


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_room_has_a_place():
    assert {room(m) for m in MODULES} - OUTSIDE == set(RANK)


def test_imports_point_down():
    up = [
        f"{module} -> {other}"
        for module, path in MODULES.items()
        if room(module) not in OUTSIDE
        for other in imports(path, inner=False) | imports(path, inner=True)
        if room(other) != room(module) and RANK[room(other)] >= RANK[room(module)]
    ]
    assert not up


def test_there_are_no_circles():
    graph = {module: imports(path, inner=False) for module, path in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_an_import_inside_a_function_keeps_torch_out():
    """Every late import of foldfuse leads to torch, and its module does not import torch at its top."""
    graph = {module: imports(path, inner=False) for module, path in MODULES.items()}
    heavy = {m for m, path in MODULES.items() if "torch" in top_packages(path)}
    while more := {m for m, others in graph.items() if others & heavy} - heavy:
        heavy |= more
    late = {(m, other) for m, path in MODULES.items() for other in imports(path, inner=True)}
    assert not {(m, other) for m, other in late if m in heavy or other not in heavy}
    assert not {m for m in heavy if {m, room(m)} & NEEDS_NO_TORCH}


def top_packages(path: Path) -> set[str]:
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[0] for a in node.names}
        if isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found
