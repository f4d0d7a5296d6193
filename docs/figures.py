"""Draws rooms.svg and image_path.svg beside this file: `python docs/figures.py`. Needs no package."""

from html import escape
from pathlib import Path

STYLE = """<style>
svg { --paper: #ffffff; --ink: #1c2127; --soft: #59636e; --line: #8b949e; --light: #dff3e4; --torch: #fde8d2; }
@media (prefers-color-scheme: dark) {
  svg { --paper: #15191e; --ink: #e6eaef; --soft: #9aa5b1; --line: #6b7683; --light: #1e3d2a; --torch: #4a321b; }
}
text { font: 14px system-ui, sans-serif; fill: var(--ink); }
.soft { fill: var(--soft); font-size: 13px; } .name { font-weight: 600; } .code { font: 13px ui-monospace, monospace; }
.paper { fill: var(--paper); } .light { fill: var(--light); } .torch { fill: var(--torch); }
.box { stroke: var(--line); } .arrow { stroke: var(--line); stroke-width: 1.5; fill: none; marker-end: url(#head); }
</style>
<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0 L8 4 L0 8 z" style="fill: var(--line)"/></marker>"""

ROOMS = [  # from the top down; the rooms of one row do not know each other: (name, whether it imports torch), ..., what it holds
    ([("api", False)], "the commands as Python functions"),
    ([("cli", False)], "the command line"),
    ([("commands", True)], "parse, call, print"),
    ([("demo", False)], "the drawn dataset"),
    ([("campaign", True)], "request, planning, execution, submissions"),
    ([("reporting", True)], "pages, charts, the live view"),
    ([("training", True)], "the loop, budgets, checkpoints, sweeps"),
    ([("inference", True)], "TTA views, prediction, crop rescoring, ONNX"),
    ([("ensemble", False)], "the search for members and weights"),
    ([("evaluation", False), ("formats", False)], "metrics; predictions on disk"),
    ([("data", False), ("models", True), ("fusion", False), ("storage", False)], ""),
    ([("recipes", False), ("provenance", False)], "what decides a run; sources of weights"),
    ([("system", True)], "files, signals, processes, devices"),
    ([("detections", False)], "the types that travel"),
    ([("drawing", False), ("exchange", False)], "boxes on an image; boxes for pandas"),
    ([("errors", False), ("boxes", False), ("display", False)], "InputError; arithmetic; HTML for notebooks"),
]

HOPS = [  # (title, call, what comes out, whether torch tensors travel)
    ("read", "data.readers.coco.read", "Sample: id, path, size", False),
    ("decode the file", "load_image", "uint8 (height, width, 3)", False),
    ("scale, pad, flip", "Letterbox.apply, View.apply", "uint8 (B, H, W, 3)", False),
    ("detect", "model.decode(model(images))", "Detections in input pixels", True),
    ("undo flip and padding", "View.invert, invert_boxes", "Detections in image pixels", False),
    ("collect", "Predictions.of", "columns, offsets per image", False),
    ("fuse", "fusion.methods.wbf", "Predictions, one set", False),
    ("submit", "write_submission", "submission.csv and .json", False),
]


def svg(width: int, height: int, title: str, parts: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
    paper = f'<rect class="paper" width="{width}" height="{height}" rx="8"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", STYLE, paper, *parts, "</svg>", ""])


def box(x: float, y: float, width: float, height: float, *, torch: bool) -> str:
    kind = "torch" if torch else "light"
    return f'<rect class="box {kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="5"/>'


def text(x: float, y: float, words: str, kind: str = "", *, middle: bool = False) -> str:
    anchor = ' text-anchor="middle"' if middle else ""
    return f'<text x="{x}" y="{y}" class="{kind}"{anchor}>{escape(words)}</text>'


def rooms() -> str:
    """The rooms as rows of boxes; each row imports from the rows below it."""
    parts, row, gap, left, wide = [], 34, 8, 56, 470
    for i, (names, holds) in enumerate(ROOMS):
        y = 20 + i * (row + gap)
        width = (wide - gap * (len(names) - 1)) / len(names)
        for j, (name, torch) in enumerate(names):
            x = left + j * (width + gap)
            parts += [box(x, y, width, row, torch=torch), text(x + width / 2, y + 22, name, "name", middle=True)]
        parts.append(text(left + wide + 18, y + 22, holds or "what people have; networks; WBF; runs", "soft"))
    bottom = 20 + len(ROOMS) * (row + gap)
    parts.append(f'<path class="arrow" d="M28 24 V{bottom - 14}"/>')
    parts += [box(left, bottom + 8, 18, 18, torch=False), text(left + 26, bottom + 22, "no torch", "soft")]
    parts += [
        box(left + 190, bottom + 8, 18, 18, torch=True),
        text(left + 216, bottom + 22, "torch in some modules", "soft"),
    ]
    parts.append(text(left + 390, bottom + 22, "arrow: the direction of imports", "soft"))
    return svg(840, bottom + 44, "The rooms of foldfuse, from the command line down to the types", parts)


def image_path() -> str:
    """The hops of an image from disk to the submission, four a row."""
    parts, width, height, gap = [], 232, 84, 24
    for i, (title, call, result, torch) in enumerate(HOPS):
        x, y = 20 + i % 4 * (width + gap), 20 + i // 4 * (height + 56)
        parts += [
            box(x, y, width, height, torch=torch),
            text(x + 12, y + 24, f"{i + 1}. {title}", "name"),
            text(x + 12, y + 47, call, "code"),
            text(x + 12, y + 69, result, "soft"),
        ]
        if i % 4 < 3:
            parts.append(f'<path class="arrow" d="M{x + width + 2} {y + height / 2} H{x + width + gap - 2}"/>')
    end, turn = 20 + 3 * (width + gap) + width / 2, 20 + height + 28
    parts.append(f'<path class="arrow" d="M{end} {20 + height + 2} V{turn} H{20 + width / 2} V{turn + 26}"/>')
    bottom = 20 + 2 * height + 56
    parts += [
        box(20, bottom + 14, 18, 18, torch=True),
        text(46, bottom + 28, "torch tensors; numpy arrays elsewhere", "soft"),
    ]
    return svg(40 + 4 * width + 3 * gap, bottom + 46, "The way of an image from disk to the submission", parts)


if __name__ == "__main__":
    folder = Path(__file__).parent
    (folder / "rooms.svg").write_text(rooms(), encoding="utf-8")
    (folder / "image_path.svg").write_text(image_path(), encoding="utf-8")
