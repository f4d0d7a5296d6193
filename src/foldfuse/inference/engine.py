"""The engine of a prediction: PyTorch or OpenVINO runs the detector's network on a CPU, with the same detections.

With "auto" a prediction begins in PyTorch. Where the time that is left repays it, the network is converted, compared with PyTorch
on the images at hand, and timed; the faster one goes on. A converted network is kept in the user's cache, under the hash of its
weights, so that the next prediction with them has it at once. At every further size of the input the first images
are compared too.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import foldfuse
from foldfuse.detections import Array, Detections
from foldfuse.errors import InputError, unknown_name
from foldfuse.inference import openvino_network
from foldfuse.inference.onnx_export import named_tensors
from foldfuse.inference.openvino_network import OpenVINONetwork
from foldfuse.system.atomic_files import atomic_folder
from foldfuse.system.cache_folder import cache_folder

log = logging.getLogger(__name__)

ENGINES = ("auto", "eager", "openvino")
MAX_PX, MAX_SCORE = 0.01, 1e-4  # difference of a box's sides and of its score that counts as none
MAX_TIES = 0.005  # share of boxes without such a partner: NMS decides between two of almost the same score
RAW_TOLERANCE = 1e-3  # of the network's outputs, relative to the largest
CONVERT_SECONDS, LOAD_SECONDS = 10.0, 1.5  # of importing, converting and comparing; of a network from the cache
EXPECTED_SPEEDUP = 1.8
REPAY = 2.0  # times the cost that the time saved must be
MIN_SPEEDUP = 1.1
MAX_CACHED = 16  # converted networks in the user's cache
NETWORK = "network.xml"  # the file of each


class Engine:
    """Detections of letterboxed images by a detector on a CPU, in PyTorch or in OpenVINO.

    Args:
        model: a model with the detector contract, in eval mode, whose weights stay as they are.
        eager: detects in PyTorch.
        name: one of ENGINES.
        cache: the folder of converted networks.

    Raises:
        InputError: there is no such engine, it is not installed, or it does not run on the model's device.
    """

    def __init__(self, model: Any, eager: Any, name: str = "auto", *, cache: Path | None = None) -> None:
        if name not in ENGINES:
            raise unknown_name("engine", name, ENGINES)
        on_cpu = next(model.parameters()).device.type == "cpu"
        if name == "openvino" and not on_cpu:
            raise InputError("--engine openvino: computes on a CPU alone. Add --device cpu, or leave out --engine.")
        if name == "openvino" and not openvino_network.is_installed():
            raise InputError(
                "--engine openvino: OpenVINO is not installed. Install it: pip install 'foldfuse[openvino]'"
            )
        self._model, self._eager, self._asked = model, eager, name
        self._cache = cache or cache_folder() / "networks"
        # whether OpenVINO may still take over
        self._is_open = name != "eager" and on_cpu and openvino_network.is_installed()
        self._network: OpenVINONetwork | None = None
        self._templates: dict[tuple[int, int], Any] = {}  # PyTorch's raw output of one image of each size
        self._path: Path | None = None
        self._pixels = 0
        self._calls = 0

    @property
    def name(self) -> str:
        """The engine that computes now."""
        return "eager" if self._network is None else "openvino"

    def expect(self, pixels: int) -> None:
        """Says how many pixels the next images have together."""
        self._pixels = pixels

    def __call__(self, images: Array) -> list[Detections]:
        """The detections in each of (B, H, W, 3) uint8 RGB letterboxed images, in pixels of these."""
        pixels = len(images) * images.shape[1] * images.shape[2]
        self._pixels = max(0, self._pixels - pixels)
        if self._network is not None:
            return self._by_network(images)
        start = time.perf_counter()
        found: list[Detections] = self._eager(images)
        seconds = time.perf_counter() - start
        self._calls += 1
        if self._is_open and self._repays(self._pixels * seconds / pixels):
            self._begin(images)
        return found

    def _repays(self, seconds: float) -> bool:
        """Whether converting repays in the time that PyTorch would take for the rest; its first call is slower than others."""
        if self._asked != "auto":
            return True
        saved = seconds * (1 - 1 / EXPECTED_SPEEDUP) / (1 if self._calls > 1 else 2)
        if saved < REPAY * LOAD_SECONDS:
            return False
        cost = LOAD_SECONDS if (self._own_path() / NETWORK).is_file() else CONVERT_SECONDS
        return saved >= REPAY * cost

    def _begin(self, images: Array) -> None:
        """Goes on with OpenVINO where its network is equal and faster."""
        self._is_open = False
        self._network = self._cached_network(images) or self._converted_network(images)
        if self._network is None:
            return
        theirs, ours = (min(_seconds(call, images) for _ in range(2)) for call in (self._by_network, self._eager))
        if self.name == "eager":
            return  # OpenVINO failed, as the log says
        if self._asked == "auto" and ours < MIN_SPEEDUP * theirs:
            log.debug("OpenVINO is no faster: %.3g s, PyTorch %.3g s", theirs, ours)
            self._network = None
            return
        log.info("OpenVINO predicts: %.1f x PyTorch's speed, with the same boxes and scores.", ours / theirs)

    def _cached_network(self, images: Array) -> OpenVINONetwork | None:
        """The network in the cache; None where there is none, or where it fails or differs from PyTorch: then it is removed."""
        file = self._own_path() / NETWORK
        if not file.is_file():
            return None
        with suppress(Exception):  # OpenVINO's errors have no common parent
            network = OpenVINONetwork.load(file, threads=torch.get_num_threads())
            if not self._difference(network, images):
                return network
        shutil.rmtree(file.parent, ignore_errors=True)
        return None

    def _converted_network(self, images: Array) -> OpenVINONetwork | None:
        """The network converted now, which goes into the cache; None where it cannot be converted or differs from PyTorch."""
        try:
            canvas = (images.shape[1], images.shape[2])
            network = OpenVINONetwork.convert(self._model, canvas, threads=torch.get_num_threads())
            reason = self._difference(network, images)
        except Exception as error:  # a network that cannot be traced, or has an operation that is lacking
            level = logging.DEBUG if self._asked == "auto" else logging.WARNING
            log.log(level, "OpenVINO cannot run this network (%s), so PyTorch predicts.", _on_one_line(error))
            return None
        if reason:
            log.warning("OpenVINO's outputs differ from PyTorch's (%s), so PyTorch predicts.", reason)
            return None
        self._keep(network)
        return network

    def _by_network(self, images: Array) -> list[Detections]:
        """The detections by OpenVINO; where it fails or differs from PyTorch, those by PyTorch, which goes on."""
        canvas = (images.shape[1], images.shape[2])
        if self._network is not None:
            try:
                reason = "" if canvas in self._templates else self._difference(self._network, images)
                if not reason:
                    raw = like(self._templates[canvas], iter(self._network(images)))
                    return self._model.decode(raw)
            except Exception as error:  # OpenVINO's errors have no common parent
                reason = _on_one_line(error)
            log.warning(
                "OpenVINO fails or differs from PyTorch at %d x %d px (%s), so PyTorch predicts.", *canvas[::-1], reason
            )
            self._network = None
        found: list[Detections] = self._eager(images)
        return found

    def _difference(self, network: OpenVINONetwork, images: Array) -> str:
        """How the network differs from PyTorch on a batch; "" where it does not. Keeps the form of PyTorch's raw output."""
        with torch.inference_mode():
            wants = [self._model(_inputs(images[i : i + 1])) for i in range(min(len(images), 4))]
            got = network(images[: len(wants)])
            for i, want in enumerate(wants):
                own = [tensor[i : i + 1] for tensor in got]
                for (_, a), b in zip(named_tensors(want), own, strict=True):
                    if a.shape != b.shape:
                        return f"an output of {tuple(b.shape)}, not {tuple(a.shape)}"
                    if not float((a - b).abs().max()) <= RAW_TOLERANCE * max(float(a.abs().max()), 1e-3):
                        return f"an output by {float((a - b).abs().max()):.2g}"
                share = without_partner(self._model.decode(want)[0], self._model.decode(like(want, iter(own)))[0])
                if share > MAX_TIES:
                    return f"{share:.1%} of the boxes"
        self._templates[images.shape[1], images.shape[2]] = wants[0]
        return ""

    def _own_path(self) -> Path:
        """The folder of this network in the cache; the name holds its weights, its form and all versions."""
        if self._path is None:
            form = (foldfuse.__version__, torch.__version__, openvino_network.version(), repr(self._model))
            digest = hashlib.sha256(repr(form).encode())
            for name, tensor in (*self._model.named_parameters(), *self._model.named_buffers()):
                digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(tensor.detach().contiguous().numpy().tobytes())
            self._path = self._cache / digest.hexdigest()[:32]
        return self._path

    def _keep(self, network: OpenVINONetwork) -> None:
        """Puts the network into the cache, and removes the oldest ones; where that fails, the next prediction converts again."""
        with suppress(InputError, OSError, RuntimeError):
            with atomic_folder(self._own_path()) as temporary:
                network.save(temporary / NETWORK)
            known = sorted(self._cache.iterdir(), key=lambda folder: folder.stat().st_mtime)
            for folder in known[:-MAX_CACHED]:
                shutil.rmtree(folder, ignore_errors=True)


