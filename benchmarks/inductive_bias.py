"""The inductive bias of CNN, Swin and ViT: networks of one size on growing shares of a small dataset.

    taskset -c 0 nice -n 15 python benchmarks/inductive_bias.py --out inductive_bias.jsonl --plot benchmarks/inductive_bias.svg

Two sets of 32 x 32 images: scikit-learn's digits, and the crops of the objects in the shared datasets (looked for in
$FOLDFUSE_SHARED/data or ../shared/data). All networks have about half a million parameters and take the same number of steps
with the same batches, augmentation and schedule, on one thread. The ViT comes with 1-D, 2-D and no position embeddings,
and with 1-D ones and a distillation token, whose teacher is the CNN trained on the same images (hard distillation, DeiT,
arXiv:2012.12877, section 4). A run that is in the output file already is not run again.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from foldfuse.data.crops import object_crops
from foldfuse.data.readers.coco import read
from foldfuse.models.backbones import swin
from foldfuse.models.backbones.vit import ViT
from foldfuse.training.budget import lr_scale
from rows import add_row, read_rows

ROOT = Path(os.environ.get("FOLDFUSE_SHARED", Path(__file__).parents[2] / "shared")) / "data"
SIDE = 32
SHARES = (1, 1 / 16, 1 / 4)
BATCH, STEPS, LR, DECAY, WARMUP = 32, 200, 1e-3, 0.05, 0.1
SHIFT = 3  # pixels, either way
swin.WINDOW = 4  # 8 x 8 tokens: with the published 7 there would be a single window, and nothing to shift

Split = tuple[
    Tensor, Tensor, Tensor, Tensor
]  # training images (n, 3, 32, 32) in 0..1 and labels; test images and labels


class CNN(nn.Sequential):
    """Six convolutions with batch norms, three of them of stride 2; mean; head."""

    def __init__(self, num_classes: int) -> None:
        widths = (3, 24, 48, 96, 96, 160, 160)
        layers: list[nn.Module] = []
        for i in range(6):
            layers += [nn.Conv2d(widths[i], widths[i + 1], 3, 2 - i % 2, 1, bias=False)]
            layers += [nn.BatchNorm2d(widths[i + 1]), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], num_classes))


def small_vit(num_classes: int, positions: Any) -> ViT:
    """A ViT of 4 x 4 patches."""
    return ViT(num_classes, width=96, depth=4, heads=3, patch=8, image_size=(SIDE, SIDE), positions=positions)


class Distilled(nn.Module):
    """A ViT with a distillation token, whose head learns a teacher's labels; both heads' probabilities are averaged."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.vit = small_vit(num_classes, "learned_1d")
        self.token = nn.Parameter(torch.empty(1, 1, self.vit.width).normal_(std=0.02))
        self.head = nn.Linear(self.vit.width, num_classes)

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K) logits of the class token, and of the distillation token."""
        x = self.vit.tokens(images)
        x = torch.cat([x, self.token.expand(len(x), -1, -1)], 1)
        for block in self.vit.blocks:
            x = block(x)
        x = self.vit.norm(x)
        return self.vit.head(x[:, 0]), self.head(x[:, -1])

    def forward(self, images: Tensor) -> Tensor:
        """(B, K) logarithms of the mean probabilities."""
        return torch.stack([logits.softmax(-1) for logits in self.both(images)]).mean(0).log()


def begun(model: nn.Module) -> nn.Module:
    """`model` with a start for its width: Xavier's for matrices, and positions and tokens as large as embedded patches.

    The 0.02 of the papers is for widths of 192 and more; from it, ViTs of width 96 learn next to nothing in 200 steps.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    for name, p in model.named_parameters():
        if "positions." in name or name.endswith("token"):
            nn.init.normal_(p, std=0.2)
    return model


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "CNN": CNN,
    "Swin": lambda k: swin.Swin(k, channels=48, depths=(2, 3), heads=(2, 4), drop_path=0.0),
    "ViT, 1-D positions": lambda k: small_vit(k, "learned_1d"),
    "ViT, 2-D positions": lambda k: small_vit(k, "learned_2d"),
    "ViT, no positions": lambda k: small_vit(k, "none"),
    "ViT, 1-D, distilled": Distilled,
}


def digits() -> Split:
    """1,297 digits of 8 x 8 pixels, enlarged, and 500 to test on."""
    digits = load_digits()
    x = torch.from_numpy(digits.images).float()[:, None].expand(-1, 3, -1, -1) / 16
    x = F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    y = torch.from_numpy(digits.target).long()
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(y)))
    return x[order[500:]], y[order[500:]], x[order[:500]], y[order[:500]]


