"""`NetworkPredictor`: what the predictors of a run and of an ONNX file share, each a single network in any TTA views."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from foldfuse.data.dataset import Sample
from foldfuse.detections import Array, Detections, Predictions
from foldfuse.fusion.methods import wbf
from foldfuse.inference.base_predictor import Predictor
from foldfuse.inference.tta import PLAIN_VIEW, View, distinct_views, parse_views
from foldfuse.inference.views import BATCH_SIZE, predict_images
from foldfuse.system.progress import Progress, no_progress


@dataclass(frozen=True, eq=False, repr=False)
class NetworkPredictor(Predictor):
    """A single network, ready to predict.

    Attributes:
        detector: the detector's name.
        image_size: the longest side, in pixels, that it was trained at.
        stride: sides of its input are multiples of it.
    """

    detector: str
    image_size: int
    stride: int

    @abstractmethod
    def detect(self, images: Array) -> list[Detections]:
        """The detections in each of (B, H, W, 3) uint8 RGB letterboxed images, in pixels of these."""

    def expect(self, pixels: int) -> None:
        """Gets how many pixels the next images have together, before `detect` sees the first of them."""

    @property
    def num_bytes(self) -> int:
        """Bytes of its weights that `move` takes from one memory to another; 0 where its runtime holds them."""
        return 0

    def move(self, device: str) -> None:
        """Moves its weights to the memory of a device; they stay where its runtime holds them."""

    def parse_views(self, names: Sequence[str]) -> tuple[View, ...]:
        """The TTA views of these names; by default the plain one. Raises InputError for a name that is no view."""
        return parse_views(names) if names else (PLAIN_VIEW,)

    def repeated_views(self, views: Sequence[View]) -> list[str]:
        """A sentence for each view that shows the network the same images as an earlier view, and is left out."""
        return [
            f"the view {view} has {view.image_size(self.image_size, self.stride)} px as the view {first} has: it is left out."
            for view, first in self._first_alike(views).items()
            if view != first
        ]

    def predict_each(
        self,
        samples: Sequence[Sample],
        views: Sequence[View],
        *,
        batch_size: int = BATCH_SIZE,
        longest: int | None = None,
        progress: Progress = no_progress,
    ) -> dict[View, Predictions]:
        """The predictions in each view; see `predict_images`."""
        return predict_images(
            self.detect,
            samples,
            self.classes,
            image_size=self.image_size,
            stride=self.stride,
            views=views,
            batch_size=batch_size,
            longest=longest,
            expect=self.expect,
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
        """The predictions of opened samples, by default in the plain view; see `Predictor.predict_samples`."""
        distinct = tuple(dict.fromkeys(self._first_alike(views or (PLAIN_VIEW,)).values()))
        by_view = self.predict_each(samples, distinct, batch_size=batch_size, progress=progress)
        return by_view[distinct[0]] if len(distinct) == 1 else wbf([by_view[view] for view in distinct])

    def _first_alike(self, views: Sequence[View]) -> dict[View, View]:
        return distinct_views(views, image_size=self.image_size, stride=self.stride)
