"""Workers that train a campaign's segments: this process itself, a process for each card, or the nodes of a cluster.

The runner (`campaign.runner`) knows only the `Workers` protocol, and only the runner writes jobs and
results to the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

from foldfuse.campaign.execution.jobs import HeldOutPredictions, concat, train_segment
from foldfuse.campaign.pace import SegmentWatch, settle_threads
from foldfuse.campaign.planning.state import CampaignState
from foldfuse.campaign.task import Task
from foldfuse.data.dataset import Dataset
from foldfuse.data.images import ImageCache
from foldfuse.storage.ledger import Ledger
from foldfuse.storage.run import Run
from foldfuse.system.progress import progress_bar
from foldfuse.training.budget import Budget


@dataclass(frozen=True)
class SegmentJob:
    """A segment to train now.

    Attributes:
        run: the segment's folder among the campaign's members, with recipe and metadata.
        seconds: total seconds of training when the job ends.
        checkpoint: the run's last checkpoint, to resume from.
        parent: the run whose last checkpoint gives the initial weights, where the segment has no checkpoint.
        checkpoint_seconds: seconds between checkpoints.
        state: the state of the campaign, the segment among its records.
        pseudo_labeled: test images with pseudo-labels, to train on besides the task's images.
        fold: the fold that it holds out.
    """

    run: Run
    seconds: float
    checkpoint: Mapping[str, Any] | None
    parent: Run | None
    checkpoint_seconds: float
    state: CampaignState
    pseudo_labeled: Dataset | None = None
    fold: int = 0

    @property
    def name(self) -> str:
        """Name of the segment."""
        return self.run.folder.name


class WorkerLost(Exception):
    """A worker is gone or has failed; the segment can be trained again."""


@dataclass(frozen=True)
class SegmentResult:
    """The result of a job.

    Attributes:
        name: the name of the segment.
        seconds: training time in seconds; of a lost segment, up to the last checkpoint in its folder.
        predictions: the predictions of the held-out images, where the worker has made them already.
        error: why the job failed: FloatingPointError where the training diverged, or WorkerLost.
    """

    name: str
    seconds: float = 0.0
    predictions: HeldOutPredictions | None = None
    error: FloatingPointError | WorkerLost | None = None


@dataclass(eq=False)
class AsyncWorker:
    """A worker that trains while this process does other work, as this process knows it.

    Attributes:
        label: its name in the log.
        job: the job in training.
        ready: whether it can take a job.
        interval: the interval of the timeline that ends with the job.
    """

    label: str
    job: SegmentJob | None = field(default=None, kw_only=True)
    ready: bool = field(default=False, kw_only=True)
    interval: ExitStack = field(default_factory=ExitStack, kw_only=True)

    def take(self, job: SegmentJob, ledger: Ledger) -> None:
        """Takes a job, and begins its interval of the timeline."""
        self.interval = ExitStack()
        self.interval.enter_context(ledger.timed(f"train {job.name}", "train"))
        ledger.log(f"{job.name} is trained on {self.label}.")
        self.job = job

    def release(self) -> SegmentJob:
        """Ends the job's interval of the timeline, and returns the job."""
        assert self.job is not None
        job, self.job = self.job, None
        self.interval.close()
        return job


def lost_result(job: SegmentJob, reason: str) -> SegmentResult:
    """The result of a job whose worker is lost: the training up to the last checkpoint in its folder."""
    checkpoint, _ = job.run.load_checkpoint()
    return SegmentResult(job.name, checkpoint["seconds"] if checkpoint is not None else 0.0, error=WorkerLost(reason))


class Workers(Protocol):
    """Trains segments."""

    @property
    def is_async(self) -> bool:
        """Whether `start` returns at once, so that the runner can do other work during the training."""

    @property
    def capacity(self) -> int:
        """Number of segments that can be trained at once now."""

    @property
    def busy(self) -> frozenset[str]:
        """Names of the segments in training."""

    def prepare(self, longest: int) -> bool:
        """Gets ready to train on images shrunk to `longest` pixels, and returns True if the call took time, as the first does.

        Raises:
            InputError: no worker can train.
        """

    def start(self, job: SegmentJob) -> None:
        """Starts a job; `finished` returns its result."""

    def finished(self, wait: float) -> list[SegmentResult]:
        """The results since the last call; where there are none, waits up to `wait` seconds for one."""

    def close(self) -> None:
        """Frees everything; segments in training stay unfinished."""


class LocalWorker:
    """This process, which trains one segment at a time and does nothing else during the training."""

    is_async, capacity, busy = False, 1, frozenset[str]()

    def __init__(self, task: Task, ledger: Ledger) -> None:
        self._task, self._ledger = task, ledger
        self._images: ImageCache | None = None
        self._results: list[SegmentResult] = []

    def prepare(self, longest: int) -> bool:
        """Decodes the images at the first call."""
        if self._images is not None:
            return False
        with self._ledger.timed("decode the images", "setup"):
            self._images = ImageCache.load(self._task.learnable.samples, longest=longest)
        return True

    def start(self, job: SegmentJob) -> None:
        """Trains a segment to its end."""
        assert self._images is not None, "prepare comes first"
        dataset = self._task.train_in(job.fold)
        images = self._images.of(dataset.samples)
        if job.pseudo_labeled is not None:
            dataset, images = concat(dataset, images, job.pseudo_labeled)
        settle_threads(self._task.device, self._ledger)

        def watch(budget: Budget) -> Callable[[], None]:
            return SegmentWatch(job.name, job.state, budget, self._ledger, self._task.device).after_step

        try:
            with (
                self._ledger.timed(f"train {job.name}", "train"),
                progress_bar(f"training {job.name}") as progress,
            ):
                seconds = train_segment(
                    job.run,
                    dataset,
                    job.seconds,
                    images=images,
                    state=job.checkpoint,
                    parent=job.parent,
                    checkpoint_seconds=job.checkpoint_seconds,
                    device=self._task.device,
                    progress=progress,
                    watch=watch,
                )
        except FloatingPointError as error:
            self._results.append(SegmentResult(job.name, error=error))
        else:
            self._results.append(SegmentResult(job.name, seconds))

    def finished(self, wait: float) -> list[SegmentResult]:
        """The result of the last job; there is nothing to wait for."""
        results, self._results = self._results, []
        return results

    def close(self) -> None:
        """Does nothing."""
