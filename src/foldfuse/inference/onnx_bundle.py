"""Exports a run, an ensemble or a campaign as a bundle of ONNX files, which predicts without torch; see `bundle`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from foldfuse.errors import InputError
from foldfuse.inference import bundle, rescorer_file
from foldfuse.inference.bundle_writer import Bundle, collect, finish, packages_to_install, texts
from foldfuse.inference.cost import check_image_size
from foldfuse.inference.crop_features import ImagenetFeatures
from foldfuse.inference.detector import detect, load_detector
from foldfuse.inference.engine import max_ties, without_partner
from foldfuse.inference.ensemble_predictor import EnsemblePredictor
from foldfuse.inference.networks import NETWORK, has_onnx
from foldfuse.inference.onnx_export import facts_entry, facts_of_run, write_onnx
from foldfuse.inference.onnx_predictor import load_onnx
from foldfuse.inference.predictor import load
from foldfuse.storage.run import Run
from foldfuse.system.atomic_files import atomic


def write_onnx_bundle(source: Path, out: Path, *, members: Mapping[str, str | Path] | None = None) -> Bundle:
    """Writes the networks of a run, an ensemble or a campaign as ONNX, with all that predicts besides them, and checks the zip.

    Args:
        source: what `predictor.load` opens.
        out: the zip.
        members: {member of an ensemble: the folder of its run}, see `predictor.load`.

    Raises:
        InputError: nothing trained is there, or a network cannot be exported for images of any size.
    """
    predictor = load(source, device="cpu", members=members)
    with tempfile.TemporaryDirectory(prefix="foldfuse-export-") as temporary:
        folder = Path(temporary)
        of_parts = _runs(predictor)
        files, record = collect(predictor, source, folder, runtime="onnx")
        runs = dict(zip((part.member for part in record.parts), of_parts, strict=True))
        for name, run in runs.items():
            path = folder / f"{name}.onnx"
            export_run(run, path, needs_any_size=True)
            files[f"{bundle.MEMBERS}/{name}/{NETWORK}"] = path
        if isinstance(predictor, EnsemblePredictor) and predictor.rescorer is not None:
            path = folder / rescorer_file.ENCODER
            encoder = predictor.rescorer.encoder
            assert encoder.network is not None, "a rescorer that was read names its network"
            write_onnx(ImagenetFeatures(encoder.network), path, image_size=encoder.size, metadata={})
            files[rescorer_file.ENCODER] = path
        files |= texts(record, packages_to_install(record, predictor), has_wheels=None)
        return finish(out, files, record)


def export_run(
    run: Run, out: Path, *, image_size: int | None = None, fixed_size: bool = False, needs_any_size: bool = False
) -> str:
    """Writes the detector of a run as ONNX, and returns a clause that says which images the file takes.

    Args:
        run: a trained run.
        out: .onnx file to write.
        image_size: side in pixels to check the file at; by default the run's own.
        fixed_size: see `write_onnx`.
        needs_any_size: refuse a network whose file takes images of one size alone.

    Raises:
        InputError: the run is not trained, or its detector cannot be exported.
    """
    net, classes = load_detector(run, "cpu")
    recipe = run.recipe
    facts = facts_of_run(run, net)
    metadata = {"model": recipe.detector, "classes": json.dumps(classes)}
    metadata |= facts_entry(facts) | network_metadata(net)
    size = image_size or recipe.image_size
    check_image_size(net, size)
    with atomic(out) as path:
        takes = write_onnx(
            net, path, image_size=size, metadata=metadata, decoding=facts.decoding, fixed_size=fixed_size
        )
        predictor = load_onnx(path, device="cpu")
        if needs_any_size and predictor.fixed_size is not None:
            raise InputError(
                f"{run.folder}: {recipe.detector} can be exported for images of {size} px alone, and would predict other boxes "
                "than the run. Use 'foldfuse bundle', whose networks run in PyTorch."
            )
        images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
        apart = [without_partner(*pair) for pair in zip(predictor.detect(images), detect(net, images), strict=True)]
        if max(apart) > max_ties(net):
            raise InputError(
                f"{out}: {max(apart):.1%} of the boxes that the ONNX file finds in random images differ from PyTorch's. Export "
                "another run, or use 'foldfuse bundle', whose networks run in PyTorch."
            )
    return takes


def network_metadata(net: Any) -> dict[str, str]:
    """The metadata of every exported network."""
    return {"stride": str(net.stride)} | {k: str(getattr(net, k)) for k in ("anchor_scale",) if hasattr(net, k)}


def _runs(predictor: Any) -> list[Run]:
    """The run of each pass, in order. Raises InputError for one that is ONNX already."""
    is_ensemble = isinstance(predictor, EnsemblePredictor)
    runs = [part.run for part in predictor.parts] if is_ensemble else list(predictor.runs)
    if any(has_onnx(run) for run in runs):
        raise InputError(f"{predictor.source}: is exported already. Copy the zip.")
    return runs
