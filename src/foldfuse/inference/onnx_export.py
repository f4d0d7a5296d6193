"""Writes a network as an ONNX file and checks it in ONNX Runtime. Inputs are images in 0..1, outputs as of `forward`.

The file of a run also decodes: its further outputs are boxes, scores and labels (`onnx_decoding`). The file's metadata holds the
model's name, its classes, its anchor scale and its stride; that of a run also what `onnx_predictor` needs.
"""

from __future__ import annotations

import inspect
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foldfuse.errors import InputError
from foldfuse.inference.numpy_decoding import Decoding, Head
from foldfuse.inference.onnx_decoding import OUTPUTS, DecodedNetwork, onnx_operations
from foldfuse.inference.onnx_predictor import KEY, VERSION, OnnxFacts
from foldfuse.models.detection.heads import AnchorPrediction
from foldfuse.models.detection.torchvision_base import TorchvisionDetector
from foldfuse.models.detection.yolov5_head import YOLOv5Head
from foldfuse.storage.run import Run
from foldfuse.system.atomic_files import atomic
from foldfuse.system.records import to_plain

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-3  # difference from PyTorch's output, relative to the largest output


def facts_of_run(run: Run, net: Any) -> OnnxFacts:
    """What lets `onnx_predictor` predict with the file of a run, whose detector is `net`.

    Raises:
        InputError: the detector's boxes cannot be decoded without torchvision.
    """
    if isinstance(net, TorchvisionDetector):
        raise InputError(
            f"{run.folder}: is a run of {run.recipe.detector}, whose outputs only torchvision turns into boxes, so an ONNX "
            "file could not predict. Export a run of another detector, or use 'foldfuse bundle', whose networks run in PyTorch."
        )
    head = getattr(net, "head", net)
    options = inspect.signature(head.decode).parameters
    chosen = {name: options[name].default for name in ("score_threshold", "nms_iou", "max_detections", "pre_nms_topk")}
    if isinstance(head, YOLOv5Head):
        levels = head.anchors.double().tolist()
        decoding = Decoding("yolov5", anchors=tuple(tuple((w, h) for w, h in level) for level in levels), **chosen)
    else:
        kind: Head = "anchors" if isinstance(head, AnchorPrediction) else "anchor_free"
        nominal = isinstance(head, AnchorPrediction) and head.nominal_sides
        decoding = Decoding(kind, anchor_scale=float(head.anchor_scale), nominal_sides=nominal, **chosen)
    metadata, recipe = run.metadata, run.recipe
    return OnnxFacts(
        recipe.detector,
        metadata.classes,
        metadata.category_ids,
        recipe.image_size,
        int(net.stride),
        decoding,
        metadata.ignore_orientation,
        dict(metadata.value_ranges),
    )


def facts_entry(facts: OnnxFacts) -> dict[str, str]:
    """The entry of a file's metadata that holds these facts."""
    return {KEY: json.dumps(to_plain(facts, version=VERSION))}


def require_exportable(net: Any, name: str) -> None:
    """Raises InputError for a network that says of itself that it cannot be written as ONNX."""
    if not getattr(net, "is_exportable", True):
        raise InputError(
            f"{name}: ONNX has no operation for a part of this network. Export another detector, or use 'foldfuse bundle', whose "
            "networks run in PyTorch."
        )


class FlatOutputs(nn.Module):
    """A network whose outputs are a flat tuple of tensors."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> the tensors in the network's output, in order."""
        return tuple(tensor for _, tensor in named_tensors(self.net(images)))


def named_tensors(raw: Any, name: str = "output") -> Iterator[tuple[str, Tensor]]:
    """The tensors in a network's output with their names: the fields of a NamedTuple, else numbers."""
    if isinstance(raw, Tensor):
        yield name, raw
    elif isinstance(raw, tuple | list):
        keys = getattr(raw, "_fields", [f"{name}{i}" for i in range(len(raw))])
        for key, part in zip(keys, raw, strict=True):
            yield from named_tensors(part, key)


