"""Foldfuse: from a labelled folder and a deadline to a fused detection submission.

The names below are the public ones; each is loaded when it is first asked for, so that `import foldfuse` is instant and what
needs no learning works without torch. A name that is also a module's is always the module: the command `foldfuse train` is
the function `foldfuse.train.train`.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_NAMES = {  # module: what it gives
    "errors": ("InputError",),
    "detections": ("Annotations", "Detections", "Predictions"),
    "data": ("Dataset", "Sample", "read", "write"),
    "split": ("Folds", "folds", "read_folds"),
    "formats": ("read_predictions", "write_predictions"),
    "fuse": ("nms", "nmw", "soft_nms", "wbf"),
    "ensemble": ("Ensemble", "read_ensemble"),
    "score": ("Score", "score_predictions"),
    "submit": ("validate_submission", "write_submission"),
    "tta": ("View",),
    "recipes": ("Recipe", "load_recipe"),
    "models": ("DETECTORS", "make_detector"),
    "run": ("Run",),
    "train": ("Budget", "train_run"),
    "predict": ("load_detector", "predict_views"),
    "classify": (),
    "rescore": (),
    "campaign": (),
    "doctor": (),
    "report": (),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF), *sorted(_NAMES)]


def __getattr__(name: str) -> Any:
    """A public name or module, loaded now."""
    if name in _NAMES:
        return importlib.import_module(f"foldfuse.{name}")
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"foldfuse.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'foldfuse' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
