"""The dataset that comes with the package: drawn scenes of recyclable trash, in the layout of the contest.

Nothing is downloaded: every picture is drawn from a seed, so that each machine has the same ones to try things on.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from foldfuse.demo.art import Array, Rng, noise
from foldfuse.demo.grounds import CLUTTER, ground
from foldfuse.demo.objects import KINDS, Draw
from foldfuse.errors import InputError

Window = tuple[slice, slice]  # rows, columns of an array

CLASSES = tuple(kind.name for kind in KINDS)
_VERSION = 1  # of the drawing; another number makes other pictures from the same seed
_SEEN = 0.25  # a thing of which less is to be seen is not labelled
_EDGE = 50  # of 255: a pixel this opaque belongs to the thing
_HIDES = 150  # of 255: a pixel this opaque hides what lies beneath
_SUPERSAMPLE = 2
_LARGEST_SHEET = 384  # pixels; things larger than half of this are drawn less finely


def make_dataset(
    out: Path, *, num_images: int = 240, num_test_images: int = 80, image_size: int = 512, seed: int = 0
) -> Path:
    """Draw a dataset into the folder `out`, or find that it is there already.

    Written are train.json, test.json (no annotations), test_truth.json (the test pictures with them), and the
    pictures in train/ and test/. Image ids start at 0 in both parts, as they do in the contest.

    Args:
        out: folder to make; one that these same arguments made is used again as it is.
        num_images: pictures to train on.
        num_test_images: pictures to predict.
        image_size: pixels, the side of a picture.
        seed: of every random choice.

    Returns:
        `out`.

    Raises:
        InputError: a number is out of range, or `out` holds something else.
    """
    out = Path(out)
    made_with = {
        "version": _VERSION,
        "num_images": num_images,
        "num_test_images": num_test_images,
        "image_size": image_size,
        "seed": seed,
    }
    for name, least in (("num_images", 1), ("num_test_images", 1), ("image_size", 64), ("seed", 0)):
        if made_with[name] < least:
            raise InputError(f"{name} is {made_with[name]}, and must be at least {least}.")
    if out.exists():
        _check_same(out, made_with)
        return out
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise InputError(f"{out}: cannot be made ({error.strerror}). Choose a folder that you may write to.") from None
    try:
        for part, (split, count) in enumerate((("train", num_images), ("test", num_test_images))):
            document = {"info": {"description": "Foldfuse's drawn scenes", "made_with": made_with}}
            document |= _write_pictures(unfinished, split, count, size=image_size, seed=(seed, part))
            truth = "train.json" if split == "train" else "test_truth.json"
            (unfinished / truth).write_text(json.dumps(document), encoding="utf-8")
            if split == "test":
                (unfinished / "test.json").write_text(json.dumps(document | {"annotations": []}), encoding="utf-8")
        unfinished.chmod(0o755)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return out


def _check_same(out: Path, made_with: dict[str, int]) -> None:
    """Raise InputError unless `out` is a whole dataset that was made with these arguments."""
    for name in ("train.json", "test.json", "test_truth.json"):
        try:
            document = json.loads((out / name).read_text(encoding="utf-8"))
            other = document["info"]["made_with"]
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(
                f"{out}: is there already, and has no {name} of drawn scenes. Give a folder that is not there yet."
            ) from None
        if other != made_with:
            raise InputError(f"{out}: holds scenes made with {other}, not with {made_with}. Give another folder.")
        for row in document["images"]:
            if not (out / row["file_name"]).is_file():
                raise InputError(f"{out}: {row['file_name']} is missing. Remove the folder, to have it drawn again.")


def _write_pictures(folder: Path, split: str, count: int, *, size: int, seed: tuple[int, int]) -> dict[str, Any]:
    """Draw the pictures of one split into folder/split; returns their COCO images, annotations and categories."""
    (folder / split).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(count):
        rng = np.random.default_rng([*seed, image_id])
        picture, boxes, labels = draw(rng, size)
        name = f"{split}/{image_id:04d}.jpg"
        picture.save(folder / name, quality=int(rng.integers(55, 93)))
        images.append({"id": image_id, "file_name": name, "width": size, "height": size})
        for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i, "name": name, "supercategory": name} for i, name in enumerate(CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def draw(rng: Rng, size: int) -> tuple[Image.Image, Array, Array]:
    """One scene: the picture, its boxes (n, 4) float64 xyxy tight around what is to be seen, its labels (n,) int64."""
    picture, masks, labels, whole = _compose(rng, size)
    seen = masks.sum((1, 2)) >= np.maximum(_SEEN * whole, 1)
    boxes = np.array([_extent(mask) for mask in masks[seen]], np.float64).reshape(-1, 4)
    return _photograph(rng, picture), boxes, labels[seen]


def _extent(mask: Array) -> tuple[int, int, int, int]:
    """The tight xyxy around the True pixels of `mask`."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def _compose(rng: Rng, size: int) -> tuple[Array, Array, Array, Array]:
    """Lay things on a ground, one over another.

    Returns:
        picture: (size, size, 3) float32 in 0..255, as yet without the camera's faults.
        masks: (n, size, size) bool, where each thing is to be seen.
        labels: (n,) int64.
        whole: (n,) pixels of each thing were nothing over it and the picture endless.
    """
    picture, light = ground(rng, size), rng.uniform(0, 2 * np.pi)
    for _ in range(int(rng.integers(0, 15))):
        thing = _thing(rng, CLUTTER[rng.integers(len(CLUTTER))], size * rng.uniform(0.02, 0.09))
        _lay(picture, thing, rng.uniform(0, size, 2), light)

    frequency = np.sqrt([kind.boxes for kind in KINDS])
    count = min(20, 1 + int(rng.gamma(1.4, 3.6)))
    labels = rng.choice(len(KINDS), size=count, p=frequency / frequency.sum())
    masks, whole = np.zeros((count, size, size), bool), np.zeros(count)
    heap = rng.uniform(0.3, 0.7, 2) * size if rng.random() < 0.45 else None
    crowded = 1 / (1 + 0.03 * count)
    for i, label in enumerate(labels):
        kind = KINDS[label]
        share = np.exp(rng.uniform(np.log(0.09), np.log(0.55))) * kind.size * crowded
        thing = _thing(rng, kind.draws[rng.integers(len(kind.draws))], size * share)
        at = rng.uniform(0.05, 0.95, 2) * size if heap is None else rng.normal(heap, 0.17 * size).clip(0, size)
        cover = np.asarray(thing.getchannel("A"))
        whole[i] = (cover > _EDGE).sum()
        window, part = _lay(picture, thing, at, light)
        masks[i][window] = cover[part] > _EDGE
        masks[(slice(0, i), *window)] &= cover[part] <= _HIDES
    return picture, masks, labels, whole


