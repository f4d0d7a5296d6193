"""The predictor of one run: a trained detector in any TTA views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foldfuse.detections import Array, Detections
from foldfuse.errors import InputError
from foldfuse.inference.detector import detect, load_detector
from foldfuse.inference.network_predictor import NetworkPredictor
from foldfuse.storage.run import Run


@dataclass(frozen=True, eq=False, repr=False)
class RunPredictor(NetworkPredictor):
    """The detector of a run.

    Attributes:
        run: the run.
        model: its detector, with weights, on a device.
    """

    run: Run
    model: Any

    @property
    def kind(self) -> str:
        """Such as "run of lite0_fpn at 320 px"."""
        return f"run of {self.detector} at {self.image_size} px"

    @property
    def runs(self) -> tuple[Run, ...]:
        """The run."""
        return (self.run,)

    def detect(self, images: Array) -> list[Detections]:
        """See `NetworkPredictor.detect`."""
        return detect(self.model, images)


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
        source=run.folder,
        classes=classes,
        category_ids=tuple(metadata.category_ids),
        ignore_orientation=metadata.ignore_orientation,
        value_ranges=metadata.value_ranges,
        detector=recipe.detector,
        image_size=recipe.image_size,
        stride=model.stride,
        run=run,
        model=model,
    )
