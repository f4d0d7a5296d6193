"""The command `models`: every detector and classifier with its size, its cost and what it is."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from foldfuse.costs import arithmetic, default_size, make
from foldfuse.models import CLASSIFIERS, DETECTORS

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
            model = make(name, CLASSES[kind], device="meta")
            size = default_size(model)
            cost = arithmetic(model, size)
            what = (maker.__doc__ or "").split("\n")[0]
            figures = (f"{cost.parameters / 1e6:.1f}", f"{cost.flops / 1e9:.1f}", str(size), str(model.stride))
            table.add_row(name, *figures, what)
        table.add_section()
    console = Console()
    console.print(table)
    console.print(
        f"First the detectors, for {CLASSES['detector']} classes, then the classifiers, for {CLASSES['classifier']}. "
        "A multiply-add counts as two FLOPs. A mix:BACKBONE+NECK+HEAD, such as mix:timm/resnet18+fpn+dense, can be trained, "
        "profiled and exported too."
    )