def write_onnx(
    net: nn.Module,
    out: Path,
    *,
    image_size: int,
    metadata: Mapping[str, str],
    decoding: Decoding | None = None,
    fixed_size: bool = False,
) -> str:
    """Write a network in eval mode as ONNX, and return a clause that says which images the file takes.

    Args:
        net: anything with a `stride`, on the CPU.
        out: .onnx file to write; it is left out if its outputs differ from the network's.
        image_size: pixels, a multiple of the stride.
        metadata: entries of the file's metadata.
        decoding: how the outputs become boxes, which are then outputs too.
        fixed_size: make a file for one image of `image_size`; without it, for any number of images of any size if possible.
    """
    net = net.to(memory_format=torch.contiguous_format).eval()
    stride = int(net.stride)  # type: ignore[arg-type]
    square = torch.rand(1, 3, image_size, image_size)
    with atomic(out) as temporary:
        if not fixed_size:
            # The example has two images, not square, so that the exporter does not assume one image or equal sides. The file is
            # also checked at a size that it was not exported with.
            side = image_size if decoding is None else max(image_size, DecodedNetwork(net, decoding).example_size)
            wide, high = (torch.rand(2, 3, side, side + stride), torch.rand(1, 3, image_size + stride, image_size))
            program = _program(net, wide, stride, decoding)
            if program is not None and _saved(program, temporary, metadata, net, (wide, high)) < TOLERANCE:
                return f"any number of images with sides that are multiples of {stride} px"
        program = _program(net, square, None, decoding)
        assert program is not None
        difference = _saved(program, temporary, metadata, net, (square,))
        assert difference < TOLERANCE, (
            f"{out}: ONNX Runtime differs from PyTorch by {difference:g} of the largest output"
        )
    return f"one image of {image_size} x {image_size} px"


def _saved(program: Any, path: Path, metadata: Mapping[str, str], net: nn.Module, checked: Sequence[Tensor]) -> float:
    """Write the program with its metadata, and return its largest difference from the network's outputs on `checked`."""
    for key, value in metadata.items():
        program.model.metadata_props[key] = value
    program.save(path)
    return max(largest_difference(net, path, images) for images in checked)


@torch.no_grad()
def _program(net: nn.Module, example: Tensor, stride: int | None, decoding: Decoding | None) -> Any:
    """The ONNX program of a network; with a stride, for any batch and sizes, or None if the network does not allow them."""
    names = [name for name, _ in named_tensors(net(example))]
    module: nn.Module = FlatOutputs(net)
    if decoding is not None:
        module, names = DecodedNetwork(net, decoding), [*names, *OUTPUTS]
    dynamic: Any = None
    if stride is not None:
        height, width = (stride * torch.export.Dim(name, min=1) for name in ("rows", "columns"))
        dynamic = {"images": {0: torch.export.Dim("batch", min=1), 2: height, 3: width}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from torch's own code
        try:
            return torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                input_names=["images"],
                output_names=names,
                dynamic_shapes=dynamic,
                custom_translation_table=None if decoding is None else dict(onnx_operations()),
                optimize=False,  # the runtime optimizes, and torch's optimizer drops padded weights
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError:
            if stride is None:
                raise
            return None


@torch.no_grad()
def largest_difference(net: nn.Module, path: Path, images: Tensor) -> float:
    """Largest difference of ONNX Runtime's outputs from the network's, relative to the largest output; inf if the file fails."""
    import onnxruntime  # an optional extra

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings are about constants that it does not fold
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names, want = zip(*named_tensors(net(images)), strict=True)
    try:
        got = [torch.from_numpy(array) for array in session.run(names, {"images": images.numpy()})]
    except Exception:  # the runtime's errors have no common parent; one means that the file does not take this size
        return math.inf
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-3)) for a, b in zip(got, want, strict=True))
