"""The one place that decides which device networks run on, and that knows a device's memory and clock."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from foldfuse.errors import InputError

T = TypeVar("T")


def choose_device(name: str = "auto") -> str:
    """The device called `name`: "cpu", "cuda", "cuda:N" or "mps"; for "auto", "cuda" where torch finds a card, else "cpu".

    Raises:
        InputError: there is no such device, or torch cannot use the device here.
    """
    import torch  # an ONNX file predicts without it

    kind, _, index = name.partition(":")
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if cards else "cpu"
    if name == "cpu":
        return name
    if name == "mps":
        if torch.backends.mps.is_available():
            return name
        raise InputError("--device mps: torch finds no Apple GPU here. Take --device auto or --device cpu.")
    if kind != "cuda" or (index != "" and not index.isdecimal()):
        raise InputError(f"--device {name}: there is no such device. Expected auto, cpu, cuda, cuda:N or mps.")
    if int(index or 0) >= cards:
        found = f"{cards} CUDA device{'s' if cards > 1 else ''}" if cards else "no CUDA device"
        raise InputError(
            f"--device {name}: torch {torch.__version__} finds {found} here. Take --device auto or --device cpu."
        )
    return name


def devices_of(name: str = "auto") -> tuple[str, ...]:
    """The devices that may each train a network of its own at the same time: all cards for "auto" and "cuda", else the one.

    Raises:
        InputError: there is no such device, or torch cannot use the device here.
    """
    import torch

    chosen = choose_device(name)
    if chosen != "cuda" or torch.cuda.device_count() < 2:
        return (chosen,)
    return tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))


def card_names(name: str = "auto") -> tuple[str, ...]:
    """The names of the cards that `name` stands for, such as ("Tesla T4", "Tesla T4"); empty where it stands for none.

    Where no driver of a card is installed, torch is not loaded to find that out.

    Raises:
        InputError: `name` is a card that is not there.
    """
    if name in ("cpu", "mps") or (name == "auto" and not _may_have_card()):
        return ()
    import torch

    return tuple(torch.cuda.get_device_name(each) for each in devices_of(name) if each.startswith("cuda"))


def _may_have_card() -> bool:
    """Whether a driver of NVIDIA or AMD cards seems to be there; True where this cannot be found out quickly."""
    if not sys.platform.startswith("linux"):
        return sys.platform == "win32"
    return any(Path(path).exists() for path in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))


@contextmanager
def current_device(name: str) -> Iterator[None]:
    """A context in which torch allocates on card N where no card is named, for "cuda:N"; other devices change nothing.

    Pinned memory, for one, belongs to the current card.
    """
    if not name.startswith("cuda:"):
        yield
        return
    import torch

    with torch.cuda.device(name):
        yield


def synchronize(name: str) -> None:
    """Wait until a card has finished its work, which is asynchronous, so that a clock can be read."""
    if name.startswith("cuda"):
        import torch

        torch.cuda.synchronize(name)


def release_memory(name: str) -> None:
    """Give a card's memory that holds no tensor back, for networks of other sizes and for other processes."""
    if name.startswith("cuda"):
        import torch

        gc.collect()  # tensors in reference cycles
        torch.cuda.empty_cache()


def free_bytes(name: str) -> int | None:
    """Bytes that a card has for new tensors; None for a device whose memory is not its own, such as a CPU."""
    if not name.startswith("cuda"):
        return None
    import torch

    unused = torch.cuda.memory_reserved(name) - torch.cuda.memory_allocated(name)
    return int(torch.cuda.mem_get_info(name)[0]) + unused


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could not allocate memory. The error has a class of its own on CUDA; on a CPU only its message tells."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def in_halves(compute: Callable[[Any], Iterable[T]], batch: Any) -> list[T]:
    """The rows that `compute` gives for a batch: of all of it at once, else of its halves where the memory is too small.

    Args:
        compute: gives a row for each item of a batch.
        batch: (B, H, W, 3) images.

    Raises:
        InputError: the memory is too small for a single item.
    """
    try:
        return list(compute(batch))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # Not within `except`, where the error still holds the memory of the computation that failed.
    count = len(batch)
    if count == 1:
        height, width = batch.shape[1:3]
        raise InputError(
            f"the device's memory is too small for one image of {width} x {height} px. Take --device cpu, a smaller network or "
            "smaller images, or end other programs on the device."
        )
    release_memory("cuda" if _uses_card() else "cpu")
    return in_halves(compute, batch[: count // 2]) + in_halves(compute, batch[count // 2 :])


def _uses_card() -> bool:
    """Whether this process has computed on a card."""
    import torch

    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
