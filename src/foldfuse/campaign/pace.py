"""The pace of a campaign on a machine that others use too: threads are chosen anew, and a segment in training is planned anew."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from foldfuse.campaign import constants as c
from foldfuse.campaign.planning.allocation import affordable_views
from foldfuse.campaign.planning.slack import replanned_seconds
from foldfuse.campaign.planning.state import CampaignState
from foldfuse.errors import counted
from foldfuse.storage.ledger import Ledger
from foldfuse.system.device import choose_device
from foldfuse.system.durations import format_duration
from foldfuse.system.host import usable_cores
from foldfuse.training import threads
from foldfuse.training.budget import Budget
from foldfuse.training.throughput import Throughput


def settle_threads(device: str, ledger: Ledger, *, max_age: float = c.THREADS_SECONDS) -> bool:
    """Chooses the number of threads of a network on a CPU, says so where it changes, and returns whether it did.

    Args:
        device: as `--device` takes it.
        ledger: gets the sentence.
        max_age: seconds; a choice that is not older stays.
    """
    if choose_device(device) != "cpu":
        return False
    before, after = threads.choose_threads(max_age=max_age)
    if before == after:
        return False
    reason = "other work takes the cores" if after < before else "the cores are free again"
    verb = "computes" if after == 1 else "compute"
    ledger.log(f"{counted(after, 'thread').capitalize()} {verb} instead of {before}: {reason}.")
    return True


@dataclass
class SegmentWatch:
    """Watches the steps of a segment in training; where they become slower or faster, threads and time are chosen anew.

    Attributes:
        name: the name of the segment.
        state: the state of the campaign at the start of the training.
        budget: of the training; its seconds are changed.
        ledger: the ledger of the campaign.
        device: as `--device` takes it.
        clock: seconds, from any start.
    """

    name: str
    state: CampaignState
    budget: Budget
    ledger: Ledger
    device: str
    clock: Callable[[], float] = time.monotonic
    _throughput: Throughput = field(default_factory=Throughput)
    _last: float | None = None
    _settled: float = 0.0

    def after_step(self) -> None:
        """Looks at the time of the step that has just ended."""
        now = self.clock()
        seconds, self._last = None if self._last is None else now - self._last, now
        if seconds is None:
            self._settled = now
            return
        changed = self._throughput.add(seconds)
        fewer = threads.current() < threads.most_threads() and now - self._settled >= c.RETRY_THREADS_SECONDS
        if not changed and not fewer:
            return
        if settle_threads(self.device, self.ledger, max_age=0.0):
            self._throughput.restart()
        self._settled = self._last = self.clock()
        if changed:
            self._plan_anew()

    def _plan_anew(self) -> None:
        """Plans the segment anew with the speed of now, and says so where its time changes."""
        slowdown, trained = max(1.0, self._throughput.slowdown), self.budget.elapsed()
        self.ledger.set(slowdown=round(slowdown, 3))
        records = tuple(
            replace(r, seconds=trained, budget=max(r.budget, trained + 1e-6)) if r.name == self.name else r
            for r in self.state.segments
        )
        state = replace(
            self.state, elapsed=self.ledger.elapsed, segments=records, slowdown=slowdown * self.state.slowdown
        )
        before, (after, num_views) = self.budget.seconds, replanned_seconds(state, self.name)
        fewer = num_views < len(affordable_views(self.state))
        self.ledger.set(
            max_views=num_views if fewer else self.state.max_views
        )  # all views again where the pace is back
        if abs(after - before) < max(1.0, c.MIN_REPLANNED_SHARE * before):
            return
        self.budget.seconds = after
        self.ledger.log(
            f"{self.name}: a step now takes {self._throughput.slowdown:.1f} times as long as at first, and the time is "
            f"planned anew. It trains for {format_duration(after)} instead of {format_duration(before)}."
        )


@dataclass(frozen=True)
class CoreUse:
    """Measures which share of the cores' time this process uses, from now on.

    Attributes:
        cores: number of cores that the process may use.
        wall, cpu: clocks, in seconds.
        begun: their readings at the start.
    """

    cores: int
    wall: Callable[[], float]
    cpu: Callable[[], float]
    begun: tuple[float, float]

    @staticmethod
    def start(
        *,
        cores: int | None = None,
        wall: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.process_time,
    ) -> CoreUse:
        """Begins to measure."""
        return CoreUse(usable_cores() if cores is None else cores, wall, cpu, (wall(), cpu()))

    @property
    def share(self) -> float:
        """The share so far, 0..1."""
        wall, cpu = self.wall() - self.begun[0], self.cpu() - self.begun[1]
        return round(cpu / max(1e-9, wall * self.cores), 3)
