"""Draws the demo dataset: scenes of recyclable trash in ten classes, in the contest's layout. The seed decides every pixel.

Each thing is drawn on a transparent unit square (x to the right, y down), turned, resized and pasted with its shadow onto a
textured ground, one over another. Shapes: points (n, 2); textures and masks (side, side); colors (3,) in 0..255.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from foldfuse.detections import Array
from foldfuse.errors import InputError
from foldfuse.system.atomic_files import atomic_folder

Rng = np.random.Generator
Color = Sequence[float] | Array
Points = Sequence[tuple[float, float]] | Array
Draw = Callable[["Sheet"], None]  # draws one thing

VERSION = 2  # of the drawing; another version draws other pictures from the same seed
MIN_VISIBLE = 0.25  # a thing is annotated where at least this share of it is visible
EDGE_ALPHA = 50  # of 255: a pixel this opaque belongs to the thing
HIDING_ALPHA = 150  # of 255: a pixel this opaque hides the thing beneath
MAX_SHEET_PX = 384  # larger things are enlarged from a sheet of this side


def make_dataset(
    out: Path, *, num_images: int = 240, num_test_images: int = 80, image_size: int = 512, seed: int = 0
) -> Path:
    """Draw a dataset into the folder `out`, unless `out` holds it already; returns `out`.

    The files are train.json, test.json (no annotations), test_truth.json (the test images with annotations), and the
    images in train/ and test/, squares of `image_size` pixels. Image ids start at 0 in both parts, as in the contest.

    Raises:
        InputError: a number is out of range, or `out` holds something else.
    """
    sizes = {"num_images": num_images, "num_test_images": num_test_images, "image_size": image_size, "seed": seed}
    for (name, value), least in zip(sizes.items(), (1, 1, 64, 0), strict=True):
        if value < least:
            raise InputError(f"{name} is {value}, and must be at least {least}.")
    out, made_with = Path(out), {"version": VERSION, **sizes}
    if out.exists():
        _check_same(out, made_with)
        return out
    info = {"info": {"description": "Drawn scenes of trash", "made_with": made_with}}
    with atomic_folder(out) as folder:
        train = info | _draw_split(folder, "train", num_images, size=image_size, seed=(seed, 0))
        test = info | _draw_split(folder, "test", num_test_images, size=image_size, seed=(seed, 1))
        for name, document in (("train", train), ("test_truth", test), ("test", test | {"annotations": []})):
            (folder / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    return out


def _check_same(out: Path, made_with: dict[str, int]) -> None:
    """Raise InputError unless `out` is a complete dataset that was made with these arguments."""
    for name in ("train.json", "test.json", "test_truth.json"):
        try:
            document = json.loads((out / name).read_text(encoding="utf-8"))
            found, rows = document["info"]["made_with"], document["images"]
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{out}: exists, and has no {name} of drawn scenes. Give a new folder.") from None
        if found != made_with:
            raise InputError(f"{out}: holds scenes made with {found}, expected {made_with}. Give a new folder.")
        for row in rows:
            if not (out / row["file_name"]).is_file():
                raise InputError(f"{out}: {row['file_name']} is missing. Remove the folder to draw it again.")


def _draw_split(folder: Path, split: str, count: int, *, size: int, seed: tuple[int, int]) -> dict[str, Any]:
    """Draw the images of one split into folder/split; returns their COCO images, annotations and categories."""
    (folder / split).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(count):
        rng = np.random.default_rng([*seed, image_id])
        image, boxes, labels = draw_scene(rng, size)
        name = f"{split}/{image_id:04d}.jpg"
        image.save(folder / name, quality=int(rng.integers(55, 93)))
        images.append({"id": image_id, "file_name": name, "width": size, "height": size})
        for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist(), strict=True):
            row = {"id": len(annotations), "image_id": image_id, "category_id": label, "iscrowd": 0}
            annotations.append(row | {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)})
    categories = [{"id": i, "name": name, "supercategory": name} for i, name in enumerate(THINGS)]
    return {"images": images, "annotations": annotations, "categories": categories}


def draw_scene(rng: Rng, size: int) -> tuple[Image.Image, Array, Array]:
    """A scene: the image, its boxes (n, 4) float64 xyxy tight around the visible pixels, its labels (n,) int64."""
    scene, masks, labels, full_area = compose(rng, size)
    visible = masks.sum((1, 2)) >= np.maximum(MIN_VISIBLE * full_area, 1)
    boxes = [Image.fromarray(mask).getbbox() for mask in masks[visible]]
    return photograph(rng, scene), np.array(boxes, np.float64).reshape(-1, 4), labels[visible]


def compose(rng: Rng, size: int) -> tuple[Image.Image, Array, Array, Array]:
    """Things on a ground, one over another: (scene, masks, labels, full_area).

    `masks` (n, size, size) are the visible pixels of each thing, `full_area` (n,) its pixels if nothing hid it.
    """
    scene, light = draw_ground(rng, size), rng.uniform(0, 2 * np.pi)
    for _ in range(int(rng.integers(0, 15))):
        debris = DEBRIS[rng.integers(len(DEBRIS))]
        paste(scene, draw_thing(rng, debris, size * rng.uniform(0.02, 0.09)), rng.uniform(0, size, 2), light)
    classes = tuple(THINGS.values())
    frequency = np.sqrt([boxes for boxes, _, _ in classes])
    count = min(20, 1 + int(rng.gamma(1.4, 3.6)))
    labels = rng.choice(len(classes), size=count, p=frequency / frequency.sum())
    masks, full_area = np.zeros((count, size, size), bool), np.zeros(count)
    heap = rng.uniform(0.3, 0.7, 2) * size if rng.random() < 0.45 else None
    for i, label in enumerate(labels):
        _, relative_size, draws = classes[label]
        length = size * relative_size * 0.09 * 6 ** rng.random() / (1 + 0.03 * count)
        thing = draw_thing(rng, draws[rng.integers(len(draws))], length)
        at = rng.uniform(0.05, 0.95, 2) * size if heap is None else rng.normal(heap, 0.17 * size).clip(0, size)
        alpha = paste(scene, thing, at, light)
        masks[:i] &= alpha <= HIDING_ALPHA
        masks[i] = alpha > EDGE_ALPHA
        full_area[i] = (np.asarray(thing.getchannel("A")) > EDGE_ALPHA).sum()
    return scene, masks, labels, full_area


def draw_thing(rng: Rng, draw: Draw, length: float) -> Image.Image:
    """An RGBA image of a thing about `length` pixels long: turned, seen at a slant, cropped to its outline."""
    sheet = Sheet(rng, int(np.clip(np.ceil(length / 16) * 32, 64, MAX_SHEET_PX)))
    draw(sheet)
    sheet.color.putalpha(sheet.alpha)
    turn = rng.normal(0, 12) if rng.random() < 0.3 else rng.uniform(0, 360)
    thing = sheet.color.rotate(turn, Image.Resampling.BILINEAR, expand=True)
    thing = thing.crop(thing.getchannel("A").getbbox())
    scale = length / sheet.side
    width, height = max(4, round(thing.width * scale)), max(4, round(thing.height * scale * rng.uniform(0.72, 1)))
    return thing.resize((width, height), Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)


def paste(scene: Image.Image, thing: Image.Image, at: Array, light: float) -> Array:
    """Paste `thing` and its shadow into `scene`, centred at `at` (x, y); returns the thing's alpha in the scene."""
    height = min(thing.size) * 0.09 + 1.5
    left, top, margin = int(at[0] - thing.width / 2), int(at[1] - thing.height / 2), int(2 * height) + 2
    x, y = left + int(height * np.cos(light)) - margin, top + int(height * np.sin(light)) - margin
    shadow = ImageOps.expand(thing.getchannel("A"), margin).filter(ImageFilter.BoxBlur(height * 0.6))
    scene.paste((0, 0, 0), (x, y), shadow.point([0.55 * v for v in range(256)]))
    alpha = Image.new("L", scene.size)
    alpha.paste(thing.getchannel("A"), (left, top))
    scene.paste(thing, (left, top), thing)
    return np.asarray(alpha)


