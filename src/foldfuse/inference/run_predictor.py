"""The predictor of one run: a trained detector in any TTA views."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from foldfuse.detections import Array, Detections
from foldfuse.errors import InputError
from foldfuse.inference.detector import detect, load_detector
from foldfuse.inference.engine import Engine
from foldfuse.inference.network_predictor import NetworkPredictor
from foldfuse.storage.run import Run


@dataclass(frozen=True, eq=False, repr=False)
class RunPredictor(NetworkPredictor):
    """The detector of a run.

    Attributes:
        run: the run.
        model: its detector, with weights, on a device.
        engine: what runs it.
    """

    run: Run
    model: Any
    engine: Engine

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
        return self.engine(images)

    @property
    def num_bytes(self) -> int:
        """See `NetworkPredictor.num_bytes`."""
        return sum(t.numel() * t.element_size() for t in (*self.model.parameters(), *self.model.buffers()))

    def move(self, device: str) -> None:
        """See `NetworkPredictor.move`."""
        self.model.to(device)

    def expect(self, pixels: int) -> None:
        """See `NetworkPredictor.expect`."""
        self.engine.expect(pixels)


def load_run(run: Run, *, device: str = "auto", engine: str = "auto") -> RunPredictor:
    """The predictor of a detector's run.

    Args:
        run: the run.
        device: see `load`.
        engine: see `load`.

    Raises:
        InputError: the folder holds no trained run, or that of a classifier; or there is no such device or engine.
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
        engine=Engine(model, functools.partial(detect, model), engine),
    )
