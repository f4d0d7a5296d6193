"""`load` opens a run, an ONNX file, an ensemble, a campaign or a bundle, also a published one, as a predictor.

What was exported needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from foldfuse.errors import InputError
from foldfuse.inference.base_predictor import Predictor
from foldfuse.inference.bundle import is_bundle, load_bundle
from foldfuse.inference.campaign_predictor import load_campaign
from foldfuse.inference.ensemble_predictor import load_ensemble
from foldfuse.inference.hub import Published, find_published
from foldfuse.inference.networks import load_network
from foldfuse.inference.onnx_predictor import load_onnx
from foldfuse.storage.ledger import NAME as LEDGER
from foldfuse.storage.run import Run


def load(
    path: str | Path, *, device: str = "auto", members: Mapping[str, str | Path] | None = None, engine: str = "auto"
) -> Predictor:
    """A predictor from a run, an ONNX file, an ensemble, a whole campaign or a bundle, also a published one.

    Args:
        path: the folder of a detector's run; an .onnx file of `foldfuse export`; an ensemble.json; the folder of a campaign,
            whose current submission is applied: its members, TTA views, fusion and crop rescoring; or the zip of
            `foldfuse bundle` or `foldfuse export`, or the folder that it was unpacked into; or "hf:owner/name", perhaps with
            "@revision", for what `foldfuse publish` put on the Hugging Face hub.
        device: auto, cpu, cuda, cuda:N or mps.
        members: {member of an ensemble: the folder of its run}, where they do not lie beside it; RUN@1,1+hflip names TTA views.
        engine: what runs a detector on a CPU: eager (PyTorch), openvino, onnxruntime, or auto, the fastest, once that repays
            converting the network, all with the same boxes and scores; or bfloat16. An ONNX file has its own runtime.

    Raises:
        InputError: there is nothing of these kinds, or a part of it is missing.
    """
    if (published := find_published(path)) is not None:
        if members:
            raise InputError(f"{published.reference}: brings its own members. Leave out --member.")
        return load_published(published, device=device, engine=engine)
    path = Path(path)
    if path.name == "ensemble.json" and (path.parent / LEDGER).is_file() and not members:
        path = path.parent  # the campaign's current submission
    if not path.exists():
        raise InputError(
            f"{path}: there is nothing of that name. Is {path} the folder of a run or of a campaign, a bundle, an .onnx file or "
            "an ensemble.json? Check the name."
        )
    is_zip = is_bundle(path)
    is_campaign = not is_zip and (path / LEDGER).is_file()
    is_ensemble = path.suffix.lower() == ".json" or (path.is_dir() and (path / "ensemble.json").is_file())
    is_run = (path / "run.json").is_file()
    if members and (is_zip or is_campaign or is_run or not is_ensemble):
        raise InputError(f"{path}: is no ensemble.json, and only the members of an ensemble are named by --member.")
    if path.suffix.lower() == ".onnx":
        return load_onnx(path, device=device)
    if is_zip:
        return load_bundle(path, device=device, engine=engine)
    if is_campaign:
        return replace(load_campaign(path, device=device), engine=engine)
    if is_ensemble and not is_run:
        return replace(load_ensemble(path, device=device, members=members or {}), engine=engine)
    if path.is_file():
        raise InputError(
            f"{path}: is a file that nothing is predicted with. Give the folder of a run or of a campaign, a bundle, an "
            ".onnx file, or the ensemble.json of an ensemble."
        )
    return load_network(Run(path), device=device, engine=engine)


def load_published(published: Published, *, device: str = "auto", engine: str = "auto") -> Predictor:
    """The predictor of a published bundle, under the name that the user gave it. Raises InputError where the bundle is broken."""
    predictor = load_bundle(published.path, device=device, engine=engine)
    return replace(predictor, source=Path(str(published.reference)), extracted=published)
