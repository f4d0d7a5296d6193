"""The live view of a campaign: its clock, its score, its segments and what is done now, in some lines that renew themselves.

All of it is read from the ledger, so that a campaign is seen alike by the process that carries it out, and by
`foldfuse watch` in another terminal. Notes are printed above the view and stay.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from foldfuse.errors import InputError
from foldfuse.storage import ledger
from foldfuse.system.durations import format_duration
from foldfuse.system.progress import Progress, progress_on

RENEWED = 1.0  # times a second; drawing takes some milliseconds of a core that trains
QUIET = 10.0  # seconds without a heartbeat after which nobody seems to be at work
_WORDS = {"running": "under way", "trained": "trained", "done": "done", "failed": "left out"}
_COLOURS = {"running": "bold cyan", "done": "green", "trained": "green", "failed": "red"}


@dataclass
class Work:
    """What is done at this moment, and how much of it, 0..1; `text` is "" while that is not known."""

    text: str = ""
    share: float = 0.0


@dataclass(frozen=True)
class ViewScreen:
    """A screen of `progress` whose bars become the line of the view that says what is done now."""

    console: Console
    work: Work

    @contextmanager
    def progress_bar(self, text: str) -> Iterator[Progress]:
        """While it lasts, this is what is done."""
        before = replace(self.work)
        self.work.text, self.work.share = text, 0.0
        try:
            yield self._tell
        finally:
            self.work.text, self.work.share = before.text, before.share

    def _tell(self, share: float) -> None:
        self.work.share = share


class Latest:
    """The view as it is now, each time it is drawn; while the ledger cannot be read it stays what it was."""

    def __init__(self, folder: Path, work: Work) -> None:
        self.told: Mapping[str, Any] = {}
        self._folder, self._work = folder, work

    def look(self) -> None:
        """Read the ledger anew."""
        self.told = ledger.snapshot(self._folder)

    def __rich__(self) -> RenderableType:
        with suppress(InputError):  # for example while the folder of a campaign that was refused is taken away
            self.look()
        return view(self.told, self._work)


@contextmanager
def live(folder: Path, *, console: Console | None = None) -> Iterator[None]:
    """While it lasts, the campaign in `folder` is shown on standard error, where that is a terminal."""
    console = console or Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield
        return
    work = Work()
    shown = Live(Latest(folder, work), console=console, refresh_per_second=RENEWED, redirect_stdout=False)
    with shown, progress_on(ViewScreen(console, work)):
        yield


def watch(folder: Path) -> None:
    """Show a campaign that another process carries out, until it ends; without a terminal, show it once.

    Args:
        folder: of the campaign.

    Raises:
        InputError: it holds none, or no process works on it any more.
    """
    if not (Path(folder) / ledger.NAME).is_file():
        raise InputError(f"{folder}: holds no campaign that has begun. Give the folder that --out named.")
    latest, console = Latest(Path(folder), Work()), Console()
    latest.look()
    if not console.is_terminal or latest.told.get("state") != "running":
        console.print(latest)
        return
    notes, beat, moved = len(_notes(latest)), latest.told.get("seconds_used"), time.monotonic()
    with Live(latest, console=console, auto_refresh=False) as shown:
        while latest.told.get("state") == "running":
            time.sleep(1 / RENEWED)
            shown.refresh()
            for note in _notes(latest)[notes:]:
                console.print(note, markup=False)
            notes = len(_notes(latest))
            if latest.told.get("seconds_used") != beat:
                beat, moved = latest.told.get("seconds_used"), time.monotonic()
            if time.monotonic() - moved > QUIET:
                break
    if latest.told.get("state") == "running":
        raise InputError(
            f"{folder}: no process has worked on it for {format_duration(time.monotonic() - moved)}. "
            f"Go on with: foldfuse campaign --resume {folder}"
        )


def _notes(latest: Latest) -> list[str]:
    return list(latest.told.get("notes", ()))


def view(told: Mapping[str, Any], work: Work) -> RenderableType:
    """The view of what the ledger tells (see `ledger.snapshot`), and of the work that is done now."""
    if not told:
        return Text("")
    return Group(Rule(style="dim"), _clock(told), _score(told), _now(told, work), _segments(told))


def _clock(told: Mapping[str, Any]) -> RenderableType:
    """The time used and left, as words and a bar."""
    used, deadline = float(told.get("seconds_used") or 0.0), float(told.get("deadline_seconds") or 0.0)
    left, state = deadline - used, told.get("state", "running")
    words = f"{format_duration(used)} of {format_duration(deadline)}"
    after = f"{format_duration(left)} left" if left >= 0 else f"{format_duration(-left)} over"
    line = Table.grid(padding=(0, 1), expand=True)
    line.add_column(no_wrap=True)
    line.add_column(ratio=1)
    line.add_column(no_wrap=True, justify="right")
    bar = ProgressBar(total=max(deadline, 1.0), completed=min(used, deadline))
    line.add_row(f"[bold]{words}[/bold]", bar, after if state == "running" else str(state))
    return line


def _score(told: Mapping[str, Any]) -> RenderableType:
    """What would be submitted if all ended now."""
    fused, members = told.get("fused"), list(told.get("members", ()))
    if not fused:
        return Text("no submission yet", style="dim")
    alone = ""
    if members:
        best = max(members, key=lambda member: float(member.get("ap50") or 0.0))
        alone = f"; best member {escape(str(best.get('name')))} {_three(best.get('ap50'))}"
    metric = str(fused.get("metric", "ap50"))
    chosen = "" if metric in ("ap50", "ap") else f"{escape(metric.upper())} {_three(fused.get('value'))}, "
    return Text.from_markup(
        f"[bold green]{chosen}AP50 {_three(fused.get('ap50'))}[/bold green] out-of-fold, AP {_three(fused.get('ap'))}: "
        f"submission {told.get('submissions', 1)}{alone}"
    )


def _now(told: Mapping[str, Any], work: Work) -> RenderableType:
    """What is done at this moment: as it says itself, else the stretch of the timeline that has no end yet."""
    if told.get("state") != "running":
        return Text("")
    text, share = work.text, work.share
    if not text:
        under_way = [part for part in told.get("timeline", ()) if part.get("end") is None]
        if not under_way:
            return Text("")
        text, share = str(under_way[-1]["name"]), _trained(told, under_way[-1])
    line = Table.grid(padding=(0, 1), expand=True)
    line.add_column(no_wrap=True)
    line.add_column(ratio=1)
    line.add_column(no_wrap=True, justify="right")
    known = share > 0
    bar = ProgressBar(total=1.0, completed=min(1.0, share), pulse=False)
    line.add_row(f"now: {escape(text)}", bar if known else "", f"{share:.0%}" if known else "")
    return line


def _trained(told: Mapping[str, Any], part: Mapping[str, Any]) -> float:
    """The share of a stretch that is over, where it is the training of a segment with a budget; else 0."""
    row = next((r for r in told.get("segments", ()) if f"train {r['name']}" == part["name"]), None)
    if row is None or not row["budget"]:
        return 0.0
    here = float(told.get("seconds_used") or 0.0) - float(part["start"])
    return min(1.0, (float(row["seconds"]) + here) / float(row["budget"]))


def _segments(told: Mapping[str, Any]) -> RenderableType:
    """A line for each segment: those that the ledger knows, then those that are planned."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("segment", overflow="ellipsis")  # the one that gives way where the terminal is narrow
    for head in ("px", "state", "time", "AP50", "AP", "weight", "adds"):
        table.add_column(head, justify="left" if head == "state" else "right", no_wrap=True)
    rows = {row["name"]: row for row in told.get("segments", ())}
    planned = {part["name"]: part for part in (told.get("plan") or {}).get("segments", ())}
    for name in {**rows, **planned}:
        row, part = rows.get(name), planned.get(name, {})
        if row is None:
            cells = (str(part.get("image_size", "")), "planned", f"~{_minutes(part.get('seconds') or 0.0)}")
            table.add_row(escape(name), *cells, "", "", "", "", style="dim")
            continue
        state, result = str(row["state"]), row["result"]
        word, style = _WORDS.get(state, state), _COLOURS.get(state, "")
        if name in (told.get("ranking") or ()):
            word = "promoted"
        table.add_row(
            Text(name),
            str(row["recipe"].get("image_size", "")),
            Text(word, style=style),
            _minutes(row["seconds"] if state != "running" else row["budget"]),
            _three(result.get("ap50")),
            _three(result.get("ap")),
            "" if result.get("weight") is None else f"{result['weight']:.2f}",
            "" if result.get("adds") is None else f"{result['adds']:+.3f}",
        )
    return table


def _minutes(seconds: float) -> str:
    """Such as 2:05; of hours, 1:02:05."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def _three(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else ""
