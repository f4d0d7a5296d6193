"""Signals become one KeyboardInterrupt: at once, after the block, or after torch has loaded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from foldfuse.system.signals import deferred_interrupts, signals_as_interrupts

pty = pytest.importorskip("pty")  # Windows has neither SIGHUP nor terminals to close
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
LOADS_TORCH = """
import os, signal, sys, threading, time
from foldfuse.system.signals import signals_as_interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)
def send():
    while "torch._C" not in sys.modules:
        time.sleep(0.001)
    for _ in range(20):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.002)
threading.Thread(target=send, daemon=True).start()
try:
    with signals_as_interrupts():
        import torch
        loaded = torch.zeros(1)
        time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", loaded.numel(), flush=True)
    os._exit(130)
"""


@pytest.fixture(autouse=True)
def usual_handlers(monkeypatch):
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in SIGNALS[1:]:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_interrupts_and_the_old_handler_comes_back(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), signals_as_interrupts():
        signal.raise_signal(number)
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_deferred_signal_is_only_recorded(number):
    with signals_as_interrupts():
        with deferred_interrupts() as requested:
            assert not requested()
            signal.raise_signal(number)
            assert requested()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    with deferred_interrupts():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_signal_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with signals_as_interrupts(), deferred_interrupts() as requested:
        signal.raise_signal(signal.SIGHUP)
        assert not requested()


def test_an_interrupt_while_torch_loads_waits_until_it_has_loaded():
    done = subprocess.run([sys.executable, "-c", LOADS_TORCH], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("interrupted 1\n", 130), done.stderr


def test_after_a_hangup_printing_is_no_error(tmp_path):
    out = tmp_path / "after"
    script = (
        "import os, signal, time\n"
        "from foldfuse.system.signals import signals_as_interrupts\n"
        "try:\n"
        "    with signals_as_interrupts():\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    print('to nobody', flush=True)\n"
        f"    open({str(out)!r}, 'w').write('saved')\n"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", script])
    assert b"ready" in os.read(terminal, 100)
    os.close(terminal)  # the terminal is closed: SIGHUP
    deadline = time.monotonic() + 30
    while not out.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.waitpid(pid, 0)
    assert out.read_text() == "saved"