def crops(names: Sequence[str] = ("playing_cards", "aquatrash", "bccd"), most: int = 250) -> Split:
    """Crops of objects in 13 classes of three datasets, at most `most` a class to learn from and as many to test on."""
    rng, parts, classes = np.random.default_rng(0), [], 0
    for name in names:
        for part in ("train", "val"):
            dataset = read(ROOT / name / f"{part}.json")
            found = object_crops(dataset)
            rank = np.zeros(len(found), int)
            for label in range(len(dataset.classes)):
                own = np.flatnonzero(found.labels == label)
                rank[own] = rng.permutation(len(own))
            found = found.filter(rank < most)
            images = np.stack(list(found.images(context=1.1, size=SIDE)))
            images = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
            parts.append((images, torch.from_numpy(found.labels) + classes))
        classes += len(dataset.classes)
    train, test = ([torch.cat(t) for t in zip(*parts[i::2], strict=True)] for i in (0, 1))
    return train[0], train[1], test[0], test[1]


def shifted(images: Tensor, rng: np.random.Generator, *, mirror: bool) -> Tensor:
    """Each image shifted by up to `SHIFT` pixels along each axis, and randomly flipped."""
    padded = F.pad(images, (SHIFT,) * 4, mode="replicate")
    out = []
    for one, (x, y), flip in zip(
        padded, rng.integers(0, 2 * SHIFT + 1, (len(images), 2)), rng.random(len(images)) < 0.5, strict=True
    ):
        part = one[:, y : y + SIDE, x : x + SIDE]
        out.append(part.flip(2) if flip and mirror else part)
    return torch.stack(out)


def learn(model: nn.Module, x: Tensor, y: Tensor, seed: int, *, mirror: bool, teacher: nn.Module | None) -> None:
    """Train `model` in place for `STEPS` steps; with a `teacher`, as a Distilled."""
    rng = np.random.default_rng(seed)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}])
    model.train()
    order: list[int] = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LR * lr_scale(step / STEPS, WARMUP, WARMUP)
        while len(order) < BATCH:
            order += rng.permutation(len(y)).tolist()
        chosen, order = order[:BATCH], order[BATCH:]
        images, labels = shifted(x[chosen], rng, mirror=mirror), y[chosen]
        if teacher is None:
            loss = F.cross_entropy(model(images), labels)
        else:
            assert isinstance(model, Distilled)
            with torch.no_grad():
                said = teacher(images).argmax(1)
            of_class, of_teacher = model.both(images)
            loss = (F.cross_entropy(of_class, labels) + F.cross_entropy(of_teacher, said)) / 2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def main() -> None:
    """Run the missing trainings; print the table of all finished ones, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("inductive_bias.jsonl"))
    parser.add_argument("--plot", type=Path, help="SVG to write")
    parser.add_argument("--show", action="store_true", help="run nothing")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = read_rows(asked.out)
    done = {(row["data"], row["seed"], row["images"], row["model"]) for row in rows}
    sets = {} if asked.show else {"digits": digits(), "crops": crops()}
    for seed in asked.seeds:
        for data, (x, y, test_x, test_y) in sets.items():
            order = np.random.default_rng(seed).permutation(len(y))
            for share in SHARES:
                part = order[: round(share * len(y))]
                if all((data, seed, len(part), name) in done for name in MODELS):
                    continue
                teacher = None
                for name, make in MODELS.items():
                    if (data, seed, len(part), name) in done and name != "CNN":
                        continue  # the CNN is needed as the teacher
                    torch.manual_seed(seed)
                    model, began = begun(make(int(y.max()) + 1)), time.process_time()
                    learn(
                        model,
                        x[part],
                        y[part],
                        seed,
                        mirror=data == "crops",
                        teacher=teacher if name.endswith("distilled") else None,
                    )
                    teacher = model if name == "CNN" else teacher
                    with torch.inference_mode():
                        right = torch.cat([model(part).argmax(1) for part in test_x.split(100)]) == test_y
                    row = {"data": data, "seed": seed, "images": len(part), "model": name}
                    if (data, seed, len(part), name) not in done:
                        row |= {
                            "parameters": sum(p.numel() for p in model.parameters()),
                            "accuracy": round(right.float().mean().item(), 4),
                            "seconds": round(time.process_time() - began, 1),
                        }
                        rows.append(row)
                        add_row(asked.out, row)
                        print(row, flush=True)
    print(table(rows))
    if asked.plot:
        asked.plot.write_text(plot(rows))


def cells(rows: list[dict[str, Any]], data: str, model: str) -> dict[int, list[float]]:
    """{images: accuracy of each seed}."""
    found: dict[int, list[float]] = {}
    for row in sorted(rows, key=lambda r: (r["images"], r["seed"])):
        if (row["data"], row["model"]) == (data, model):
            found.setdefault(row["images"], []).append(row["accuracy"])
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: mean accuracy and, in brackets, lowest and highest of the seeds."""
    lines = []
    for data in dict.fromkeys(row["data"] for row in rows):
        sizes = sorted({row["images"] for row in rows if row["data"] == data})
        lines += [f"| {data} | parameters | " + " | ".join(f"{n} images" for n in sizes) + " | s a run |"]
        lines += ["|" + "---|" * (len(sizes) + 3)]
        for model in MODELS:
            own = [row for row in rows if (row["data"], row["model"]) == (data, model)]
            if own:
                each = cells(rows, data, model)
                shown = [
                    f"{statistics.mean(v):.3f} ({min(v):.3f}-{max(v):.3f})" if (v := each.get(n, [])) else "–"
                    for n in sizes
                ]
                seconds = statistics.mean(row["seconds"] for row in own)
                lines.append(f"| {model} | {own[0]['parameters']:,} | {' | '.join(shown)} | {seconds:.1f} |")
        lines.append("")
    return "\n".join(lines)


