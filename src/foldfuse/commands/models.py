"""The commands profile and export."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from foldfuse.commands import options
from foldfuse.errors import InputError
from foldfuse.inference.cost import (
    CostPoint,
    check_image_size,
    default_image_size,
    is_detector,
    make_model,
    measure_costs,
    scaling_exponents,
)
from foldfuse.inference.detector import load_detector
from foldfuse.inference.onnx_export import PACKAGES, run_facts, write_onnx
from foldfuse.models.cpu.fold_batch_norm import fold_batch_norms
from foldfuse.reporting.profile_page import page
from foldfuse.storage.run import Run
from foldfuse.system import printing
from foldfuse.system.atomic_files import write_text


def profile(
    models: options.Names,
    *,
    image_size: options.ImageSizes = (224, 384, 512),
    budget: options.Duration = 1.0,
    out: options.OptionalOut = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Measure a model's cost at several image sizes, and the power of the number of patches by which each cost grows.

    Args:
        models: names of models, as `foldfuse models` lists them.
        image_size: sides of the square image in pixels; two or more.
        budget: time for timing each model at each image size.
        out: HTML page to write with a chart of the growth.

    Raises:
        InputError: a model does not exist, or an image size does not suit it.

    Examples:
        foldfuse profile vit_tiny
        foldfuse profile vit_tiny swin_tiny --image-size 224,448 --out growth.html
    """
    if out is not None:
        options.check_ending(out, ".html")
        options.refuse_overwrite(out, overwrite, is_file=True)
    sizes = sorted(set(image_size))
    if len(sizes) < 2:
        raise InputError(f"--image-size has {len(sizes)} size; give two or more different sizes, such as 224,384.")
    for name in models:
        for size in sizes:
            check_image_size(make_model(name, 10, device="meta"), size)
    costs = {name: measure_costs(name, sizes, seconds=budget) for name in models}
    console = printing.console()
    for name, points in costs.items():
        _print_costs(console, name, points)
    console.print("patches^0: does not grow; patches^1: grows with the number of patches; patches^2: with its square.")
    if out is not None:
        write_text(out, page(costs))
        console.print(str(out), soft_wrap=True)


def _print_costs(console: Console, name: str, points: Sequence[CostPoint]) -> None:
    heads = ("px", "patches", "M params", "GFLOPs", "attention GFLOPs", "activation memory, MB", "ms")
    table = Table(*heads, title=name, title_justify="left")
    for column in table.columns:
        column.justify = "right"
    for p in points:
        cost = p.forward
        row = (f"{cost.num_parameters / 1e6:.2f}", f"{cost.flops / 1e9:.2f}", f"{cost.attention_flops / 1e9:.2f}")
        table.add_row(
            str(p.image_size), f"{p.patches:.0f}", *row, f"{p.activation_bytes / 2**20:.0f}", f"{p.seconds * 1e3:.0f}"
        )
    console.print(table)
    growth = ", ".join(f"{quantity} ~ patches^{e:.2f}" for quantity, e in scaling_exponents(points).items())
    console.print(f"{name}: {growth}.\n", soft_wrap=True)


def export(
    model: str,
    *,
    out: options.Out,
    image_size: options.ImageSize = None,
    num_classes: options.NumClasses = 80,
    fixed_size: bool = False,
    overwrite: options.Overwrite = False,
) -> Path:
    """Write a model as an ONNX file, run the file in ONNX Runtime, and compare its outputs with PyTorch's.

    The file holds the network alone; boxes are decoded outside. Needs the packages of foldfuse[export].

    Args:
        model: folder of a trained run; or the name of a model, which is exported with random weights, to try a runtime.
        out: .onnx file to write.
        image_size: side in pixels to check the file at; also the size of the file that takes one size alone. By default the
            run's own size.
        num_classes: number of classes of a model given by its name.
        fixed_size: export for one image of one size; some runtimes need that.

    Raises:
        InputError: there is no such run or model, the size does not suit it, or a package is missing.

    Examples:
        foldfuse export run1 --out run1.onnx
        foldfuse export run1 --image-size 320 --fixed-size --out run1_320.onnx
    """
    options.check_ending(out, ".onnx")
    options.refuse_overwrite(out, overwrite, is_file=True, inputs=[Path(model)])
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"{', '.join(missing)} must be installed to write ONNX: pip install 'foldfuse[export]'.")
    net: Any
    if Path(model).is_dir():
        run = Run(Path(model))
        net, classes = load_detector(run, "cpu")
        _require_exportable(net, run.recipe.detector)
        size, metadata = run.recipe.image_size, {"model": run.recipe.detector, "classes": json.dumps(classes)}
        metadata |= run_facts(run, net)
    else:
        net = make_model(model, num_classes)
        _require_exportable(net, model)
        if is_detector(model):
            net = fold_batch_norms(net)
        size, metadata = default_image_size(net), {"model": model}
    metadata |= {"stride": str(net.stride)} | {k: str(getattr(net, k)) for k in ("anchor_scale",) if hasattr(net, k)}
    size = size if image_size is None else image_size
    check_image_size(net, size)
    takes = write_onnx(net, out, image_size=size, metadata=metadata, fixed_size=fixed_size)
    printing.write(f"{out}: takes {takes}; its outputs in ONNX Runtime equal PyTorch's.")
    return out


def _require_exportable(net: Any, name: str) -> None:
    """Raise InputError for a network that says of itself that it cannot be written as ONNX."""
    if not getattr(net, "is_exportable", True):
        raise InputError(f"{name}: ONNX has no operation for a part of this network. Export another detector.")
