"""The command `profile`: how a model's parameters, arithmetic, memory and time grow with the image size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from foldfuse.costs import Arithmetic, arithmetic, check_size, kept_bytes, latency, make
from foldfuse.errors import InputError
from foldfuse.files import write_text
from foldfuse.report_charts import Axis, Line, line_chart, log_axis

PATCH = 16  # pixels on the side of what is counted as a patch here, whatever the model makes of the picture
_WIDTH, _HEIGHT, _LEGEND = 520, 268, 22  # pixels: a panel, its chart, and a line of its legend
_COLOURS = ("#2563a8", "#c2410c", "#0f7f5c", "#7c3aad", "#a16207")


@dataclass(frozen=True)
class Point:
    """A model at one image size (pixels): bytes a training step keeps of a picture, seconds that predicting one takes."""

    image_size: int
    arithmetic: Arithmetic
    kept: int
    seconds: float

    @property
    def patches(self) -> float:
        """Squares of 16 pixels in the picture."""
        return (self.image_size / PATCH) ** 2


QUANTITIES: Mapping[str, Callable[[Point], float]] = {
    "parameters": lambda p: p.arithmetic.parameters,
    "attention's products": lambda p: p.arithmetic.attention,
    "all arithmetic": lambda p: p.arithmetic.flops,
    "memory of a training step": lambda p: p.kept,
    "time of a prediction": lambda p: p.seconds,
}


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
            check_size(make(name, 10, device="meta"), size)
    found = {name: measure(name, numbers, seconds=seconds) for name in names}
    console = Console()
    for name, points in found.items():
        _show(console, name, points)
    console.print("patches^0: does not grow; patches^1: grows with the number of patches; patches^2: with its square.")
    if out is not None:
        write_text(out, drawing(found))


def measure(name: str, sizes: Sequence[int], *, seconds: float = 1.0) -> list[Point]:
    """A model's costs at each of `sizes`, on the CPU."""
    weightless, model = make(name, 10, device="meta"), make(name, 10)
    return [
        Point(size, arithmetic(weightless, size), kept_bytes(model, size), latency(model, size, seconds=seconds))
        for size in sizes
    ]


def exponents(points: Sequence[Point]) -> dict[str, float]:
    """{quantity: e} of the best fit of quantity ~ patches^e; a quantity that is 0 is left out."""
    x = np.log([p.patches for p in points])
    found = {}
    for name, of in QUANTITIES.items():
        values = [of(p) for p in points]
        if min(values) > 0:
            found[name] = round(float(np.polyfit(x, np.log(values), 1)[0]), 4) + 0.0  # no -0
    return found


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


def _show(console: Console, name: str, points: Sequence[Point]) -> None:
    table = Table("px", "patches", "million parameters", "GFLOPs", "of these attention", "kept for training, MB", "ms")
    table.title = name
    for column in table.columns:
        column.justify = "right"
    for p in points:
        cost = p.arithmetic
        row = (f"{cost.parameters / 1e6:.2f}", f"{cost.flops / 1e9:.2f}", f"{cost.attention / 1e9:.2f}")
        table.add_row(str(p.image_size), f"{p.patches:.0f}", *row, f"{p.kept / 2**20:.0f}", f"{p.seconds * 1e3:.0f}")
    console.print(table)
    grows = ", ".join(f"{what} ~ patches^{e:.2f}" for what, e in exponents(points).items())
    console.print(f"{name}: {grows}.\n", soft_wrap=True)


def drawing(found: dict[str, list[Point]]) -> Markup:
    """An SVG file: a panel for each model, with each cost relative to that at the smallest size; both axes logarithmic."""
    growth = {name: _growth(points) for name, points in found.items()}
    top = max(max(values) for lines in growth.values() for values in lines.values())
    height = _HEIGHT + 44 + _LEGEND * len(QUANTITIES)
    panels = []
    for i, (name, lines) in enumerate(growth.items()):
        points = found[name]
        patches = np.array([p.patches for p in points])
        x = Axis(patches[0], patches[-1], tuple((p.patches, f"{p.patches:.0f}") for p in points), log=True)
        drawn = [Line(what, patches, np.array(values), list(QUANTITIES).index(what)) for what, values in lines.items()]
        chart = line_chart(
            drawn,
            x,
            log_axis(1 / 1.1, max(top, 2.0)),
            titles=(f"patches of {PATCH} px", f"{name}: times as much as at {points[0].image_size} px"),
            label=f"How the costs of {name} grow with the number of patches",
            dots=True,
        )
        legend = _legend(exponents(points))
        panels.append(
            Markup('<svg x="{}" y="16" width="{}" height="{}">{}{}</svg>').format(
                16 + i * (_WIDTH + 24), _WIDTH, height, chart, legend
            )
        )
    width = 32 + len(found) * (_WIDTH + 24) - 24
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{1}" viewBox="0 0 {0} {1}">'
        '<style>{2}</style><rect width="100%" height="100%" fill="#ffffff"/>{3}</svg>\n'
    ).format(width, height, _style(), Markup("").join(panels))


def _growth(points: Sequence[Point]) -> dict[str, list[float]]:
    """{quantity: values over the first one}; a quantity that is 0 is left out."""
    return {name: [of(p) / of(points[0]) for p in points] for name, of in QUANTITIES.items() if of(points[0]) > 0}


def _legend(powers: dict[str, float]) -> Markup:
    rows = []
    for i, (what, e) in enumerate(powers.items()):
        y = _HEIGHT + 20 + i * _LEGEND
        colour = list(QUANTITIES).index(what)
        rows.append(
            Markup('<path class="line c{0}" d="M58,{1}h28"/><text x="94" y="{2}">{3} ~ patches^{4:.2f}</text>').format(
                colour, y, y + 4, what, e
            )
        )
    return Markup("").join(rows)


def _style() -> Markup:
    strokes = "".join(f".c{i}{{stroke:{colour}}}" for i, colour in enumerate(_COLOURS))
    return Markup(
        "text{font:13px system-ui,sans-serif;fill:#16202c}.tick{fill:#5a6675;font-size:12px}.grid{stroke:#e8ecf0}"
        ".plot{overflow:visible}.line,.dot{fill:none;stroke-width:2;vector-effect:non-scaling-stroke}"
        f".dot{{stroke-width:7;stroke-linecap:round}}{strokes}"
    )
