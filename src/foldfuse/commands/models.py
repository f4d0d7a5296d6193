"""The commands profile and export."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from foldfuse.commands import options
from foldfuse.commands.ensemble_members import Members, named_members
from foldfuse.errors import InputError, counted
from foldfuse.inference.cost import (
    CostPoint,
    check_image_size,
    default_image_size,
    is_detector,
    make_model,
    measure_costs,
    scaling_exponents,
)
from foldfuse.inference.onnx_bundle import export_run, network_metadata, write_onnx_bundle
from foldfuse.inference.onnx_export import PACKAGES, write_onnx
from foldfuse.models.cpu.fold_batch_norm import fold_batch_norms
from foldfuse.reporting.profile_page import page
from foldfuse.storage import ledger
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
    member: Members = (),
    overwrite: options.Overwrite = False,
) -> Path:
    """Write a run, an ensemble or a whole campaign as ONNX, run it in ONNX Runtime, and compare the outputs with PyTorch's.

    A run becomes one .onnx file, whose outputs are boxes, scores and labels, besides those of the network. A .zip holds
    everything that predicts: the ONNX file of each member, the ensemble with its TTA views, and the crop rescorer.
    `foldfuse predict` takes both, and needs neither torch nor the run then.

    Needs the packages of foldfuse[export].

    Args:
        model: folder of a trained run or of a campaign, the ensemble.json of `foldfuse ensemble`; or the name of a model, which
            is exported with random weights, to try a runtime.
        out: .onnx file or .zip to write.
        image_size: side in pixels to check the file at; also the size of the file that takes one size alone. By default the
            run's own size.
        num_classes: number of classes of a model given by its name.
        fixed_size: export for one image of one size; some runtimes need that.
        member: the run of a member of an ensemble, where it does not lie beside ensemble.json; NAME=RUN@1,1+hflip where the
            member was predicted in several views. Repeat for more.

    Raises:
        InputError: there is no such run or model, the size does not suit it, or a package is missing.

    Examples:
        foldfuse export run1 --out run1.onnx
        foldfuse export run1 --image-size 320 --fixed-size --out run1_320.onnx
        foldfuse export campaign1 --out campaign1.zip
    """
    options.check_ending(out, ".onnx", ".zip")
    options.refuse_overwrite(out, overwrite, is_file=True, inputs=[Path(model)], may_be_bundle=out.suffix == ".zip")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"{', '.join(missing)} must be installed to write ONNX: pip install 'foldfuse[export]'.")
    if out.suffix == ".zip":
        return _export_bundle(model, out, named_members(member), image_size=image_size, fixed_size=fixed_size)
    if member or ledger.is_campaign(Path(model)) or model.endswith(".json"):
        raise InputError(f"{out}: an ensemble or a campaign is exported as a zip. Give --out {out.with_suffix('.zip')}")
    if Path(model).is_dir():
        takes = export_run(Run(Path(model)), out, image_size=image_size, fixed_size=fixed_size)
    else:
        net = make_model(model, num_classes)
        if is_detector(model):
            net = fold_batch_norms(net)
        size = default_image_size(net) if image_size is None else image_size
        check_image_size(net, size)
        metadata = {"model": model, **network_metadata(net)}
        takes = write_onnx(net, out, image_size=size, metadata=metadata, fixed_size=fixed_size)
    printing.write(f"{out}: takes {takes}; its outputs in ONNX Runtime equal PyTorch's.")
    return out


def _export_bundle(
    model: str, out: Path, members: Mapping[str, str], *, image_size: int | None, fixed_size: bool
) -> Path:
    """Writes the zip of a run, an ensemble or a campaign."""
    if image_size is not None or fixed_size:
        raise InputError(
            f"{out}: a zip holds files for images of any size. Leave out --image-size and --fixed-size, or write an .onnx file."
        )
    made = write_onnx_bundle(Path(model), out, members=members)
    networks = counted(len({part.member for part in made.record.parts}), "network")
    printing.write(
        f"{out}: {networks}, {made.num_bytes / 1e6:,.1f} MB; the outputs in ONNX Runtime equal PyTorch's. It predicts without "
        f"torch: foldfuse predict {out} IMAGES --out predictions.parquet"
    )
    return out
