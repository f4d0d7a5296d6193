"""Merges the detections in the tiles of an image into those of the image, each object once.

A box is cut where it touches a border of its tile inside the image: the object goes on in the next tile. An object up to the size
of the overlap lies wholly in one tile at least, so a cut box mostly repeats a whole one. A larger object may be cut in every
tile; its cut boxes are joined. Two boxes are compared on the part of the image that both tiles show.

Shapes: T tiles, N detections of all tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from foldfuse.boxes import area, pairwise_iou
from foldfuse.data.tiles import Window
from foldfuse.detections import Array, Detections

TOUCH_PX = 4.0  # of the network's input: a box this close to a border touches it; detectors place sides to a few pixels
SAME_IOU = 0.5  # of two boxes of one object
COVERED = 0.6  # share of a cut box, as far as both tiles show it, that a whole box of its object covers
MIN_SCORE_RATIO = 0.5  # of a whole box's score to the cut box's: a box that is hardly believed drops none
MAX_DETECTIONS = 300  # of an image; a detector gives up to 100 for each tile


def merge_tiles(
    parts: Sequence[Detections], windows: Sequence[Window], *, size: tuple[int, int], touch: float
) -> Detections:
    """The detections of an image, best first.

    Args:
        parts: the detections in each tile, in pixels of the image.
        windows: the tiles.
        size: (width, height) of the image.
        touch: pixels of the image: see TOUCH_PX.
    """
    found = Detections.cat(parts)
    tile = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    cut = _is_cut(found.boxes, np.array(windows, np.float64).reshape(-1, 4)[tile], size, touch)
    alike, covers = _pairs(found, tile, windows, cut)
    kept = np.ones(len(found), bool)
    for whole, other in covers:
        kept[other] &= found.scores[whole] < MIN_SCORE_RATIO * found.scores[other]
    boxes = found.boxes.copy()
    groups = {i: [i] for pair in alike for i in pair if kept[i]}
    for i, j in sorted(alike, key=lambda pair: -min(found.scores[pair[0]], found.scores[pair[1]])):
        if not (kept[i] and kept[j]):
            continue
        if not cut[i]:  # both are whole: the better one stays
            kept[i if found.scores[i] < found.scores[j] else j] = False
        elif {int(tile[k]) for k in groups[i]}.isdisjoint(int(tile[k]) for k in groups[j]):
            joined = groups[i] + groups[j]  # of each tile one box at most: a second one is of another object
            groups |= dict.fromkeys(joined, joined)
    for group in {id(group): group for group in groups.values() if len(group) > 1}.values():
        best = max(group, key=lambda k: found.scores[k])
        boxes[best] = [*found.boxes[group, :2].min(0), *found.boxes[group, 2:].max(0)]
        kept[[k for k in group if k != best]] = False
    merged = Detections(boxes, found.scores, found.labels)[kept]
    return merged[np.argsort(-merged.scores, kind="stable")[:MAX_DETECTIONS]]


def _is_cut(boxes: Array, frames: Array, size: tuple[int, int], touch: float) -> Array:
    """(N,) whether boxes touch a border of their tiles `frames` (N, 4) inside the image."""
    near = boxes[:, :2] <= np.where(frames[:, :2] > 0, frames[:, :2] + touch, -np.inf)
    far = boxes[:, 2:] >= np.where(frames[:, 2:] < size, frames[:, 2:] - touch, np.inf)
    cut: Array = np.any(near | far, axis=1)
    return cut


def _pairs(
    found: Detections, tile: Array, windows: Sequence[Window], cut: Array
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Pairs of boxes of one object in two tiles: those that are both cut or both whole, and (whole box, cut box)."""
    alike, covers = [], []
    for a, b in combinations(range(len(windows)), 2):
        common = np.array([*np.maximum(windows[a][:2], windows[b][:2]), *np.minimum(windows[a][2:], windows[b][2:])])
        if (common[2:] <= common[:2]).any():
            continue
        (rows, ours), (columns, theirs) = (_reaching(found, np.flatnonzero(tile == k), common) for k in (a, b))
        same = found.labels[rows][:, None] == found.labels[columns]
        iou = pairwise_iou(ours, theirs)
        is_cut, other_is_cut = cut[rows][:, None], cut[columns][None]
        whole_iou = pairwise_iou(found.boxes[rows], found.boxes[columns])
        one = same & np.where(is_cut, (iou >= SAME_IOU) & other_is_cut, (whole_iou >= SAME_IOU) & ~other_is_cut)
        alike += [(int(rows[i]), int(columns[j])) for i, j in np.argwhere(one)]
        overlap = iou / (1 + iou) * (area(ours)[:, None] + area(theirs))  # the intersection
        for i, j in np.argwhere(same & is_cut & ~other_is_cut & (overlap >= COVERED * area(ours)[:, None])):
            covers.append((int(columns[j]), int(rows[i])))
        for i, j in np.argwhere(same & ~is_cut & other_is_cut & (overlap >= COVERED * area(theirs))):
            covers.append((int(rows[i]), int(columns[j])))
    return alike, covers


def _reaching(found: Detections, index: Array, common: Array) -> tuple[Array, Array]:
    """Those of the detections at `index` that reach into a part of the image, and their boxes clipped to it."""
    boxes = np.clip(found.boxes[index].astype(np.float64), np.tile(common[:2], 2), np.tile(common[2:], 2))
    inside = area(boxes) > 0
    return index[inside], boxes[inside]
