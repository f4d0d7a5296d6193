"""`python -m foldfuse` is the command line."""

import subprocess
import sys


def test_module_runs_the_command_line():
    done = subprocess.run([sys.executable, "-m", "foldfuse", "recipes"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "efficientdet_lite0" in done.stdout


def test_module_hands_on_the_exit_status():
    done = subprocess.run(
        [sys.executable, "-m", "foldfuse", "check", "nowhere"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
