"""The brush and the textures that the drawn scenes are made with. Everything is drawn large and made smaller later.

Points are (n, 2) x, y in 0..1 of a square sheet; textures are (side, side) float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Array = NDArray[Any]
Rng = np.random.Generator
Colour = Array | Sequence[float]  # red, green, blue in 0..255; cut to that range when drawn
_TILE = 512  # pixels, the side of a cached texture


class Art:
    """A square sheet to draw one thing on; `done` gives it as an RGBA picture, clear where nothing was drawn."""

    def __init__(self, side: int) -> None:
        self.side = side
        self._use(Image.new("RGB", (side, side)), Image.new("L", (side, side)))

    def _use(self, image: Image.Image, mask: Image.Image) -> None:
        self.image, self.mask = image, mask
        self._ink, self._cover = ImageDraw.Draw(image), ImageDraw.Draw(mask)

    def shape(self, points: Array, colour: Colour) -> None:
        """Fill the polygon `points`."""
        corners = [(float(x), float(y)) for x, y in points * self.side]
        self._ink.polygon(corners, fill=_rgb(colour))
        self._cover.polygon(corners, fill=255)

    def line(self, points: Array, colour: Colour, *, width: float) -> None:
        """Draw the open line `points`, `width` as a share of the sheet."""
        corners = [(float(x), float(y)) for x, y in points * self.side]
        thick = max(1, round(width * self.side))
        self._ink.line(corners, fill=_rgb(colour), width=thick, joint="curve")
        self._cover.line(corners, fill=255, width=thick, joint="curve")

    def decal(self, points: Array, colour: Colour) -> None:
        """Fill `points`, but only where something was drawn before: a print on a thing."""
        self._ink.polygon([(float(x), float(y)) for x, y in points * self.side], fill=_rgb(colour))

    def cut(self, points: Array) -> None:
        """Take the polygon `points` away."""
        self._cover.polygon([(float(x), float(y)) for x, y in points * self.side], fill=0)

    def shade(self, factor: Array, *, gloss: Array | float = 0.0) -> None:
        """Multiply the colours drawn so far by `factor` (side, side), and add `gloss` in 0..1 of white."""
        colours = np.asarray(self.image, np.float32) * factor[..., None]
        colours += 255 * np.asarray(gloss, np.float32)[..., None]
        self._use(Image.fromarray(colours.clip(0, 255).astype(np.uint8)), self.mask)

    def warp(self, dx: Array, dy: Array) -> None:
        """Move each point (x, y) of the sheet's content from (x + dx, y + dy), shares of the sheet."""
        x, y = grid(self.side)
        column, row = ((x + dx) * self.side).astype(np.intp), ((y + dy) * self.side).astype(np.intp)
        within = (column >= 0) & (column < self.side) & (row >= 0) & (row < self.side)
        column, row = column.clip(0, self.side - 1), row.clip(0, self.side - 1)
        moved = np.asarray(self.mask)[row, column] * within
        self._use(Image.fromarray(np.asarray(self.image)[row, column]), Image.fromarray(moved))

    def across(self) -> Array:
        """(side, side) from -1 at the left edge of what is drawn in a row to 1 at its right edge: a turned body's u."""
        filled = np.asarray(self.mask) > 0
        left = filled.argmax(1)[:, None]
        right = self.side - filled[:, ::-1].argmax(1)[:, None]
        u = (np.arange(self.side)[None] - (left + right) / 2) / np.maximum((right - left) / 2, 1)
        return u.clip(-1, 1).astype(np.float32)

    def done(self, opacity: Array | float = 1.0) -> Image.Image:
        """The RGBA picture; `opacity` in 0..1 makes it see-through."""
        cover = Image.fromarray((np.asarray(self.mask) * np.asarray(opacity, np.float32)).astype(np.uint8))
        self.image.putalpha(cover)
        return self.image


def _rgb(colour: Colour) -> tuple[int, int, int]:
    r, g, b = np.asarray(colour).clip(0, 255).astype(int).tolist()
    return r, g, b


@cache
def grid(side: int) -> tuple[Array, Array]:
    """x, y of the middle of each pixel, (side, side) in 0..1."""
    at = (np.arange(side, dtype=np.float32) + 0.5) / side
    x, y = np.meshgrid(at, at)
    return x, y


@cache
def _clouds() -> Image.Image:
    """A tile of fractal noise in 0..1 with a mean near 0.5; always the same one, read at random places."""
    rng, total = np.random.default_rng(7), np.zeros((_TILE, _TILE), np.float32)
    for octave in range(2, 9):
        cells = rng.random((2**octave, 2**octave), dtype=np.float32)
        layer = Image.fromarray(cells).resize((_TILE, _TILE), Image.Resampling.BICUBIC)
        total += np.asarray(layer) * 0.6**octave
    total = (total - total.mean()) / (4 * total.std()) + 0.5
    return Image.fromarray(total.clip(0, 1))


