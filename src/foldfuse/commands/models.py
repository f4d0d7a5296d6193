"""The command `models`: every detector and classifier with its size, its cost and what it is."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from foldfuse.errors import InputError
from foldfuse.inference.cost import (
    CostPoint,
    check_image_size,
    default_image_size,
    forward_cost,
    is_detector,
    make_model,
    measure_costs,
    scaling_exponents,
)
from foldfuse.inference.detector import load_detector
from foldfuse.inference.onnx_export import PACKAGES, write_onnx
from foldfuse.models import CLASSIFIERS, DETECTORS
from foldfuse.models.cpu.fold_batch_norm import fold_batch_norms
from foldfuse.recipes import CLASSIFIER_RECIPES, RECIPES, ClassifierRecipe, Recipe
from foldfuse.reporting.profile_chart import cost_chart
from foldfuse.storage.run import Run
from foldfuse.system.atomic_files import write_text


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
        net = make_model(model, num_classes)
        if is_detector(model):
            net.backbone = fold_batch_norms(net.backbone)
        size, about = default_image_size(net), {"model": model}
    about |= {"stride": str(net.stride)} | {k: str(getattr(net, k)) for k in ("anchor_scale",) if hasattr(net, k)}
    size = size if image_size is None else image_size
    check_image_size(net, size)
    taken = write_onnx(net, out, image_size=size, metadata=about, fixed_size=fixed_size)
    print(f"{out}: takes {taken}; in ONNX Runtime its outputs are those of PyTorch.")
    return out


def profile(model: str, *, sizes: str = "224,384,512", out: Path | None = None, seconds: float = 1.0) -> None:
    """Show what a model costs at several image sizes, and the power of the number of patches by which each cost grows.

    Args:
        model: name, as `foldfuse models` lists them; several parted by commas.
        sizes: sides of the square picture in pixels, parted by commas; two at the least.
        out: .svg to write, with a chart of how each cost grows.
        seconds: to spend on timing each model at each size.

    Raises:
        InputError: there is no such model, or a size does not suit it.
    """
    if out is not None and out.suffix != ".svg":
        raise InputError(
            f"{out}: ends in {out.suffix or 'nothing'}, and must end in .svg. Any browser shows such a file."
        )
    numbers = _numbers(sizes)
    names = model.split(",")
    for name in names:
        for size in numbers:
            check_image_size(make_model(name, 10, device="meta"), size)
    found = {name: measure_costs(name, numbers, seconds=seconds) for name in names}
    console = Console()
    for name, points in found.items():
        _show(console, name, points)
    console.print("patches^0: does not grow; patches^1: grows with the number of patches; patches^2: with its square.")
    if out is not None:
        write_text(out, cost_chart(found))


def _numbers(sizes: str) -> list[int]:
    try:
        numbers = sorted({int(word) for word in sizes.split(",")})
    except ValueError:
        raise InputError(f"the sizes {sizes!r} are not whole numbers parted by commas, such as 224,384,512.") from None
    if len(numbers) < 2 or numbers[0] < 1:
        raise InputError(
            f"the sizes are {sizes!r}, and must be two or more different numbers of pixels, such as 224,384."
        )
    return numbers


def _show(console: Console, name: str, points: Sequence[CostPoint]) -> None:
    table = Table("px", "patches", "million parameters", "GFLOPs", "attention GFLOPs", "activation memory, MB", "ms")
    table.title = name
    for column in table.columns:
        column.justify = "right"
    for p in points:
        cost = p.forward
        row = (f"{cost.num_parameters / 1e6:.2f}", f"{cost.flops / 1e9:.2f}", f"{cost.attention_flops / 1e9:.2f}")
        table.add_row(
            str(p.image_size), f"{p.patches:.0f}", *row, f"{p.activation_bytes / 2**20:.0f}", f"{p.seconds * 1e3:.0f}"
        )
    console.print(table)
    grows = ", ".join(f"{what} ~ patches^{e:.2f}" for what, e in scaling_exponents(points).items())
    console.print(f"{name}: {grows}.\n", soft_wrap=True)


CLASSES = {"detector": 80, "classifier": 1000}  # that the parameters are counted with: COCO's and ImageNet's


def models() -> None:
    """Show all models, as recipes and `foldfuse profile` take them: parameters, cost at the usual size, and what each is."""
    table = Table("model", "M params", "GFLOPs", "at px", "stride", "what it is", box=SIMPLE_HEAD, pad_edge=False)
    for column in table.columns[:5]:  # only the words at the end give way on a narrow terminal
        column.no_wrap = True
    for column in table.columns[1:5]:
        column.justify = "right"
    for kind, registry in (("detector", DETECTORS), ("classifier", CLASSIFIERS)):
        for name, maker in registry.items():
            model = make_model(name, CLASSES[kind], device="meta")
            size = default_image_size(model)
            cost = forward_cost(model, size)
            what = (maker.__doc__ or "").split("\n")[0]
            figures = (f"{cost.num_parameters / 1e6:.1f}", f"{cost.flops / 1e9:.1f}", str(size), str(model.stride))
            table.add_row(name, *figures, what)
        table.add_section()
    console = Console()
    console.print(table)
    console.print(
        f"First the detectors, for {CLASSES['detector']} classes, then the classifiers, for {CLASSES['classifier']}. "
        "A multiply-add counts as two FLOPs. A compose:BACKBONE+NECK+HEAD, such as compose:timm:resnet18+fpn+dense, can be "
        "trained, profiled and exported too."
    )


def recipes() -> None:
    """Show all recipes, as `--recipe` takes them, with what each is for."""
    table = Table("recipe", "image size", "batch size", "what it is for")
    makers: dict[str, Callable[[], Recipe | ClassifierRecipe]] = {**RECIPES, **CLASSIFIER_RECIPES}
    for name, maker in makers.items():
        recipe = maker()
        table.add_row(name, str(recipe.image_size), str(recipe.batch_size), (maker.__doc__ or "").split("\n")[0])
    Console().print(table)
