"""Imports point one way: a room may import only from the rooms before its own, and modules form no circles."""

import ast
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent / "src" / "foldfuse"
LAYERS = [  # rooms of one line do not know each other
    {"errors", "boxes", "display"},
    {"drawing", "exchange"},
    {"detections"},
    {"system"},
    {"recipes", "provenance"},
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
    {"api"},
]
RANK = {room: i for i, layer in enumerate(LAYERS) for room in layer}
OUTSIDE = {"__init__", "__main__", "ensemble_boxes"}  # the front door; nothing inside imports them
NEEDS_NO_TORCH = {  # rooms, and modules of others
    *(
        "errors",
        "boxes",
        "drawing",
        "detections",
        "recipes",
        "data",
        "fusion",
        "evaluation",
        "formats",
        "ensemble",
        "cli",
    ),
    *(
        "commands.browse",
        "commands.data",
        "commands.fusion",
        "commands.predictions",
        "commands.campaign",
        "commands.report",
        "commands.review",
        "commands.recipes",
        "commands.predict",
        "inference.bundle",
        "inference.campaign_predictor",
        "inference.ensemble_predictor",
        "inference.onnx_predictor",
        "inference.predictor",
    ),
}


def module_name(path: Path) -> str:
    """data.folds for src/foldfuse/data/folds.py, models for src/foldfuse/models/__init__.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in ROOT.rglob("*.py")}


def top_and_late_nodes(module: str) -> tuple[list[ast.stmt], list[ast.AST]]:
    """The statements at the top of a module, and everything inside them."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    return tree.body, [node for node in ast.walk(tree) if node not in tree.body]


def own_imports(nodes: Iterable[ast.AST]) -> set[str]:
    """Modules of foldfuse that some nodes import."""
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


def imports_torch(nodes: Iterable[ast.AST]) -> bool:
    """Whether some nodes import torch itself."""
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return "torch" in {name.split(".")[0] for name in names}


NODES = {module: top_and_late_nodes(module) for module in MODULES}
TOP = {module: own_imports(top) for module, (top, _) in NODES.items()}  # module: the modules that its top imports
LATE = {module: own_imports(late) for module, (_, late) in NODES.items()}  # module: those that its functions import


def room(module: str) -> str:
    """The sub-package of a module; a module on top is its own room."""
    return module.split(".")[0]


def loads_torch() -> set[str]:
    """Modules that import torch when they are imported, themselves or through others."""
    heavy = {module for module, (top, _) in NODES.items() if imports_torch(top)}
    while more := {module for module, others in TOP.items() if others & heavy} - heavy:
        heavy |= more
    return heavy


def test_every_room_has_a_place():
    assert {room(module) for module in MODULES} - OUTSIDE == set(RANK)


def test_imports_point_down():
    upward = [
        f"{module} -> {other}"
        for module in MODULES
        if room(module) not in OUTSIDE
        for other in TOP[module] | LATE[module]
        if room(other) != room(module) and RANK[room(other)] >= RANK[room(module)]
    ]
    assert not upward


def test_there_are_no_circles():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for other in TOP.get(module, ()):
                visit(other, (*path, module))
            done.add(module)

    for module in TOP:
        visit(module, ())


def test_modules_that_run_no_network_load_no_torch():
    assert not {module for module in loads_torch() if {module, room(module)} & NEEDS_NO_TORCH}


def test_an_import_inside_a_function_keeps_torch_out():
    heavy = loads_torch()
    late = {(module, other) for module, others in LATE.items() for other in others}
    needless = {f"{module} -> {other}" for module, other in late if module in heavy or other not in heavy}
    assert not needless, "import these at the top"
