"""Weights that others have published, by the name of a model: where they lie, their licence, and how their file is found.

A source is a repository of the Hugging Face hub, "hf:owner/name", or a web address. A file is looked for in the hub's cache
(HF_HOME) or in PyTorch's (TORCH_HOME), and downloaded to there; HF_HUB_OFFLINE=1 forbids the download.
"""

from __future__ import annotations

import hashlib
import logging
import re
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download
from torch import hub

from foldfuse.errors import InputError, shown
from foldfuse.provenance import WeightsOrigin
from foldfuse.system.atomic_files import atomic

HUB = "hf:"
_TIMEOUT = 10  # seconds without an answer
_CHUNK = 2**20  # bytes
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.\w+$")  # PyTorch's convention: the first digits of the file's SHA-256

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublishedWeights:
    """A file of weights that others have published.

    Attributes:
        name: the model that they are for.
        source: "hf:owner/name", or the web address of the folder of the file.
        file: name of the file there.
        licence: as the publisher states it, such as "Apache-2.0".
        data: what the weights have been trained on.
        url: the page that states the licence and the data.
    """

    name: str
    source: str
    file: str
    licence: str
    data: str
    url: str

    @property
    def address(self) -> str:
        """What sentences call the source, such as "huggingface.co/owner/name"."""
        return f"huggingface.co/{self.source.removeprefix(HUB)}" if self.source.startswith(HUB) else self.source

    @property
    def origin(self) -> WeightsOrigin:
        """Name, source, licence and training data."""
        return WeightsOrigin(self.name, self.source, self.licence, self.data)


def _on_hub(name: str, repository: str, data: str) -> PublishedWeights:
    """Weights under Apache-2.0 on the hub, in one .safetensors file."""
    page = f"https://huggingface.co/{repository}"
    return PublishedWeights(name, f"{HUB}{repository}", "model.safetensors", "Apache-2.0", data, page)


def _of_torchvision(name: str, file: str, data: str) -> PublishedWeights:
    """Weights of torchvision's own download address."""
    page = "https://github.com/pytorch/vision#pre-trained-model-license"
    return PublishedWeights(name, "https://download.pytorch.org/models", file, _TORCHVISION_LICENCE, data, page)


def _of_effdet(name: str, file: str) -> PublishedWeights:
    """Weights that effdet's author converted from the EfficientDet paper's."""
    project = "https://github.com/rwightman/efficientdet-pytorch"
    return PublishedWeights(name, f"{project}/releases/download/v0.1", file, "Apache-2.0", _COCO, project)


_TORCHVISION_LICENCE = "BSD-3-Clause"  # torchvision adds that terms of the training data may apply
_COCO = "COCO 2017 train (boxes), ImageNet-1k (backbone)"
_ROWS: tuple[tuple[str, PublishedWeights], ...] = (
    ("coco", _on_hub("dfine_n", "ustc-community/dfine-nano-coco", _COCO)),
    ("coco", _on_hub("dfine_s", "ustc-community/dfine-small-coco", _COCO)),
    ("coco", _on_hub("dfine_m", "ustc-community/dfine-medium-coco", _COCO)),
    ("coco", _on_hub("rtdetr_r18", "PekingU/rtdetr_v2_r18vd", _COCO)),
    ("coco", _of_torchvision("ssdlite320", "ssdlite320_mobilenet_v3_large_coco-a79551df.pth", _COCO)),
    ("coco", _of_torchvision("retinanet_r50", "retinanet_resnet50_fpn_v2_coco-5905b1c5.pth", _COCO)),
    ("coco", _of_torchvision("fcos_r50", "fcos_resnet50_fpn_coco-99b0c9b7.pth", _COCO)),
    ("coco", _of_torchvision("fasterrcnn_mobilenet", "fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7.pth", _COCO)),
    ("imagenet", _of_torchvision("retinanet_r50", "resnet50-0676ba61.pth", "ImageNet-1k")),
    ("imagenet", _of_torchvision("fcos_r50", "resnet50-0676ba61.pth", "ImageNet-1k")),
    ("imagenet", _of_torchvision("fasterrcnn_mobilenet", "mobilenet_v3_large-8738ca79.pth", "ImageNet-1k")),
    ("coco", _of_effdet("efficientdet_d0", "tf_efficientdet_d0_34-f153e0cf.pth")),
    ("coco", _of_effdet("efficientdet_d1", "tf_efficientdet_d1_40-a30f94af.pth")),
    ("coco", _of_effdet("efficientdet_d2", "tf_efficientdet_d2_43-8107aa99.pth")),
    ("coco", _of_effdet("efficientdet_d3", "tf_efficientdet_d3_47-0b525f35.pth")),
    ("coco", _of_effdet("efficientdet_d4", "tf_efficientdet_d4_49-f56376d9.pth")),
    ("coco", _of_effdet("efficientdet_d5", "tf_efficientdet_d5_51-c79f9be6.pth")),
    ("coco", _of_effdet("efficientdet_d6", "tf_efficientdet_d6_52-4eda3773.pth")),
    ("coco", _of_effdet("efficientdet_d7", "tf_efficientdet_d7_53-6d1d7a95.pth")),
    ("coco", _of_effdet("efficientdet_lite0", "tf_efficientdet_lite0-dfacfc78.pth")),
    ("coco", _of_effdet("efficientdet_lite1", "tf_efficientdet_lite1-6dc7ab30.pth")),
    ("coco", _of_effdet("efficientdet_lite2", "tf_efficientdet_lite2-86c5d55b.pth")),
    ("coco", _of_effdet("efficientdet_lite3", "tf_efficientdet_lite3-506852cb.pth")),
    ("coco", _of_effdet("efficientdet_lite4", "tf_efficientdet_lite4-391ddabc.pth")),
)
# {(name of a model, kind): its weights}; a kind is a word of a recipe's init_weights: "coco" or "imagenet".
PUBLISHED: Mapping[tuple[str, str], PublishedWeights] = {(row.name, kind): row for kind, row in _ROWS}


