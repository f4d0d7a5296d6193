"""What a bundle says to people: its README and its script."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping

from foldfuse.errors import counted
from foldfuse.inference.bundle import BundleRecord

_SCRIPT = '''"""Predicts images with this bundle, without a network, and writes a submission.

    python predict.py IMAGES submission.csv [sample_submission.csv [options of foldfuse submit]]

README.md beside this file says what must be installed.
"""

import sys
from pathlib import Path

from foldfuse.cli import main

OPTIONS = {options}  # what the sample leaves open

if __name__ == "__main__":
    images, out, *sample = sys.argv[1:]
    found = f"{out}.parquet"
    status = main(["predict", str(Path(__file__).resolve().parent), images, "--out", found, "--all", "--overwrite"])
    like = ["--like", *sample, *(OPTIONS if len(sample) == 1 else [])] if sample else []
    sys.exit(status or main(["submit", found, images, "--out", out, "--overwrite", *like]))
'''
_ONNX_WITHOUT = "PyTorch is not needed: ONNX Runtime runs the networks."


def script(record: BundleRecord) -> str:
    """The predict.py of a bundle."""
    return _SCRIPT.replace("{options}", json.dumps(list(record.submission)))


def requirements(packages: Mapping[str, str]) -> str:
    """The requirements.txt of a bundle, from {package: version} where it was made."""
    return "".join(f"{name}=={version}\n" for name, version in packages.items())


def readme(record: BundleRecord, *, has_wheels: str | None) -> str:
    """The README of a bundle, in Markdown.

    Args:
        record: what the bundle holds.
        has_wheels: "own" or "all" for the wheels in it; None without any.
    """
    made = f"Made by Foldfuse {record.versions.get('foldfuse', '')}; `bundle.json` has all versions."
    members = dict.fromkeys(part.member for part in record.parts)
    views = sum(len({view for views in part.views.values() for view in views}) or 1 for part in record.parts)
    like = shlex.join(["--like", "sample_submission.csv", *record.submission])
    lines = [
        f"# The {record.noun} {record.source}, ready to predict",
        "",
        f"{counted(len(members), 'network')} in {counted(views, 'TTA view')}: {', '.join(members)}. {made}",
        "",
        "## Install, without a network",
        "",
        *_install(record, has_wheels),
        "",
        "## Predict",
        "",
        "The zip itself and the folder that it was unpacked into work alike:",
        "",
        "    foldfuse predict bundle.zip IMAGES --all --out predictions.parquet",
        f"    foldfuse submit predictions.parquet IMAGES {like} --out submission.csv",
        "    python predict.py IMAGES submission.csv sample_submission.csv  # both lines above, in the unpacked folder",
        "",
        "In Python: `foldfuse.load('bundle.zip')('photo.jpg')`. IMAGES is a folder, a pattern in quotes, or a dataset.",
        "",
        "## Licences",
        "",
        "`weights.md` says where the initial weights of each network come from, and under which licence.",
        "`LICENSE` and `NOTICE` are those of Foldfuse and of the weights that come with it.",
    ]
    if record.notes:
        lines += ["", "## Left out", "", *(f"* {note}" for note in record.notes)]
    return "\n".join(lines) + "\n"


def _install(record: BundleRecord, has_wheels: str | None) -> list[str]:
    """How to install what the bundle needs."""
    without = (
        _ONNX_WITHOUT if record.runtime == "onnx" else "torch and torchvision must be there, as they are on Kaggle."
    )
    python = record.versions.get("python", "")
    versions = [
        f"{without} `requirements.txt` lists the other packages that predict, in the versions that were installed where the",
        f"bundle was made (Python {python}); newer ones should do as well.",
    ]
    if has_wheels == "all":
        return [
            "    pip install --no-index --find-links wheels foldfuse",
            "",
            "pip takes what is missing from `wheels`, which are for the system and the Python where the bundle was made.",
            *versions,
        ]
    if has_wheels == "own":
        return [
            "    pip install --no-index --no-deps wheels/foldfuse-*.whl",
            "",
            "This installs Foldfuse alone.",
            *versions,
        ]
    return ["Foldfuse must be installed; no wheel is in this bundle.", *versions]
