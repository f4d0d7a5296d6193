"""The process that trains a campaign's segments on one card: it decodes the images once, then trains one segment after another.

`card_workers` starts it, and talks to it in pickled messages over its standard input and output. It ends when its input does, so
that no process is left behind when the campaign is killed. Modules that need torch are imported inside functions, so that malloc
is tuned first.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from foldfuse.campaign.compiling import compile_training_loops
from foldfuse.campaign.planning.state import CampaignState
from foldfuse.data.dataset import Dataset
from foldfuse.data.images import ImageCache
from foldfuse.errors import InputError
from foldfuse.storage.run import Run
from foldfuse.system import host
from foldfuse.system.device import current_device
from foldfuse.system.signals import signals_as_interrupts

if TYPE_CHECKING:
    from foldfuse.campaign.execution.jobs import HeldOutPredictions


@dataclass(frozen=True)
class Setup:
    """The first message to a process.

    Attributes:
        learnable: the images that some segment trains on.
        folds: {fold: (the images that its segments train on, its held-out images)}.
        longest: longest side, in pixels, of the decoded images.
        device: the device to compute on.
        cores: the processor's cores that are this process's share; empty for all.
        threads: threads to compute with at most.
    """

    learnable: Dataset
    folds: Mapping[int, tuple[Dataset, Dataset]]
    longest: int
    device: str
    cores: tuple[int, ...]
    threads: int


@dataclass(frozen=True)
class Order:
    """A segment to train.

    Attributes:
        folder: its run folder, where the process writes checkpoints and log.
        fold: the fold that it holds out.
        seconds: total seconds of training when the job ends.
        parent: the folder of the run that gives the initial weights; None where the segment has a checkpoint or no parent.
        checkpoint_seconds: seconds between checkpoints.
        state: the state of the campaign.
        pseudo_labeled: samples to train on besides the others.
    """

    folder: Path
    fold: int
    seconds: float
    parent: Path | None
    checkpoint_seconds: float
    state: CampaignState
    pseudo_labeled: Dataset | None


@dataclass(frozen=True)
class Ready:
    """The process has decoded its images."""


@dataclass(frozen=True)
class LogLine:
    """A sentence of the process's log, with its level."""

    level: int
    text: str


@dataclass(frozen=True)
class Trained:
    """A trained segment.

    Attributes:
        seconds: training time in seconds.
        predictions: the predictions of the held-out images.
    """

    seconds: float
    predictions: HeldOutPredictions


@dataclass(frozen=True)
class Failed:
    """The end of work that failed: `kind` is "input" (InputError), "diverged" (FloatingPointError) or "lost" (anything else)."""

    kind: str
    text: str


Message = Ready | LogLine | Trained | Failed


def send(message: Any, pipe: IO[bytes]) -> None:
    """Writes a message."""
    pickle.dump(message, pipe)
    pipe.flush()


def main() -> None:
    """Takes a `Setup` and then an `Order` at a time from standard input until it ends, and answers with messages."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anything prints must not come between the messages
    host.tune_malloc()
    inbox: queue.SimpleQueue[Setup | Order] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, inbox), daemon=True).start()
    lock = threading.Lock()

    def answer(message: Message) -> None:
        with lock, suppress(BrokenPipeError):
            send(message, out)

    with signals_as_interrupts(), suppress(KeyboardInterrupt):  # SIGTERM: the last checkpoint is written first
        setup = inbox.get()
        assert isinstance(setup, Setup)
        if setup.cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, setup.cores)
        try:
            _work(setup, inbox, answer)
        except InputError as error:
            answer(Failed("input", str(error)))
        except Exception as error:  # of torch or a driver: the campaign starts another process
            answer(Failed("lost", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"))
    os._exit(0)  # Python's own end takes long, and aborts where a thread still reads standard input


def _receive(pipe: IO[bytes], inbox: queue.SimpleQueue[Setup | Order]) -> None:
    """Passes the messages on; when they end, the campaign has ended, and this process does so too."""
    with suppress(EOFError, OSError, pickle.UnpicklingError):
        while True:
            inbox.put(pickle.load(pipe))
    os._exit(0)


class _Forward(logging.Handler):
    """Sends the sentences of the log to the campaign."""

    def __init__(self, answer: Any) -> None:
        super().__init__(logging.INFO)
        self._answer = answer

    def emit(self, record: logging.LogRecord) -> None:
        self._answer(LogLine(record.levelno, record.getMessage()))


def _work(setup: Setup, inbox: queue.SimpleQueue[Setup | Order], answer: Any) -> None:
    """Decodes the images, then carries out orders for ever.

    Raises:
        InputError: the device or an image cannot be used.
    """
    import torch

    logger = logging.getLogger("foldfuse")
    logger.setLevel(logging.INFO)
    logger.addHandler(_Forward(answer))
    torch.set_num_threads(min(setup.threads, torch.get_num_threads()))
    compile_training_loops()
    images = ImageCache.load(setup.learnable.samples, longest=setup.longest)
    answer(Ready())
    with current_device(setup.device):
        _carry_out(setup, images, inbox, answer)


def _carry_out(setup: Setup, images: ImageCache, inbox: queue.SimpleQueue[Setup | Order], answer: Any) -> None:
    """Trains a segment for each order, for ever."""
    from foldfuse.campaign.execution.jobs import concat, predict_held_out, train_segment

    while True:
        order = inbox.get()
        assert isinstance(order, Order)
        dataset, val = setup.folds[order.fold]
        decoded = images.of(dataset.samples)
        if order.pseudo_labeled is not None:
            dataset, decoded = concat(dataset, decoded, order.pseudo_labeled)
        run = Run(order.folder)
        try:
            seconds = train_segment(
                run,
                dataset,
                order.seconds,
                images=decoded,
                state=run.load_checkpoint()[0],
                parent=Run(order.parent) if order.parent is not None else None,
                checkpoint_seconds=order.checkpoint_seconds,
                device=setup.device,
            )
            predicted = predict_held_out(run, val, order.state, device=setup.device)
        except FloatingPointError as error:
            answer(Failed("diverged", str(error)))
        else:
            answer(Trained(seconds, predicted))
