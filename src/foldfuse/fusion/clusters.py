"""The clusters of one class during fusion, and the search for the cluster that a box overlaps most.

A scan with vector instructions searches few clusters. A hash grid searches many: by octave of area, and within an octave
by position in cells about as large as the boxes. A box with an IoU above t with another has t..1/t times its area and its
centre nearby, so that a handful of cells hold all candidates, however crowded the image is.
Both searches are exact and return the same cluster: of the highest IoU, and among equals the one founded first.

Three arrays hold n clusters (three, not a tuple of them: numba counts references whenever it takes a tuple apart):
    cluster_boxes: (6, n) float64, rows x1, y1, x2, y2, area, and working memory of the scan.
    heads: (cells,) int32, the first cluster in the list of each cell, -1 where there is none.
    chain: (3, n) int32, of each cluster its predecessor and successor in its list (-1: none), and its cell.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import math

import numpy as np

from foldfuse.system.compiled import compiled as compile_loops

SLACK = 1e-9  # tolerance of the fast tests, which the exact test follows
ROUNDING = 1e-13  # of a centre, relative to its coordinate
GRID_MIN_BOXES = 640  # classes of more boxes than this use the grid
OCTAVES = 64  # areas from 2^-OCTAVES to 2^OCTAVES have cells of their own size
CELLS_PER_SIDE = np.array([2.0 ** (-octave / 2) for octave in range(-OCTAVES, OCTAVES + 1)])  # 1 / side of a cell
X1, Y1, X2, Y2, AREA, BOUND = range(6)
BEFORE, AFTER, CELL = range(3)

# `nnan` and `nsz` let the compiler use vector minimum and maximum; they leave every finite result as it is.
compiled = compile_loops(error_model="numpy", fastmath={"nnan", "nsz"})


@compiled
def make_clusters(size):
    """Empty arrays cluster_boxes, heads and chain with room for `size` clusters."""
    cells = 1
    while cells < size and size > GRID_MIN_BOXES:
        cells *= 2
    return np.empty((6, size)), np.full(cells, -1, np.int32), np.empty((3, size), np.int32)


@compiled
def place(cluster_boxes, heads, chain, k, box, use_grid, new):
    """Set the box of cluster `k`, four floats; `new` if the cluster has no box yet."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    cluster_boxes[X1, k], cluster_boxes[Y1, k] = box[0], box[1]
    cluster_boxes[X2, k], cluster_boxes[Y2, k], cluster_boxes[AREA, k] = box[2], box[3], area
    if not use_grid:
        return
    octave = _octave(area)
    per_side = CELLS_PER_SIDE[octave + OCTAVES]
    column, row = math.floor((box[0] + box[2]) / 2 * per_side), math.floor((box[1] + box[3]) / 2 * per_side)
    cell = _cell(octave, column, row, len(heads))
    if not new:
        if cell == chain[CELL, k]:
            return
        before, after = chain[BEFORE, k], chain[AFTER, k]
        if before >= 0:
            chain[AFTER, before] = after
        else:
            heads[chain[CELL, k]] = after
        if after >= 0:
            chain[BEFORE, after] = before
    if heads[cell] >= 0:
        chain[BEFORE, heads[cell]] = k
    chain[BEFORE, k], chain[AFTER, k], chain[CELL, k] = -1, heads[cell], cell
    heads[cell] = k


@compiled
def clear(heads, chain, count, use_grid):
    """Remove the first `count` clusters from the grid."""
    if use_grid:
        for k in range(count):
            heads[chain[CELL, k]] = -1


@compiled
def overlap(cluster_boxes, k, box, area):
    """IoU of cluster `k` with `box`, which has the area `area`."""
    width = max(min(cluster_boxes[X2, k], box[2]) - max(cluster_boxes[X1, k], box[0]), 0.0)
    height = max(min(cluster_boxes[Y2, k], box[3]) - max(cluster_boxes[Y1, k], box[1]), 0.0)
    return width * height / (cluster_boxes[AREA, k] + area - width * height)


@compiled
def nearest(cluster_boxes, heads, chain, count, box, iou, use_grid):
    """The cluster with the highest IoU with `box` (the first of equal clusters) and that IoU; -1 where no IoU is above `iou`."""
    width, height = box[2] - box[0], box[3] - box[1]
    if use_grid and iou > 0.1 and max(width, height) < 16 * min(width, height):  # otherwise there are too many cells
        return _search(cluster_boxes, heads, chain, box, iou)
    return _scan(cluster_boxes, count, box, iou)


@compiled
def _scan(cluster_boxes, count, box, iou):
    """`nearest` by a scan of all clusters."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    # inter / union > iou exactly where inter / (sum of both areas) > iou / (1 + iou)
    share = (1 - SLACK) * iou / (1 + iou) if iou > 0 else 0.0
    hits = 0
    for k in range(count):  # only operations that the compiler can vectorise
        width = max(min(cluster_boxes[X2, k], box[2]) - max(cluster_boxes[X1, k], box[0]), 0.0)
        height = max(min(cluster_boxes[Y2, k], box[3]) - max(cluster_boxes[Y1, k], box[1]), 0.0)
        cluster_boxes[BOUND, k] = width * height - share * (cluster_boxes[AREA, k] + area)
        hits += cluster_boxes[BOUND, k] >= 0
    best, best_iou, k = -1, iou, 0
    while hits > 0:
        if cluster_boxes[BOUND, k] >= 0:
            hits -= 1
            candidate = overlap(cluster_boxes, k, box, area)
            if candidate > best_iou:
                best, best_iou = k, candidate
        k += 1
    return best, best_iou


@compiled
def _search(cluster_boxes, heads, chain, box, iou):
    """`nearest` by the grid cells where a match is possible; `iou` must be above 0.

    Let w and v be the widths, and i the width of the intersection. IoU > t needs i > t max(w, v), and the centres are at
    most (w + v) / 2 - i apart. With v in t w..w / t that is at most w (1 - t) max(1, 1 / 2t).
    """
    width, height = box[2] - box[0], box[3] - box[1]
    area = width * height
    reach = (1 - iou) * max(1.0, 0.5 / iou) + SLACK
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    reach_x, reach_y = reach * width + ROUNDING * abs(x), reach * height + ROUNDING * abs(y)
    best, best_iou = -1, iou
    for octave in range(_octave(area * iou * (1 - SLACK)), _octave(area / iou * (1 + SLACK)) + 1):
        per_side = CELLS_PER_SIDE[octave + OCTAVES]
        left, right = math.floor((x - reach_x) * per_side), math.floor((x + reach_x) * per_side)
        top, bottom = math.floor((y - reach_y) * per_side), math.floor((y + reach_y) * per_side)
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                k = heads[_cell(octave, column, row, len(heads))]
                while k >= 0:
                    candidate = overlap(cluster_boxes, k, box, area)
                    if candidate > best_iou or (candidate == best_iou and k < best):
                        best, best_iou = k, candidate
                    k = chain[AFTER, k]
    return best, best_iou


@compiled
def _octave(area):
    """The power of two next above the area, within -OCTAVES..OCTAVES."""
    return min(max(math.frexp(area)[1], -OCTAVES), OCTAVES)


@compiled
def _cell(octave, column, row, cells):
    """The hash of a cell. Different cells may share a hash: the search compares IoUs, not cells."""
    return (column * 73856093 ^ row * 19349663 ^ octave * 83492791) & (cells - 1)
