"""Names and values are shown, whatever they hold, and never act on the terminal."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

import foldfuse
from foldfuse.system import printing
from foldfuse.system.progress import log_on_standard_error, progress_bar

PACKAGE = Path(foldfuse.__file__).parent
HOSTILE = "a\x1b[31m\x07[/][link=http://x]b[/link]:smile:{c}\u202e\ud800\x9b2J"


def test_a_clean_text_shows_every_character_that_is_safe() -> None:
    assert printing.clean("Müll 猫 🐈‍⬛ [/]\tx\n") == "Müll 猫 🐈‍⬛ [/]\tx\n"
    assert printing.clean(HOSTILE) == "a�[31m�[/][link=http://x]b[/link]:smile:{c}���2J"


def test_a_sentence_is_one_line_and_never_long() -> None:
    assert printing.sentence("a\nerror: b\r\n") == "a error: b"
    assert len(printing.sentence("x" * 5000)) < 300
    assert len(printing.sentence("x " * 5000)) < 2000
    path = "/" + "folder/" * 35 + "a.json"
    assert printing.sentence(f"{path}: is broken") == f"{path}: is broken"


def test_a_console_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE))
    console = printing.console()
    console.width = 120
    console.print(table)
    console.print(HOSTILE)
    out = capsys.readouterr().out
    assert out.count("[/][link=http://x]b[/link]:smile:{c}") == 5
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", out)


def test_the_log_and_the_bars_are_clean(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("foldfuse"), "propagate", False)  # pytest-xdist cannot send half a character
    with log_on_standard_error():
        logging.getLogger("foldfuse.data").warning("%s\nerror: spoofed", HOSTILE)
    with progress_bar(HOSTILE) as progress:
        progress(0.5)
    err = capsys.readouterr().err
    assert "\n" not in err.strip()
    assert "\x1b" not in err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_of_any_encoding_is_printed_to(encoding: str) -> None:
    program = (
        "from foldfuse.system import printing\n"
        "with printing.printable_streams():\n"
        "    printing.write('Müll 猫'); printing.console().print('Müll 猫'); printing.write('猫', to_stderr=True)\n"
    )
    environment = {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(PACKAGE.parent), "LANG": "C"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert (
        done.stdout.decode(encoding).split()
        == [*"Müll 猫".encode(encoding, "backslashreplace").decode(encoding).split()] * 2
    )


def test_streams_keep_their_own_errors_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with printing.printable_streams():
        print("ü")
    assert stream.errors == "strict"


def test_nothing_else_prints() -> None:
    lines = [
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent.name != "system"
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"(?<![.\w])(print\(|Console\()|sys\.std(out|err)\.write|rich\.markup|from_markup", line)
        and '"""' not in line
    ]
    assert not lines, "print through foldfuse.system.printing"
