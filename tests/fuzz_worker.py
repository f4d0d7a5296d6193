"""A process that runs commands on the files of a job: in bounded memory, and killed where a command hangs.

`Worker.run` sends a job and returns what the command did. The process is started again after a kill.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import select
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

MEMORY = 2**30  # bytes that a command may take beside the imported packages
SECONDS = 60.0  # a command takes some milliseconds; a machine may be busy


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        status: the exit status; None where the command was killed.
        printed: standard output and error.
        traceback: the traceback of an exception that went through; "" for none.
        written: names of files that are new or changed.
    """

    status: int | None
    printed: str = ""
    traceback: str = ""
    written: tuple[str, ...] = ()


@dataclass
class Worker:
    """The process that runs the commands; it starts with the first job."""

    process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def run(self, files: Mapping[str, bytes], command: Sequence[str]) -> Outcome:
        """Runs `foldfuse` with the words of `command` in an empty folder that holds `files`."""
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        job = {"files": {name: base64.b64encode(content).decode() for name, content in files.items()}}
        stdin.write(json.dumps({**job, "command": list(command)}) + "\n")
        stdin.flush()
        if not select.select([stdout], [], [], SECONDS)[0]:
            self.close()
            return Outcome(None, traceback=f"killed after {SECONDS:g} s")
        answer = stdout.readline()
        if not answer:
            self.close()
            return Outcome(None, traceback="the process died")
        values = json.loads(answer)
        return Outcome(values["status"], values["printed"], values["traceback"], tuple(values["written"]))

    def close(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def _serve(jobs: IO[str], answers: IO[str]) -> None:
    import resource

    import foldfuse.commands.data
    import foldfuse.commands.fusion
    import foldfuse.commands.predictions
    import foldfuse.commands.report  # noqa: F401
    from foldfuse import cli

    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for line in jobs:
        job = json.loads(line)
        with tempfile.TemporaryDirectory() as folder:
            answer = _answer(cli.main, job, Path(folder))
            os.chdir("/")
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(main: Any, job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    for name, content in job["files"].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(base64.b64decode(content))
    os.chdir(folder)
    before = _contents(folder)
    printed, status, error = io.StringIO(), 1, ""
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            status = main(job["command"])
        except BaseException:
            error = traceback.format_exc()
    after = _contents(folder)
    written = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    return {"status": status, "printed": printed.getvalue(), "traceback": error, "written": written}


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed beside Python's streams must not mix with the answers
    _serve(sys.stdin, answers)
