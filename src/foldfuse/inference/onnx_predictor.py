"""The predictor of an ONNX file of `foldfuse export`, in ONNX Runtime and numpy: torch is not needed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foldfuse.data.images import PAD_VALUE
from foldfuse.detections import Array, Detections
from foldfuse.errors import InputError
from foldfuse.inference.crop_encoder import CropEncoder
from foldfuse.inference.network_predictor import NetworkPredictor
from foldfuse.inference.numpy_decoding import Decoding, decode
from foldfuse.inference.tta import View
from foldfuse.storage.run import Run
from foldfuse.system.files import parse_json
from foldfuse.system.records import from_plain

DECODED = ("boxes", "scores", "labels")  # outputs of a file that decodes
KEY = "foldfuse"  # of the metadata entry that holds an `OnnxFacts` as JSON
VERSION = 1


@dataclass(frozen=True)
class OnnxFacts:
    """What an exported file says of itself.

    Attributes:
        detector: the detector's name.
        classes, category_ids: see `RunMetadata`.
        image_size: the longest side, in pixels, that it was trained at.
        stride: sides of its input are multiples of it.
        decoding: how its outputs become boxes.
        ignore_orientation, value_ranges: see `RunMetadata`.
    """

    detector: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_size: int
    stride: int
    decoding: Decoding
    ignore_orientation: bool
    value_ranges: dict[str, tuple[float, float]]


@dataclass(frozen=True, eq=False, repr=False)
class OnnxPredictor(NetworkPredictor):
    """A detector in ONNX Runtime.

    Attributes:
        decoding: how the outputs become boxes.
        session: the runtime's session.
        fixed_size: the side of the only image that the file takes, in pixels; None for any sizes.
        run: the run that it was exported from, as the folder of a bundle holds it: without weights. None for a file alone.
    """

    decoding: Decoding
    session: Any
    fixed_size: int | None
    run: Run | None = None

    @property
    def kind(self) -> str:
        """Such as "ONNX file of lite0_fpn at 320 px"."""
        return f"ONNX file of {self.detector} at {self.image_size} px"

    @property
    def runs(self) -> tuple[Run, ...]:
        """The run in a bundle; none for a file alone, which does not say which images its run has learnt from."""
        return () if self.run is None else (self.run,)

    def parse_views(self, names: Sequence[str]) -> tuple[View, ...]:
        """The TTA views of these names. Raises InputError for a name that is no view, or a scale that the file does not take."""
        views = super().parse_views(names)
        if self.fixed_size is not None and any(view.scale > 1 for view in views):
            raise InputError(
                f"{self.source}: takes images of {self.fixed_size} px alone, and the view {max(views, key=lambda v: v.scale)} is "
                "larger. Leave it out, or export the run without --fixed-size."
            )
        return views

    def detect(self, images: Array) -> list[Detections]:
        """See `NetworkPredictor.detect`. Raises InputError where the runtime fails, or the outputs are not those of the head."""
        batches = [images]
        if self.fixed_size is not None:
            square = np.full((len(images), self.fixed_size, self.fixed_size, 3), PAD_VALUE, np.uint8)
            square[:, : images.shape[1], : images.shape[2]] = images
            batches = [square[i : i + 1] for i in range(len(square))]
        found: list[Detections] = []
        try:
            for batch in batches:
                names = [output.name for output in self.session.get_outputs()]
                is_decoded = set(DECODED) <= set(names)  # not so in files of earlier versions
                wanted = DECODED if is_decoded else names
                outputs = self.session.run(wanted, {self.session.get_inputs()[0].name: network_inputs(batch)})
                canvas = (batch.shape[1], batch.shape[2])
                found += _detections(*outputs) if is_decoded else decode(outputs, self.decoding, canvas)
        except Exception as error:  # the runtime's errors have no common parent
            raise InputError(
                f"{self.source}: cannot be run on images of {images.shape[2]} x {images.shape[1]} px ({str(error)[:100]}). "
                "Export the run again."
            ) from None
        return found


def _detections(boxes: Array, scores: Array, labels: Array) -> list[Detections]:
    """The detections in the outputs of a file that decodes: (B, M, 4), (B, M) and (B, M), where padding has the label -1."""
    kept = labels >= 0
    return [Detections(boxes[i, own], scores[i, own], labels[i, own]) for i, own in enumerate(kept)]


def load_onnx(path: Path, *, device: str = "auto", run: Run | None = None) -> OnnxPredictor:
    """The predictor of an ONNX file.

    Args:
        path: a file of `foldfuse export`.
        device: auto, cpu, or cuda, which needs the runtime's package for it.
        run: the run that it was exported from, where this is known.

    Raises:
        InputError: the file is missing or broken, does not say how it is decoded, or the runtime or device is missing.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file. Write one: foldfuse export RUN --out {path}")
    session = _session(path, device)
    facts = _facts(path, session.get_modelmeta().custom_metadata_map)
    if facts.decoding.head == "in_graph" and not set(DECODED) <= {output.name for output in session.get_outputs()}:
        raise InputError(
            f"{path}: lacks the outputs {', '.join(DECODED)}, expected those of an exported run. Export the run again."
        )
    height = session.get_inputs()[0].shape[2]
    return OnnxPredictor(
        source=path,
        classes=facts.classes,
        category_ids=facts.category_ids,
        ignore_orientation=facts.ignore_orientation,
        value_ranges=facts.value_ranges,
        detector=facts.detector,
        image_size=facts.image_size,
        stride=facts.stride,
        decoding=facts.decoding,
        session=session,
        fixed_size=height if isinstance(height, int) else None,
        run=run,
    )


