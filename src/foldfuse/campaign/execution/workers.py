"""Who trains a campaign's segments: this very process, or others that the conductor hands them to.

The conductor (`stages.conduct`) knows only what stands in `Workers`. Whoever the workers are, it alone writes to the ledger
what is to be done and what came of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from foldfuse.campaign.execution.jobs import Seen, joined, learn
from foldfuse.campaign.planning.state import CampaignState
from foldfuse.campaign.task import Task
from foldfuse.data.dataset import Dataset
from foldfuse.data.images import ImageCache
from foldfuse.storage.ledger import Ledger
from foldfuse.storage.run import Run
from foldfuse.system.progress import progress_bar


@dataclass(frozen=True)
class Assignment:
    """A segment that is to be trained now.

    Attributes:
        run: its folder among the campaign's members, begun.
        seconds: that it may have had in all when it ends.
        state: its last checkpoint, to go on from.
        parent: the run with whose last state it begins, where it has no checkpoint.
        every: seconds between checkpoints.
        standing: of the campaign, the segment among its rows.
        more: annotated pictures to learn from besides those of the task.
    """

    run: Run
    seconds: float
    state: Mapping[str, Any] | None
    parent: Run | None
    every: float
    standing: CampaignState
    more: Dataset | None = None

    @property
    def name(self) -> str:
        """Of the segment."""
        return self.run.folder.name


class Lost(Exception):
    """A worker is gone, or could not do its work; the segment can be trained again."""


@dataclass(frozen=True)
class End:
    """What came of a segment.

    Attributes:
        name: of the segment.
        seconds: that it has trained; of a lost one, up to the last checkpoint in its folder.
        seen: the held-back pictures as it sees them, where its worker has looked at them already.
        error: why it did not come to its end: FloatingPointError where it diverged, or Lost.
    """

    name: str
    seconds: float = 0.0
    seen: Seen | None = None
    error: FloatingPointError | Lost | None = None


class Workers(Protocol):
    """Who trains segments."""

    @property
    def aside(self) -> bool:
        """Whether `begin` returns at once, and the conductor can do other work meanwhile."""

    @property
    def capacity(self) -> int:
        """How many segments can be trained at once, as things are now."""

    @property
    def busy(self) -> frozenset[str]:
        """Names of the segments under way."""

    def prepare(self, longest: int) -> bool:
        """Be ready to train on pictures shrunk to `longest` pixels; whether that has taken time, as it does once.

        Raises:
            InputError: there is nobody who could train.
        """

    def begin(self, assignment: Assignment) -> None:
        """Train a segment; its end is told by `ended`."""

    def ended(self, wait: float) -> list[End]:
        """What has ended since it was last asked; where nothing has, something that does within `wait` seconds."""

    def close(self) -> None:
        """Let go of everything; what is under way is not finished."""


class Here:
    """This very process, which trains one segment at a time and does nothing else meanwhile."""

    aside, capacity, busy = False, 1, frozenset[str]()

    def __init__(self, task: Task, ledger: Ledger) -> None:
        self._task, self._ledger = task, ledger
        self._images: ImageCache | None = None
        self._ended: list[End] = []

    def prepare(self, longest: int) -> bool:
        """Decode the pictures, the first time."""
        if self._images is not None:
            return False
        with self._ledger.timed("decode the pictures", "setup"):
            self._images = ImageCache.load(self._task.train.samples, longest=longest)
        return True

    def begin(self, assignment: Assignment) -> None:
        """Train a segment to its end."""
        assert self._images is not None, "prepare comes first"
        name, dataset, images = assignment.name, self._task.train, self._images
        if assignment.more is not None:
            dataset, images = joined(dataset, images, assignment.more)
        try:
            with self._ledger.timed(f"train {name}", "train"), progress_bar(f"training {name}") as progress:
                seconds = learn(
                    assignment.run,
                    dataset,
                    assignment.seconds,
                    state=assignment.state,
                    parent=assignment.parent,
                    images=images,
                    every=assignment.every,
                    progress=progress,
                )
        except FloatingPointError as error:
            self._ended.append(End(name, error=error))
        else:
            self._ended.append(End(name, seconds))

    def ended(self, wait: float) -> list[End]:
        """The segment that has just been trained; there is nothing to wait for."""
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """Nothing is held."""
