"""What lies about in the drawn scenes: the ten classes, and the soft or crumpled things among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from foldfuse.demo import vessels
from foldfuse.demo.art import (
    Array,
    Art,
    Rng,
    beads,
    blob,
    box,
    facets,
    grid,
    noise,
    oval,
    print_lines,
    rounded,
    soft,
    streak,
    turned,
    vivid,
)

Draw = Callable[[Rng, int], Image.Image]  # a random thing on a clear square sheet of so many pixels


@dataclass(frozen=True)
class Kind:
    """One class of the contest.

    Attributes:
        name: as the organiser writes it.
        boxes: drawn by the organiser in the training set; the scenes follow the square root of it.
        size: how large it is beside the other classes.
        draws: the things of this class; one that stands here twice comes twice as often.
    """

    name: str
    boxes: int
    size: float
    draws: tuple[Draw, ...]


def banana_peel(rng: Rng, side: int) -> Image.Image:
    """Three or four yellow strips that spread from a stalk."""
    art = Art(side)
    for angle in np.linspace(0.3, 2.8, int(rng.integers(3, 5))) + rng.normal(0, 0.15):
        t = np.linspace(0, 1, 14)
        bend = angle + rng.uniform(-0.9, 0.9) * t
        spine = np.stack([0.5 + 0.52 * t * np.cos(bend), 0.28 + 0.62 * t * np.sin(bend)], -1)
        width = 0.1 * np.sin(np.pi * (0.15 + 0.85 * t)) + 0.008
        across = np.stack([-np.sin(bend), np.cos(bend)], -1) * width[:, None]
        outer, inner = np.array([226, 186, 42]), np.array([238, 222, 160])
        art.shape(np.concatenate([spine + across, (spine - across)[::-1]]), outer if rng.random() < 0.7 else inner)
        art.line(spine, outer * 0.75, width=0.012)
    art.shape(box(0.465, 0.12, 0.535, 0.3), (120, 92, 32))
    brown = (noise(rng, side, 150) > 0.63) * rng.uniform(0.3, 0.7)
    art.shade((0.75 + 0.5 * noise(rng, side, 60)) * (1 - brown))
    return art.done()


def bone(rng: Rng, side: int) -> Image.Image:
    """A gnawed bone with scraps of meat."""
    art, ivory = Art(side), np.array([222, 205, 172]) * rng.uniform(0.85, 1.05)
    art.shape(box(0.2, 0.44, 0.8, 0.56), ivory)
    for knob in ((0.17, 0.4), (0.17, 0.59), (0.83, 0.41), (0.83, 0.58)):
        art.shape(blob(rng, knob, (0.11, 0.1)), ivory * rng.uniform(0.92, 1.05))
    if rng.random() < 0.7:
        art.shape(blob(rng, (rng.uniform(0.3, 0.7), 0.47), (0.16, 0.09), rough=0.5), (135, 70, 38))
    _, y = grid(side)
    art.shade(1.15 - 0.7 * np.abs(y - 0.45) - 0.5 * (noise(rng, side, 120) - 0.5))
    return art.done()


def apple_core(rng: Rng, side: int) -> Image.Image:
    """What is left of an apple, its skin red or green."""
    art = Art(side)
    skin = np.array([[178, 35, 35], [130, 160, 50]][rng.integers(2)])
    art.line(np.array([(0.5, 0.2), (0.54, 0.05)]), (85, 55, 30), width=0.03)
    art.shape(turned([(0.14, 0.2), (0.2, 0.3), (0.36, 0.13), (0.65, 0.12), (0.8, 0.27), (0.9, 0.17)]), (228, 208, 150))
    art.decal(box(0, 0, 1, 0.24), skin)
    art.decal(box(0, 0.79, 1, 1), skin)
    for y in (0.47, 0.55):
        art.decal(oval(0.5 + rng.normal(0, 0.03), y, 0.02, 0.035), (60, 35, 20))
    u = art.across()
    art.shade((1.05 - 0.35 * u**2) * (0.75 + 0.5 * noise(rng, side, 90)))
    return art.done()


def cigarette_butt(rng: Rng, side: int) -> Image.Image:
    """A stub: cork-coloured filter, a little white paper, a burnt end."""
    art, half, burnt = Art(side), 0.085, rng.uniform(0.72, 0.92)
    art.shape(box(0.5 - half, 0.06, 0.5 + half, 0.52), (206, 142, 72))
    art.shape(box(0.5 - half, 0.5, 0.5 + half, burnt), (236, 234, 226))
    art.shape(blob(rng, (0.5, burnt), (half, 0.05), rough=0.3), (48, 44, 42))
    u = art.across()
    art.shade((1.05 - 0.45 * u**2) * (0.8 + 0.4 * noise(rng, side, 200)))
    x, _ = grid(side)
    art.warp(0.12 * (noise(rng, side, 40) - 0.5), np.zeros_like(x))
    return art.done()


def tissue(rng: Rng, side: int) -> Image.Image:
    """A used tissue: white, soft and stained, without print."""
    art = Art(side)
    art.shape(blob(rng, (0.5, 0.5), (0.36, rng.uniform(0.24, 0.36)), rough=0.3), (236, 234, 230))
    stain = 0.35 * (noise(rng, side, 40) > 0.6) * rng.random()
    art.shade(0.86 + 0.55 * (noise(rng, side, 70) - 0.5) + 0.09 * facets(rng, side, 16) - stain)
    return art.done()


def scraps(rng: Rng, side: int) -> Image.Image:
    """A heap of kitchen waste: peel, shell, rice, leaves, run together."""
    art = Art(side)
    food = [(150, 88, 40), (196, 130, 50), (95, 120, 45), (170, 45, 32), (220, 200, 150), (90, 60, 40), (225, 145, 55)]
    for _ in range(int(rng.integers(9, 22))):
        at = rng.normal(0.5, 0.14, 2).clip(0.2, 0.8)
        size = rng.uniform(0.05, 0.15, 2)
        art.shape(blob(rng, (at[0], at[1]), (size[0], size[1]), rough=0.4), np.array(food[rng.integers(len(food))]))
    art.shade(0.55 + 0.9 * noise(rng, side, 160), gloss=0.25 * (noise(rng, side, 200) > 0.72))
    return art.done()


def sheet(rng: Rng, side: int) -> Image.Image:
    """A leaf of paper with writing on it: flat, folded or creased."""
    art, half = Art(side), rng.uniform(0.28, 0.4)
    papers = [(240, 240, 236), (236, 232, 220), (214, 208, 196), (240, 226, 170), (190, 214, 236)]
    paper, ink = np.array(papers[rng.choice(5, p=(0.4, 0.2, 0.25, 0.08, 0.07))]), np.array([70, 70, 76])
    x0, x1 = 0.5 - half, 0.5 + half
    art.shape(np.array([(x0, 0.06), (x1, 0.06 + rng.uniform(0, 0.05)), (x1, 0.94), (x0, 0.94)]), paper)
    if rng.random() < 0.5:  # a newspaper: columns, a headline and a picture
        art.decal(box(x0 + 0.05, 0.11, x1 - 0.1, 0.16), ink)
        art.decal(box(x0 + 0.05, 0.22, 0.48, 0.45), vivid(rng) * 0.7 + 50)
        print_lines(art, rng, (x0 + 0.05, 0.49, 0.48, 0.9), ink, pitch=0.032)
        print_lines(art, rng, (0.53, 0.22, x1 - 0.04, 0.9), ink, pitch=0.032)
    elif rng.random() < 0.85:
        print_lines(art, rng, (x0 + 0.06, 0.15, x1 - 0.06, rng.uniform(0.5, 0.88)), ink, pitch=rng.uniform(0.035, 0.06))
    x, y = grid(side)
    fold = 0.1 * (y > rng.uniform(0.4, 0.6)) + 0.06 * (x > rng.uniform(0.4, 0.6))
    art.shade(1.02 - fold + rng.uniform(0.03, 0.2) * facets(rng, side, 10))
    if rng.random() < 0.4:
        art.shape(np.array([(x1, 0.74), (x1, 0.94), (x1 - 0.2, 0.94)]), paper * 0.85)
        art.cut(np.array([(x1, 0.76), (x1 + 0.1, 0.95), (x1 - 0.18, 0.96)]))
    art.warp(0.05 * (noise(rng, side, 50) - 0.5), 0.05 * (noise(rng, side, 50) - 0.5))
    return art.done()


def paper_ball(rng: Rng, side: int) -> Image.Image:
    """A sheet crumpled into a ball: sharp facets, some print."""
    art = Art(side)
    paper = np.array([[238, 237, 232], [232, 226, 210], [205, 172, 125]][rng.choice(3, p=(0.6, 0.25, 0.15))])
    art.shape(blob(rng, (0.5, 0.5), (0.4, rng.uniform(0.32, 0.42)), rough=0.16), paper)
    print_lines(art, rng, (0.15, 0.2, 0.85, 0.8), paper * 0.5, pitch=0.07)
    push = 0.3 * facets(rng, side, 26)
    art.warp(push * 0.12, push * 0.1)
    x, y = grid(side)
    art.shade(0.88 + 0.33 * facets(rng, side, 34) - 0.25 * (x + y - 1))
    return art.done()


def cardboard(rng: Rng, side: int) -> Image.Image:
    """A piece of brown board: a flat torn one, or a box."""
    art, brown = Art(side), np.array([186, 142, 92]) * rng.uniform(0.8, 1.1)
    x, _ = grid(side)
    if rng.random() < 0.5:
        art.shape(np.array([(0.08, 0.36), (0.58, 0.44), (0.58, 0.92), (0.08, 0.8)]), brown)
        art.shape(np.array([(0.58, 0.44), (0.93, 0.3), (0.93, 0.72), (0.58, 0.92)]), brown * 0.72)
        art.shape(np.array([(0.08, 0.36), (0.42, 0.24), (0.93, 0.3), (0.58, 0.44)]), brown * 1.15)
        art.line(np.array([(0.25, 0.3), (0.76, 0.37)]), brown * 1.3, width=0.035)
        art.decal(box(0.18, 0.56, 0.34, 0.66), brown * 0.6)
    else:
        torn = np.linspace(0.2, 0.8, 12)
        edge = np.stack([0.88 + rng.normal(0, 0.012, 12), torn], -1)
        art.shape(np.concatenate([[(0.1, 0.8), (0.1, 0.2)], edge]), brown)
        art.line(np.array([(0.3, 0.2), (0.32, 0.8)]), brown * 0.7, width=0.012)
        print_lines(art, rng, (0.45, 0.4, 0.75, 0.55), brown * 0.55, pitch=0.06)
    ribs = 0.06 * np.sin(x * 2 * np.pi * 40)
    art.shade(1 + ribs + 0.25 * (noise(rng, side, 200) - 0.5) + 0.08 * facets(rng, side, 6))
    return art.done()


def foam_tray(rng: Rng, side: int) -> Image.Image:
    """A white or tinted foam food tray, from above."""
    art, ratio = Art(side), rng.uniform(0.26, 0.4)
    tints = [(240, 240, 236), (240, 240, 236), (236, 214, 150), (60, 60, 62), (205, 225, 205)]
    foam = np.array(tints[rng.integers(len(tints))])
    art.shape(rounded(0.06, 0.5 - ratio, 0.94, 0.5 + ratio, radius=0.1), foam)
    art.decal(rounded(0.12, 0.56 - ratio, 0.88, 0.44 + ratio, radius=0.07), foam * 0.78)
    art.decal(rounded(0.17, 0.61 - ratio, 0.86, 0.42 + ratio, radius=0.05), foam * 0.92)
    for x in np.linspace(0.25, 0.75, 6):
        art.decal(box(x, 0.62 - ratio, x + 0.02, 0.38 + ratio), foam * 0.86)
    art.shade(0.84 + 0.25 * beads(rng, side, 260))
    return art.done()


def foam_block(rng: Rng, side: int) -> Image.Image:
    """Packing foam: a thick block or a broken piece of one, its beads showing."""
    art, foam = Art(side), np.array([244, 245, 246])
    a, b = rng.uniform(0.3, 0.45), rng.uniform(0.5, 0.65)
    front = np.array([(0.07, a), (b, a + 0.08), (b, 0.93), (0.07, 0.8)])
    art.shape(front, foam)
    art.shape(np.array([(b, a + 0.08), (0.94, a - 0.08), (0.94, 0.72), (b, 0.93)]), foam * 0.72)
    art.shape(np.array([(0.07, a), (0.44, a - 0.17), (0.94, a - 0.08), (b, a + 0.08)]), foam)
    if rng.random() < 0.6:
        art.decal(np.array([(0.2, a + 0.12), (b - 0.1, a + 0.17), (b - 0.1, 0.72), (0.2, 0.66)]), foam * 0.66)
    if rng.random() < 0.6:
        corner = ((0.07, 0.8), (0.94, 0.72), (0.07, a), (b, 0.95))[rng.integers(4)]
        art.cut(blob(rng, corner, (0.2, 0.16), rough=0.5))
    art.shade(0.72 + 0.46 * beads(rng, side, rng.uniform(130, 260)))
    return art.done()


def foam_cup(rng: Rng, side: int) -> Image.Image:
    """A white foam cup or noodle bowl, its rim thick."""
    art, top, high = Art(side), rng.uniform(0.3, 0.42), rng.uniform(0.12, 0.35)
    foam = np.array([243, 243, 240])
    art.shape(turned([(high, top), (0.9, top * 0.68), (0.93, top * 0.6)], rounds=1), foam)
    if rng.random() < 0.5:
        art.decal(box(0, high + 0.2, 1, 0.72), vivid(rng))
        art.decal(oval(0.5, (high + 0.92) / 2, top * 0.4, 0.09), foam)
    u = art.across()
    art.shade((0.62 + 0.42 * np.sqrt(1 - 0.9 * u**2)) * (0.85 + 0.25 * beads(rng, side, 240)))
    art.shape(oval(0.5, high, top * 1.05, 0.1), foam)
    art.decal(oval(0.5, high + 0.005, top * 0.92, 0.078), foam * 0.68)
    return art.done()


def _film(rng: Rng, side: int) -> tuple[Array, Array]:
    """The shade and the gloss of a thin film that lies in folds."""
    wave = noise(rng, side, 60) + 0.7 * noise(rng, side, 110, stretch=3)
    ripple = np.sin(wave * 21)
    return 0.9 + 0.16 * ripple + 0.2 * facets(rng, side, 22), 0.42 * (ripple > 0.9) + 0.12 * (ripple > 0.6)


def _film_colour(rng: Rng) -> tuple[Array, float]:
    """A colour of bag, and how much it hides."""
    bags = [((236, 238, 240), 0.68), ((236, 238, 240), 0.8), ((225, 230, 234), 0.48), ((34, 34, 38), 0.93),
            ((70, 120, 190), 0.82), ((235, 205, 70), 0.85), ((70, 150, 90), 0.82), ((205, 55, 60), 0.86)]  # fmt: skip
    colour, hides = bags[rng.integers(len(bags))]
    return np.array(colour) * rng.uniform(0.9, 1.05), hides


def knotted_bag(rng: Rng, side: int) -> Image.Image:
    """A full bag tied at its neck, with two ears; its folds run to the knot."""
    art, (colour, hides) = Art(side), _film_colour(rng)
    neck = (rng.uniform(0.45, 0.55), rng.uniform(0.25, 0.31))
    for lean in (-1, 1):
        ear, tip = neck[0] + lean * rng.uniform(0.1, 0.2), rng.uniform(0.05, 0.12)
        root = (neck[0] + 0.05 * lean, neck[1] + 0.04)
        wing = np.array([neck, (ear - 0.06 * lean, tip), (ear + 0.07 * lean, tip + 0.05), root])
        art.shape(soft(wing), colour * 0.92)
    body = blob(rng, (0.5, 0.62), (rng.uniform(0.33, 0.42), 0.33), rough=0.12)
    art.shape(soft(np.array([neck, (0.8, 0.5), (0.7, 0.8), (0.3, 0.8), (0.2, 0.5)])), colour)
    art.shape(body, colour)
    x, y = grid(side)
    angle = np.arctan2(x - neck[0], y - neck[1] + 0.02)
    reach = np.hypot(x - neck[0], y - neck[1])
    folds = np.sin(angle * rng.uniform(13, 20) + 5 * noise(rng, side, 60)) * np.exp(-reach * 3.2)
    shade, gloss = _film(rng, side)
    art.shade(shade + 0.45 * folds - 0.3 * (y - 0.5), gloss=gloss + 0.25 * (folds > 0.45))
    art.shape(blob(rng, neck, (0.05, 0.035)), colour * 0.75)
    if rng.random() < 0.3:
        art.decal(oval(0.5, 0.66, 0.13, 0.1), vivid(rng))
    return art.done((hides + 0.3 * gloss + 0.12 * folds).clip(0.3, 1))


def carrier_bag(rng: Rng, side: int) -> Image.Image:
    """An empty shopping bag with two handles, lying flat and wrinkled."""
    art, (colour, hides) = Art(side), _film_colour(rng)
    art.shape(np.array([(0.14, 0.08), (0.86, 0.08), (0.9, 0.95), (0.1, 0.95)]), colour)
    art.cut(soft(np.array([(0.3, -0.05), (0.7, -0.05), (0.68, 0.36), (0.32, 0.36)])))
    art.cut(soft(box(0.19, 0.1, 0.25, 0.28)))
    art.cut(soft(box(0.75, 0.1, 0.81, 0.28)))
    if rng.random() < 0.6:
        ink = vivid(rng)
        art.decal(oval(0.5, 0.62, 0.2, 0.14), ink)
        print_lines(art, rng, (0.3, 0.8, 0.7, 0.88), ink, pitch=0.04)
    shade, gloss = _film(rng, side)
    art.shade(shade, gloss=gloss)
    art.warp(0.2 * (noise(rng, side, 60) - 0.5), 0.2 * (noise(rng, side, 60) - 0.5))
    return art.done((hides + 0.3 * gloss).clip(0.3, 1))


def snack_bag(rng: Rng, side: int) -> Image.Image:
    """A printed film packet with sealed, notched ends."""
    art, ink, half = Art(side), vivid(rng), rng.uniform(0.27, 0.38)
    notch = np.linspace(0.5 - half, 0.5 + half, 25)
    teeth = 0.018 * (np.arange(25) % 2)
    top, bottom = np.stack([notch, 0.07 + teeth], -1), np.stack([notch, 0.93 + teeth], -1)
    art.shape(np.concatenate([top, bottom[::-1]]), ink)
    art.decal(blob(rng, (0.5, 0.62), (half * 0.7, 0.16)), vivid(rng))
    art.decal(soft(box(0.5 - half * 0.75, 0.24, 0.5 + half * 0.75, 0.38)), vivid(rng))
    art.decal(box(0, 0, 1, 0.12), ink * 0.75)
    art.decal(box(0, 0.88, 1, 1), ink * 0.75)
    shade, gloss = _film(rng, side)
    u = art.across()
    art.shade(shade * (1.05 - 0.3 * u**2), gloss=gloss + 0.3 * streak(u, -0.5, 0.1))
    art.warp(0.14 * (noise(rng, side, 50) - 0.5), 0.1 * (noise(rng, side, 50) - 0.5))
    return art.done()


def film_wrap(rng: Rng, side: int) -> Image.Image:
    """A scrap of clear film: hardly there but for its highlights."""
    art = Art(side)
    art.shape(blob(rng, (0.5, 0.5), (0.36, rng.uniform(0.25, 0.36)), rough=0.3), (218, 224, 228))
    shade, gloss = _film(rng, side)
    art.shade(shade, gloss=gloss)
    return art.done((rng.uniform(0.35, 0.5) + 0.8 * gloss).clip(0, 0.95))


def _cloth(art: Art, rng: Rng) -> Image.Image:
    """The garment on `art`, perhaps striped, with the folds and the weave of cloth; perhaps lying in a heap."""
    side = art.side
    x, y = grid(side)
    pattern = rng.random()
    stripe = np.zeros_like(x)
    if pattern < 0.25:
        stripe = 0.45 * (np.sin(y * 2 * np.pi * rng.uniform(6, 12)) > 0.2)
    elif pattern < 0.35:
        stripe = 0.25 * ((np.sin(y * 50) > 0.3) + 0.9 * (np.sin(x * 50) > 0.3))
    weave = 0.05 * np.sin(x * side * 1.3) * np.sin(y * side * 1.3)
    folds = np.sin(14 * noise(rng, side, 50, stretch=2.5)) * 0.22 + 0.3 * (noise(rng, side, 80, stretch=2) - 0.5)
    art.shade((1 - stripe) * (0.9 + folds + weave))
    heap = rng.choice((0.08, 0.25, 0.45))
    push, pull = noise(rng, side, 60), noise(rng, side, 60)
    art.warp(heap * (push - push.mean()), heap * (pull - pull.mean()))
    if heap > 0.3:
        art.shade(1 + 0.2 * facets(rng, side, 12))
    return art.done()


def _dye(rng: Rng) -> Array:
    dyes = [(48, 66, 108), (150, 40, 48), (70, 74, 80), (205, 200, 190), (30, 30, 34), (86, 112, 78), (190, 140, 150),
            (120, 96, 70), (90, 140, 180), (215, 160, 60)]  # fmt: skip
    return np.array(dyes[rng.integers(len(dyes))]) * rng.uniform(0.85, 1.1)


def shirt(rng: Rng, side: int) -> Image.Image:
    """A T-shirt or a pullover, spread out or crumpled."""
    art, dye, sleeve = Art(side), _dye(rng), rng.uniform(0.34, 0.7)
    half = [(0.12, 0.1), (0.14, 0.2), (0.26, 0.28), (sleeve, 0.47), (sleeve + 0.06, 0.38), (0.36, 0.25), (0.92, 0.26)]
    outline = [(0.5 + w, y) for y, w in half] + [(0.5 - w, y) for y, w in half[::-1]]
    art.shape(soft(np.array(outline), rounds=1), dye)
    art.decal(oval(0.5, 0.11, 0.115, 0.075), dye * 0.55)
    art.line(oval(0.5, 0.11, 0.125, 0.085)[1:15], dye * 0.75, width=0.018)
    for lean in (-1, 1):
        art.line(np.array([(0.5 + lean * 0.235, 0.2), (0.5 + lean * 0.25, 0.4)]), dye * 0.65, width=0.01)
    if rng.random() < 0.4:
        art.decal(blob(rng, (0.5, 0.45), (0.12, 0.1)), vivid(rng))
    return _cloth(art, rng)


def trousers(rng: Rng, side: int) -> Image.Image:
    """Trousers or jeans."""
    art = Art(side)
    dye = np.array([58, 82, 128]) * rng.uniform(0.7, 1.3) if rng.random() < 0.5 else _dye(rng)
    right = [(0.7, 0.06), (0.83, 0.94), (0.58, 0.95)]
    art.shape(np.array([*right, (0.5, 0.36), *((1 - x, y) for x, y in right[::-1])]), dye)
    art.decal(box(0.2, 0.05, 0.8, 0.11), dye * 0.72)
    art.line(np.array([(0.5, 0.1), (0.5, 0.36)]), dye * 0.55, width=0.012)
    art.line(np.array([(0.33, 0.12), (0.36, 0.22), (0.3, 0.26)]), dye * 1.4, width=0.01)
    art.line(np.array([(0.67, 0.12), (0.64, 0.22), (0.7, 0.26)]), dye * 1.4, width=0.01)
    return _cloth(art, rng)


def sock(rng: Rng, side: int) -> Image.Image:
    """A sock with its cuff, heel and toe."""
    art, dye, trim = Art(side), _dye(rng), _dye(rng)
    toe = [(0.88, 0.7), (0.9, 0.88), (0.7, 0.93)]
    art.shape(soft(np.array([(0.26, 0.06), (0.54, 0.06), (0.56, 0.55), *toe, (0.26, 0.8)])), dye)
    art.decal(box(0, 0, 1, 0.18), trim)
    art.decal(oval(0.88, 0.82, 0.13, 0.16), trim)
    art.decal(oval(0.27, 0.76, 0.12, 0.12), trim)
    return _cloth(art, rng)


KINDS = (
    Kind("General trash", 3966, 0.7, (banana_peel, bone, apple_core, cigarette_butt, tissue, scraps)),
    Kind("Paper", 6352, 1.1, (sheet, sheet, paper_ball, cardboard)),
    Kind("Paper pack", 897, 0.95, vessels.PAPER_PACKS),
    Kind("Metal", 936, 0.8, vessels.METALS),
    Kind("Glass", 982, 1.0, vessels.GLASSES),
    Kind("Plastic", 2943, 1.0, vessels.PLASTICS),
    Kind("Styrofoam", 1263, 1.05, (foam_tray, foam_block, foam_cup)),
    Kind("Plastic bag", 5178, 1.2, (knotted_bag, knotted_bag, carrier_bag, snack_bag, film_wrap)),
    Kind("Battery", 159, 0.55, vessels.BATTERIES),
    Kind("Clothing", 468, 1.35, (shirt, trousers, sock)),
)