def onnx_encoder(path: Path, *, size: int, context: float, device: str = "auto") -> CropEncoder:
    """An encoder of crops whose network is an ONNX file: (B, 3, size, size) in 0..1 -> (B, D).

    Raises:
        InputError: see `load_onnx`.
    """
    session = _session(path, device)

    def encode(images: Array) -> Array:
        try:
            (found,) = session.run(None, {session.get_inputs()[0].name: network_inputs(images)})
        except Exception as error:  # the runtime's errors have no common parent
            raise InputError(
                f"{path}: cannot be run on crops of {size} px ({' '.join(str(error).split())[:100]}). Export the campaign again."
            ) from None
        features: Array = found
        return features

    return CropEncoder(encode, size, context)


def _session(path: Path, device: str) -> Any:
    """The runtime's session of a file. Raises InputError where the runtime, the device or the file is missing or unusable."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise InputError(f"{path}: onnxruntime must be installed to predict with it: pip install onnxruntime.")
    import onnxruntime

    cuda = "CUDAExecutionProvider"
    if device.partition(":")[0] not in ("auto", "cpu") and (
        not device.startswith("cuda") or cuda not in onnxruntime.get_available_providers()
    ):
        raise InputError(
            f"--device {device}: the installed ONNX Runtime cannot compute on it. Leave out the option, or install "
            "onnxruntime-gpu."
        )
    has_cuda = device != "cpu" and cuda in onnxruntime.get_available_providers()
    providers: list[Any] = ["CPUExecutionProvider"]
    if has_cuda:
        providers.insert(0, (cuda, {"device_id": int(device.partition(":")[2] or 0)}))
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # its warnings are about constants that it does not fold
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # the runtime's errors have no common parent
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{path}: cannot be read as an ONNX file ({reason}). Export the run again.") from None


def network_inputs(images: Array) -> Array:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) in 0..1."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2).astype(np.float32) / 255)


def _facts(path: Path, metadata: dict[str, str]) -> OnnxFacts:
    """What a file says of itself. Raises InputError for a file that says too little, such as one of an earlier version."""
    if KEY not in metadata:
        raise InputError(
            f"{path}: does not say its classes and how its boxes are decoded, as the files of 'foldfuse export RUN' do from "
            "this version on. Export the run again."
        )
    plain = parse_json(metadata[KEY], f"{path}: its metadata", what="JSON")
    facts = from_plain(plain, OnnxFacts, where=str(path), what="the metadata of an exported detector", version=VERSION)
    decoding = facts.decoding
    is_usable = facts.classes and 0 < facts.image_size <= 4096 and 0 < facts.stride <= 512
    if not is_usable or not (0 < decoding.max_detections <= decoding.pre_nms_topk and 0 <= decoding.nms_iou <= 1):
        raise InputError(f"{path}: its metadata hold a value out of its range. Export the run again.")
    if decoding.head == "yolov5" and [len(level) for level in decoding.anchors] != [3, 3, 3]:
        raise InputError(f"{path}: its metadata lack the anchors. Export the run again.")
    return facts
