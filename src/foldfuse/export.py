"""A model as an ONNX file that ONNX Runtime runs: the network alone, pictures in 0..1 in, what `forward` gives out.

Boxes are not decoded in the file: `decode` of the detector does that, from the outputs by their names. The file's metadata says
what a reader needs for it: the model, its classes, its anchors' scale, its stride.
"""

from __future__ import annotations

import importlib.util
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foldfuse.costs import check_size, default_size, is_detector, make
from foldfuse.errors import InputError
from foldfuse.files import atomic
from foldfuse.models.folding import folded
from foldfuse.predict import load_detector
from foldfuse.run import Run

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
CLOSE = 1e-3  # that an output may differ, relative to the largest


def export(
    model: str, out: Path, *, image_size: int | None = None, num_classes: int = 80, fixed_size: bool = False
) -> Path:
    """Write a model as an ONNX file, run it once, and compare; the file's path comes back.

    Args:
        model: folder of a trained run, or the name of a model (which is written untrained, to try a runtime with).
        out: .onnx to write.
        image_size: side in pixels that the file is checked at, and made for if it takes no other; the run's own by default.
        num_classes: of a model given by its name.
        fixed_size: one size and one picture at a time, which some runtimes want.

    Raises:
        InputError: there is no such run or model, the size does not suit it, or the packages that write ONNX are missing.
    """
    if out.suffix != ".onnx":
        raise InputError(f"{out}: ends in {out.suffix or 'nothing'}, and must end in .onnx.")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"{', '.join(missing)} must be installed to write ONNX: pip install 'foldfuse[export]'.")
    net: Any
    if Path(model).is_dir():
        run = Run(Path(model))
        net, classes = load_detector(run)
        size, about = run.recipe.image_size, {"model": run.recipe.detector, "classes": json.dumps(classes)}
    else:
        net = make(model, num_classes)
        if is_detector(model):
            net.backbone = folded(net.backbone)
        size, about = default_size(net), {"model": model}
    about |= {"stride": str(net.stride)} | {k: str(getattr(net, k)) for k in ("anchor_scale",) if hasattr(net, k)}
    size = size if image_size is None else image_size
    check_size(net, size)
    taken = write_onnx(net, out, image_size=size, metadata=about, fixed_size=fixed_size)
    print(f"{out}: takes {taken}; in ONNX Runtime its outputs are those of PyTorch.")
    return out


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
