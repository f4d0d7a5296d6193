"""The command models."""

from __future__ import annotations

from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.table import Table

from foldfuse.inference.model_table import NUM_CLASSES, read_model_table
from foldfuse.system import printing


def models() -> None:
    """List all models: parameters, FLOPs at the usual image size, stride, and a description.

    Recipes, `foldfuse profile` and `foldfuse export` take the names of models. They take a detector
    compose:BACKBONE+NECK+HEAD, such as compose:timm:resnet18+fpn+dense, too.

    Examples:
        foldfuse models
    """
    table = Table("model", "M params", "GFLOPs", "at px", "stride", "description", box=SIMPLE_HEAD, pad_edge=False)
    for column in table.columns[:5]:  # on a narrow terminal only the description wraps
        column.no_wrap = True
    for column in table.columns[1:5]:
        column.justify = "right"
    for _, rows in groupby(read_model_table(), lambda row: row.kind):
        for row in rows:
            cost = (f"{row.num_parameters / 1e6:.1f}", f"{row.flops / 1e9:.1f}")
            table.add_row(row.name, *cost, str(row.image_size), str(row.stride), row.description)
        table.add_section()
    console = printing.console()
    console.print(table)
    console.print(
        f"Detectors for {NUM_CLASSES['detector']} classes, then classifiers for {NUM_CLASSES['classifier']} classes. "
        "A multiply-add counts as two FLOPs."
    )