@cache
def _beads() -> Image.Image:
    """A tile of packed beads, 8 pixels each: 0 in the gaps, 1 in the middles."""
    rng, bead = np.random.default_rng(11), 8
    count = _TILE // bead
    cells = np.stack(np.meshgrid(np.arange(count), np.arange(count)), -1)
    seeds = (cells + rng.uniform(0.2, 0.8, (count, count, 2))) * bead
    x, y = np.meshgrid(np.arange(_TILE), np.arange(_TILE))
    near = np.full((_TILE, _TILE), np.inf)
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            seed = seeds[(y // bead + dy) % count, (x // bead + dx) % count]
            near = np.minimum(near, (seed[..., 0] - x) ** 2 + (seed[..., 1] - y) ** 2)
    return Image.fromarray((1 - np.sqrt(near) / bead).clip(0, 1).astype(np.float32))


def _window(rng: Rng, tile: Image.Image, side: int, reach: tuple[float, float]) -> Array:
    """(side, side): a random part of `tile`, `reach` pixels wide and high, enlarged or reduced to the side."""
    wide, high = (min(r, _TILE - 1) for r in reach)
    left, top = rng.uniform(0, _TILE - wide), rng.uniform(0, _TILE - high)
    box = (left, top, left + wide, top + high)
    return np.asarray(tile.resize((side, side), Image.Resampling.BILINEAR, box=box))


def noise(rng: Rng, side: int, reach: float, *, stretch: float = 1.0) -> Array:
    """Fractal noise in 0..1; the larger `reach` (8..511), the finer; `stretch` > 1 draws it out downwards."""
    return _window(rng, _clouds(), side, (reach, max(4.0, reach / stretch)))


def beads(rng: Rng, side: int, reach: float = 160) -> Array:
    """Foam texture in 0..1, with about `reach` / 8 beads across."""
    return _window(rng, _beads(), side, (reach, reach))


def facets(rng: Rng, side: int, count: int) -> Array:
    """Crumpled flat pieces in about -1..1, as the light falls on them."""
    small = 80
    x, y = grid(small)
    at = rng.uniform(-0.05, 1.05, (count, 2))
    far = (x[..., None] - at[:, 0]) ** 2 + (y[..., None] - at[:, 1]) ** 2 + rng.uniform(0, 0.03, count)
    piece = far.argmin(-1)
    tilt = rng.normal(0, 2.0, (count, 2))
    level = rng.uniform(-0.75, 0.75, count)[piece]
    level += (x - at[piece, 0]) * tilt[piece, 0] + (y - at[piece, 1]) * tilt[piece, 1]
    smooth = Image.fromarray(level.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(smooth).clip(-1.3, 1.3)


def box(x0: float, y0: float, x1: float, y1: float) -> Array:
    """The four corners of a rectangle."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def rounded(x0: float, y0: float, x1: float, y1: float, *, radius: float) -> Array:
    """A rectangle with its corners rounded."""
    t = np.linspace(0, np.pi / 2, 7)
    arc = radius * np.stack([np.cos(t), np.sin(t)], -1)
    outwards = np.concatenate([arc, (arc * (-1, 1))[::-1], -arc, (arc * (1, -1))[::-1]])
    middle = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
    half = np.array([(x1 - x0) / 2 - radius, (y1 - y0) / 2 - radius])
    return middle + np.repeat([(1, 1), (-1, 1), (-1, -1), (1, -1)], 7, 0) * half + outwards


def oval(x: float, y: float, rx: float, ry: float, *, n: int = 28) -> Array:
    """Points on an ellipse."""
    t = np.arange(n) * (2 * np.pi / n)
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], -1)


def blob(rng: Rng, centre: tuple[float, float], radii: tuple[float, float], *, rough: float = 0.2) -> Array:
    """A wobbly closed outline around `centre`."""
    t = np.arange(48) * (2 * np.pi / 48)
    r = np.ones(48)
    for k in range(2, 9):
        r += rng.normal(0, rough / k) * np.cos(k * t + rng.uniform(0, 2 * np.pi))
    return np.stack([centre[0] + radii[0] * r * np.cos(t), centre[1] + radii[1] * r * np.sin(t)], -1)


def turned(profile: Sequence[tuple[float, float]], *, rounds: int = 2) -> Array:
    """The outline of a body turned about x = 0.5, from (y, half width) pairs downwards, its corners rounded."""
    half = np.array(profile)
    right = np.stack([0.5 + half[:, 1], half[:, 0]], -1)
    left = np.stack([0.5 - half[:, 1], half[:, 0]], -1)
    return soft(np.concatenate([right, left[::-1]]), rounds=rounds)


def soft(points: Array, *, rounds: int = 2) -> Array:
    """The closed outline `points` with its corners cut `rounds` times (Chaikin's curve)."""
    for _ in range(rounds):
        after = np.roll(points, -1, 0)
        points = np.stack([0.75 * points + 0.25 * after, 0.25 * points + 0.75 * after], 1).reshape(-1, 2)
    return points


def streak(u: Array, at: float, width: float) -> Array:
    """A soft line of light where `u` is near `at`."""
    return np.exp(-(((u - at) / width) ** 2))


def vivid(rng: Rng) -> Array:
    """A strong print colour (3,)."""
    inks = [(200, 30, 35), (20, 80, 170), (20, 130, 70), (235, 175, 25), (225, 95, 25), (110, 45, 130), (25, 25, 30),
            (235, 235, 235), (15, 150, 175), (215, 75, 130)]  # fmt: skip
    return np.array(inks[rng.integers(len(inks))]) * rng.uniform(0.8, 1.1) + rng.normal(0, 8, 3)


def print_lines(art: Art, rng: Rng, area: tuple[float, float, float, float], colour: Colour, *, pitch: float) -> None:
    """Lines of writing in the area x0, y0, x1, y1, as grey words."""
    x0, y0, x1, y1 = area
    for y in np.arange(y0, y1, pitch):
        end = x0 + (x1 - x0) * (1.0 if rng.random() < 0.75 else rng.uniform(0.3, 0.9))
        x = x0
        while x < end:
            word = min(rng.uniform(0.03, 0.1), end - x)
            art.decal(box(x, y, x + word, y + pitch * 0.42), colour)
            x += word + 0.018
