"""The list of public names; importing the package is instant; modules that run no network import without torch."""

import importlib.util
import subprocess
import sys
import types
from pathlib import Path

import pytest

import foldfuse

NAMES = [
    "Annotations",
    "Budget",
    "Campaign",
    "DETECTORS",
    "Dataset",
    "Detections",
    "Ensemble",
    "Folds",
    "InputError",
    "Predictions",
    "Recipe",
    "Run",
    "Sample",
    "Score",
    "View",
    "evaluate",
    "fuse",
    "load",
    "load_detector",
    "load_recipe",
    "make_detector",
    "make_folds",
    "next_images",
    "nms",
    "nmw",
    "open_images",
    "predict_views",
    "read",
    "read_ensemble",
    "read_folds",
    "read_predictions",
    "run_campaign",
    "score",
    "score_predictions",
    "soft_nms",
    "train",
    "train_detector",
    "validate_submission",
    "wbf",
    "write",
    "write_predictions",
    "write_submission",
]
WITHOUT_TORCH = [
    "api",
    "cli",
    "commands.campaign",
    "commands.data",
    "commands.fusion",
    "commands.predictions",
    "commands.report",
    "data.doctor",
    "ensemble.ensemble",
    "inference.tta",
    "reporting.campaign_page",
]


def test_the_public_names_are_these():
    assert foldfuse.__all__ == ["__version__", *NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there_and_documented(name):
    value = getattr(foldfuse, name)
    assert not isinstance(value, types.ModuleType)
    assert value.__doc__


@pytest.mark.parametrize("name", ["fuse", "train", "predict", "score", "read"])
def test_no_module_takes_the_name_of_a_function(name):
    assert importlib.util.find_spec(f"foldfuse.{name}") is None


def test_types_are_published():
    assert (Path(foldfuse.__file__).parent / "py.typed").is_file()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'fold'"):
        foldfuse.fold  # noqa: B018


def in_a_new_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_loads_nothing_heavy():
    heavy = "{'torch', 'numpy', 'numba', 'PIL', 'rich', 'sklearn', 'pyarrow'}"
    assert in_a_new_process(f"import sys, foldfuse; print({heavy} & set(sys.modules))") == "set()"


def test_modules_that_run_no_network_import_without_torch():
    imports = "".join(f"import foldfuse.{name}\n" for name in WITHOUT_TORCH)
    names = (
        "InputError, Predictions, read, make_folds, wbf, Ensemble, score_predictions, write_submission, View, Recipe"
    )
    code = f"import sys\nsys.modules['torch'] = None\n{imports}from foldfuse import {names}\nprint('done')"
    assert in_a_new_process(code) == "done"
