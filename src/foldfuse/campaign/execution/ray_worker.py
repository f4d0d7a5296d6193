"""The process on a node of a Ray cluster: it receives the images once, then trains one segment after another.

Nodes need no shared storage: images, run folders and checkpoints travel as bytes. Modules that need torch are imported inside
functions, so that malloc is tuned first.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foldfuse import __version__
from foldfuse.campaign import constants as c
from foldfuse.campaign.compiling import compile_training_loops
from foldfuse.campaign.planning.state import CampaignState
from foldfuse.campaign.task import VAL, predictions_path
from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.images import ImageCache
from foldfuse.formats.predictions import write_predictions
from foldfuse.storage.run import Run
from foldfuse.system import host
from foldfuse.system.atomic_files import atomic

Files = Mapping[str, bytes]  # {name in a run folder: content}
ImageChunk = Mapping[int, bytes]  # {position of a sample: content of its image file}


@dataclass(frozen=True)
class JobSpec:
    """A segment to train, as sent to a node.

    Attributes:
        name: the name of the segment.
        seconds: total seconds of training when the job ends.
        files: the files of its run folder.
        parent: checkpoints of the run that gives the initial weights; empty where the segment has a checkpoint or no parent.
        checkpoint_seconds: seconds between checkpoints.
        state: the state of the campaign.
        device: the device of every network, as `--device` takes it.
        pseudo_labeled: samples to train on besides the samples sent before.
        chunks: their image files.
        fold: the fold that it holds out.
    """

    name: str
    seconds: float
    files: Files
    parent: Files
    checkpoint_seconds: float
    state: CampaignState
    device: str
    pseudo_labeled: Dataset | None = None
    chunks: Sequence[ImageChunk] = ()
    fold: int = 0


@dataclass(frozen=True)
class JobResult:
    """A trained segment, as sent back.

    Attributes:
        seconds: training time in seconds.
        files: the files of its run folder, with the predictions of the held-out images.
        views: TTA views of these predictions.
        image_seconds: seconds that one image takes in the plain view.
    """

    seconds: float
    files: Files
    views: tuple[str, ...]
    image_seconds: float


class Worker:
    """A process on a node. During `work`, `next_checkpoint` and `close` may be called."""

    def __init__(self) -> None:
        host.tune_malloc()
        self._folder = Path(tempfile.mkdtemp(prefix="foldfuse-"))
        self._finished, self._sent = "", 0
        self._labeled: Any = None
        self._folds: Mapping[int, tuple[Sequence[int], Sequence[int]]] = {}
        self._images: Any = None

    def prepare(
        self,
        labeled: Dataset,
        chunks: Sequence[Any],
        folds: Mapping[int, tuple[Sequence[int], Sequence[int]]],
        longest: int,
    ) -> dict[str, str]:
        """Stores the images, decodes those to train on, and returns the versions that must agree on all machines.

        Args:
            labeled: all annotated images.
            chunks: Ray's handles of their files.
            folds: {fold: (positions of the images that its segments train on, and of its held-out images)}.
            longest: longest side, in pixels, of the decoded images.
        """
        import ray

        import foldfuse.campaign.execution.jobs  # noqa: F401 - now, rather than in the time of the first segment

        compile_training_loops()

        self._labeled = unpack_images(labeled, map(ray.get, chunks), self._folder / "images")
        self._folds = folds
        learnt = {i for train, _ in folds.values() for i in train}
        self._images = ImageCache.load([self._labeled.samples[i] for i in sorted(learnt)], longest=longest)
        return versions()

    def _select(self, positions: Sequence[int]) -> Dataset:
        """The annotated images at these positions."""
        return replace(self._labeled, samples=tuple(self._labeled.samples[i] for i in positions))

    def work(self, spec: JobSpec) -> JobResult:
        """Trains a segment and predicts the held-out images with it.

        Raises:
            FloatingPointError: the training diverged.
        """
        from foldfuse.campaign.execution.jobs import concat, predict_held_out, train_segment

        dataset, val = map(self._select, self._folds[spec.fold])
        images = self._images.of(dataset.samples)
        if spec.pseudo_labeled is not None:
            folder = self._folder / "pseudo_labeled"
            shutil.rmtree(folder, ignore_errors=True)
            dataset, images = concat(dataset, images, unpack_images(spec.pseudo_labeled, spec.chunks, folder))
        run, parent = Run(self._folder / "members" / spec.name), Run(self._folder / "parent")
        for folder, files in ((run.folder, spec.files), (parent.folder, spec.parent)):
            shutil.rmtree(folder, ignore_errors=True)
            write_files(files, folder)
        self._sent = _modified(run.folder / "checkpoint.pt")
        try:
            seconds = train_segment(
                run,
                dataset,
                spec.seconds,
                images=images,
                state=run.load_checkpoint()[0],
                parent=parent if spec.parent else None,
                checkpoint_seconds=spec.checkpoint_seconds,
                device=spec.device,
            )
            predicted = predict_held_out(run, val, spec.state, device=spec.device)
        finally:
            self._finished = spec.name
        for view, predictions in predicted.views.items():
            write_predictions(predictions, predictions_path(run.folder, VAL, str(view)), val)
        (run.folder / "checkpoint.previous.pt").unlink(missing_ok=True)
        return JobResult(seconds, read_files(run.folder), tuple(map(str, predicted.views)), predicted.image_seconds)

    def next_checkpoint(self, name: str) -> Files | None:
        """The files of a segment's next checkpoint, as soon as it is written; None when the segment has finished.

        The log is read after the checkpoint: a log that is longer can be cut, a shorter one has lost rows.
        """
        folder = self._folder / "members" / name
        while self._finished != name:
            modified = _modified(folder / "checkpoint.pt")
            if modified > self._sent:
                self._sent = modified
                with suppress(FileNotFoundError):  # the file is being replaced
                    checkpoint = (folder / "checkpoint.pt").read_bytes()
                    return {"log.jsonl": (folder / "log.jsonl").read_bytes(), "checkpoint.pt": checkpoint}
            time.sleep(c.CHECKPOINT_POLL_SECONDS)
        return None

    def close(self) -> None:
        """Removes everything from the node."""
        shutil.rmtree(self._folder, ignore_errors=True)


def versions() -> dict[str, str]:
    """{program: version} of the software that must agree on all machines."""
    import torch

    return {"foldfuse": __version__, "python": platform.python_version(), "torch": torch.__version__}


def image_chunks(samples: Sequence[Sample], size: int = c.CHUNK_BYTES) -> Iterator[ImageChunk]:
    """The files of all images, about `size` bytes at a time."""
    chunk: dict[int, bytes] = {}
    num_bytes = 0
    for i, sample in enumerate(samples):
        chunk[i] = sample.path.read_bytes()
        num_bytes += len(chunk[i])
        if num_bytes >= size:
            yield chunk
            chunk, num_bytes = {}, 0
    if chunk:
        yield chunk


def unpack_images(dataset: Dataset, chunks: Iterable[ImageChunk], folder: Path) -> Dataset:
    """Writes the image files to `folder`, and returns the dataset with its images there."""
    folder.mkdir()
    paths = [folder / f"{i}{sample.path.suffix}" for i, sample in enumerate(dataset.samples)]
    for chunk in chunks:
        for i, content in chunk.items():
            paths[i].write_bytes(content)
    samples = (replace(sample, path=path) for sample, path in zip(dataset.samples, paths, strict=True))
    return replace(dataset, samples=tuple(samples))


def read_files(folder: Path, pattern: str = "*") -> Files:
    """The files of a run folder whose names match a pattern."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


def write_files(files: Files, folder: Path) -> None:
    """Writes files to a folder, each whole or not at all."""
    for name, content in files.items():
        with atomic(folder / name) as temporary:
            temporary.write_bytes(content)


def _modified(path: Path) -> int:
    """Time of a file's last change in nanoseconds; 0 for a missing file."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
