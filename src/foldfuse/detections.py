"""The annotations of images and the detections of a model: the types that every stage takes and returns.

Boxes are xyxy in pixels of the original image, labels are positions in the list of class names (0..K-1).
numpy only: fusion and scoring must work without torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foldfuse import exchange
from foldfuse.boxes import clip
from foldfuse.display import image_html, note_html, value_html
from foldfuse.drawing import draw_boxes, open_rgb
from foldfuse.errors import InputError, counted

Array = NDArray[Any]
ImageSource = Any  # a path, a Pillow image, (H, W, 3) uint8 values, or what numpy reads as such, as a Sample


class HasOrganiserId(Protocol):
    """An image with the organiser's id, as a Sample has it."""

    @property
    def id(self) -> int: ...
    @property
    def organiser_id(self) -> str | int: ...


class HasOrganiserIds(Protocol):
    """Images and classes with the organiser's ids, as a Dataset has them."""

    @property
    def samples(self) -> Sequence[HasOrganiserId]: ...
    @property
    def organiser_category_ids(self) -> Sequence[str | int]: ...


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
        counts = exchange.counts_by_class(self.labels, self.classes)
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
        one = self[self.scores >= score_threshold]
        one = one[np.argsort(-one.scores, kind="stable")[:max_detections]]
        return draw_boxes(open_rgb(image), one.boxes, one.labels, scores=one.scores, classes=one.classes)

    def to_pandas(self) -> Any:
        """A pandas DataFrame with a row for each box: class, label, score, x1, y1, x2, y2.

        Raises:
            InputError: pandas is not installed.
        """
        return exchange.to_frame(exchange.columns(self.boxes, self.scores, self.labels, self.classes))

    def to_supervision(self) -> Any:
        """The same boxes as a `supervision.Detections`. Raises InputError where supervision is not installed."""
        names = [exchange.class_name(self.classes, int(label)) for label in self.labels]
        return exchange.to_supervision(self.boxes, self.scores, self.labels, names)

    @staticmethod
    def from_supervision(detections: Any, *, classes: Sequence[str] = (), image: ImageSource = None) -> Detections:
        """Detections with the boxes of a `supervision.Detections`.

        Args:
            detections: boxes without a confidence get the score 1, boxes without a class_id the label 0.
            classes: class names by class_id; by default the names that the boxes bring.
            image: the image that the boxes are of.

        Raises:
            InputError: a class_id is no position in `classes`.
        """
        return Detections(*exchange.of_supervision(detections, classes), image)

    def to_coco(self, image_id: int | str, category_ids: Sequence[int | str] = ()) -> list[dict[str, Any]]:
        """COCO results: a dict of image_id, category_id, bbox [left, top, width, height] and score for each box.

        Args:
            image_id: the organiser's id of the image.
            category_ids: the organiser's id of each class; by default labels count from 1.
        """
        return exchange.coco_rows([image_id] * len(self), self.boxes, self.scores, self.labels, category_ids)

    def _repr_html_(self) -> str:
        """What a notebook shows: the boxes on their image, where it is known, and a table of the best."""
        table = exchange.boxes_html(self.boxes, self.scores, self.labels, self.classes)
        parts = [table] if len(self) else []
        if self.image is not None:
            try:
                parts = [image_html(self.plot()), *parts]
            except InputError as error:  # such as a file that was moved since
                parts = [*parts, note_html(str(error))]
        return value_html(repr(self), *parts)

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

    def __repr__(self) -> str:
        crowd = int(self.crowd.sum())
        return f"Annotations({_boxes(len(self))}{f', {crowd} of them crowd regions' if crowd else ''})"

    def plot(self, image: ImageSource, *, classes: Sequence[str] = ()) -> Image.Image:
        """An image with the annotated boxes drawn on it, as a Pillow image.

        Args:
            image: the image: a path, a Pillow image, an (H, W, 3) array or a Sample.
            classes: class names by label.

        Raises:
            InputError: the image cannot be read.
        """
        return draw_boxes(open_rgb(image), self.boxes, self.labels, classes=classes)

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
            f"{_boxes(len(self.boxes))}: {exchange.counts_by_class(self.labels, self.classes)}"
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

    def file_name(self, image_id: int) -> str | None:
        """The file name of an image, where it is known."""
        image = self.images.get(image_id)
        if isinstance(image, str | PurePath):
            return PurePath(image).name
        return getattr(image, "file_name", None)

    def to_pandas(self) -> Any:
        """A pandas DataFrame with a row for each box: image_id, file_name, class, label, score, x1, y1, x2, y2.

        Raises:
            InputError: pandas is not installed.
        """
        ids = self.image_ids[self.image_index]
        names = {} if not self.images else {"file_name": [self.file_name(int(i)) for i in ids]}
        boxes = exchange.columns(self.boxes, self.scores, self.labels, self.classes)
        return exchange.to_frame({"image_id": ids, **names, **boxes})

    def to_supervision(self) -> dict[int, Any]:
        """{image id: its boxes as a `supervision.Detections`}. Raises InputError where supervision is not installed."""
        return {image_id: one.to_supervision() for image_id, one in self.items()}

    def to_coco(self, dataset: HasOrganiserIds | None = None) -> list[dict[str, Any]]:
        """COCO results: a dict of image_id, category_id, bbox [left, top, width, height] and score for each box.

        Args:
            dataset: the Dataset that was predicted, whose ids are taken; by default the image ids, and labels from 1.
        """
        ids = {} if dataset is None else {s.id: s.organiser_id for s in dataset.samples}
        image_ids = [ids.get(i, i) for i in self.image_ids[self.image_index].tolist()]
        categories = () if dataset is None else dataset.organiser_category_ids
        return exchange.coco_rows(image_ids, self.boxes, self.scores, self.labels, categories)

    def _repr_html_(self) -> str:
        """What a notebook shows: how many boxes each class has, and the boxes of the highest scores."""
        classes = exchange.counts_html(self.labels, self.classes)
        names = [self.file_name(i) or str(i) for i in self.image_ids.tolist()]
        index = self.image_index
        boxes = exchange.boxes_html(
            self.boxes, self.scores, self.labels, self.classes, most=8, images=lambda i: names[index[i]]
        )
        return value_html(repr(self), classes, boxes if len(self.boxes) else "")

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


def _boxes(number: int) -> str:
    return f"{number:,} box{'' if number == 1 else 'es'}"
