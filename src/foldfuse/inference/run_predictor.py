"""The predictor of one run: a trained detector in any TTA views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foldfuse.data.dataset import Sample
from foldfuse.detections import Predictions
from foldfuse.errors import InputError
from foldfuse.fusion.methods import wbf
from foldfuse.inference.base_predictor import BATCH_SIZE, PLAIN, Predictor, own_views, repeated_views
from foldfuse.inference.detector import load_detector, predict_views
from foldfuse.inference.tta import View, distinct_views
from foldfuse.storage.run import Run
from foldfuse.system.progress import Progress, no_progress


@dataclass(frozen=True, eq=False, repr=False)
class RunPredictor(Predictor):
    """The detector of a run.

    Attributes:
        run: the run.
        model: its detector, with weights, on a device.
        detector: the detector's name.
        image_size: the longest side, in pixels, that it was trained at.
    """

    run: Run
    model: Any
    detector: str
    image_size: int

    @property
    def kind(self) -> str:
        """Such as "run of lite0_fpn at 320 px"."""
        return f"run of {self.detector} at {self.image_size} px"

    @property
    def runs(self) -> tuple[Run, ...]:
        """The run."""
        return (self.run,)

    def parse_views(self, names: Sequence[str]) -> tuple[View, ...]:
        """The TTA views of these names; by default the plain one. Raises InputError for a name that is no view."""
        return own_views(names)

    def repeated_views(self, views: Sequence[View]) -> list[str]:
        """A sentence for each view that shows the network the same images as an earlier view, and is left out."""
        return repeated_views(views, image_size=self.image_size, stride=self.model.stride)

    def predict_each(
        self,
        samples: Sequence[Sample],
        views: Sequence[View],
        *,
        batch_size: int = BATCH_SIZE,
        longest: int | None = None,
        progress: Progress = no_progress,
    ) -> dict[View, Predictions]:
        """The predictions in each view; see `predict_views`."""
        return predict_views(
            self.model,
            samples,
            self.classes,
            image_size=self.image_size,
            views=views,
            batch_size=batch_size,
            longest=longest,
            progress=progress,
        )

    def predict_samples(
        self,
        samples: Sequence[Sample],
        *,
        views: Sequence[View] = (),
        batch_size: int = BATCH_SIZE,
        progress: Progress = no_progress,
    ) -> Predictions:
        """The predictions of opened samples; several views are fused by WBF. Raises InputError as `predict_views` does."""
        first = distinct_views(views or PLAIN, image_size=self.image_size, stride=self.model.stride)
        distinct = tuple(dict.fromkeys(first.values()))
        by_view = self.predict_each(samples, distinct, batch_size=batch_size, progress=progress)
        return by_view[distinct[0]] if len(distinct) == 1 else wbf([by_view[view] for view in distinct])


def load_run(run: Run, *, device: str = "auto") -> RunPredictor:
    """The predictor of a detector's run.

    Raises:
        InputError: the folder holds no trained run, or that of a classifier; or there is no such device.
    """
    metadata = run.metadata
    if run.is_classifier:
        raise InputError(
            f"{run.folder}: is the run of a classifier, which finds no boxes. Its probabilities come from 'foldfuse predict "
            f"{run.folder} DATA --out classes.csv'."
        )
    model, classes = load_detector(run, device)
    recipe = run.recipe
    return RunPredictor(
        run.folder,
        classes,
        tuple(metadata.category_ids),
        metadata.ignore_orientation,
        metadata.value_ranges,
        run,
        model,
        recipe.detector,
        recipe.image_size,
    )