def photograph(rng: Rng, scene: Image.Image) -> Image.Image:
    """The scene through a cheap camera: uneven light, a color cast, grain, a little blur."""
    x, y = (2 * axis - 1 for axis in _grid(scene.width))
    light = 1 + rng.normal(0, 0.12) * x + rng.normal(0, 0.12) * y - rng.uniform(0, 0.2) * (x**2 + y**2)
    if rng.random() < 0.3:  # the soft shadow of something outside the scene
        light *= 1 - 0.4 * (6 * (_noise(rng, scene.width, 2) - 0.5)).clip(0, 1)
    light = light[..., None] * rng.uniform(0.94, 1.06, 3) * rng.uniform(0.75, 1.12)
    pixels = np.asarray(scene) * light + rng.standard_normal((scene.width, scene.width, 1)) * rng.uniform(1, 8)
    shot = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return shot.filter(ImageFilter.GaussianBlur(max(0, rng.uniform(-0.5, 1.1))))


def draw_ground(rng: Rng, size: int) -> Image.Image:
    """A textured ground: one of GROUNDS."""
    color, grain, spots, pattern = GROUNDS[rng.integers(len(GROUNDS))]
    level = 0.95 + spots * (_noise(rng, size, int(rng.integers(3, 9))) - 0.5)
    level += grain * _resized(rng.standard_normal((size // 2, size // 2)), size)
    (x, y), period = _grid(size), rng.uniform(0.12, 0.3)
    if pattern == "blades":
        level *= 0.45 + 1.1 * np.maximum(_noise(rng, size, size // 8, 4), _noise(rng, size, size // 9, 3))
    elif pattern == "waves":
        level += 0.06 * np.sin(2 * np.pi * (x / rng.uniform(0.02, 0.2) + 0.5 * _noise(rng, size, 3)))
    elif pattern:
        rows = y // period if pattern == "tiles" else 0 * y
        level *= rng.uniform(0.85, 1.08, (9, 9))[rows.astype(int), (x // period).astype(int)]
        level += (0.25 if pattern == "boards" else 0) * (_noise(rng, size, 40, 16) - 0.5)
        level[(x % period < 0.006) | ((y % period < 0.006) & (pattern == "tiles"))] *= 0.6
    pixels = level[..., None] * np.array(color) * rng.uniform(0.65, 1.1) * rng.uniform(0.93, 1.07, 3)
    ground = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return ground.transpose(Image.Transpose.TRANSPOSE) if rng.random() < 0.5 else ground


def _grid(side: int) -> tuple[Array, Array]:
    """x and y of the middle of each pixel, in 0..1."""
    y, x = (np.indices((side, side), np.float32) + 0.5) / side
    return x, y


def _resized(values: Array, side: int) -> Array:
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC))


def _noise(rng: Rng, side: int, cells: int, stretch: float = 1.0) -> Array:
    """Fractal noise about 0.5; its largest spots are 1 / cells of the side wide, and `stretch` times as high."""
    octaves = [min(side, cells * 2**i) for i in range(4)]
    layers = [rng.random((max(2, round(n / stretch)), n)) - 0.5 for n in octaves]
    return 0.5 + np.sum([0.6**i * _resized(layer, side) for i, layer in enumerate(layers)], 0)


class Sheet:
    """A transparent unit square to draw one thing on, with a source of random choices."""

    def __init__(self, rng: Rng, side: int) -> None:
        self.rng, self.side, self.uniform = rng, side, rng.uniform
        self.color, self.alpha = Image.new("RGB", (side, side)), Image.new("L", (side, side))
        self.x, self.y = _grid(side)

    def pick(self, colors: Sequence[Color]) -> Array:
        """One of the colors, a little changed."""
        color: Array = np.array(colors)[self.rng.integers(len(colors))]
        return color * self.uniform(0.85, 1.1) + self.rng.normal(0, 6, 3)

    def wobble(self, points: Points, strength: float) -> Array:
        """The outline with its points moved at random."""
        return np.array(points) + self.rng.normal(0, strength, (len(points), 2))

    def fill(self, points: Points, color: Color) -> None:
        """Fill a polygon."""
        self.mark(points, color)
        ImageDraw.Draw(self.alpha).polygon([(x, y) for x, y in (np.array(points) * self.side).tolist()], fill=255)

    def mark(self, points: Points, color: Color) -> None:
        """Color a polygon, but only where the sheet is filled."""
        r, g, b = np.clip(color, 0, 255).astype(int).tolist()
        ImageDraw.Draw(self.color).polygon([(x, y) for x, y in (np.array(points) * self.side).tolist()], (r, g, b))

    def words(self, x1: float, y1: float, x2: float, y2: float, color: Color) -> None:
        """Mark lines of writing in a box."""
        for y in np.arange(y1, y2, self.uniform(0.032, 0.05)):
            x, end = x1, x1 + (x2 - x1) * self.uniform(0.6, 1)
            while x < end:
                width = min(self.uniform(0.03, 0.1), end - x)
                self.mark(_box(x, y, x + width, y + 0.016), color)
                x += width + 0.018

    def shade(self, factor: Array | float, gloss: Array | float = 0.0) -> None:
        """Multiply the colors by a factor, and add `gloss` in 0..1 of white."""
        pixels = np.asarray(self.color) * np.asarray(factor)[..., None] + 255 * np.asarray(gloss)[..., None]
        self.color = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    def crumple(self, strength: float, count: int, gloss: float = 0.0) -> None:
        """Shade `count` crumpled flat pieces; `gloss` makes the brightest of them shine."""
        place = np.stack(_grid(80), -1)
        at, tilt = self.uniform(-0.05, 1.05, (count, 2)), self.rng.normal(0, 2, (count, 2))
        piece = ((at**2).sum(-1) - 2 * place @ at.T).argmin(-1)  # the nearest centre
        level = self.uniform(-0.75, 0.75, count)[piece] + ((place - at[piece]) * tilt[piece]).sum(-1)
        level = _resized(level, self.side).clip(-1.3, 1.3)
        self.shade(1 + strength * level, gloss * (level > 0.8))


def _box(x1: float, y1: float, x2: float, y2: float) -> Array:
    return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])


def _oval(x: float, y: float, rx: float, ry: float) -> Array:
    t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], -1)


def _mirrored(half: Points) -> Array:
    """The closed outline symmetric about x = 0.5, from the (x, y) of its left half; its corners cut by Chaikin's curve."""
    points = np.concatenate([np.array(half), (1, 0) + np.array(half)[::-1] * (-1, 1)])
    for _ in range(2):
        after = np.roll(points, -1, 0)
        points = np.stack([0.8 * points + 0.2 * after, 0.2 * points + 0.8 * after], 1).reshape(-1, 2)
    return points


def _vessel(s: Sheet, profile: Points, colors: Sequence[Color], clear: float = 1.0, label: float = 0.5, cap: float = 0.0,
            rim: float = 0.0, shine: float = 0.7, dents: float = 0.0) -> None:  # fmt: skip
    """A bottle, can, cup or battery: a body of revolution from its (half width, y).

    `clear` is the middle's opacity, `label` a probability, `cap` a half width, `rim` the half height of the open top.
    """
    half, y = np.array(profile).T
    half, color = half * s.uniform(0.85, 1.15), s.pick(colors)
    s.fill(_mirrored(np.stack([0.5 - half, y], -1)), color)
    y1, y2, wide = np.median(y) + s.uniform(-0.1, 0.1), y[-1] - s.uniform(0.08, 0.2), half.max()
    labeled = (s.y > y1) & (s.y < y2) & (s.uniform() < label)
    if labeled.any():
        s.mark(_box(0, y1, 1, y2), s.pick(INKS))
        s.mark(_oval(0.5, y1 * 0.6 + y2 * 0.4, wide * 0.5, 0.08), s.pick(INKS))
        s.words(0.5 - wide * 0.6, y1 * 0.3 + y2 * 0.7, 0.5 + wide * 0.6, y2, WHITE)
    filled = np.asarray(s.alpha) > 0
    u = ((2 * s.x - 1) * s.side / filled.sum(1).clip(1)[:, None]).clip(-1, 1)  # from the left edge to the right
    streaks = np.exp(-(((u + 0.5) / 0.11) ** 2)) + 0.5 * np.exp(-(((u - 0.65) / 0.07) ** 2))
    s.shade(0.45 + 0.65 * np.sqrt(1 - 0.95 * u**2), shine * streaks)
    opacity = np.maximum(clear + (1 - clear) * np.abs(u) ** 3, 0.85 * streaks).clip(0, 1)
    s.alpha = Image.fromarray((filled * np.where(labeled, 1, opacity) * 255).astype(np.uint8))
    s.crumple(dents * s.uniform(), 22, gloss=0.5 * dents)
    if rim:
        s.fill(_oval(0.5, y[0], half[0], rim), color * 1.1)
        s.mark(_oval(0.5, y[0], half[0] * 0.86, rim * 0.8), color * s.uniform(0.4, 0.85))
    if cap:
        s.fill(_box(0.5 - cap, y[0] - 0.08, 0.5 + cap, y[0] + 0.02), s.pick(INKS))


def _cuboid(s: Sheet, colors: Sequence[Color], printed: float = 0.0, gable: float = 0.0, beads: float = 0.0) -> None:
    """A box that shows three faces: a carton with a gable, a parcel, a block of foam with beads."""
    color, ink = s.pick(colors), s.pick(INKS)
    x, y, dx, dy = s.uniform(0.55, 0.7), s.uniform(0.26, 0.4), s.uniform(0.14, 0.26), s.uniform(0.06, 0.14)
    s.fill([(0.12, y), (0.12 + dx, y - dy), (x + dx, y - dy), (x, y)], color * 1.1)
    s.fill([(x, y), (x + dx, y - dy), (x + dx, 0.9 - dy), (x, 0.95)], color * 0.68)
    s.fill(_box(0.12, y, x, 0.95), color)
    s.fill([(0.12, y), (0.2, y - gable), (x - 0.02, y - gable), (x, y)], color * 0.93)
    if printed:
        s.fill(_box(0.2, y - gable - 0.04, x - 0.02, y - gable), ink)
        s.mark(_box(0.12, 0.95 - printed, x, 0.95), ink)
        s.mark([(x, 0.95 - printed), (x + dx, 0.9 - dy - printed), (x + dx, 0.9 - dy), (x, 0.95)], ink * 0.65)
        s.mark(_oval(x / 2 + 0.06, 0.72, 0.14, 0.1), s.pick(INKS))
    s.words(0.18, y + 0.05, x - 0.06, 0.9 - printed - beads, color * 0.5)
    s.shade(1 + beads * (_noise(s.rng, s.side, 30) - 0.6) if beads else 1.0)
    s.crumple(0.08, 8)


def _flat(s: Sheet, outline: Points, colors: Sequence[Color], text: int = 0, creases: float = 0.1, pieces: int = 12,
          gloss: float = 0.0, folds: float = 0.0, weave: float = 0.0) -> None:  # fmt: skip
    """A flat or crumpled thing: paper with columns of `text`, foil, a wrapper, a bag with `folds`, a woven garment."""
    color, ink = s.pick(colors), s.pick([DARK, *INKS])
    s.fill(s.wobble(outline, 0.012), color)
    if text and s.uniform() < 0.6:
        s.mark(_box(0.2, s.uniform(0.15, 0.3), s.uniform(0.4, 0.8), 0.45), s.pick(INKS))
    for column in range(text):
        s.words(0.18 + column * 0.66 / text, 0.48, 0.14 + (column + 1) * 0.66 / text, s.uniform(0.6, 0.88), ink)
    for y in np.arange(0, 1, 0.12) if weave and s.uniform() < 0.4 else ():
        s.mark(_box(0, y, 1, y + 0.05), ink)
    if folds + weave:
        s.mark(s.wobble(_oval(0.5, 0.6, 0.16, 0.12), 0.01), s.pick(INKS) if s.uniform() < 0.4 else color)
        waves = np.sin(12 * np.arctan2(s.y - 0.15, s.x - 0.5) + 5 * _noise(s.rng, s.side, 3))  # towards the top
        s.shade(1 + folds * waves + weave * (_noise(s.rng, s.side, 4) - 0.5), 1.3 * folds * waves.clip(0, 1) ** 3)
    s.crumple(creases, pieces, gloss)
    if folds and color.min() > 180:
        s.alpha = s.alpha.point([0.75 * v for v in range(256)])


def _food(s: Sheet) -> None:
    """A heap of kitchen waste."""
    for x, y in s.rng.normal(0.5, 0.14, (int(s.rng.integers(9, 22)), 2)).clip(0.2, 0.8):
        s.fill(s.wobble(_oval(x, y, *s.uniform(0.04, 0.17, 2)), 0.01), s.pick(FOODS))
    s.shade(0.55 + 0.9 * _noise(s.rng, s.side, 12))


def _cigarette(s: Sheet) -> None:
    """A stub: a cork-colored filter, white paper, a burnt end."""
    for y1, y2, color in ((0.06, 0.5, (206, 142, 72)), (0.5, 0.7, WHITE), (0.7, s.uniform(0.75, 0.9), DARK)):
        s.fill(_box(0.41, y1, 0.59, y2), color)
    s.shade(1.1 - 40 * (s.x - 0.5) ** 2)


# fmt: off
INKS = (200, 30, 35), (20, 80, 170), (20, 130, 70), (235, 175, 25), (225, 95, 25), (110, 45, 130), (25, 25, 30)
FOODS = (150, 88, 40), (196, 130, 50), (95, 120, 45), (170, 45, 32), (220, 200, 150), (226, 186, 42)
WHITE, STEEL, DARK, FILM = (240, 240, 236), (180, 183, 188), (45, 45, 50), (208, 222, 228)
BAGS, CLOTHS = (DARK, FILM, FILM, WHITE, *INKS), (WHITE, (95, 110, 150), (160, 110, 90), *INKS)
GLASS = (28, 105, 52), (104, 56, 18), (176, 200, 204)
GROUNDS = (  # color, grain, spots, pattern
    ((100, 99, 97), 0.2, 0.4, ""), ((168, 165, 158), 0.04, 0.4, "slabs"), ((96, 124, 58), 0.12, 0.4, "blades"),
    ((176, 126, 78), 0.03, 0.2, "boards"), ((196, 190, 178), 0.02, 0.2, "tiles"), ((205, 180, 138), 0.08, 0.3, "waves"),
    ((104, 92, 112), 0.16, 0.1, ""), ((110, 86, 60), 0.1, 0.8, ""), ((182, 143, 98), 0.02, 0.2, "waves"))
# Profiles of bodies of revolution, (half width, y) downwards; then outlines, (x, y), some given by their left half.
BOTTLE = (0.05, 0.05), (0.055, 0.3), (0.17, 0.44), (0.17, 0.94), (0.14, 0.97)
PET = (0.06, 0.12), (0.06, 0.16), (0.18, 0.32), (0.18, 0.56), (0.16, 0.6), (0.18, 0.64), (0.18, 0.93), (0.13, 0.97)
JAR, COIN = ((0.25, 0.1), (0.25, 0.17), (0.3, 0.24), (0.3, 0.88), (0.22, 0.94)), ((0.42, 0.42), (0.42, 0.5), (0.42, 0.6))
CUP, CELL = ((0.3, 0.16), (0.28, 0.28), (0.2, 0.9), (0.18, 0.96)), ((0.14, 0.1), (0.14, 0.4), (0.14, 0.93), (0.13, 0.95))
CAN, TIN = ((0.2, 0.08), (0.24, 0.16), (0.24, 0.86), (0.19, 0.95)), ((0.36, 0.25), (0.36, 0.3), (0.36, 0.88), (0.32, 0.93))
FLASK = (0.07, 0.2), (0.09, 0.27), (0.22, 0.36), (0.2, 0.7), (0.22, 0.94), (0.18, 0.97)
PAGE, BALL, LEAF = _box(0.16, 0.06, 0.84, 0.94), _oval(0.5, 0.5, 0.42, 0.36), _oval(0.5, 0.5, 0.45, 0.2)
KNOTTED = _mirrored([(0.46, 0.34), (0.36, 0.22), (0.3, 0.08), (0.4, 0.14), (0.45, 0.32), (0.2, 0.44), (0.12, 0.7), (0.3, 0.95)])
CARRIER = _mirrored([(0.42, 0.34), (0.38, 0.26), (0.36, 0.06), (0.22, 0.06), (0.2, 0.26), (0.15, 0.4), (0.14, 0.9), (0.3, 0.96)])
SHIRT = _mirrored([(0.38, 0.1), (0.2, 0.16), (0.03, 0.42), (0.16, 0.52), (0.26, 0.42), (0.25, 0.94)])
TROUSERS = _mirrored([(0.28, 0.06), (0.2, 0.94), (0.42, 0.95), (0.49, 0.42)])
SOCK = np.array([(0.3, 0.05), (0.6, 0.05), (0.6, 0.5), (0.66, 0.62), (0.9, 0.7), (0.9, 0.9), (0.5, 0.92), (0.3, 0.75)])
DEBRIS = (partial(_flat, outline=BALL, colors=[(140, 135, 128)]), partial(_flat, outline=LEAF, colors=FOODS[:4]))
THINGS: dict[str, tuple[int, float, tuple[Draw, ...]]] = {  # boxes in the contest's training set, relative size, things
    "General trash": (3966, 0.7, (_food, _cigarette)),
    "Paper": (6352, 1.1, (partial(_flat, outline=PAGE, colors=[WHITE, (214, 208, 196)], text=2),
                          partial(_flat, outline=BALL, colors=[WHITE, (216, 210, 198)], text=2, creases=0.3, pieces=50),
                          partial(_cuboid, colors=[(186, 144, 96)]))),
    "Paper pack": (897, 0.95, (partial(_cuboid, colors=[WHITE], printed=0.4, gable=0.18),
                               partial(_cuboid, colors=INKS, printed=0.3))),
    "Metal": (936, 0.8, (partial(_vessel, profile=CAN, colors=[STEEL], label=1, rim=0.045, dents=0.4),
                         partial(_vessel, profile=TIN, colors=[STEEL], rim=0.11),
                         partial(_flat, outline=BALL, colors=[STEEL], creases=0.5, gloss=0.55, pieces=60))),
    "Glass": (982, 1.0, (partial(_vessel, profile=BOTTLE, colors=GLASS, clear=0.6),
                         partial(_vessel, profile=JAR, colors=GLASS[2:], clear=0.4, rim=0.04))),
    "Plastic": (2943, 1.0, (partial(_vessel, profile=PET, colors=[FILM], clear=0.42, cap=0.065, dents=0.3),
                            partial(_vessel, profile=CUP, colors=[FILM], clear=0.45, rim=0.04),
                            partial(_vessel, profile=FLASK, colors=INKS, label=1, cap=0.08))),
    "Styrofoam": (1263, 1.05, (partial(_cuboid, colors=[WHITE], beads=0.35),
                               partial(_vessel, profile=CUP, colors=[WHITE], rim=0.09, shine=0.1))),
    "Plastic bag": (5178, 1.2, (*(partial(_flat, outline=each, colors=BAGS, folds=0.15) for each in (KNOTTED, CARRIER)),
                                partial(_flat, outline=PAGE, colors=INKS, text=1, creases=0.3, gloss=0.3, pieces=30))),
    "Battery": (159, 0.55, (partial(_vessel, profile=CELL, colors=[DARK, INKS[1]], label=1, cap=0.05),
                            partial(_vessel, profile=COIN, colors=[STEEL], label=0, rim=0.3))),
    "Clothing": (468, 1.35, tuple(partial(_flat, outline=each, colors=CLOTHS, weave=0.7) for each in (SHIRT, TROUSERS, SOCK)))}
