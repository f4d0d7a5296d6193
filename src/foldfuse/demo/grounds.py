"""What the drawn scenes lie on: grounds with their texture, and the small things on them that are nobody's class."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from foldfuse.demo.art import Array, Art, Rng, blob, facets, grid, noise, soft

_SIDE = 640  # pixels, of a cached ground
Make = Callable[[Rng], Array]  # a ground, (_SIDE, _SIDE, 3) float32 in 0..255


def _tinted(level: Array, colour: tuple[float, float, float]) -> Array:
    return level[..., None] * np.array(colour, np.float32)


def asphalt(rng: Rng) -> Array:
    """Dark grit with lighter stones, perhaps with a painted line."""
    grit = rng.normal(0, 1, (_SIDE // 2, _SIDE // 2)).astype(np.float32)
    coarse = np.asarray(Image.fromarray(grit).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))
    level = 0.85 + 0.16 * coarse + 0.5 * (noise(rng, _SIDE, 300) - 0.5) + 0.35 * (coarse > 1.9)
    ground = _tinted(level, (100, 99, 97))
    x, y = grid(_SIDE)
    worn = (np.abs(x + 0.2 * y - 0.75) < 0.035) & (noise(rng, _SIDE, 400) > 0.42)
    ground[worn] = ground[worn] * 0.6 + 95
    return ground


def grass(rng: Rng) -> Array:
    """Blades of many greens over dark soil."""
    image = Image.new("RGB", (_SIDE, _SIDE), (58, 66, 34))
    ink = ImageDraw.Draw(image)
    for _ in range(9000):
        x, y = rng.uniform(0, _SIDE, 2)
        lean, length = rng.normal(0, 7), rng.uniform(8, 26)
        green = np.array([92, 128, 48]) * rng.uniform(0.55, 1.3) + rng.normal(0, 7, 3)
        r, g, b = (int(c) for c in green.clip(0, 255))
        ink.line([(x, y), (x + lean, y - length)], fill=(r, g, b), width=int(rng.integers(1, 4)))
    return np.asarray(image, np.float32) * (0.7 + 0.6 * noise(rng, _SIDE, 60))[..., None]


def wood(rng: Rng) -> Array:
    """Floor boards with grain and dark joints."""
    ground, board = np.zeros((_SIDE, _SIDE, 3), np.float32), _SIDE // 8
    for i in range(8):
        grain = noise(rng, _SIDE, 220, stretch=1)[: _SIDE // 10].repeat(10, 0)[:_SIDE].T
        lines = np.sin(30 * noise(rng, _SIDE, 90, stretch=12) + grain * 3)
        level = rng.uniform(0.82, 1.1) + 0.07 * lines + 0.22 * (noise(rng, _SIDE, 300, stretch=20) - 0.5)
        plank = _tinted(level, (176, 126, 78))[:, i * board : (i + 1) * board]
        ground[:, i * board : (i + 1) * board] = plank
        ground[:, i * board : i * board + 2] *= 0.45
        joint = int(rng.integers(0, _SIDE - 2))
        ground[joint : joint + 2, i * board : (i + 1) * board] *= 0.5
    return ground


def tiles(rng: Rng) -> Array:
    """Glazed or stone tiles, each of its own shade, with joints."""
    side = _SIDE // 5
    tone = rng.uniform(0.88, 1.06, (5, 5)).repeat(side, 0).repeat(side, 1)
    level = tone + 0.22 * (noise(rng, _SIDE, 250) - 0.5) + 0.1 * (noise(rng, _SIDE, 500) - 0.5)
    ground = _tinted(level.astype(np.float32), (196, 190, 178))
    at = np.arange(_SIDE) % side < 5
    ground[at] *= 0.62
    ground[:, at] *= 0.62
    return ground


def sand(rng: Rng) -> Array:
    """Fine grains in soft waves."""
    _, y = grid(_SIDE)
    waves = 0.07 * np.sin(60 * y + 12 * noise(rng, _SIDE, 40))
    grains = rng.normal(0, 0.07, (_SIDE, _SIDE)).astype(np.float32)
    return _tinted(0.95 + waves + grains + 0.35 * (noise(rng, _SIDE, 100) - 0.5), (205, 180, 138))


def board(rng: Rng) -> Array:
    """Brown cardboard, faintly ribbed."""
    x, _ = grid(_SIDE)
    ribs = 0.03 * np.sin(x * 2 * np.pi * 70)
    level = 0.97 + ribs + 0.25 * (noise(rng, _SIDE, 450) - 0.5) + 0.04 * facets(rng, _SIDE, 6)
    return _tinted(level, (182, 143, 98))


def carpet(rng: Rng) -> Array:
    """Pile: soft coarse noise in two colours."""
    tuft = rng.normal(0, 1, (_SIDE // 3, _SIDE // 3)).astype(np.float32)
    pile = np.asarray(Image.fromarray(tuft).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))
    ground = _tinted(0.9 + 0.17 * pile, (104, 92, 112))
    figure = np.sin(9 * noise(rng, _SIDE, 60))[..., None] > 0.6
    return np.where(figure, ground * np.array((1.3, 1.1, 0.8), np.float32), ground)


def concrete(rng: Rng) -> Array:
    """Pale cement with stains and slab joints."""
    level = 0.95 + 0.5 * (noise(rng, _SIDE, 120) - 0.5) + 0.25 * (noise(rng, _SIDE, 500) - 0.5)
    level += rng.normal(0, 0.03, level.shape).astype(np.float32)
    ground = _tinted(level, (168, 165, 158))
    ground[300:306] *= 0.55
    return ground


def soil(rng: Rng) -> Array:
    """Brown earth in crumbs."""
    crumbs = noise(rng, _SIDE, 500) + 0.5 * noise(rng, _SIDE, 150)
    level = 0.2 + crumbs + rng.normal(0, 0.08, crumbs.shape).astype(np.float32)
    return _tinted(level, (112, 86, 60))


GROUNDS: tuple[Make, ...] = (asphalt, grass, wood, tiles, sand, board, carpet, concrete, soil)


@cache
def _ground(kind: int) -> Image.Image:
    """One ground of each kind, made once; a picture shows a part of it, turned and tinted."""
    pixels = GROUNDS[kind](np.random.default_rng(100 + kind))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def ground(rng: Rng, size: int) -> Array:
    """A ground to lay things on, (size, size, 3) float32 in 0..255."""
    tile = _ground(int(rng.integers(len(GROUNDS))))
    reach = rng.uniform(0.45, 0.98) * _SIDE
    left, top = rng.uniform(0, _SIDE - reach, 2)
    part = tile.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + reach, top + reach))
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.TRANSPOSE)
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.ROTATE_180)
    if rng.random() < 0.35:
        _crack(rng, part)
    return np.asarray(part, np.float32) * (rng.uniform(0.65, 1.1) * rng.uniform(0.93, 1.07, 3)).astype(np.float32)


def _crack(rng: Rng, picture: Image.Image) -> None:
    """Draw one dark jagged line over `picture`."""
    size, n = picture.width, 40
    start, heading = rng.uniform(0, size, 2), rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.3, n))
    steps = np.stack([np.cos(heading), np.sin(heading)], -1) * size / 35
    points = [(float(x), float(y)) for x, y in start + np.cumsum(steps, 0)]
    ImageDraw.Draw(picture).line(points, fill=(52, 48, 44), width=max(1, size // 300))


def leaf(rng: Rng, side: int) -> Image.Image:
    """A fallen leaf with its vein."""
    art, wide = Art(side), rng.uniform(0.14, 0.3)
    colours = [(142, 92, 36), (170, 125, 42), (96, 112, 42), (150, 62, 30), (105, 72, 44)]
    colour = np.array(colours[rng.integers(len(colours))])
    art.shape(soft(np.array([(0.5, 0.05), (0.5 + wide, 0.4), (0.5 + wide * 0.7, 0.7), (0.5, 0.85),
                             (0.5 - wide * 0.7, 0.7), (0.5 - wide, 0.4)])), colour)  # fmt: skip
    art.line(np.array([(0.5, 0.08), (0.5, 0.97)]), colour * 0.6, width=0.03)
    art.shade(0.6 + 0.8 * noise(rng, side, 100))
    return art.done()


def pebble(rng: Rng, side: int) -> Image.Image:
    """A small stone."""
    art, (x, y) = Art(side), grid(side)
    grey = np.array([150, 144, 135]) * rng.uniform(0.6, 1.2)
    art.shape(blob(rng, (0.5, 0.5), (0.4, rng.uniform(0.25, 0.4)), rough=0.12), grey)
    art.shade(1.4 - 0.45 * (x + y) + 0.6 * (noise(rng, side, 200) - 0.5))
    return art.done()


def twig(rng: Rng, side: int) -> Image.Image:
    """A thin stick with a side branch."""
    art, brown = Art(side), np.array([98, 72, 48]) * rng.uniform(0.6, 1.3)
    bend = rng.normal(0, 0.05, 3)
    stem = np.stack([0.5 + np.array([0, *bend]), np.array([0.04, 0.35, 0.65, 0.96])], -1)
    art.line(stem, brown, width=0.03)
    art.line(np.array([(0.5 + bend[0], 0.35), (0.72, 0.16)]), brown, width=0.022)
    return art.done()


CLUTTER = (leaf, pebble, twig)
