"""A model as an ONNX file that ONNX Runtime runs: the network alone, pictures in 0..1 in, what `forward` gives out.

Boxes are not decoded in the file: `decode` of the detector does that, from the outputs by their names. The file's metadata says
what a reader needs for it: the model, its classes, its anchors' scale, its stride.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foldfuse.system.atomic_files import atomic

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
CLOSE = 1e-3  # that an output may differ, relative to the largest


class Outputs(nn.Module):
    """A network whose outputs are a flat tuple of tensors."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> the tensors in what the network gives, in order."""
        return tuple(tensor for _, tensor in named_tensors(self.net(images)))


def named_tensors(raw: Any, name: str = "output") -> Iterator[tuple[str, Tensor]]:
    """The tensors in what a network gives, with their names: those of the fields of a NamedTuple, else numbered."""
    if isinstance(raw, Tensor):
        yield name, raw
    elif isinstance(raw, tuple | list):
        keys = getattr(raw, "_fields", [f"{name}{i}" for i in range(len(raw))])
        for key, part in zip(keys, raw, strict=True):
            yield from named_tensors(part, key)


def write_onnx(
    net: nn.Module, out: Path, *, image_size: int, metadata: Mapping[str, str], fixed_size: bool = False
) -> str:
    """Write a network in eval mode as ONNX; what pictures the file takes comes back, in words.

    Args:
        net: anything with a `stride`, on the CPU.
        out: .onnx to write; nothing is left there if the file does not give what the network gives.
        image_size: pixels, a multiple of the stride.
        metadata: to keep in the file.
        fixed_size: give up any number of pictures of any size.
    """
    net = net.to(memory_format=torch.contiguous_format).eval()
    stride = int(net.stride)  # type: ignore[arg-type]
    square = torch.rand(1, 3, image_size, image_size)
    with atomic(out) as temporary:
        if not fixed_size:
            # Two pictures, not square: what holds for one alone, or for equal sides, is not taken for granted. And a network
            # may allow other sizes in name alone: it is checked at one that it was not exported with.
            wide, high = (
                torch.rand(2, 3, image_size, image_size + stride),
                torch.rand(1, 3, image_size + stride, image_size),
            )
            program = _program(net, wide, stride)
            if program is not None and _saved(program, temporary, metadata, net, (wide, high)) < CLOSE:
                return f"any number of pictures with sides that are multiples of {stride} px"
        program = _program(net, square, None)
        assert program is not None
        difference = _saved(program, temporary, metadata, net, (square,))
        assert difference < CLOSE, f"{out}: ONNX Runtime differs from PyTorch by {difference:g} of the largest output"
    return f"one picture of {image_size} x {image_size} px"


def _saved(program: Any, path: Path, metadata: Mapping[str, str], net: nn.Module, checked: Sequence[Tensor]) -> float:
    """The largest difference from the network's own outputs on `checked`, after writing the program with its metadata."""
    for key, value in metadata.items():
        program.model.metadata_props[key] = value
    program.save(path)
    return max(largest_difference(net, path, images) for images in checked)


@torch.no_grad()
def _program(net: nn.Module, example: Tensor, stride: int | None) -> Any:
    """The ONNX program of a network; with a stride, for any batch and sizes, or None where the network does not allow that."""
    names = [name for name, _ in named_tensors(net(example))]
    dynamic: Any = None
    if stride is not None:
        height, width = (stride * torch.export.Dim(name, min=1) for name in ("rows", "columns"))
        dynamic = {"images": {0: torch.export.Dim("pictures", min=1), 2: height, 3: width}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own making
        try:
            return torch.onnx.export(
                Outputs(net).eval(),
                (example,),
                dynamo=True,
                input_names=["images"],
                output_names=names,
                dynamic_shapes=dynamic,
                optimize=False,  # the runtime does that, and torch's drops padded weights
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError:
            if stride is None:
                raise
            return None


@torch.no_grad()
def largest_difference(net: nn.Module, path: Path, images: Tensor) -> float:
    """How far the file's outputs in ONNX Runtime are from the network's own, over the largest output; inf if it fails."""
    import onnxruntime  # an optional extra

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    want = [tensor for _, tensor in named_tensors(net(images))]
    try:
        got = [torch.from_numpy(array) for array in session.run(None, {"images": images.numpy()})]
    except Exception:  # the runtime has errors of many kinds, with no common parent: the file does not take this size
        return math.inf
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-3)) for a, b in zip(got, want, strict=True))
