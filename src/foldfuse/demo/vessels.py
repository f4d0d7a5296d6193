"""Things with a made shape, each drawn upright on a sheet of its own: cartons, cans, glass, plastic, batteries."""

from __future__ import annotations

import numpy as np
from PIL import Image

from foldfuse.demo.art import (
    Array,
    Art,
    Rng,
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


def gable_carton(rng: Rng, side: int) -> Image.Image:
    """A milk or juice carton in three-quarter view."""
    art, ink = Art(side), vivid(rng)
    paper = np.array([238, 238, 232]) if rng.random() < 0.65 else vivid(rng)
    top, mid, turn = rng.uniform(0.3, 0.38), rng.uniform(0.56, 0.64), rng.uniform(0.03, 0.06)
    left, right = 0.22, 0.79
    front = np.array([(left, top), (mid, top + turn), (mid, 0.96), (left, 0.96 - turn)])
    flank = np.array([(mid, top + turn), (right, top - turn), (right, 0.96 - 3 * turn), (mid, 0.96)])
    ridge = [(left + 0.07, top - 0.18), (mid + 0.1, top - 0.15)]
    art.shape(front, paper)
    art.shape(flank, paper * 0.72)
    art.shape(np.array([front[0], front[1], ridge[1], ridge[0]]), paper * 0.92)
    art.shape(np.array([front[1], flank[1], ridge[1]]), paper * 0.6)
    fin = np.array([(x, y - 0.08) for x, y in ridge[::-1]])
    art.shape(np.concatenate([np.array(ridge), fin]), paper * 0.98)
    split = rng.uniform(0.5, 0.8)
    art.decal(np.array([(left, split), (mid, split + turn), (mid, 0.96), (left, 0.96 - turn)]), ink)
    art.decal(np.array([(mid, split + turn), (right, split - turn), (right, 0.96 - 3 * turn), (mid, 0.96)]), ink * 0.7)
    art.decal(oval((left + mid) / 2, split - 0.02, 0.14, 0.075), ink)
    art.decal(oval((left + mid) / 2, split - 0.02, 0.1, 0.04), paper)
    print_lines(art, rng, (left + 0.05, split + 0.1, mid - 0.05, 0.88), paper * 0.9, pitch=0.04)
    if rng.random() < 0.4:
        art.shape(oval((left + mid) / 2 + 0.06, top - 0.07, 0.06, 0.045), vivid(rng))
    art.shade(1 + 0.1 * facets(rng, side, 9) + 0.12 * (noise(rng, side, 60) - 0.5))
    return art.done()


def flat_carton(rng: Rng, side: int) -> Image.Image:
    """A carton opened and pressed flat: grey-white inside or printed, with its fold lines."""
    art, ink = Art(side), vivid(rng)
    paper = np.array([225, 220, 205]) * rng.uniform(0.85, 1.0)
    art.shape(box(0.12, 0.2, 0.88, 0.82), paper)
    for i in range(4):
        x = 0.12 + 0.19 * i
        art.shape(box(x + 0.01, 0.05, x + 0.18, 0.2), paper * 0.95)
        art.shape(box(x + 0.015, 0.82, x + 0.175, 0.95), paper * 0.93)
        if i % 2 and rng.random() < 0.9:
            art.decal(box(x, 0.2, x + 0.19, 0.82), ink * 0.95)
            art.decal(oval(x + 0.095, 0.42, 0.07, 0.09), paper)
            print_lines(art, rng, (x + 0.03, 0.6, x + 0.16, 0.76), paper, pitch=0.04)
        art.line(np.array([(x, 0.06), (x, 0.94)]), paper * 0.65, width=0.006)
    art.line(np.array([(0.12, 0.3), (0.88, 0.3)]), paper * 0.7, width=0.006)
    art.shade(1 + 0.12 * facets(rng, side, 8))
    return art.done()


def juice_box(rng: Rng, side: int) -> Image.Image:
    """A small drink brick, often with its straw."""
    art, ink, second = Art(side), vivid(rng), vivid(rng)
    if rng.random() < 0.7:
        art.line(np.array([(0.42, 0.28), (0.47, 0.1), (0.6, 0.04)]), (240, 240, 240), width=0.028)
    art.shape(np.array([(0.24, 0.26), (0.36, 0.17), (0.78, 0.19), (0.62, 0.28)]), np.array([220, 220, 215]))
    art.shape(np.array([(0.24, 0.26), (0.62, 0.28), (0.62, 0.96), (0.24, 0.93)]), ink)
    art.shape(np.array([(0.62, 0.28), (0.78, 0.19), (0.78, 0.86), (0.62, 0.96)]), ink * 0.62)
    art.decal(blob(rng, (0.43, 0.7), (0.13, 0.13)), second)
    art.decal(box(0.27, 0.36, 0.59, 0.45), (245, 245, 245))
    print_lines(art, rng, (0.29, 0.375, 0.57, 0.44), ink * 0.7, pitch=0.035)
    art.shade(1 + 0.08 * facets(rng, side, 7))
    return art.done()


def can(rng: Rng, side: int) -> Image.Image:
    """A drink can, upright or dented or trodden flat."""
    art, ink, second, half = Art(side), vivid(rng), vivid(rng), rng.uniform(0.2, 0.27)
    art.shape(turned([(0.08, half * 0.84), (0.16, half), (0.86, half), (0.95, half * 0.82)], rounds=1), (196, 200, 205))
    art.decal(box(0, 0.17, 1, 0.86), ink)
    x, y = grid(side)
    logo = rng.integers(3)
    if logo == 0:
        art.decal(np.array([(0, 0.45), (1, 0.3), (1, 0.5), (0, 0.68)]), second)
    elif logo == 1:
        art.decal(oval(rng.uniform(0.42, 0.58), 0.48, half * 0.75, 0.15), second)
    else:
        art.decal(box(0, 0.26, 1, 0.36), second)
        art.decal(blob(rng, (0.5, 0.58), (half * 0.6, 0.13)), second)
    print_lines(art, rng, (0.5 - half * 0.5, 0.72, 0.5 + half * 0.5, 0.82), second, pitch=0.035)
    u = art.across()
    round_body = 0.45 + 0.65 * np.sqrt(1 - 0.95 * u**2)
    art.shade(round_body, gloss=0.75 * streak(u, -0.45, 0.12) + 0.4 * streak(u, 0.62, 0.08))
    art.shape(oval(0.5, 0.085, half * 0.86, 0.045), (222, 225, 228))
    art.decal(oval(0.5, 0.09, half * 0.72, 0.034), (150, 153, 158))
    art.decal(oval(0.5 + half * 0.2, 0.095, half * 0.25, 0.014), (40, 40, 42))
    dent = rng.random()
    if dent < 0.6:
        strength = rng.uniform(0.03, 0.09)
        waist = strength * 2.2 * np.exp(-(((y - rng.uniform(0.35, 0.7)) / 0.12) ** 2))
        dx = waist * (x - 0.5) * rng.uniform(1, 4) + strength * (noise(rng, side, 90) - 0.5) * 2
        squash = rng.uniform(0, 0.9) if dent < 0.35 else 0.0
        art.warp(dx, (y - 0.5) * squash)
        art.shade(1 + 6 * strength * facets(rng, side, 18) * 0.7, gloss=0.25 * (facets(rng, side, 14) > 0.75))
    return art.done()


def tin(rng: Rng, side: int) -> Image.Image:
    """A ribbed food tin, with or without its paper label."""
    art, half, top = Art(side), rng.uniform(0.3, 0.4), rng.uniform(0.15, 0.35)
    metal = np.array([180, 182, 185]) if rng.random() < 0.75 else np.array([205, 175, 105])
    art.shape(turned([(top, half), (0.88, half), (0.93, half * 0.85)], rounds=1), metal)
    _, y = grid(side)
    ribs = 0.16 * np.sin(y * 2 * np.pi * rng.uniform(14, 20))
    if rng.random() < 0.5:
        art.decal(box(0, top + 0.1, 1, 0.84), vivid(rng))
        art.decal(oval(0.5, (top + 0.94) / 2, half * 0.6, 0.1), vivid(rng))
        ribs *= 0.2
    u = art.across()
    gloss = 0.7 * streak(u, rng.uniform(-0.6, -0.2), 0.13) + 0.35 * streak(u, 0.55, 0.07)
    art.shade(0.4 + 0.7 * np.sqrt(1 - 0.95 * u**2) + ribs, gloss=gloss)
    art.shape(oval(0.5, top, half, 0.11), metal * 1.18)
    inside = np.array([60, 58, 55]) if rng.random() < 0.6 else metal * 0.92
    art.decal(oval(0.5, top, half * 0.9, 0.088), inside)
    art.decal(oval(0.5, top + 0.02, half * 0.7, 0.055), inside * 1.2)
    return art.done()


def foil(rng: Rng, side: int) -> Image.Image:
    """A ball or sheet of crumpled aluminium foil."""
    art = Art(side)
    art.shape(blob(rng, (0.5, 0.5), (0.42, rng.uniform(0.28, 0.42)), rough=0.25), (158, 161, 166))
    sharp = facets(rng, side, 70)
    art.shade(1 + 0.5 * sharp, gloss=0.55 * (sharp > 0.8))
    return art.done()


def _see_through(art: Art, u: Array, *, clear: float, edge: float) -> Array:
    """Opacity of a thin-walled body: `clear` in its middle, `edge` more where one looks along the wall."""
    return (clear + edge * np.abs(u) ** 3).clip(0, 1)


def _labelled(art: Art, rng: Rng, y0: float, y1: float, opacity: Array) -> Array:
    """Draw a paper or film label between y0 and y1; returns the opacity with the label in it."""
    ink, second = vivid(rng), vivid(rng)
    art.decal(box(0, y0, 1, y1), ink)
    middle = (y0 + y1) / 2
    art.decal(oval(0.5, middle, 0.09, (y1 - y0) * 0.28), second)
    art.decal(box(0, y0 + 0.01, 1, y0 + 0.025), second)
    print_lines(art, rng, (0.42, middle + 0.02, 0.58, y1 - 0.02), (230, 230, 230), pitch=0.03)
    _, y = grid(art.side)
    return np.where((y > y0) & (y < y1), 0.97, opacity)


def glass_bottle(rng: Rng, side: int) -> Image.Image:
    """A beer, wine or liquor bottle of green, brown or clear glass."""
    art = Art(side)
    tints = [(28, 105, 52), (22, 78, 40), (104, 56, 18), (84, 42, 14), (186, 205, 202), (150, 190, 200)]
    tint = np.array(tints[rng.integers(len(tints))]) * rng.uniform(0.85, 1.1)
    half, neck, shoulder = rng.uniform(0.13, 0.19), rng.uniform(0.045, 0.06), rng.uniform(0.3, 0.45)
    top = [(0.04, neck), (0.075, neck * 1.15), (0.09, neck), (shoulder - 0.13, neck)]
    art.shape(turned([*top, (shoulder, half), (0.94, half), (0.965, half * 0.9)]), tint)
    u = art.across()
    opacity = _see_through(art, u, clear=rng.uniform(0.5, 0.7), edge=0.4)
    if rng.random() < 0.6:
        opacity = _labelled(art, rng, shoulder + rng.uniform(0.08, 0.14), rng.uniform(0.74, 0.85), opacity)
    _, y = grid(side)
    body = (y > 0.1) & (y < 0.93)
    gloss = (0.85 * streak(u, -0.55, 0.1) + 0.4 * streak(u, 0.7, 0.06)) * body
    level = y > rng.uniform(0.4, 1.4)
    art.shade((0.75 + 0.45 * (1 - u**2)) * (1 - 0.3 * level), gloss=gloss + 0.2 * streak(y, 0.93, 0.02))
    if rng.random() < 0.35:
        cap = box(0.5 - neck * 1.3, 0.03, 0.5 + neck * 1.3, 0.08)
        art.shape(cap, (205, 190, 120) if rng.random() < 0.5 else (190, 190, 195))
    return art.done(np.maximum(opacity, gloss))


def jar(rng: Rng, side: int) -> Image.Image:
    """A clear glass jar or tumbler, thick at the bottom."""
    art, half = Art(side), rng.uniform(0.24, 0.34)
    tint = np.array([185, 208, 205]) * rng.uniform(0.85, 1.1)
    mouth = half * 0.85
    art.shape(turned([(0.1, mouth), (0.17, mouth), (0.24, half), (0.88, half), (0.94, half * 0.8)]), tint)
    u, (_, y) = art.across(), grid(side)
    bottom = 0.35 * streak(y, 0.9, 0.05) + 0.3 * streak(y, 0.14, 0.03)
    gloss = 0.75 * streak(u, -0.6, 0.09) + 0.4 * streak(u, 0.68, 0.06)
    opacity = _see_through(art, u, clear=0.38, edge=0.5) + bottom
    if rng.random() < 0.45:
        opacity = _labelled(art, rng, 0.4, 0.72, opacity)
    art.shade(0.7 + 0.4 * (1 - u**4) - 0.3 * bottom, gloss=gloss)
    lid = rng.random() < 0.4
    if lid:
        art.shape(box(0.5 - half * 0.9, 0.07, 0.5 + half * 0.9, 0.18), vivid(rng))
    else:
        art.line(oval(0.5, 0.12, half * 0.83, 0.04), (235, 245, 245), width=0.014)
    if lid:
        opacity = np.where(y < 0.18, 1.0, opacity)
    return art.done(np.maximum(opacity, gloss).clip(0, 1))


def pet_bottle(rng: Rng, side: int) -> Image.Image:
    """A clear drink bottle with a screw cap, ridges and often a label; sometimes crushed."""
    art, half, shoulder = Art(side), rng.uniform(0.15, 0.2), rng.uniform(0.26, 0.36)
    tint = np.array([[208, 224, 236], [215, 225, 225], [170, 215, 190]][rng.integers(3)])
    outline = [(0.12, 0.055), (0.16, 0.06), (shoulder, half), (0.56, half), (0.59, half * 0.93), (0.63, half)]
    art.shape(turned([*outline, (0.93, half), (0.965, half * 0.75)]), tint)
    u, (_, y) = art.across(), grid(side)
    ridges = np.sin(y * 2 * np.pi * rng.uniform(15, 22)) * (y > shoulder + 0.05)
    gloss = 0.8 * streak(u + 0.06 * ridges, -0.55, 0.1) + 0.5 * streak(u + 0.05 * ridges, 0.45, 0.06)
    gloss = (gloss + 0.16 * (ridges > 0.8)).clip(0, 1)
    opacity = _see_through(art, u, clear=rng.uniform(0.33, 0.5), edge=0.45)
    if rng.random() < 0.65:
        opacity = _labelled(art, rng, shoulder + 0.06, shoulder + rng.uniform(0.18, 0.3), opacity)
    art.shade(0.72 + 0.35 * (1 - u**2) + 0.12 * ridges, gloss=gloss)
    if rng.random() < 0.8:
        art.shape(box(0.435, 0.04, 0.565, 0.13), vivid(rng))
        opacity = np.where(y < 0.13, 1.0, opacity)
    opacity = np.maximum(opacity, gloss * 0.95)
    if rng.random() < 0.4:
        art.shade(1 + 0.22 * facets(rng, side, 26), gloss=0.35 * (facets(rng, side, 30) > 0.8))
        bend = 0.25 * (noise(rng, side, 70) - 0.5)
        art.warp(bend, np.zeros_like(bend))
    return art.done(opacity)


def plastic_cup(rng: Rng, side: int) -> Image.Image:
    """A take-away cup, clear or coloured, with a lid and a straw or without."""
    art, top, bottom = Art(side), rng.uniform(0.25, 0.3), rng.uniform(0.17, 0.21)
    clear = rng.random() < 0.65
    tint = np.array([215, 225, 230]) if clear else vivid(rng)
    if rng.random() < 0.5:
        art.line(np.array([(0.52, 0.3), (rng.uniform(0.55, 0.66), 0.03)]), vivid(rng), width=0.03)
    art.shape(turned([(0.22, top), (0.94, bottom), (0.96, bottom * 0.9)], rounds=1), tint)
    u, (_, y) = art.across(), grid(side)
    opacity = _see_through(art, u, clear=0.42, edge=0.45) if clear else np.ones_like(u)
    if clear and rng.random() < 0.5:
        drink = np.array([[95, 58, 30], [200, 120, 40], [160, 60, 70]][rng.integers(3)])
        art.decal(box(0, rng.uniform(0.5, 0.85), 1, 1), drink)
    if rng.random() < 0.5:
        art.decal(oval(0.5, 0.55, 0.1, 0.1), vivid(rng))
    gloss = 0.7 * streak(u, -0.6, 0.08) + 0.35 * streak(u, 0.65, 0.06)
    art.shade(0.7 + 0.38 * (1 - u**2), gloss=gloss)
    if rng.random() < 0.6:
        art.shape(soft(box(0.5 - top * 1.08, 0.18, 0.5 + top * 1.08, 0.26), rounds=1), (232, 236, 238))
    else:
        art.line(oval(0.5, 0.22, top * 0.97, 0.045), (240, 244, 246), width=0.014)
    return art.done(np.maximum(opacity, np.where(y < 0.27, 0.8, gloss)))


def detergent(rng: Rng, side: int) -> Image.Image:
    """A coloured shampoo or detergent bottle with a pump, nozzle or flip cap."""
    art, ink, half = Art(side), vivid(rng), rng.uniform(0.19, 0.27)
    shoulders = [(0.2, 0.07), (0.27, 0.09), (0.36, half)]
    art.shape(turned([*shoulders, (0.7, half * 0.9), (0.94, half), (0.97, half * 0.8)]), ink)
    art.decal(rounded(0.5 - half * 0.7, 0.5, 0.5 + half * 0.7, 0.82, radius=0.05), (235, 235, 230))
    print_lines(art, rng, (0.5 - half * 0.5, 0.64, 0.5 + half * 0.5, 0.78), ink * 0.7, pitch=0.035)
    art.decal(oval(0.5, 0.57, half * 0.45, 0.04), vivid(rng))
    u = art.across()
    art.shade(0.55 + 0.5 * np.sqrt(1 - 0.95 * u**2), gloss=0.5 * streak(u, -0.55, 0.12))
    cap = vivid(rng)
    art.shape(box(0.42, 0.11, 0.58, 0.22), cap)
    if rng.random() < 0.5:
        art.shape(box(0.475, 0.05, 0.525, 0.12), cap * 0.85)
        art.shape(np.array([(0.3, 0.03), (0.56, 0.03), (0.56, 0.075), (0.3, 0.06)]), cap)
    return art.done()


def tub(rng: Rng, side: int) -> Image.Image:
    """A food container seen from above: smooth, glossy, coloured or see-through, with rounded corners."""
    art, ratio = Art(side), rng.uniform(0.26, 0.42)
    tint = np.array([225, 230, 232]) if rng.random() < 0.45 else vivid(rng)
    art.shape(rounded(0.07, 0.5 - ratio, 0.93, 0.5 + ratio, radius=0.16), tint)
    art.decal(rounded(0.12, 0.55 - ratio, 0.88, 0.45 + ratio, radius=0.12), tint * 0.8)
    art.decal(rounded(0.17, 0.6 - ratio, 0.83, 0.4 + ratio, radius=0.08), tint * 0.92)
    x, y = grid(side)
    gloss = 0.7 * streak(x + y, rng.uniform(0.5, 0.8), 0.04) + 0.5 * streak(x + y, rng.uniform(1.0, 1.4), 0.025)
    art.shade(1 + 0.15 * (x - y), gloss=gloss)
    return art.done(0.7 if tint.min() > 200 else 1.0)


def aa_battery(rng: Rng, side: int) -> Image.Image:
    """A round cell with its nub and its coloured end."""
    art, half = Art(side), rng.uniform(0.115, 0.17)
    bodies = [((28, 28, 30), (196, 120, 55)), ((30, 70, 150), (225, 225, 225)), ((215, 175, 50), (25, 25, 25)),
              ((30, 30, 30), (60, 165, 75)), ((190, 35, 35), (30, 30, 30))]  # fmt: skip
    body, end = bodies[rng.integers(len(bodies))]
    art.shape(box(0.5 - half * 0.36, 0.05, 0.5 + half * 0.36, 0.12), (205, 205, 208))
    art.shape(soft(box(0.5 - half, 0.09, 0.5 + half, 0.95), rounds=1), body)
    art.shape(box(0.5 - half, 0.1, 0.5 + half, 0.95), body)
    art.decal(box(0, 0.1, 1, rng.uniform(0.26, 0.38)), end)
    art.decal(box(0.5 - half, 0.92, 0.5 + half, 1), (190, 190, 195))
    art.decal(box(0.5 - half * 0.25, 0.45, 0.5 + half * 0.25, 0.85), (235, 235, 235))
    art.decal(box(0.49, 0.16, 0.51, 0.24), (240, 240, 240))
    art.decal(box(0.5 - half * 0.3, 0.19, 0.5 + half * 0.3, 0.21), (240, 240, 240))
    u = art.across()
    art.shade(0.4 + 0.7 * np.sqrt(1 - 0.95 * u**2), gloss=0.7 * streak(u, -0.4, 0.14))
    return art.done()


def block_battery(rng: Rng, side: int) -> Image.Image:
    """A 9 V block with its two snaps."""
    art, ink = Art(side), vivid(rng)
    art.shape(oval(0.38, 0.12, 0.07, 0.05), (200, 200, 205))
    art.shape(np.array([(0.55, 0.07), (0.69, 0.07), (0.72, 0.17), (0.52, 0.17)]), (170, 170, 175))
    art.shape(box(0.22, 0.15, 0.78, 0.95), (35, 35, 38))
    art.decal(box(0.22, 0.15, 0.78, 0.22), (185, 185, 190))
    art.decal(box(0.22, 0.5, 0.78, 0.95), ink)
    art.decal(box(0.3, 0.58, 0.7, 0.7), (240, 240, 240))
    print_lines(art, rng, (0.3, 0.76, 0.7, 0.9), (235, 235, 235), pitch=0.05)
    x, _ = grid(side)
    art.shade(0.8 + 0.35 * x, gloss=0.45 * streak(x, 0.3, 0.04))
    return art.done()


def coin_cell(rng: Rng, side: int) -> Image.Image:
    """A button cell: a bright disc with a rim and a plus."""
    art, squash = Art(side), rng.uniform(0.7, 1.0)
    art.shape(oval(0.5, 0.53, 0.42, 0.42 * squash), (95, 95, 100))
    art.shape(oval(0.5, 0.49, 0.42, 0.42 * squash), (200, 200, 204))
    art.decal(oval(0.5, 0.49, 0.36, 0.36 * squash), (172, 172, 177))
    art.decal(oval(0.5, 0.49, 0.34, 0.34 * squash), (208, 208, 212))
    art.decal(box(0.46, 0.28, 0.54, 0.48), (90, 90, 95))
    art.decal(box(0.4, 0.345, 0.6, 0.415), (90, 90, 95))
    print_lines(art, rng, (0.3, 0.56, 0.72, 0.7), (110, 110, 115), pitch=0.06)
    x, y = grid(side)
    art.shade(0.85 + 0.25 * np.cos(4 * np.arctan2(y - 0.49, x - 0.5)), gloss=0.3 * streak(x - y, 0.1, 0.12))
    return art.done()


PAPER_PACKS = (gable_carton, gable_carton, flat_carton, juice_box)
METALS = (can, can, tin, foil)
GLASSES = (glass_bottle, glass_bottle, jar)
PLASTICS = (pet_bottle, pet_bottle, plastic_cup, detergent, tub)
BATTERIES = (aa_battery, aa_battery, block_battery, coin_cell)
