"""`Predictor`: anything that was trained, applied to images, whatever form these are given in. Works without torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.image_inputs import ImageInputs, read_anything
from foldfuse.data.pixels import open_images
from foldfuse.data.value_ranges import ValueRange
from foldfuse.detections import Detections, Predictions
from foldfuse.errors import InputError
from foldfuse.inference.class_labels import labels_by_name, relabel
from foldfuse.inference.learnt_images import learnt_ids
from foldfuse.inference.tta import View
from foldfuse.inference.views import BATCH_SIZE
from foldfuse.storage.run import Run
from foldfuse.system.progress import Progress, no_progress


@dataclass(frozen=True, eq=False, repr=False)
class Predictor(ABC):
    """Something trained that finds objects in images.

    Attributes:
        source: the run, file or folder that it was loaded from.
        classes: the class names, in the order of the labels.
        category_ids: the organiser's id of each class.
        ignore_orientation: whether pixels are taken as they are stored, whatever an EXIF tag says.
        value_ranges: {kind of depth: values that become black and white in images of more than 8 bits}, as in training.
        extracted: what has the `path` of a bundle's files where that is not `source`: a temporary folder, which lives as long as
            the predictor, or a published bundle in the hub's cache; None without one.
    """

    source: Path
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    ignore_orientation: bool
    value_ranges: Mapping[str, ValueRange]
    extracted: Any = field(default=None, kw_only=True)

    @property
    @abstractmethod
    def kind(self) -> str:
        """What it is, in words: such as "run of efficientdet_lite0 at 320 px"."""

    @property
    @abstractmethod
    def runs(self) -> tuple[Run, ...]:
        """The runs behind it whose folders are known."""

    @abstractmethod
    def predict_samples(
        self,
        samples: Sequence[Sample],
        *,
        views: Sequence[View] = (),
        batch_size: int = BATCH_SIZE,
        progress: Progress = no_progress,
    ) -> Predictions:
        """The predictions of opened samples, with the predictor's own labels; several views are fused by WBF.

        Args:
            samples: of a dataset that `open` returned.
            views: TTA views; none for those that the predictor has by itself.
            batch_size: images of 256 px at a time; fewer larger ones, so that memory stays the same.
            progress: gets the finished share of the work.

        Raises:
            InputError: an image is missing or cannot be decoded.
        """

    @abstractmethod
    def parse_views(self, names: Sequence[str]) -> tuple[View, ...]:
        """The TTA views of these names; none for those that the predictor has by itself.

        Raises:
            InputError: a name is no view, or the predictor has views of its own.
        """

    def repeated_views(self, views: Sequence[View]) -> list[str]:
        """A sentence for each view that shows the network the same images as an earlier view, and is left out."""
        return []

    def learnt_ids(self, dataset: Dataset) -> frozenset[int]:
        """The ids of the images of `dataset` that the predictor has learnt from, as far as this is recorded."""
        return frozenset().union(*(learnt_ids(run, dataset) for run in self.runs))

    def open(self, inputs: ImageInputs) -> Dataset:
        """The images with the predictor's classes where they have none, ready to be decoded.

        Raises:
            InputError: an image is missing or cannot be opened, or a class of the images is unknown.
        """
        dataset = inputs.dataset
        if not dataset.classes:
            dataset = dataset.with_classes(self.classes, self.category_ids or range(1, len(self.classes) + 1))
        labels_by_name(self.classes, dataset, self.source)
        return open_images(
            dataset,
            ignore_orientation=self.ignore_orientation,
            value_ranges=self.value_ranges,
            measured=inputs.measured,
        )

    def _read(self, images: Any) -> ImageInputs:
        return read_anything(images, ignore_orientation=self.ignore_orientation, value_ranges=self.value_ranges)

    def relabel(self, predictions: Predictions, dataset: Dataset) -> Predictions:
        """`predictions` with the labels of a dataset; boxes of a class that the dataset does not have are left out."""
        return relabel(predictions, labels_by_name(self.classes, dataset, self.source), dataset)

    def predict(
        self,
        images: Any,
        *,
        views: Sequence[str] | None = None,
        batch_size: int | None = None,
        progress: Progress = no_progress,
    ) -> Predictions:
        """The predictions of many images, those that the predictor has learnt from included (`learnt_ids` names these).

        Args:
            images: a folder, a glob pattern, a COCO JSON or another dataset, as path or text; a Dataset; or a list of paths,
                Pillow images and (height, width, 3) uint8 RGB arrays, whose image ids are their positions, from 0.
            views: TTA views, such as "1" and "1+hflip"; by default "1", or those of the ensemble.
            batch_size: images of 256 px at a time, 16 by default; fewer larger ones, so that memory stays the same.
            progress: gets the finished share of the work.

        Raises:
            InputError: an image cannot be read, or a class of a dataset is unknown.
        """
        chosen = self.parse_views(tuple(views or ()))
        dataset = self.open(self._read(images))
        predicted = self.predict_samples(
            dataset.samples, views=chosen, batch_size=batch_size or BATCH_SIZE, progress=progress
        )
        return replace(
            self.relabel(predicted, dataset),
            learnt_ids=self.learnt_ids(dataset),
            images={s.id: s if s.pixels is None else s.pixels for s in dataset.samples},
        )

    def __call__(self, image: Any) -> Detections:
        """The detections in one image: a path, a Pillow image, or an array (height, width, 3) of uint8 RGB values.

        Boxes are in pixels of the upright image, best first.

        Raises:
            InputError: the image cannot be read, or there are several.
        """
        inputs = self._read(image)
        if len(inputs.dataset) != 1:
            raise InputError(
                f"{inputs.dataset.source}: is {len(inputs.dataset)} images, expected one. Call predict() with many images."
            )
        dataset = self.open(inputs)
        (sample,) = dataset.samples
        one = self.relabel(self.predict_samples(dataset.samples), dataset)[sample.id]
        one = one[(-one.scores).argsort(kind="stable")]
        return replace(one, classes=dataset.classes, image=sample if sample.pixels is None else sample.pixels)

    def __repr__(self) -> str:
        """Such as "Predictor(run of lite0_fpn at 320 px, 3 classes: Metal, Paper, Plastic)"."""
        named = ", ".join(self.classes[:5]) + (", ..." if len(self.classes) > 5 else "")
        plural = "class" if len(self.classes) == 1 else "classes"
        return f"Predictor({self.kind}, {len(self.classes)} {plural}: {named})"
