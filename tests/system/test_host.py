"""The package works where the modules `resource` and `fcntl` do not exist, as on Windows; peak memory is then unknown."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import foldfuse
from foldfuse.system import host

WITHOUT_POSIX = "import sys\nsys.modules['resource'] = sys.modules['fcntl'] = None\n"


def test_every_module_can_be_imported_without_posix_modules():
    names = [
        name for _, name, _ in pkgutil.walk_packages(foldfuse.__path__, "foldfuse.") if not name.endswith("__main__")
    ]
    code = WITHOUT_POSIX + "".join(f"import {name}\n" for name in names)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_is_shown_without_posix_modules():
    code = WITHOUT_POSIX + "from foldfuse.cli import main\nsys.exit(main(['--help']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "campaign" in done.stdout


def test_peak_memory_is_unknown_without_the_module_that_counts_it(monkeypatch):
    if importlib.util.find_spec("resource"):
        assert host.peak_memory_mb() > 1
    monkeypatch.setitem(sys.modules, "resource", None)
    assert host.peak_memory_mb() is None


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "6400000 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
    ],
)
def test_a_quota_of_cpu_time_bounds_the_usable_cores(tmp_path, monkeypatch, files, expected):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="ascii")
    monkeypatch.setattr(host, "_CGROUPS", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert host.usable_cores() == expected
