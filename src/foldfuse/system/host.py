"""The machine: a malloc setting to be made before torch is loaded, usable cores, peak memory, and a description for reports."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

_CGROUPS = Path("/sys/fs/cgroup")  # in a container its own limits
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h


def tune_malloc() -> None:
    """Makes training on a CPU faster on glibc. Call it before torch is imported; later it does less.

    By default glibc returns large blocks to the kernel and fetches them again at every step; blocks that it keeps need no
    zeroing.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 256 * 2**20)


def usable_cores() -> int:
    """Number of cores that this process may use: those that it is bound to, or fewer where a container has a quota of CPU time.

    A quota of 2.5 cores counts as 3.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _cpu_quota() -> float | None:
    """The container's quota in cores, of version 2 of the kernel's cgroups or of version 1; None where there is none."""
    with suppress(OSError, ValueError):
        quota, period = (_CGROUPS / "cpu.max").read_text(encoding="ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota, period = (
            (_CGROUPS / f"cpu/cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period")
        )
        return int(quota) / int(period) if int(quota) > 0 else None
    return None


def peak_memory_mb() -> float | None:
    """Peak memory of this process in MB; None on systems that do not count it in Python's `resource` (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def describe(device: str = "cuda") -> dict[str, Any]:
    """The processor, cores and versions of this machine, and the name of a device where there is one, for reports."""
    import torch

    import foldfuse

    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "device": _device_name(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "foldfuse": foldfuse.__version__,
    }


def _device_name(device: str) -> str:
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device) if torch.cuda.is_available() else "cpu"
    return device


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
