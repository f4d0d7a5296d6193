"""What is printed: every name and value is shown as text, and none can act on the terminal.

A class, a file or a folder may be called anything. Escape sequences, control characters, marks that turn the direction of writing
and halves of characters are shown as the replacement character; rich's markup and emoji codes are text like any other.
All tables, lines, sentences and log lines pass through here: `console()` makes the consoles, `write` prints a line, and
`sentence` prepares an error or a log line, shortened where a value of thousands of characters is part of it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

MAX_WORD = 300  # characters of a word in a sentence, such as a path
MAX_SENTENCE = 2000
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and newline
    "\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"  # direction of writing; invisible
    "\u2028\u2029\ufff9-\ufffb\U000e0000-\U000e007f"  # line breaks, annotations, tags
    "\ud800-\udfff]"  # halves of characters
)


def clean(text: str) -> str:
    """A text that only shows itself: each unsafe character is the replacement character; tabs and newlines stay."""
    return _UNSAFE.sub(REPLACEMENT, text)


def sentence(text: str) -> str:
    """An error or a log line: clean, in one line, with overlong words and the middle of an overlong text left out."""
    one_line = clean(text.replace("\r\n", "\n")).rstrip("\n").replace("\n", " ").replace("\t", " ")
    shorter = re.sub(rf"\S{{{MAX_WORD + 1},}}", lambda match: _shortened(match[0], MAX_WORD), one_line)
    return _shortened(shorter, MAX_SENTENCE)


def write(text: object, *, to_stderr: bool = False) -> None:
    """Prints a text, cleaned, on standard output; or a sentence on standard error."""
    if to_stderr:
        print(sentence(str(text)), file=sys.stderr)
    else:
        print(clean(str(text)))


def console(*, stderr: bool = False, soft_wrap: bool = False, quiet: bool = False) -> Console:
    """A console that shows every text as it is: no markup, no emoji codes, no highlighting, nothing unsafe."""
    return _Console(stderr=stderr, soft_wrap=soft_wrap, quiet=quiet, markup=False, emoji=False, highlight=False)


@contextmanager
def printable_streams() -> Iterator[None]:
    """Lets standard output and error escape the characters that their encoding lacks, instead of failing, for the block."""
    streams: list[Any] = [stream for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            stream.reconfigure(errors=errors)


class _Console(Console):
    """Cleans the text of everything that it draws; rich's own colours and cursor movements are no text."""

    def render_str(self, text: str, **options: Any) -> Text:  # before a table measures it
        return super().render_str(clean(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or not _UNSAFE.search(segment.text):
                yield segment
            else:
                yield Segment(clean(segment.text), segment.style)


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}…{text[-limit // 4 :]}"
