"""Imports point one way: a module may import only from the layers before its own."""

import ast
from pathlib import Path

LAYERS = [
    {
        "errors",
        "boxes",
        "machine",
        "progress",
        "ap_kernels",
        "fuse_clusters",
        "scenes_art",
        "budget",
        "ema",
        "precision",
        "interrupts",
    },
    {
        "report_values",
        "distributed",
        "trackers",
        "unpickle",
        "files",
        "durations",
        "layouts",
        "detections",
        "fuse_kernels",
        "ensemble_boxes_kernels",
        "scenes_grounds",
        "scenes_vessels",
    },
    {
        "ledger",
        "data",
        "models",
        "fuse",
        "ensemble_boxes",
        "tta",
        "recipes",
        "near",
        "report_charts",
        "report_logs",
        "scenes_objects",
    },
    {
        "notes",
        "watch",
        "standing",
        "costs",
        "images",
        "run",
        "optimizers",
        "split",
        "matching",
        "metrics",
        "rows",
        "scenes",
        "report_data",
        "report_facts",
    },
    {
        "segments",
        "promotion",
        "candidates",
        "model_table",
        "profile",
        "augment",
        "checkup",
        "trials",
        "prediction_strings",
        "report_pictures",
        "crops",
    },
    {
        "report_story",
        "strategy",
        "yolo_folders",
        "doctor",
        "batches",
        "ensemble_search",
        "looks",
        "image_folders",
        "imports",
    },
    {"formats", "rescore", "task"},
    {"loop", "keeping", "probe", "plan", "pseudo"},
    {"train", "predict", "ensemble", "score", "submit"},
    {"classify", "work", "report_mistakes"},
    {"report", "rescore_files", "classify_files", "workers", "cluster_worker"},
    {"cluster"},
    {"export", "campaign", "delivery", "guests", "sweep", "fuse_files", "compare"},
    {"opinion"},
    {"stages", "demo"},
    {"cli"},
    {"__main__"},
]
# What is imported only when it is called, against the direction: the campaign checks its input before torch is loaded.
# Training and predicting hand classifiers on to what is built upon them.
LATE = {("campaign", "stages"), ("campaign", "guests"), ("train", "classify"), ("predict", "classify_files")}
WITHOUT_MODELS = {"data", "split", "fuse", "ensemble", "score", "submit", "formats", "report"}
ROOT = Path(__file__).parent.parent / "src" / "foldfuse"


def imported(path: Path) -> set[str]:
    """The modules of foldfuse that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    found = {name.split(".")[1] for name in names if name.startswith("foldfuse.")}
    return {name for name in found if (ROOT / f"{name}.py").exists() or (ROOT / name).is_dir()}


def modules() -> dict[str, set[str]]:
    """{module: modules that it imports}; a package counts as one."""
    found: dict[str, set[str]] = {}
    for path in ROOT.rglob("*.py"):
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        found.setdefault(own, set()).update(imported(path) - {own})
    del found["__init__"]
    return found


def test_every_module_has_a_place():
    assert set(modules()) == set().union(*LAYERS), "give a new module its place in LAYERS"
    assert sum(map(len, LAYERS)) == len(set().union(*LAYERS)), "a module stands in two layers"


def test_imports_point_down():
    rank = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    up = {
        (own, other)
        for own, others in modules().items()
        for other in others
        if rank.get(other, 0) >= rank.get(own, len(LAYERS))
    }
    assert up == LATE


def test_models_and_data_do_not_know_each_other():
    found = modules()
    assert found["models"] == {"detections", "errors"}
    assert "models" not in found["data"]


def test_what_works_on_predictions_knows_no_model():
    found = modules()

    def reached(name: str) -> set[str]:
        return {name}.union(*(reached(other) for other in found[name]))

    for name in WITHOUT_MODELS:
        assert not reached(name) & {"models", "train", "predict", "run"}, name
