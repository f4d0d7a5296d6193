"""What runs on a node of a Ray cluster: it is sent the pictures once, then trains one segment after another.

Nothing is shared but what is sent: pictures, run folders and checkpoints travel as bytes. What needs torch is imported when
it is called, so that the process is tuned first.
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
from foldfuse.campaign.planning.state import CampaignState
from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.images import ImageCache
from foldfuse.formats.predictions import write_predictions
from foldfuse.storage.run import Run
from foldfuse.system import host
from foldfuse.system.atomic_files import atomic

PARCEL = 64 * 2**20  # bytes of pictures that are sent at a time
PAUSE = 0.2  # seconds between two looks for a new checkpoint

Files = Mapping[str, bytes]
Parcel = Mapping[int, bytes]  # {position of a sample: what its picture's file holds}


@dataclass(frozen=True)
class Order:
    """A segment to train, as it is sent.

    Attributes:
        name: of the segment.
        seconds: that it may have had in all when it ends.
        files: of its run folder.
        parent: of the run folder that it begins from; empty where it has a checkpoint, or begins anew.
        every: seconds between checkpoints.
        standing: of the campaign.
        more: annotated pictures to learn from besides those sent before.
        parcels: their files.
    """

    name: str
    seconds: float
    files: Files
    parent: Files
    every: float
    standing: CampaignState
    more: Dataset | None = None
    parcels: Sequence[Parcel] = ()


@dataclass(frozen=True)
class Product:
    """A trained segment, as it is sent back.

    Attributes:
        seconds: that it has trained.
        files: of its run folder, what it sees in the held-back pictures among them.
        views: how the held-back pictures were shown.
        cost: seconds of one picture in the plain view.
    """

    seconds: float
    files: Files
    views: tuple[str, ...]
    cost: float


class Worker:
    """A process on a node. While `work` is under way, `checkpoint` and `close` may be called."""

    def __init__(self) -> None:
        host.tune_malloc()
        self._folder = Path(tempfile.mkdtemp(prefix="foldfuse-"))
        self._over, self._sent = "", 0
        self._train: Any = None
        self._held: Any = None
        self._images: Any = None

    def prepare(
        self, train: Dataset, held: Dataset, parcels: Sequence[Any], held_parcels: Sequence[Any], longest: int
    ) -> dict[str, str]:
        """Take the pictures in, and decode those to learn from; what must be alike on all machines comes back."""
        import ray

        import foldfuse.campaign.execution.jobs  # noqa: F401 - now, and not in the time of the first segment

        self._train = unpacked(train, map(ray.get, parcels), self._folder / "train")
        self._held = unpacked(held, map(ray.get, held_parcels), self._folder / "held")
        self._images = ImageCache.load(self._train.samples, longest=longest)
        return software()

    def work(self, order: Order) -> Product:
        """Train a segment and look at the held-back pictures with it.

        Raises:
            FloatingPointError: it diverged.
        """
        from foldfuse.campaign.execution.jobs import joined, learn, look

        dataset, images = self._train, self._images
        if order.more is not None:
            folder = self._folder / "more"
            shutil.rmtree(folder, ignore_errors=True)
            dataset, images = joined(dataset, images, unpacked(order.more, order.parcels, folder))
        run, parent = Run(self._folder / "members" / order.name), Run(self._folder / "parent")
        for folder, files in ((run.folder, order.files), (parent.folder, order.parent)):
            shutil.rmtree(folder, ignore_errors=True)
            put(files, folder)
        self._sent = _stamp(run.folder / "checkpoint.pt")
        try:
            seconds = learn(
                run,
                dataset,
                order.seconds,
                state=run.load_checkpoint()[0],
                parent=parent if order.parent else None,
                images=images,
                every=order.every,
            )
            seen = look(run, self._held, order.standing)
        finally:
            self._over = order.name
        for view, predictions in seen.views.items():
            write_predictions(predictions, run.folder / f"held@{view}.parquet", self._held)
        (run.folder / "checkpoint.previous.pt").unlink(missing_ok=True)
        return Product(seconds, files_of(run.folder), tuple(map(str, seen.views)), seen.cost)

    def checkpoint(self, name: str) -> Files | None:
        """The files of a segment's next checkpoint, as soon as it is there; None when the segment is over.

        The log is read after the state: one that is longer can be cut, a shorter one has lost rows.
        """
        folder = self._folder / "members" / name
        while self._over != name:
            stamp = _stamp(folder / "checkpoint.pt")
            if stamp > self._sent:
                self._sent = stamp
                with suppress(FileNotFoundError):  # it is being replaced
                    state = (folder / "checkpoint.pt").read_bytes()
                    return {"log.jsonl": (folder / "log.jsonl").read_bytes(), "checkpoint.pt": state}
            time.sleep(PAUSE)
        return None

    def close(self) -> None:
        """Leave nothing on the node."""
        shutil.rmtree(self._folder, ignore_errors=True)


def software() -> dict[str, str]:
    """What must be alike on all machines: {program: version}."""
    import torch

    return {"foldfuse": __version__, "python": platform.python_version(), "torch": torch.__version__}


def parcels(samples: Sequence[Sample], size: int = PARCEL) -> Iterator[Parcel]:
    """The files of all pictures, about `size` bytes at a time."""
    parcel: dict[int, bytes] = {}
    held = 0
    for i, sample in enumerate(samples):
        parcel[i] = sample.path.read_bytes()
        held += len(parcel[i])
        if held >= size:
            yield parcel
            parcel, held = {}, 0
    if parcel:
        yield parcel


def unpacked(dataset: Dataset, parcels: Iterable[Parcel], folder: Path) -> Dataset:
    """The dataset with its pictures in `folder`, where this writes them."""
    folder.mkdir()
    paths = [folder / f"{i}{sample.path.suffix}" for i, sample in enumerate(dataset.samples)]
    for parcel in parcels:
        for i, content in parcel.items():
            paths[i].write_bytes(content)
    samples = (replace(sample, path=path) for sample, path in zip(dataset.samples, paths, strict=True))
    return replace(dataset, samples=tuple(samples))


def files_of(folder: Path, pattern: str = "*") -> Files:
    """The files of a run folder whose names fit a pattern."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


def put(files: Files, folder: Path) -> None:
    """Write files to a folder, each whole or not at all."""
    for name, content in files.items():
        with atomic(folder / name) as temporary:
            temporary.write_bytes(content)


def _stamp(path: Path) -> int:
    """What changes when a file is replaced; 0 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
