"""A Ray cluster as the workers of a campaign: each of its nodes trains segments, and this process tells them which.

Nodes come and go. A node that is there has a worker, or as many as it has GPUs; what a lost one had in hand is given back to
the conductor as Lost, with the last checkpoint that came from it. No storage need be shared: pictures, weights and
checkpoints go through Ray's object store.
"""

from __future__ import annotations

import importlib
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from foldfuse.campaign.execution.jobs import Seen
from foldfuse.campaign.execution.ray_worker import Files, Order, Product, Worker, files_of, parcels, put, software
from foldfuse.campaign.execution.workers import Assignment, End, Lost
from foldfuse.campaign.task import Task
from foldfuse.errors import InputError
from foldfuse.formats.predictions import read_predictions
from foldfuse.inference.tta import View
from foldfuse.storage.ledger import Ledger
from foldfuse.storage.run import Run

KNOCK = 5.0  # seconds for a head node to answer
FIRST = 300.0  # seconds for a first worker to be ready, or half of the deadline where that is less
GOODBYE = 5.0  # seconds for workers to clean up
Place = tuple[str, int]  # (node, number of a worker on it)


@contextmanager
def joined(address: str) -> Iterator[None]:
    """While it lasts, this process is part of the Ray cluster at `address`, "auto" for the one of this machine.

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
        _knock(address)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray warns of what this already says
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
class _Hand:
    """A worker as it is seen from here.

    Attributes:
        place: where it runs.
        label: of its node, for people.
        actor: Ray's handle of it.
        coming: {what it has been asked: Ray's handle of the answer}, of "ready", "product" and "checkpoint".
        assignment: what it has in hand.
        ready: whether it can be given work.
        stage: of the ledger, that ends with the assignment.
    """

    place: Place
    label: str
    actor: Any
    coming: dict[str, Any]
    assignment: Assignment | None = None
    ready: bool = False
    stage: ExitStack = field(default_factory=ExitStack)


class Cluster:
    """The nodes of the cluster that this process has joined."""

    aside = True

    def __init__(self, task: Task, ledger: Ledger) -> None:
        self._ray, self._task, self._ledger = _ray(), task, ledger
        self._hands: list[_Hand] = []
        self._barred: set[str] = set()  # nodes that are of no use
        self._sent: tuple[Any, ...] | None = None  # what each worker is given first

    @property
    def capacity(self) -> int:
        """Workers that are ready; before there are any, places for them."""
        return sum(hand.ready for hand in self._hands) if self._sent else len(self._places())

    @property
    def busy(self) -> frozenset[str]:
        """Names of the segments under way."""
        return frozenset(hand.assignment.name for hand in self._hands if hand.assignment is not None)

    def prepare(self, longest: int) -> bool:
        """Send the pictures, the first time, and wait for the workers: for the first, then as long again for the others."""
        if self._sent is not None:
            return False
        with self._ledger.timed("send the pictures to the cluster", "setup"):
            datasets, sent = (self._task.train, self._task.held), self._ray.put
            pictures = [[sent(parcel) for parcel in parcels(dataset.samples)] for dataset in datasets]
            self._sent = (*map(sent, datasets), *pictures, longest)
            self._engage()
            began, patience = time.monotonic(), min(FIRST, self._ledger.deadline / 2)
            while not all(hand.ready for hand in self._hands) and time.monotonic() < began + patience:
                before = self.capacity
                self.ended(1.0)
                if self.capacity and not before:
                    patience = min(patience, 2 * (time.monotonic() - began))
        if not self.capacity:
            raise InputError(
                "--ray: no worker of the cluster became ready. Each needs all CPUs of its node to be free, and the same "
                "versions of foldfuse, torch and Python there as here; 'ray status' tells what is in use."
            )
        return True

    def begin(self, assignment: Assignment) -> None:
        """Send a segment to a worker that has nothing in hand."""
        hand = next(hand for hand in self._hands if hand.ready and hand.assignment is None)
        name, folder, parent = assignment.name, assignment.run.folder, assignment.parent
        hand.stage = ExitStack()
        hand.stage.enter_context(self._ledger.timed(f"train {name}", "train"))
        self._ledger.log(f"{name} is trained on {hand.label}.")
        order = Order(
            name=name,
            seconds=assignment.seconds,
            files=files_of(folder),
            parent=files_of(parent.folder, "checkpoint*.pt") if parent is not None else {},
            every=assignment.every,
            standing=assignment.standing,
            more=assignment.more,
            parcels=() if assignment.more is None else tuple(parcels(assignment.more.samples)),
        )
        hand.assignment = assignment
        hand.coming = {"product": hand.actor.work.remote(order), "checkpoint": hand.actor.checkpoint.remote(name)}

    def ended(self, wait: float) -> list[End]:
        """Take in what has come from the workers, and engage those of new nodes; the segments that have ended come back."""
        if self._sent is not None:
            self._engage()
        coming = [answer for hand in self._hands for answer in hand.coming.values()]
        if not coming:
            time.sleep(wait)
            return []
        self._ray.wait(coming, num_returns=1, timeout=wait)
        here = set(self._ray.wait(coming, num_returns=len(coming), timeout=0)[0])
        return [end for hand in list(self._hands) for end in self._heard(hand, here)]

    def close(self) -> None:
        """Dismiss all workers; what they have in hand stays as of its last checkpoint."""
        goodbyes = [hand.actor.close.remote() for hand in self._hands]
        if goodbyes:
            self._ray.wait(goodbyes, num_returns=len(goodbyes), timeout=GOODBYE)
        for hand in list(self._hands):
            self._dismiss(hand)

    def _heard(self, hand: _Hand, here: set[Any]) -> list[End]:
        """What those answers of a worker that are `here` say; the end of its segment, if it is that."""
        answers = {name: answer for name, answer in hand.coming.items() if answer in here}
        try:
            for name in [name for name in ("ready", "checkpoint", "product") if name in answers]:
                value = self._ray.get(answers[name])
                del hand.coming[name]
                if name == "ready":
                    self._welcome(hand, value)
                elif name == "checkpoint" and value is not None:
                    self._keep(hand, value)
                elif name == "product":
                    return [self._done(hand, value)]
        except self._ray.exceptions.RayError as error:
            return self._gone(hand, error)
        return []

    def _welcome(self, hand: _Hand, its: dict[str, str]) -> None:
        """Let a worker that has taken the pictures in be given work, if it runs the same software."""
        if its == software():
            hand.ready = True
            return
        differ = ", ".join(
            f"{name} {its[name]} instead of {own}" for name, own in software().items() if own != its[name]
        )
        self._bar(hand, f"it has {differ}")

    def _keep(self, hand: _Hand, files: Files) -> None:
        """Write a checkpoint to the segment's folder, and ask for the next."""
        assert hand.assignment is not None
        put(files, hand.assignment.run.folder)
        hand.coming["checkpoint"] = hand.actor.checkpoint.remote(hand.assignment.name)

    def _done(self, hand: _Hand, product: Product) -> End:
        """A trained segment, once its files are in its folder."""
        name, run = self._released(hand)
        put(product.files, run.folder)
        views = {
            View.parse(view): read_predictions(run.folder / f"held@{view}.parquet", self._task.held)
            for view in product.views
        }
        return End(name, product.seconds, Seen(views, product.cost))

    def _gone(self, hand: _Hand, error: Exception) -> list[End]:
        """What is to be told of a worker that is gone, or has failed; it is dismissed.

        Raises:
            InputError: it says what is wrong with the input.
        """
        cause = getattr(error, "cause", None)  # of what was raised there by our own code
        if isinstance(cause, InputError):
            raise InputError(f"{hand.label}: {cause}") from None
        ready, has_work = hand.ready, hand.assignment is not None
        if isinstance(cause, FloatingPointError) and has_work:
            return [End(self._released(hand)[0], error=FloatingPointError(str(cause)))]
        why = f"{type(cause).__name__}: {cause}" if cause is not None else type(error).__name__
        if cause is not None or not ready:
            self._bar(hand, why)
        else:
            self._dismiss(hand)
        if not has_work:
            return []
        name, run = self._released(hand)
        state, _ = run.load_checkpoint()
        lost = Lost(f"{hand.label} was lost ({why}).")
        return [End(name, state["seconds"] if state is not None else 0.0, error=lost)]

    def _released(self, hand: _Hand) -> tuple[str, Run]:
        """Name and run of what a worker had in hand; it has nothing now."""
        assert hand.assignment is not None
        name, run = hand.assignment.name, hand.assignment.run
        hand.assignment, hand.coming = None, {}
        hand.stage.close()
        return name, run

    def _bar(self, hand: _Hand, why: str) -> None:
        """Dismiss a worker, and use its node no more."""
        self._barred.add(hand.place[0])
        self._dismiss(hand)
        self._ledger.log(f"{hand.label} is not used: {why}.")

    def _dismiss(self, hand: _Hand) -> None:
        self._hands.remove(hand)
        hand.stage.close()
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(hand.actor)

    def _places(self) -> dict[Place, tuple[str, float, float]]:
        """{place of a worker: label of its node, CPUs and GPUs of the worker} on the nodes that are there now."""
        places: dict[Place, tuple[str, float, float]] = {}
        for node in self._ray.nodes():
            has, key = node["Resources"], node["NodeID"]
            if not node["Alive"] or has.get("CPU", 0) < 1 or key in self._barred:
                continue
            gpus = int(has.get("GPU", 0))
            number = max(1, min(gpus, int(has["CPU"])))
            for i in range(number):
                label = f"node {node['NodeManagerHostname']} ({key[:8]})"
                places[key, i] = label, float(int(has["CPU"]) // number), float(min(gpus, 1))
        return places

    def _engage(self) -> None:
        """Start a worker at each place that has none, and give it the pictures; it becomes ready in its own time."""
        taken = {hand.place for hand in self._hands}
        bound = importlib.import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
        for place, (label, cpus, gpus) in self._places().items():
            if place in taken:
                continue
            actor = (
                self._ray.remote(Worker)
                .options(
                    num_cpus=cpus,
                    num_gpus=gpus,
                    max_concurrency=3,  # `work`, `checkpoint` beside it, and `close` at any time
                    scheduling_strategy=bound(place[0], soft=False),
                )
                .remote()
            )
            assert self._sent is not None
            self._hands.append(_Hand(place, label, actor, {"ready": actor.prepare.remote(*self._sent)}))


def _ray() -> Any:
    """Ray. Raises InputError where it is not installed."""
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise InputError("--ray: Ray is not installed. Install it: pip install foldfuse[ray]") from None


def _knock(address: str) -> None:
    """Raise InputError unless somebody answers at HOST:PORT; Ray itself would try for a minute."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"--ray is auto or HOST:PORT, such as 10.0.0.1:6379; got {address!r}.")
    try:
        socket.create_connection((host, int(port)), timeout=KNOCK).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--ray {address}: nobody answers there ({error}). Start a cluster with 'ray start --head --port {port}' on {host}."
        ) from None
