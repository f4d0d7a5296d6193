"""Signals become one KeyboardInterrupt: at once, after the block, or after torch has loaded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

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
        time.sleep(60)
except KeyboardInterrupt:  # perhaps before the name is bound
    print("interrupted", sys.modules["torch"].zeros(1).numel(), flush=True)
    os._exit(130)
"""


def in_process(script, *words):
    """Runs a script in a process of its own, since a signal that is not caught would end the tests."""
    usual = "".join(f"signal.signal(signal.{name}, signal.SIG_DFL)\n" for name in ("SIGTERM", "SIGHUP"))
    start = f"import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n{usual}{HELPERS}"
    command = [sys.executable, "-c", start + script, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("ok\n", 0), done.stderr


HELPERS = """
from foldfuse.system.signals import deferred_interrupts, signals_as_interrupts
def interrupts(number):
    try:
        signal.raise_signal(number)
    except KeyboardInterrupt:
        return True
    return False
"""
EACH = """
number = int(sys.argv[1])
before = signal.getsignal(number)
with signals_as_interrupts():
    assert interrupts(number)
assert signal.getsignal(number) == before
with signals_as_interrupts():
    with deferred_interrupts() as requested:
        assert not requested()
        assert not interrupts(number), "the first is recorded"
        assert requested()
    assert interrupts(number), "the handler of the block around it is back"
print("ok")
"""
SECOND = """
with deferred_interrupts() as requested:
    assert not interrupts(signal.SIGINT)
    assert interrupts(signal.SIGINT), "a second Ctrl-C ends the work at once"
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
print("ok")
"""
IGNORED = """
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
with signals_as_interrupts(), deferred_interrupts() as requested:
    assert not interrupts(signal.SIGHUP)
    assert not requested()
print("ok")
"""
OF_OTHERS = """
heard = []
signal.signal(signal.SIGINT, lambda *_: heard.append("theirs"))
with deferred_interrupts() as requested:
    assert not interrupts(signal.SIGINT)
    assert not requested()
assert heard == ["theirs"]
print("ok")
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_interrupts_and_a_deferred_one_is_only_recorded(number):
    in_process(EACH, int(number))


@pytest.mark.parametrize("script", [SECOND, IGNORED, OF_OTHERS], ids=["second", "ignored", "handler of others"])
def test_what_is_not_deferred(script):
    in_process(script)


def test_an_interrupt_while_torch_loads_waits_until_it_has_loaded():
    done = subprocess.run([sys.executable, "-c", LOADS_TORCH], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("interrupted 1\n", 130), done.stderr


def test_after_a_hangup_printing_is_no_error(tmp_path):
    out = tmp_path / "after"
    script = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # it may be ignored where the tests run
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
