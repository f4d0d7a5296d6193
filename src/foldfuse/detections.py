"""The annotations of images and the detections of a model: the types that every stage takes and returns.

Boxes are xyxy in pixels of the original image, labels are positions in the list of class names (0..K-1).
numpy only: fusion and scoring must work without torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foldfuse.boxes import clip
from foldfuse.drawing import draw_boxes, open_rgb
from foldfuse.errors import InputError, counted

Array = NDArray[Any]
ImageSource = Any  # a path, a Pillow image, (H, W, 3) uint8 values, or what numpy reads as such, as a Sample


class MemberView(NamedTuple):
    """The key of one set of predictions in a campaign: the member that made them, and the TTA view."""

    member: str
    view: str

    def __str__(self) -> str:
        return f"{self.member}@{self.view}"


@dataclass(frozen=True, slots=True, eq=False)  # eq: arrays have no single truth value
class Detections:
    """The boxes of one image, in any order. Empty (n = 0) is a normal value.

    Attributes:
        boxes: (n, 4) float32, xyxy in pixels; width is x2 - x1. Of the network's input where a detector's
            `decode` returns them, of the original image everywhere after `predict`.
        scores: (n,) float32 or float64 in [0, 1].
        labels: (n,) int64, positions in the list of class names.
        classes: the class names, where they are known; for people who look at the boxes.
        image: the image that the boxes are of, where it is known: a path, a Pillow image or an (H, W, 3) array.
    """

    boxes: Array
    scores: Array
    labels: Array
    classes: tuple[str, ...] = ()
    image: ImageSource = None

    def __post_init__(self) -> None:
        n = len(self.boxes)
        assert self.boxes.shape == (n, 4), f"boxes: expected ({n}, 4), got {self.boxes.shape}"
        assert self.scores.shape == (n,), f"scores: expected ({n},), got {self.scores.shape}"
        assert self.labels.shape == (n,), f"labels: expected ({n},), got {self.labels.shape}"

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Array | slice) -> Detections:
        """The detections at a mask, an index array or a slice: `detections[detections.scores > 0.5]`."""
        return Detections(self.boxes[index], self.scores[index], self.labels[index], self.classes, self.image)

    def __repr__(self) -> str:
        """Such as "Detections(3 boxes: 2 Metal, 1 Paper; best score 0.91)"."""
        if not len(self):
            return "Detections(no boxes)"
        counts = counts_by_class(self.labels, self.classes)
        return f"Detections({_boxes(len(self))}: {counts}; best score {self.scores.max():.2f})"

    def plot(
        self, image: ImageSource = None, *, score_threshold: float = 0.3, max_detections: int = 100
    ) -> Image.Image:
        """The image with the boxes drawn on it, as a Pillow image.

        Args:
            image: the image; by default the one that the detections know.
            score_threshold: boxes of lower score are not drawn.
            max_detections: at most so many boxes are drawn, those of the highest scores.

        Raises:
            InputError: the image is not known, or cannot be read.
        """
        image = self.image if image is None else image
        if image is None:
            raise InputError("these detections do not know their image. Give it: detections.plot('image.jpg').")
        one = self[np.argsort(-self.scores, kind="stable")[:max_detections]]
        one = one[one.scores >= score_threshold]
        return draw_boxes(open_rgb(image), one.boxes, one.labels, scores=one.scores, classes=one.classes)

    @staticmethod
    def empty() -> Detections:
        """No detections."""
        return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))

    @staticmethod
    def cat(parts: Sequence[Detections]) -> Detections:
        """All of `parts` as one; the parts must be of the same image."""
        if not parts:
            return Detections.empty()
        return Detections(
            np.concatenate([p.boxes for p in parts]),
            np.concatenate([p.scores for p in parts]),
            np.concatenate([p.labels for p in parts]),
            next((p.classes for p in parts if p.classes), ()),
            next((p.image for p in parts if p.image is not None), None),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Annotations:
    """The annotated boxes of one image.

    Attributes:
        boxes: (n, 4) float64, xyxy in pixels of the original image, as annotated: they may stick out of the image.
        labels: (n,) int64, positions in the list of class names.
        crowd: (n,) bool; COCO's `iscrowd`: a region of many objects, never trained on and ignored in scoring.
        area: (n,) float64, pixels squared: of the mask where the data has one, so not always width x height.
    """

    boxes: Array
    labels: Array
    crowd: Array
    area: Array

    def __post_init__(self) -> None:
        n = len(self.boxes)
        assert self.boxes.shape == (n, 4), f"boxes: expected ({n}, 4), got {self.boxes.shape}"
        for name in ("labels", "crowd", "area"):
            assert getattr(self, name).shape == (n,), f"{name}: expected ({n},), got {getattr(self, name).shape}"

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Array | slice) -> Annotations:
        """The annotations at a mask, an index array or a slice."""
        return Annotations(self.boxes[index], self.labels[index], self.crowd[index], self.area[index])

    def clipped(self, width: float, height: float) -> Annotations:
        """The annotations with boxes clipped to an image of this size, as training, crops and drawings need them.

        Scoring takes the boxes as annotated, as pycocotools does. The areas stay.
        """
        return Annotations(clip(self.boxes, width=width, height=height), self.labels, self.crowd, self.area)

    @staticmethod
    def empty() -> Annotations:
        """No annotations."""
        return Annotations(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0))


@dataclass(frozen=True, eq=False)
class Predictions(Mapping[int, Detections]):
    """Detections of many images, columnar, so that fusing and scoring run over them without a Python loop.

    Every image in `image_ids` was predicted, also one without detections; `predictions[image_id]` is its Detections.

    Attributes:
        image_ids: (m,) int64, without repeats, in the order of the rows.
        offsets: (m + 1,) int64; image i owns rows offsets[i]:offsets[i + 1].
        boxes: (n, 4) float32 of a network, float64 of a file (an IoU that equals a threshold must not hang on rounding); xyxy in
            pixels of the original image.
        scores: (n,) float64 in [0, 1], so that the order of close scores survives; a network's float32 scores are exact in it.
        labels: (n,) int64, positions in `classes`.
        classes: class names, as in the Dataset that was predicted.
        learnt_ids: ids of images that the network behind the predictions has learnt from, whether they are predicted or were
            left out for that; unknown for other tools' predictions, and then empty.
        images: {image id: the image, such as its path or Sample}, where they are known; for people who look at the boxes.
    """

    image_ids: Array
    offsets: Array
    boxes: Array
    scores: Array
    labels: Array
    classes: tuple[str, ...]
    learnt_ids: frozenset[int] = frozenset()
    images: Mapping[int, ImageSource] = field(default_factory=dict, repr=False)
    _row: dict[int, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        m, n = len(self.image_ids), len(self.boxes)
        assert self.offsets.shape == (m + 1,), f"offsets: expected ({m + 1},), got {self.offsets.shape}"
        assert self.offsets[0] == 0, "offsets must start at 0"
        assert self.offsets[-1] == n, f"offsets must end at {n}, the number of boxes; got {self.offsets[-1]}"
        assert self.boxes.shape == (n, 4), f"boxes: expected ({n}, 4), got {self.boxes.shape}"
        assert self.scores.shape == (n,), f"scores: expected ({n},), got {self.scores.shape}"
        assert self.labels.shape == (n,), f"labels: expected ({n},), got {self.labels.shape}"
        rows = {int(image_id): i for i, image_id in enumerate(self.image_ids)}
        assert len(rows) == m, "image_ids must not repeat"
        object.__setattr__(self, "_row", rows)

    def __getitem__(self, image_id: int) -> Detections:
        """The detections of one image. Raises KeyError for an image that was not predicted."""
        i = self._row[int(image_id)]
        rows = slice(int(self.offsets[i]), int(self.offsets[i + 1]))
        image = self.images.get(int(image_id))
        return Detections(self.boxes[rows], self.scores[rows], self.labels[rows], self.classes, image)

    def __repr__(self) -> str:
        """Such as "Predictions(300 images, 1,204 boxes: 800 Metal, 404 Paper)"."""
        boxes = (
            f"{_boxes(len(self.boxes))}: {counts_by_class(self.labels, self.classes)}"
            if len(self.boxes)
            else "no boxes"
        )
        return f"Predictions({counted(len(self), 'image')}, {boxes})"

    def __iter__(self) -> Iterator[int]:
        return iter(self._row)

    def __len__(self) -> int:
        """Number of images, as of any mapping; the number of boxes is `len(predictions.boxes)`."""
        return len(self.image_ids)

    @property
    def image_index(self) -> Array:
        """(n,) int64: for each box, the position of its image in `image_ids`."""
        return np.repeat(np.arange(len(self.image_ids)), np.diff(self.offsets))

    @staticmethod
    def of(detections: Mapping[int, Detections], classes: Sequence[str]) -> Predictions:
        """Predictions from {image id: Detections}, in the mapping's order."""
        parts = list(detections.values())
        joined = Detections.cat(parts)
        return Predictions(
            image_ids=np.array(list(detections), np.int64),
            offsets=np.cumsum([0, *map(len, parts)], dtype=np.int64),
            boxes=joined.boxes if joined.boxes.dtype == np.float64 else joined.boxes.astype(np.float32),
            scores=joined.scores.astype(np.float64),
            labels=joined.labels.astype(np.int64),
            classes=tuple(classes),
            images={i: one.image for i, one in detections.items() if one.image is not None},
        )

    def filter(self, mask: Array) -> Predictions:
        """The same images with only the boxes where the (n,) bool `mask` is True."""
        kept = np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])[self.offsets]
        return replace(self, offsets=kept, boxes=self.boxes[mask], scores=self.scores[mask], labels=self.labels[mask])

    def select_images(self, image_ids: Sequence[int] | Array) -> Predictions:
        """The predictions of these images, in this order.

        Raises:
            InputError: an image was not predicted.
        """
        missing = [int(i) for i in image_ids if int(i) not in self._row]
        if missing:
            raise InputError(
                f"the predictions lack {len(missing)} of {len(image_ids)} images, such as image id {missing[0]}. "
                "Predict the same images with every member."
            )
        order = np.array([self._row[int(i)] for i in image_ids], np.int64)
        lengths = np.diff(self.offsets)[order]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[order] - offsets[:-1], lengths)
        return replace(
            self,
            image_ids=self.image_ids[order],
            offsets=offsets,
            boxes=self.boxes[rows],
            scores=self.scores[rows],
            labels=self.labels[rows],
        )


def counts_by_class(labels: Array, classes: Sequence[str], *, most: int = 5) -> str:
    """How many labels are of each class, the most frequent first, as "2 Metal, 1 Paper"; at most `most` classes are named."""
    found, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    named = [f"{counts[i]:,} {class_name(classes, int(found[i]))}" for i in order[:most]]
    rest = len(found) - len(named)
    return ", ".join(named) + (
        f", {counts[order[most:]].sum():,} of {rest} other class{'' if rest == 1 else 'es'}" if rest > 0 else ""
    )


def class_name(classes: Sequence[str], label: int) -> str:
    """The name of a class on one short line; its number where it has no name."""
    name = classes[label] if 0 <= label < len(classes) else f"class {label}"
    name = "".join(letter if letter.isprintable() else " " for letter in name[:60])
    return name if len(name) <= 40 else name[:39] + "…"


def _boxes(number: int) -> str:
    return f"{number:,} box{'' if number == 1 else 'es'}"