COLOURS = dict(zip(MODELS, ("#1b6ca8", "#2a9d5c", "#c2410c", "#a16207", "#8b8b8b", "#7c3aed"), strict=True))
WIDTH, HEIGHT, LEFT, TOP, PLOT_W, PLOT_H = 980, 430, 60, 60, 300, 300


def plot(rows: list[dict[str, Any]]) -> str:
    """An SVG: for each dataset, accuracy against images (logarithmic); lines are means, bars reach from worst to best seed."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="16">Accuracy against images to learn from, {STEPS} steps of {BATCH}</text>',
    ]
    for panel, data in enumerate(dict.fromkeys(row["data"] for row in rows)):
        left = LEFT + panel * (PLOT_W + 70)
        own = [row for row in rows if row["data"] == data]
        sizes = sorted({row["images"] for row in own})
        low = int(10 * min(row["accuracy"] for row in own)) / 10
        low_x, high_x = np.log(sizes[0]) - 0.25, np.log(sizes[-1]) + 0.25

        def x_of(n: float, left: float = left, low_x: float = low_x, high_x: float = high_x) -> float:
            return left + PLOT_W * (np.log(n) - low_x) / (high_x - low_x)

        def y_of(value: float, low: float = low) -> float:
            return TOP + PLOT_H * (1 - (value - low) / (1 - low))

        parts.append(f'<text x="{left}" y="{TOP - 12}">{data}</text>')
        for tenth in range(round(low * 10), 11):
            y = y_of(tenth / 10)
            parts.append(f'<path d="M{left} {y:.1f}H{left + PLOT_W}" stroke="#e2e2e2"/>')
            parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{tenth / 10:.1f}</text>')
        for n in sizes:
            parts.append(f'<text x="{x_of(n):.1f}" y="{TOP + PLOT_H + 20}" text-anchor="middle" fill="#555">{n}</text>')
        for i, model in enumerate(MODELS):
            colour, points = COLOURS[model], []
            for n, values in cells(rows, data, model).items():
                x = x_of(n) + (i - 2.5) * 4  # apart, so that bars do not cover each other
                points.append((x, y_of(statistics.mean(values))))
                bar = f"M{x:.1f} {y_of(min(values)):.1f}V{y_of(max(values)):.1f}"
                parts.append(f'<path d="{bar}" stroke="{colour}" stroke-width="1.5" opacity=".6"/>')
                parts.append(f'<circle cx="{x:.1f}" cy="{points[-1][1]:.1f}" r="3.5" fill="{colour}"/>')
            line = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            parts.append(f'<path d="M{line}" stroke="{colour}" stroke-width="2" fill="none"/>')
    for i, (model, colour) in enumerate(COLOURS.items()):
        x, y = LEFT + 2 * (PLOT_W + 70) - 20, TOP + 20 + i * 26
        parts.append(
            f'<path d="M{x} {y - 4}h22" stroke="{colour}" stroke-width="3"/><text x="{x + 30}" y="{y}">{model}</text>'
        )
    parts.append(
        f'<text x="{LEFT}" y="{HEIGHT - 12}" fill="#555">images to learn from; bars: worst to best seed</text>'
    )
    return "\n".join([*parts, "</svg>"])


if __name__ == "__main__":
    main()