def published(name: str, kind: str) -> PublishedWeights:
    """The published weights of a model.

    Args:
        name: the name of the model.
        kind: "coco" or "imagenet".

    Raises:
        InputError: none are known.
    """
    if (name, kind) not in PUBLISHED:
        known = ", ".join(model for model, each in PUBLISHED if each == kind) or "none"
        raise InputError(
            f"init_weights is {kind}, and no published weights of {shown(name)} are known, only of: {known}. Take one of these "
            "models, another word for init_weights, or the path of a file of weights."
        )
    return PUBLISHED[name, kind]


def coco_licence(name: str) -> str:
    """What the description of a model says of its COCO weights: their licence."""
    return f"COCO weights under {published(name, 'coco').licence}."


def locate(weights: PublishedWeights, *, offline: bool = False) -> Path:
    """The file of published weights on this machine; it is downloaded where it is missing.

    Args:
        weights: an entry of `PUBLISHED`.
        offline: never try a network.

    Raises:
        InputError: the file is missing, and it cannot or may not be downloaded.
    """
    offline = offline or constants.HF_HUB_OFFLINE
    if weights.source.startswith(HUB):
        return _on_this_machine(weights, Path(constants.HF_HUB_CACHE), _from_hub, offline=offline)
    return _on_this_machine(weights, Path(hub.get_dir()) / "checkpoints", _from_web, offline=offline)


def file_in(path: Path, weights: PublishedWeights) -> Path:
    """The file of these weights that a user's path names: the file itself, or a folder that holds it under its name.

    Raises:
        InputError: there is no such file, or it is not in the folder.
    """
    if not path.is_dir():
        if path.exists():
            return path
        raise InputError(f"{path}: there is no such file.")
    if not (path / weights.file).is_file():
        raise InputError(
            f"{path}: is neither the folder of a run nor a folder with {weights.file}, as {weights.address} has it."
        )
    return path / weights.file


def _on_this_machine(
    weights: PublishedWeights,
    folder: Path,
    get: Callable[[PublishedWeights, Path, bool], Path | None],
    *,
    offline: bool,
) -> Path:
    """What `get` gives without a network, else with one."""
    if found := get(weights, folder, True):
        return found
    why = "a download is not allowed (offline)"
    if not offline:
        try:
            if found := get(weights, folder, False):
                return found
        except InputError:
            raise
        except Exception:  # each library has its own errors for a network that is down; the remedy is the same
            pass
        why = f"{weights.address} cannot be reached"
    raise InputError(
        f"the weights of {weights.name} are not on this machine: {weights.file} of {weights.address} is not in {folder}, and "
        f"{why}. Run 'foldfuse fetch {weights.name}' where there is a network, or give a file or folder with "
        "--set init_weights=PATH."
    )


def _from_hub(weights: PublishedWeights, folder: Path, offline: bool) -> Path | None:
    repository = weights.source.removeprefix(HUB)
    if offline:
        try:
            return Path(hf_hub_download(repository, weights.file, cache_dir=folder, local_files_only=True))
        except OSError:  # not in the cache
            return None
    HfApi().model_info(repository, timeout=_TIMEOUT)  # tries once; a download would retry for half a minute
    log.info("%s: downloading %s from %s", weights.name, weights.file, weights.address)
    return Path(hf_hub_download(repository, weights.file, cache_dir=folder))


def _from_web(weights: PublishedWeights, folder: Path, offline: bool) -> Path | None:
    path = folder / weights.file
    if path.is_file():
        return path
    if offline:
        return None
    digest = hashlib.sha256()
    with urllib.request.urlopen(f"{weights.source}/{weights.file}", timeout=_TIMEOUT) as answer, atomic(path) as part:
        log.info("%s: downloading %s from %s", weights.name, weights.file, weights.address)
        with part.open("wb") as file:
            while chunk := answer.read(_CHUNK):
                digest.update(chunk)
                file.write(chunk)
        if (expected := _HASH_IN_NAME.search(weights.file)) and not digest.hexdigest().startswith(expected[1]):
            raise InputError(
                f"{weights.source}/{weights.file}: the download is damaged (its SHA-256 does not begin with {expected[1]}). "
                "Try again."
            )
    return path