def _thing(rng: Rng, drawing: Draw, length: float) -> Image.Image:
    """The RGBA picture of a thing, turned, seen at a slant, and cut to its outline; about `length` pixels long."""
    sheet = int(np.clip(np.ceil(_SUPERSAMPLE * length / 32) * 32, 64, _LARGEST_SHEET))
    thing = drawing(rng, sheet)
    if rng.random() < 0.5:
        thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turn = rng.normal(0, 12) if rng.random() < 0.3 else rng.uniform(0, 360)
    thing = thing.rotate(turn, Image.Resampling.BILINEAR, expand=True)
    thing = thing.crop(thing.getchannel("A").getbbox())
    scale = length / sheet
    slant = rng.uniform(0.72, 1.0)
    width, height = max(4, round(thing.width * scale)), max(4, round(thing.height * scale * slant))
    return thing.resize((width, height), Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)


def _lay(picture: Array, thing: Image.Image, at: Array, light: float) -> tuple[Window, Window]:
    """Blend `thing` and its shadow into `picture`, its middle `at` x, y; returns the window of both that meet."""
    height = min(thing.size) * 0.09 + 1.5
    margin = int(2 * height) + 2
    cover = Image.new("L", (thing.width + 2 * margin, thing.height + 2 * margin))
    cover.paste(thing.getchannel("A"), (margin, margin))
    dark = np.asarray(cover.filter(ImageFilter.BoxBlur(height * 0.6)), np.float32)[..., None] * (0.55 / 255)
    left, top = int(at[0] - thing.width / 2), int(at[1] - thing.height / 2)
    shift = (int(height * np.cos(light)), int(height * np.sin(light)))
    window, part = _meet(picture, dark, (left - margin + shift[0], top - margin + shift[1]))
    picture[window] *= 1 - dark[part]

    colours = np.asarray(thing, np.float32)
    window, part = _meet(picture, colours, (left, top))
    alpha = colours[part][..., 3:] / 255
    picture[window] += alpha * (colours[part][..., :3] - picture[window])
    return window, part


def _meet(picture: Array, patch: Array, corner: tuple[int, int]) -> tuple[Window, Window]:
    """Where `patch`, its top left at `corner` x, y, lies in `picture`; and which part of the patch that is."""
    height, width = picture.shape[:2]
    x1, y1 = max(corner[0], 0), max(corner[1], 0)
    x2, y2 = max(x1, min(corner[0] + patch.shape[1], width)), max(y1, min(corner[1] + patch.shape[0], height))
    window = (slice(y1, y2), slice(x1, x2))
    return window, (slice(y1 - corner[1], y2 - corner[1]), slice(x1 - corner[0], x2 - corner[0]))


def _photograph(rng: Rng, picture: Array) -> Image.Image:
    """`picture` as a cheap camera sees it: uneven light, a colour cast, grain, a little blur."""
    size = len(picture)
    x, y = np.meshgrid(np.linspace(-1, 1, size, dtype=np.float32), np.linspace(-1, 1, size, dtype=np.float32))
    slope, vignette = rng.normal(0, 0.12, 2), rng.uniform(0, 0.2)
    lit = 1 + slope[0] * x + slope[1] * y - vignette * (x**2 + y**2)
    if rng.random() < 0.3:  # the soft shadow of something outside the picture
        lit *= 1 - 0.4 * (8 * (noise(rng, size, 24) - 0.5)).clip(0, 1)
    cast = (rng.uniform(0.94, 1.06, 3) * rng.uniform(0.75, 1.12)).astype(np.float32)
    picture = picture * lit.astype(np.float32)[..., None] * cast
    grain = rng.standard_normal((size, size), dtype=np.float32) * rng.uniform(1, 8)
    picture += grain[..., None]
    shot = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    blur = rng.uniform(-0.5, 1.1)
    return shot.filter(ImageFilter.GaussianBlur(blur)) if blur > 0.2 else shot
