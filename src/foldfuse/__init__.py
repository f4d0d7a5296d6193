"""Foldfuse: from a labeled folder and a deadline to a fused detection submission.

The public names load their modules when they are first used. So `import foldfuse` is instant, and the names that run no network
work without torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.2.0"

_MODULE_OF = {  # public name: its module
    "Annotations": "detections",
    "Budget": "training.budget",
    "Campaign": "campaign.campaign_folder",
    "DETECTORS": "models",
    "Dataset": "data.dataset",
    "Detections": "detections",
    "Ensemble": "ensemble.ensemble",
    "Folds": "data.folds",
    "InputError": "errors",
    "Predictions": "detections",
    "Recipe": "recipes",
    "Run": "storage.run",
    "Sample": "data.dataset",
    "Score": "evaluation.coco",
    "View": "inference.tta",
    "evaluate": "inference.evaluation",
    "fuse": "api",
    "load": "inference.predictor",
    "load_detector": "inference.detector",
    "load_recipe": "recipes",
    "make_detector": "models",
    "make_folds": "data.folds",
    "next_images": "api",
    "nms": "fusion.methods",
    "nmw": "fusion.methods",
    "open_images": "data.pixels",
    "predict_views": "inference.detector",
    "read": "data.readers.coco",
    "read_ensemble": "ensemble.ensemble",
    "read_folds": "data.folds",
    "read_predictions": "formats.predictions",
    "run_campaign": "api",
    "score": "api",
    "score_predictions": "evaluation.coco",
    "soft_nms": "fusion.methods",
    "train": "api",
    "train_detector": "training.detector",
    "validate_submission": "formats.submission",
    "wbf": "fusion.methods",
    "write": "data.readers.coco",
    "write_predictions": "formats.predictions",
    "write_submission": "formats.submission",
}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    """The object of a public name; its module is imported now."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'foldfuse' has no attribute {name!r}")
    return getattr(importlib.import_module(f"foldfuse.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
