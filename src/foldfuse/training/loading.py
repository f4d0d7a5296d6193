"""Loader: makes the batches of a training ahead of the loop and beside it.

A batch is a function of (seed, step) and of whether mosaics have ended, so who makes it, and when, changes nothing. The loop
says at which step mosaics end; batches that were made ahead for that step or a later one are thrown away and made anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from foldfuse.errors import InputError, shown
from foldfuse.system.host import usable_cores
from foldfuse.training.batches import BatchSource

Batch = tuple[Tensor, list[Any]]
THREADS_VARIABLE = "FOLDFUSE_LOADER_THREADS"
MAX_THREADS = 8  # that are chosen without being asked for


class Loader:
    """Makes the batches of the next steps in threads while the network computes; `open_loader` makes one.

    Args:
        batches: the batches of each step.
        device: where the network computes; for CUDA the images are put in pinned memory.
        shard: positions of each batch to make; all where None.
        mosaic_end: the step from which on there are no mosaics, where it is known already.
        threads: batches that are made at the same time, and ahead.
    """

    def __init__(
        self,
        batches: BatchSource,
        device: torch.device,
        *,
        shard: range | None = None,
        mosaic_end: int | None = None,
        threads: int = 1,
    ) -> None:
        self._batches, self._device, self._shard = batches, device, shard
        self._mosaic_end, self._ahead = mosaic_end, threads
        self._futures: dict[int, Future[Batch]] = {}
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="loader")

    def get(self, step: int) -> Batch:
        """(B, 3, H, W) uint8 in channels-last layout, and B targets; waits until they are made.

        The loop asks for consecutive steps. Another step, or the same once more, is made when it is asked for.

        Raises:
            InputError: an image cannot be decoded.
        """
        future = self._future(step)
        batch = future.result()
        following = range(step + 1, step + 1 + self._ahead)
        self._keep(following)
        for s in following:
            self._future(s)
        return batch

    def end_mosaics(self, step: int) -> None:
        """From `step` on there are no mosaics. Say so before `get(step)`."""
        self._mosaic_end = step
        self._keep(range(step))

    def close(self) -> None:
        """Drop what was made ahead; return when nothing is being made any more."""
        self._keep(range(0))
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _future(self, step: int) -> Future[Batch]:
        if step not in self._futures:
            mosaic = self._mosaic_end is None or step < self._mosaic_end
            self._futures[step] = self._pool.submit(self._made, step, mosaic)
        return self._futures[step]

    def _keep(self, steps: range) -> None:
        """Drop the batches of all other steps."""
        for step in [step for step in self._futures if step not in steps]:
            self._futures.pop(step).cancel()

    def _made(self, step: int, mosaic: bool) -> Batch:
        images, targets = self._batches.batch(step, self._shard, mosaic=mosaic)
        if self._device.type == "cuda" and images.device.type == "cpu":
            images = images.pin_memory()
        return images, targets


@contextmanager
def open_loader(
    batches: BatchSource, device: torch.device, *, shard: range | None = None, mosaic_end: int | None = None
) -> Iterator[Loader]:
    """A loader of a training's batches, which is closed at the end of the block.

    Args:
        batches: the batches of each step.
        device: where the network computes.
        shard: positions of each batch to make; all where None.
        mosaic_end: the step from which on there are no mosaics, where it is known already.

    Raises:
        InputError: FOLDFUSE_LOADER_THREADS is not a number of threads.
    """
    loader = Loader(batches, device, shard=shard, mosaic_end=mosaic_end, threads=loader_threads(device))
    try:
        yield loader
    finally:
        loader.close()


def loader_threads(device: torch.device, *, processes: int | None = None) -> int:
    """Batches to make at the same time: FOLDFUSE_LOADER_THREADS in the environment; else one beside a network on the CPU.

    Beside a network on CUDA it is one less than the cores that this process may use. Processes that train side by side on one
    machine share the threads or the cores; each has one thread at least.

    Args:
        device: where the network computes.
        processes: processes that train side by side; None for torchrun's on this machine.

    Raises:
        InputError: the variable is not a whole number in 1..256.
    """
    if processes is None:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    text = os.environ.get(THREADS_VARIABLE)
    if text is not None:
        if not text.isdecimal() or not 1 <= int(text) <= 256:
            raise InputError(f"{THREADS_VARIABLE} is {shown(text)}, and must be a whole number in 1..256.")
        return max(1, int(text) // processes)
    if device.type != "cuda":
        return 1
    return max(1, min(MAX_THREADS, usable_cores() // processes - 1))
