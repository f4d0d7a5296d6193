"""Prefetching: threads work on the next group of items while the caller uses the results of one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from foldfuse.system.host import usable_cores

MAX_THREADS = 8  # that decode images: more wait for the disk, and for one another

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetched(groups: Sequence[Sequence[Item]], work: Callable[[Item], Result]) -> Generator[list[Result], None, None]:
    """The results of each group in turn, in the order of its items; closing it ends the threads.

    Args:
        groups: the items, such as the images of one batch each.
        work: makes the result of an item; what it raises is raised here, when its group is reached.
    """
    pool = ThreadPoolExecutor(min(MAX_THREADS, max(2, usable_cores())), thread_name_prefix="prefetch")

    def begin(position: int) -> list[Future[Result]]:
        return [pool.submit(work, item) for item in groups[position]] if position < len(groups) else []

    try:
        coming = begin(0)
        for position in range(len(groups)):
            current, coming = coming, begin(position + 1)
            yield [future.result() for future in current]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
