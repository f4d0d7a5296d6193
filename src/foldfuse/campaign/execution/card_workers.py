"""One process for each card of this machine as the workers of a campaign: they train segments side by side.

The processes see the campaign's folder, so checkpoints and logs lie where they belong from the start. The segment of a lost
process goes back to the runner as WorkerLost, and another process takes its place. This process keeps the ledger, searches the
ensemble and predicts the test images, on the first card.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import foldfuse
from foldfuse.campaign import constants as c
from foldfuse.campaign.execution import card_process
from foldfuse.campaign.execution.card_process import Failed, LogLine, Message, Order, Ready, Setup, Trained, send
from foldfuse.campaign.execution.workers import AsyncWorker, SegmentJob, SegmentResult, lost_result
from foldfuse.campaign.task import Task
from foldfuse.errors import InputError
from foldfuse.storage.ledger import Ledger
from foldfuse.system.host import usable_cores
from foldfuse.training.loading import THREADS_VARIABLE, loader_threads

# Ctrl-C reaches all processes of a terminal; the campaign decides, so these ignore it from their first moment on.
PROGRAM = (
    f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); from {card_process.__name__} import main; main()"
)
PACKAGES = Path(foldfuse.__file__).parents[1]  # where Python finds this package

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class CardWorker(AsyncWorker):
    """A process on a card, whose device is its label.

    Attributes:
        slot: position of its device among the campaign's.
        process: the process.
        reader: the thread that receives its answers.
    """

    slot: int
    process: subprocess.Popen[bytes]
    reader: threading.Thread | None = None


class CardWorkers:
    """The cards of this machine, each with a process of its own.

    Args:
        task: data and settings of the campaign.
        ledger: its ledger.
        devices: a device for each process, such as ("cuda:0", "cuda:1").
    """

    is_async = True

    def __init__(self, task: Task, ledger: Ledger, devices: Sequence[str]) -> None:
        self._task, self._ledger, self._devices = task, ledger, tuple(devices)
        self._workers: list[CardWorker] = []
        self._losses = [0] * len(self._devices)  # of each device
        self._longest: int | None = None
        self._answers: queue.SimpleQueue[tuple[CardWorker, Message | None]] = queue.SimpleQueue()

    @property
    def capacity(self) -> int:
        """Number of processes that are ready; before they are started, the number of cards."""
        return len(self._devices) if self._longest is None else sum(worker.ready for worker in self._workers)

    @property
    def busy(self) -> frozenset[str]:
        """Names of the segments in training."""
        return frozenset(worker.job.name for worker in self._workers if worker.job is not None)

    def prepare(self, longest: int) -> bool:
        """Starts the processes at the first call, and waits until they have decoded the images."""
        if self._longest is not None:
            return False
        with self._ledger.timed(f"decode the images for {len(self._devices)} cards", "setup"):
            self._longest = longest
            for slot in range(len(self._devices)):
                self._start_process(slot)
            patience = time.monotonic() + min(c.FIRST_WORKER_SECONDS, self._ledger.deadline / 2)
            while not all(worker.ready for worker in self._workers) and time.monotonic() < patience:
                self.finished(c.POLL_SECONDS)
        if not self.capacity:
            raise InputError(
                f"no process on {', '.join(self._devices)} became ready in time. Take --device {self._devices[0]}, which "
                "trains in one process."
            )
        return True

    def start(self, job: SegmentJob) -> None:
        """Sends a job to an idle process."""
        worker = next(worker for worker in self._workers if worker.ready and worker.job is None)
        worker.take(job, self._ledger)
        order = Order(
            folder=job.run.folder.resolve(),
            fold=job.fold,
            seconds=job.seconds,
            parent=job.parent.folder.resolve() if job.parent is not None else None,
            checkpoint_seconds=job.checkpoint_seconds,
            state=job.state,
            pseudo_labeled=job.pseudo_labeled,
        )
        self._send(worker, order)

    def finished(self, wait: float) -> list[SegmentResult]:
        """Handles the answers of the processes, starts others in the place of lost ones, and returns the results.

        Raises:
            InputError: a process found a mistake in the input, or none can be kept running.
        """
        results: list[SegmentResult] = []
        end = time.monotonic() + wait
        while not results:
            try:
                worker, message = self._answers.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                break
            results += self._handle(worker, message)
        return results

    def close(self) -> None:
        """Ends all processes; their segments stay as of the checkpoint that they write before."""
        for worker in self._workers:
            worker.process.terminate()
        end = time.monotonic() + c.CLOSE_SECONDS
        for worker in self._workers:
            try:
                worker.process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            self._forget(worker)
        self._workers.clear()

    def _handle(self, worker: CardWorker, message: Message | None) -> list[SegmentResult]:
        """Handles an answer; None says that the process has ended."""
        if worker not in self._workers:
            return []  # its end, after the loss was handled
        if isinstance(message, LogLine):
            prefix = f"{worker.job.name}: " if worker.job is not None else ""
            logger.log(message.level, "%s%s", prefix, message.text)
            return []
        if isinstance(message, Ready):
            worker.ready = True
            return []
        if isinstance(message, Trained):
            return [SegmentResult(worker.release().name, message.seconds, message.predictions)]
        if isinstance(message, Failed) and message.kind == "diverged":
            return [SegmentResult(worker.release().name, error=FloatingPointError(message.text))]
        if isinstance(message, Failed) and message.kind == "input":
            raise InputError(message.text)
        reason = message.text if isinstance(message, Failed) else f"exit status {worker.process.wait()}"
        return self._replace(worker, reason)

    def _replace(self, worker: CardWorker, reason: str) -> list[SegmentResult]:
        """Starts another process in the place of a lost one, unless too many were lost; returns the result of its job if any."""
        self._workers.remove(worker)
        worker.process.kill()
        worker.process.wait()
        self._forget(worker)
        self._losses[worker.slot] += 1
        results = []
        if worker.job is not None:
            results.append(lost_result(worker.release(), f"its process on {worker.label} was lost ({reason})."))
        if self._losses[worker.slot] < c.MAX_ATTEMPTS:
            self._start_process(worker.slot)
        else:
            self._ledger.log(
                f"{worker.label} is not used any more: {c.MAX_ATTEMPTS} processes on it were lost ({reason})."
            )
        if not self._workers:
            raise InputError(f"no process on {', '.join(self._devices)} can be kept running: {reason}.")
        return results

    def _start_process(self, slot: int) -> None:
        """Starts a process, and sends it the images; it becomes ready later."""
        assert self._longest is not None
        device, count = self._devices[slot], len(self._devices)
        path = os.pathsep.join(filter(None, (str(PACKAGES), os.environ.get("PYTHONPATH"))))
        loaders = loader_threads(torch.device(device), processes=count)
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path, THREADS_VARIABLE: str(loaders)},
        )
        worker = CardWorker(device, slot, process)
        self._workers.append(worker)
        cores, threads = share_of_cores(slot, count), max(1, usable_cores() // count)
        folds = {fold: (self._task.train_in(fold), self._task.val_in(fold)) for fold in self._task.folds}
        setup = Setup(self._task.learnable, folds, self._longest, device, cores, threads)
        worker.reader = threading.Thread(target=self._receive, args=(worker, setup), daemon=True)
        worker.reader.start()

    def _receive(self, worker: CardWorker, setup: Setup) -> None:
        """Sends a process its images, which it takes once its modules are loaded; then passes its answers on until it ends."""
        self._send(worker, setup)
        assert worker.process.stdout is not None
        with worker.process.stdout as pipe, suppress(EOFError, OSError, pickle.UnpicklingError):
            while True:
                self._answers.put((worker, pickle.load(pipe)))
        self._answers.put((worker, None))

    def _send(self, worker: CardWorker, message: Any) -> None:
        assert worker.process.stdin is not None
        with suppress(BrokenPipeError):  # the process has ended, which `finished` handles
            send(message, worker.process.stdin)

    def _forget(self, worker: CardWorker) -> None:
        """Ends what belongs to a process that has ended."""
        worker.interval.close()
        assert worker.process.stdin is not None
        with suppress(OSError):
            worker.process.stdin.close()
        if worker.reader is not None:
            worker.reader.join()


def share_of_cores(index: int, count: int) -> tuple[int, ...]:
    """The cores for the process of this index among `count`; empty where there are fewer cores, or these cannot be told apart."""
    if not hasattr(os, "sched_getaffinity"):
        return ()
    cores = sorted(os.sched_getaffinity(0))
    each = len(cores) // count
    return tuple(cores[index * each : (index + 1) * each])
