"""The engine of a prediction: PyTorch, OpenVINO or ONNX Runtime runs the detector's network on a CPU, with the same detections.

With "auto" a prediction begins in PyTorch. Where the time that is left repays it, the network is converted for a runtime,
compared with PyTorch on the images at hand, and timed; the faster one goes on. Runtimes are tried in the order of `RUNTIMES`,
until one is faster. A converted network is kept in the user's cache, under the hash of its weights, so that the next prediction
with them has it at once. At every further size of the input the first images are compared too.

"bfloat16" is PyTorch in autocast. Its boxes and scores differ, so that it is never chosen unasked.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import foldfuse
from foldfuse.detections import Array, Detections
from foldfuse.errors import InputError, unknown_name
from foldfuse.inference.onnx_export import named_tensors, raw_difference
from foldfuse.inference.runtimes import RUNTIMES, Runtime, installed_runtimes
from foldfuse.models.detection.detr import Detr
from foldfuse.system.atomic_files import atomic_folder
from foldfuse.system.cache_folder import cache_folder

log = logging.getLogger(__name__)

BFLOAT16 = "bfloat16"
ENGINES = ("auto", "eager", BFLOAT16, *RUNTIMES)
MAX_PX, MAX_SCORE = 0.01, 1e-4  # difference of a box's sides and of its score that counts as none
MAX_TIES = 0.005  # share of boxes without such a partner: NMS decides between two of almost the same score
MAX_QUERY_TIES = 0.03  # the same for a DETR, which also takes either of two almost equal cells as a query
RAW_TOLERANCE = 1e-3  # of the network's outputs, relative to the largest
REPAY = 2.0  # times the cost that the time saved must be
MIN_SPEEDUP = 1.1
MAX_CACHED = 16  # converted networks in the user's cache

Detect = Callable[[Array], list[Detections]]


class Engine:
    """Detections of letterboxed images by a detector on a CPU, in PyTorch or in a runtime.

    Args:
        model: a model with the detector contract, in eval mode, whose weights stay as they are.
        eager: detects in PyTorch.
        name: one of ENGINES.
        cache: the folder of converted networks.

    Raises:
        InputError: there is no such engine, it is not installed, or it does not run on the model's device.
    """

    def __init__(self, model: Any, eager: Detect, name: str = "auto", *, cache: Path | None = None) -> None:
        if name not in ENGINES:
            raise unknown_name("engine", name, ENGINES)
        on_cpu = next(model.parameters()).device.type == "cpu"
        if name not in ("auto", "eager") and not on_cpu:
            raise InputError(f"--engine {name}: computes on a CPU alone. Add --device cpu, or leave out --engine.")
        if name in RUNTIMES and not RUNTIMES[name].is_installed():
            raise InputError(
                f"--engine {name}: {RUNTIMES[name].title} is not installed. Install it: pip install "
                f"'foldfuse[{RUNTIMES[name].extra}]'"
            )
        self._model, self._asked = model, name
        self._eager = _in_bfloat16(eager) if name == BFLOAT16 else eager
        self._cache = cache or cache_folder() / "networks"
        # the runtimes that may still take over
        self._untried = [RUNTIMES[name]] if name in RUNTIMES else []
        if name == "auto" and on_cpu:
            self._untried = installed_runtimes()
        self._runtime: Runtime | None = None
        self._network: Any = None  # of the runtime
        self._templates: dict[tuple[int, int], Any] = {}  # PyTorch's raw output of one image of each size
        self._digest = ""
        self._pixels = 0
        self._calls = 0

    @property
    def name(self) -> str:
        """The engine that computes now."""
        if self._runtime is not None:
            return self._runtime.name
        return BFLOAT16 if self._asked == BFLOAT16 else "eager"

    def expect(self, pixels: int) -> None:
        """Says how many pixels the next images have together."""
        self._pixels = pixels

    def __call__(self, images: Array) -> list[Detections]:
        """The detections in each of (B, H, W, 3) uint8 RGB letterboxed images, in pixels of these."""
        pixels = len(images) * images.shape[1] * images.shape[2]
        self._pixels = max(0, self._pixels - pixels)
        if self._runtime is not None:
            return self._by_network(self._runtime, images)
        start = time.perf_counter()
        found = self._eager(images)
        seconds = time.perf_counter() - start
        self._calls += 1
        for runtime in self._untried:
            if self._repays(runtime, self._pixels * seconds / pixels):
                self._begin(runtime, images)
                break
        return found

    def _repays(self, runtime: Runtime, seconds: float) -> bool:
        """Whether converting repays in the time that PyTorch would take for the rest; its first call is slower than others."""
        if self._asked != "auto":
            return True
        saved = runtime.saved_seconds(seconds) / (1 if self._calls > 1 else 2)
        if saved < REPAY * runtime.load_seconds:
            return False
        is_kept = (self._own_path(runtime) / runtime.file).is_file()
        return saved >= REPAY * (runtime.load_seconds if is_kept else runtime.convert_seconds)

    def _begin(self, runtime: Runtime, images: Array) -> None:
        """Goes on with a runtime where its network is equal and faster."""
        self._untried = [other for other in self._untried if other is not runtime]
        self._templates = {}
        self._network = self._cached_network(runtime, images) or self._converted_network(runtime, images)
        if self._network is None:
            return
        self._runtime = runtime

        def by_network(images: Array) -> list[Detections]:
            return self._by_network(runtime, images)

        theirs, ours = (min(_seconds(call, images) for _ in range(2)) for call in (by_network, self._eager))
        if self.name == "eager":
            return  # the runtime failed, as the log says
        if self._asked == "auto" and ours < MIN_SPEEDUP * theirs:
            log.debug("%s is no faster: %.3g s, PyTorch %.3g s", runtime.title, theirs, ours)
            self._runtime = self._network = None
            return
        log.info("%s predicts: %.1f x PyTorch's speed, with the same boxes and scores.", runtime.title, ours / theirs)

    def _cached_network(self, runtime: Runtime, images: Array) -> Any:
        """The network in the cache; None where there is none, or where it fails or differs from PyTorch: then it is removed."""
        file = self._own_path(runtime) / runtime.file
        if not file.is_file():
            return None
        with suppress(Exception):  # the runtimes' errors have no common parent
            network = runtime.network.load(file, threads=torch.get_num_threads())
            if not self._difference(network, images):
                return network
        shutil.rmtree(file.parent, ignore_errors=True)
        return None

    def _converted_network(self, runtime: Runtime, images: Array) -> Any:
        """The network converted now, which goes into the cache; None where it cannot be converted or differs from PyTorch."""
        try:
            canvas = (images.shape[1], images.shape[2])
            network = runtime.network.convert(self._model, canvas, threads=torch.get_num_threads())
            reason = self._difference(network, images)
        except Exception as error:  # a network that cannot be traced, or has an operation that is lacking
            level = logging.DEBUG if self._asked == "auto" else logging.WARNING
            log.log(level, "%s cannot run this network (%s), so PyTorch predicts.", runtime.title, _on_one_line(error))
            return None
        if reason:
            log.warning("%s's outputs differ from PyTorch's (%s), so PyTorch predicts.", runtime.title, reason)
            return None
        self._keep(runtime, network)
        return network

    def _by_network(self, runtime: Runtime, images: Array) -> list[Detections]:
        """The detections by a runtime; where it fails or differs from PyTorch, those by PyTorch, which goes on."""
        canvas = (images.shape[1], images.shape[2])
        if self._network is not None:
            try:
                reason = "" if canvas in self._templates else self._difference(self._network, images)
                if not reason:
                    raw = like(self._templates[canvas], iter(self._network(images)))
                    found: list[Detections] = self._model.decode(raw)
                    return found
            except Exception as error:  # the runtimes' errors have no common parent
                reason = _on_one_line(error)
            log.warning(
                "%s fails or differs from PyTorch at %d x %d px (%s), so PyTorch predicts.",
                runtime.title,
                *canvas[::-1],
                reason,
            )
            self._runtime = self._network = None
        return self._eager(images)

    def _difference(self, network: Any, images: Array) -> str:
        """How the network differs from PyTorch on a batch; "" where it does not. Keeps the form of PyTorch's raw output."""
        with torch.inference_mode():
            wants = [self._model(_inputs(images[i : i + 1])) for i in range(min(len(images), 4))]
            got = network(images[: len(wants)])
            for i, want in enumerate(wants):
                own = [tensor[i : i + 1] for tensor in got]
                tensors = [tensor for _, tensor in named_tensors(want)]
                for a, b in zip(tensors, own, strict=True):
                    if a.shape != b.shape:
                        return f"an output of {tuple(b.shape)}, not {tuple(a.shape)}"
                apart = raw_difference(self._model, tensors, own)
                if not apart <= RAW_TOLERANCE:
                    return f"an output by {apart:.2g} of the largest"
                share = without_partner(self._model.decode(want)[0], self._model.decode(like(want, iter(own)))[0])
                if share > max_ties(self._model):
                    return f"{share:.1%} of the boxes"
        self._templates[images.shape[1], images.shape[2]] = wants[0]
        return ""

    def _own_path(self, runtime: Runtime) -> Path:
        """The folder of this network in the cache; the name holds its weights, its form and all versions."""
        if not self._digest:
            form = (foldfuse.__version__, torch.__version__, repr(self._model))
            digest = hashlib.sha256(repr(form).encode())
            for name, tensor in (*self._model.named_parameters(), *self._model.named_buffers()):
                digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(tensor.detach().contiguous().numpy().tobytes())
            self._digest = digest.hexdigest()
        whole = hashlib.sha256(f"{self._digest} {runtime.name} {runtime.version()}".encode())
        return self._cache / whole.hexdigest()[:32]

    def _keep(self, runtime: Runtime, network: Any) -> None:
        """Puts the network into the cache, and removes the oldest ones; where that fails, the next prediction converts again."""
        with suppress(InputError, OSError, RuntimeError):
            with atomic_folder(self._own_path(runtime)) as temporary:
                network.save(temporary / runtime.file)
            known = sorted(self._cache.iterdir(), key=lambda folder: folder.stat().st_mtime)
            for folder in known[:-MAX_CACHED]:
                shutil.rmtree(folder, ignore_errors=True)


def planned_seconds(seconds: float) -> float:
    """Seconds to plan for a prediction on a CPU that takes PyTorch `seconds`: less where converting for a runtime repays."""
    for runtime in installed_runtimes():
        if (
            runtime.saved_seconds(seconds) / 2 >= REPAY * runtime.convert_seconds
        ):  # the first call is slower than others
            return runtime.convert_seconds + seconds / runtime.speedup
    return seconds


def _in_bfloat16(eager: Detect) -> Detect:
    """Detects in autocast."""

    def detect(images: Array) -> list[Detections]:
        with torch.autocast("cpu", torch.bfloat16):
            return eager(images)

    return detect


def max_ties(model: Any) -> float:
    """The share of boxes that may have no partner between two computations of a detector."""
    return MAX_QUERY_TIES if isinstance(model, Detr) else MAX_TIES


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