def planned_seconds(seconds: float) -> float:
    """Seconds to plan for a prediction on a CPU that takes PyTorch `seconds`: less where converting to OpenVINO repays."""
    saved = seconds * (1 - 1 / EXPECTED_SPEEDUP) / 2  # as the first call shows it, which is slower than others
    if not openvino_network.is_installed() or saved < REPAY * CONVERT_SECONDS:
        return seconds
    return CONVERT_SECONDS + seconds / EXPECTED_SPEEDUP


def without_partner(a: Detections, b: Detections) -> float:
    """Share of the boxes of either that the other has not, with the same label, sides to `MAX_PX` and score to `MAX_SCORE`."""
    if not len(a.scores) or not len(b.scores):
        return float(len(a.scores) + len(b.scores) > 0)
    near = np.abs(a.boxes[:, None] - b.boxes[None]).max(-1) <= MAX_PX
    near &= np.abs(a.scores[:, None] - b.scores[None]) <= MAX_SCORE
    near &= a.labels[:, None] == b.labels[None]
    cut = max(a.scores.min(), b.scores.min()) + MAX_SCORE  # the lowest ones may be on either side of the limit
    alone = ((~near.any(1)) & (a.scores > cut)).sum() + ((~near.any(0)) & (b.scores > cut)).sum()
    return float(alone) / (len(a.scores) + len(b.scores))


def like(raw: Any, tensors: Iterator[Tensor]) -> Any:
    """A raw output of the form of `raw` with other tensors; numbers stay. Raises TypeError for what may hide tensors."""
    if isinstance(raw, Tensor):
        return next(tensors)
    if isinstance(raw, tuple | list):
        parts = [like(part, tensors) for part in raw]
        return type(raw)(*parts) if hasattr(raw, "_fields") else type(raw)(parts)
    if not isinstance(raw, int | float | str | None):
        raise TypeError(f"a raw output holds {type(raw).__name__}")
    return raw


def _inputs(images: Array) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255)


def _on_one_line(error: Exception) -> str:
    """The beginning of an error's text."""
    return " ".join(str(error).split())[:300]


def _seconds(call: Any, images: Array) -> float:
    start = time.perf_counter()
    call(images)
    return time.perf_counter() - start
