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
from foldfuse.inference.onnx_decoding import OUTPUTS, Decoded, onnx_operations
from foldfuse.inference.onnx_library_decoding import decoded_network
from foldfuse.inference.onnx_predictor import KEY, VERSION, OnnxFacts
from foldfuse.models.detection.detr import Detr
from foldfuse.models.detection.detr_export import ExportedDetr
from foldfuse.models.detection.heads import AnchorPrediction
from foldfuse.models.detection.torchvision_dense import TorchvisionDense
from foldfuse.models.detection.torchvision_faster_rcnn import PROPOSALS, FasterRCNNDetector
from foldfuse.models.detection.yolov5_head import YOLOv5Head
from foldfuse.storage.run import Run
from foldfuse.system.atomic_files import atomic
from foldfuse.system.records import to_plain

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-3  # difference from PyTorch's output, relative to the largest output


def facts_of_run(run: Run, net: Any) -> OnnxFacts:
    """What lets `onnx_predictor` predict with the file of a run, whose detector is `net`."""
    metadata, recipe = run.metadata, run.recipe
    return OnnxFacts(
        recipe.detector,
        metadata.classes,
        metadata.category_ids,
        recipe.image_size,
        int(net.stride),
        decoding_of(net),
        metadata.ignore_orientation,
        dict(metadata.value_ranges),
    )


def decoding_of(net: Any) -> Decoding:
    """How the outputs of a detector become boxes: its `decode` with the options that it has by default."""
    if isinstance(net, FasterRCNNDetector):
        roi: Any = net.roi_heads
        return Decoding("in_graph", roi.score_thresh, roi.nms_thresh, roi.detections_per_img, PROPOSALS)
    is_library = isinstance(net, TorchvisionDense | Detr)
    head: Any = net if is_library else getattr(net, "head", net)
    options = inspect.signature(head.decode).parameters
    chosen = {name: options[name].default for name in ("score_threshold", "nms_iou", "max_detections", "pre_nms_topk")}
    if is_library:
        return Decoding("in_graph", **chosen | {"nms_iou": getattr(net, "nms_iou", chosen["nms_iou"])})
    if isinstance(head, YOLOv5Head):
        levels = head.anchors.double().tolist()
        return Decoding("yolov5", anchors=tuple(tuple((w, h) for w, h in level) for level in levels), **chosen)
    kind: Head = "anchors" if isinstance(head, AnchorPrediction) else "anchor_free"
    nominal = isinstance(head, AnchorPrediction) and head.nominal_sides
    return Decoding(kind, anchor_scale=float(head.anchor_scale), nominal_sides=nominal, **chosen)


def facts_entry(facts: OnnxFacts) -> dict[str, str]:
    """The entry of a file's metadata that holds these facts."""
    return {KEY: json.dumps(to_plain(facts, version=VERSION))}


def for_export(net: Any) -> Any:
    """The network, or a copy of it in operations that ONNX has, with the outputs of eval mode."""
    return ExportedDetr(net) if isinstance(net, Detr) else net


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

    Raises:
        InputError: the network cannot be written as ONNX.
    """
    net = net.to(memory_format=torch.contiguous_format).eval()
    module: nn.Module = FlatOutputs(for_export(net)) if decoding is None else decoded_network(for_export(net), decoding)
    stride = int(net.stride)  # type: ignore[arg-type]
    square = torch.rand(1, 3, image_size, image_size)
    with atomic(out) as temporary:
        if not fixed_size:
            # The example has two images, not square, so that the exporter does not assume one image or equal sides. The file is
            # also checked at a size that it was not exported with.
            side = max(image_size, module.example_size) if isinstance(module, Decoded) else image_size
            wide, high = (torch.rand(2, 3, side, side + stride), torch.rand(1, 3, image_size + stride, image_size))
            program = _program(net, module, wide, stride)
            if not isinstance(program, str) and _saved(program, temporary, metadata, net, (wide, high)) < TOLERANCE:
                return f"any number of images with sides that are multiples of {stride} px"
        program = _program(net, module, square, None)
        if isinstance(program, str):
            raise _not_exportable(out, program)
        difference = _saved(program, temporary, metadata, net, (square,))
        if not difference < TOLERANCE:
            raise _not_exportable(out, f"its outputs in ONNX Runtime differ by {difference:.2g} of the largest")
    return f"one image of {image_size} x {image_size} px"


def _not_exportable(out: Path, reason: str) -> InputError:
    return InputError(
        f"{out}: this network cannot be written as ONNX ({reason}). Export another detector, or use 'foldfuse bundle', whose "
        "networks run in PyTorch."
    )


def _saved(program: Any, path: Path, metadata: Mapping[str, str], net: nn.Module, checked: Sequence[Tensor]) -> float:
    """Write the program with its metadata, and return its largest difference from the network's outputs on `checked`."""
    for key, value in metadata.items():
        program.model.metadata_props[key] = value
    program.save(path)
    return max(largest_difference(net, path, images) for images in checked)


@torch.no_grad()
def _program(net: nn.Module, module: nn.Module, example: Tensor, stride: int | None) -> Any:
    """The ONNX program of a module with the outputs of a network; or why there is none, in words.

    Args:
        net: the network.
        module: the network with flat outputs, decoded or not.
        example: images of the size to export for.
        stride: export for any batch and any multiples of it; None for the example's size.
    """
    names = [name for name, _ in named_tensors(net(example))]
    if isinstance(module, Decoded):
        names = [*names, *OUTPUTS]
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
                custom_translation_table=dict(onnx_operations()) if isinstance(module, Decoded) else None,
                optimize=False,  # the runtime optimizes, and torch's optimizer drops padded weights
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            return " ".join(str(error).split())[:150]


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
    return raw_difference(net, want, got)


def raw_difference(net: Any, want: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """Largest difference between two raw outputs of a network, relative to the largest output.

    The queries of a DETR come in the order of their scores, and of two almost equal ones either may be taken; so each query is
    compared with the nearest one, and one in a hundred does not count.
    """
    if isinstance(net, Detr):
        a, b = torch.cat(list(want), -1), torch.cat(list(got), -1)  # (B, Q, K + 4)
        apart = torch.cdist(a, b, p=math.inf).amin(-1)
        return float(apart.flatten().quantile(0.99) / a.abs().max().clamp(min=1e-3))
    each = [(a - b).abs().max() / a.abs().max().clamp(min=1e-3) for a, b in zip(want, got, strict=True)]
    return float(torch.stack(each).max())  # NaN where one is
