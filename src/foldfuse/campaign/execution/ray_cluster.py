"""A Ray cluster as the workers of a campaign: its nodes train the segments.

Nodes come and go. Each node runs one worker, or one for each of its GPUs. The segment of a lost worker goes back to the runner
as WorkerLost, with the last checkpoint that the worker sent. Nodes need no shared storage: images, weights and checkpoints
travel through Ray's object store.
"""

from __future__ import annotations

import importlib
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from foldfuse.campaign import constants as c
from foldfuse.campaign.execution.jobs import HeldOutPredictions
from foldfuse.campaign.execution.ray_worker import (
    Files,
    JobResult,
    JobSpec,
    Worker,
    image_chunks,
    read_files,
    versions,
    write_files,
)
from foldfuse.campaign.execution.workers import AsyncWorker, SegmentJob, SegmentResult, lost_result
from foldfuse.campaign.task import VAL, Task, predictions_path
from foldfuse.errors import InputError
from foldfuse.formats.predictions import read_predictions
from foldfuse.inference.tta import View
from foldfuse.storage.ledger import Ledger

Slot = tuple[str, int]  # (node id, number of a worker on the node)


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Joins the Ray cluster at `address` for the block; "auto" is the cluster of this machine.

    Raises:
        InputError: Ray is not installed, or there is no such cluster.
    """
    ray = _ray()
    if address.startswith("ray://"):
        raise InputError(
            f"--ray {address}: Ray's client is not supported. Run this on a node of the cluster, which this machine becomes by "
            "'ray start --address HOST:PORT --num-cpus 0', with --ray auto."
        )
    if address != "auto":
        _check_reachable(address)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray warns about this, its own default
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"--ray {address}: no Ray cluster can be joined ({str(error).splitlines()[0]}). Start one with 'ray start --head', "
            "and further nodes with 'ray start --address HOST:PORT'."
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(eq=False)
class WorkerHandle(AsyncWorker):
    """A worker of the cluster, whose label names its node.

    Attributes:
        slot: node and number.
        actor: Ray's handle of the worker.
        pending: {request: Ray's handle of the answer}, for "ready", "result" and "checkpoint".
    """

    slot: Slot
    actor: Any
    pending: dict[str, Any]


class RayCluster:
    """The nodes of the cluster that this process has joined."""

    is_async = True

    def __init__(self, task: Task, ledger: Ledger) -> None:
        self._ray, self._task, self._ledger = _ray(), task, ledger
        self._workers: list[WorkerHandle] = []
        # Ray shows each worker its own cards alone, so the driver's number of a card means nothing to it.
        self._device = task.device.partition(":")[0]
        self._excluded: set[str] = set()  # ids of nodes that cannot be used
        self._setup: tuple[Any, ...] | None = None  # arguments of each worker's `prepare`, in Ray's object store

    @property
    def capacity(self) -> int:
        """Number of workers that are ready; before the first worker starts, the number of slots for workers."""
        return sum(worker.ready for worker in self._workers) if self._setup else len(self._slots())

    @property
    def busy(self) -> frozenset[str]:
        """Names of the segments in training."""
        return frozenset(worker.job.name for worker in self._workers if worker.job is not None)

    def prepare(self, longest: int) -> bool:
        """Sends the images at the first call, waits for a first worker, then waits as long again for the other workers."""
        if self._setup is not None:
            return False
        with self._ledger.timed("send the images to the cluster", "setup"):
            labeled, put = self._task.labeled, self._ray.put
            position = {sample.id: i for i, sample in enumerate(labeled.samples)}
            folds = {
                fold: tuple(
                    [position[i] for i in part.image_ids]
                    for part in (self._task.train_in(fold), self._task.val_in(fold))
                )
                for fold in self._task.folds
            }
            self._setup = put(labeled), [put(chunk) for chunk in image_chunks(labeled.samples)], put(folds), longest
            self._start_workers()
            start, patience = time.monotonic(), min(c.FIRST_WORKER_SECONDS, self._ledger.deadline / 2)
            while not all(worker.ready for worker in self._workers) and time.monotonic() < start + patience:
                before = self.capacity
                self.finished(1.0)
                if self.capacity and not before:
                    patience = min(patience, 2 * (time.monotonic() - start))
        if not self.capacity:
            raise InputError(
                "--ray: no worker of the cluster became ready. Each needs all CPUs of its node to be free, and the same "
                "versions of foldfuse, torch and Python there as here; 'ray status' shows the resources in use."
            )
        return True

    def start(self, job: SegmentJob) -> None:
        """Sends a job to an idle worker."""
        worker = next(worker for worker in self._workers if worker.ready and worker.job is None)
        worker.take(job, self._ledger)
        extra = job.pseudo_labeled
        spec = JobSpec(
            name=job.name,
            fold=job.fold,
            seconds=job.seconds,
            files=read_files(job.run.folder),
            parent=read_files(job.parent.folder, "checkpoint*.pt") if job.parent is not None else {},
            checkpoint_seconds=job.checkpoint_seconds,
            state=job.state,
            device=self._device,
            pseudo_labeled=extra,
            chunks=() if extra is None else tuple(image_chunks(extra.samples)),
        )
        worker.pending = {
            "result": worker.actor.work.remote(spec),
            "checkpoint": worker.actor.next_checkpoint.remote(job.name),
        }

    def finished(self, wait: float) -> list[SegmentResult]:
        """Handles the answers of the workers, starts workers on new nodes, and returns the results."""
        if self._setup is not None:
            self._start_workers()
        pending = [answer for worker in self._workers for answer in worker.pending.values()]
        if not pending:
            time.sleep(wait)
            return []
        self._ray.wait(pending, num_returns=1, timeout=wait)
        arrived = set(self._ray.wait(pending, num_returns=len(pending), timeout=0)[0])
        return [result for worker in list(self._workers) for result in self._handle_answers(worker, arrived)]

    def close(self) -> None:
        """Stops all workers; their segments stay as of the last checkpoint."""
        closing = [worker.actor.close.remote() for worker in self._workers]
        if closing:
            self._ray.wait(closing, num_returns=len(closing), timeout=c.CLOSE_SECONDS)
        for worker in list(self._workers):
            self._stop(worker)

    def _handle_answers(self, worker: WorkerHandle, arrived: set[Any]) -> list[SegmentResult]:
        """Handles the answers of a worker that have `arrived`, and returns the result of its job if the job has ended."""
        answers = {request: answer for request, answer in worker.pending.items() if answer in arrived}
        try:
            for request in [request for request in ("ready", "checkpoint", "result") if request in answers]:
                value = self._ray.get(answers[request])
                del worker.pending[request]
                if request == "ready":
                    self._check_versions(worker, value)
                elif request == "checkpoint" and value is not None:
                    self._save_checkpoint(worker, value)
                elif request == "result":
                    return [self._save_result(worker, value)]
        except self._ray.exceptions.RayError as error:
            return self._handle_failure(worker, error)
        return []

    def _check_versions(self, worker: WorkerHandle, theirs: dict[str, str]) -> None:
        """Makes a prepared worker ready if it runs the same software as this process."""
        if theirs == versions():
            worker.ready = True
            return
        differ = (f"{name} {theirs[name]} instead of {own}" for name, own in versions().items() if own != theirs[name])
        self._exclude_node(worker, f"it has {', '.join(differ)}")

    def _save_checkpoint(self, worker: WorkerHandle, files: Files) -> None:
        """Writes a checkpoint to the segment's folder, and requests the next one."""
        assert worker.job is not None
        write_files(files, worker.job.run.folder)
        worker.pending["checkpoint"] = worker.actor.next_checkpoint.remote(worker.job.name)

    def _save_result(self, worker: WorkerHandle, result: JobResult) -> SegmentResult:
        """Writes the files of a trained segment to its folder, and returns the result."""
        job = self._release(worker)
        write_files(result.files, job.run.folder)
        views = {
            View.parse(view): read_predictions(predictions_path(job.run.folder, VAL, view), self._task.val_in(job.fold))
            for view in result.views
        }
        return SegmentResult(job.name, result.seconds, HeldOutPredictions(views, result.image_seconds))

    def _handle_failure(self, worker: WorkerHandle, error: Exception) -> list[SegmentResult]:
        """Stops a worker that is lost or has failed, and returns the result of its job if it had one.

        Raises:
            InputError: the worker found a mistake in the input.
        """
        cause = getattr(error, "cause", None)  # the exception of our own code on the node
        if isinstance(cause, InputError):
            raise InputError(f"{worker.label}: {cause}") from None
        ready, has_job = worker.ready, worker.job is not None
        if isinstance(cause, FloatingPointError) and has_job:
            return [SegmentResult(self._release(worker).name, error=FloatingPointError(str(cause)))]
        reason = f"{type(cause).__name__}: {cause}" if cause is not None else type(error).__name__
        if cause is not None or not ready:
            self._exclude_node(worker, reason)
        else:
            self._stop(worker)
        return [lost_result(self._release(worker), f"{worker.label} was lost ({reason}).")] if has_job else []

    def _release(self, worker: WorkerHandle) -> SegmentJob:
        """Takes the job from a worker, whose pending answers do not count any more, and returns it."""
        worker.pending = {}
        return worker.release()

    def _exclude_node(self, worker: WorkerHandle, reason: str) -> None:
        """Stops a worker, and starts none on its node any more."""
        self._excluded.add(worker.slot[0])
        self._stop(worker)
        self._ledger.log(f"{worker.label} is not used: {reason}.")

    def _stop(self, worker: WorkerHandle) -> None:
        self._workers.remove(worker)
        worker.interval.close()
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(worker.actor)

    def _slots(self) -> dict[Slot, tuple[str, float, float]]:
        """{slot: (label of its node, CPUs, GPUs)} on the nodes that are alive."""
        slots: dict[Slot, tuple[str, float, float]] = {}
        for node in self._ray.nodes():
            resources, node_id = node["Resources"], node["NodeID"]
            cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
            if self._device == "cpu":
                gpus = 0
            if not node["Alive"] or cpus < 1 or node_id in self._excluded or (self._device == "cuda" and not gpus):
                continue
            number = max(1, min(gpus, cpus))
            for i in range(number):
                label = f"node {node['NodeManagerHostname']} ({node_id[:8]})"
                slots[node_id, i] = label, float(cpus // number), float(min(gpus, 1))
        return slots

    def _start_workers(self) -> None:
        """Starts a worker in each free slot, and sends it the images; it becomes ready later."""
        taken = {worker.slot for worker in self._workers}
        on_node = importlib.import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
        for slot, (label, cpus, gpus) in self._slots().items():
            if slot in taken:
                continue
            actor = (
                self._ray.remote(Worker)
                .options(
                    num_cpus=cpus,
                    num_gpus=gpus,
                    max_concurrency=3,  # `work`, `next_checkpoint` beside it, and `close` at any time
                    scheduling_strategy=on_node(slot[0], soft=False),
                )
                .remote()
            )
            assert self._setup is not None
            self._workers.append(WorkerHandle(label, slot, actor, {"ready": actor.prepare.remote(*self._setup)}))


def _ray() -> Any:
    """The module `ray`. Raises InputError where it is not installed."""
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise InputError("--ray: Ray is not installed. Install it: pip install foldfuse[ray]") from None


def _check_reachable(address: str) -> None:
    """Raises InputError unless something answers at HOST:PORT; Ray itself would try for a minute."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"--ray is auto or HOST:PORT, such as 10.0.0.1:6379; got {address!r}.")
    try:
        socket.create_connection((host, int(port)), timeout=c.REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--ray {address}: nothing answers there ({error}). Start a cluster with 'ray start --head --port {port}' on {host}."
        ) from None
