"""The live view of a campaign in the terminal: its clock, score and segments, and the current work.

Everything is read from the ledger, so that the process of the campaign and `foldfuse watch` in another terminal show the same.
Log sentences are printed above the view and stay.
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
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from foldfuse.errors import InputError
from foldfuse.evaluation.custom_metric import metric_label
from foldfuse.reporting.score_records import FusedScore
from foldfuse.storage import ledger
from foldfuse.storage.ledger_file import check_facts
from foldfuse.system.durations import format_duration
from foldfuse.system.progress import Progress, progress_on
from foldfuse.system.records import from_plain_tolerantly

REFRESHES = 1.0  # a second; drawing takes some milliseconds of a core that trains
DEAD_SECONDS = 10.0  # without a heartbeat, after which the campaign's process seems to be gone
_WORDS = {"running": "training", "trained": "trained", "done": "done", "failed": "left out"}
_STYLES = {"running": "bold cyan", "done": "green", "trained": "green", "failed": "red"}


@dataclass
class CurrentWork:
    """The current work of this process, and the share that is done, 0..1; `text` is "" while that is unknown."""

    text: str = ""
    share: float = 0.0


@dataclass(frozen=True)
class LiveDisplay:
    """A ProgressDisplay that shows progress bars in the view's line on the current work."""

    console: Console
    work: CurrentWork

    @contextmanager
    def progress_bar(self, text: str) -> Iterator[Progress]:
        """Shows the progress of the block."""
        before = replace(self.work)
        self.work.text, self.work.share = text, 0.0
        try:
            yield self._set_share
        finally:
            self.work.text, self.work.share = before.text, before.share

    def _set_share(self, share: float) -> None:
        self.work.share = share


class LedgerView:
    """A view that reads the ledger each time it is drawn; while the ledger cannot be read, it stays as it was."""

    def __init__(self, folder: Path, work: CurrentWork) -> None:
        self.facts: Mapping[str, Any] = {}
        self._folder, self._work = folder, work

    def refresh(self) -> None:
        """Reads the ledger."""
        facts = ledger.snapshot(self._folder)
        check_facts(facts, self._folder / ledger.NAME)
        self.facts = facts

    def __rich__(self) -> RenderableType:
        with suppress(InputError):  # for example while a refused campaign removes its folder
            self.refresh()
        return render(self.facts, self._work)


@contextmanager
def live(folder: Path, *, console: Console | None) -> Iterator[None]:
    """Shows the campaign in `folder` on a console for the block, where there is one and it is a terminal."""
    if console is None or not console.is_terminal or console.is_dumb_terminal:
        yield
        return
    work = CurrentWork()
    view = Live(LedgerView(folder, work), console=console, refresh_per_second=REFRESHES, redirect_stdout=False)
    with view, progress_on(LiveDisplay(console, work)):
        yield


def follow(folder: Path, *, console: Console) -> None:
    """Shows the campaign of another process until it ends; without a terminal, shows it once.

    Raises:
        InputError: the folder holds no campaign, or no process works on it any more.
    """
    ledger.check_exists(folder)
    view = LedgerView(folder, CurrentWork())
    view.refresh()
    if not console.is_terminal or view.facts.get("state") != "running":
        console.print(view)
        return
    num_notes, heartbeat, changed = len(_notes(view)), view.facts.get("seconds_used"), time.monotonic()
    with Live(view, console=console, auto_refresh=False) as display:
        while view.facts.get("state") == "running":
            time.sleep(1 / REFRESHES)
            display.refresh()
            for note in _notes(view)[num_notes:]:
                console.print(note)
            num_notes = len(_notes(view))
            if view.facts.get("seconds_used") != heartbeat:
                heartbeat, changed = view.facts.get("seconds_used"), time.monotonic()
            if time.monotonic() - changed > DEAD_SECONDS:
                break
    if view.facts.get("state") == "running":
        raise InputError(
            f"{folder}: no process has worked on it for {format_duration(time.monotonic() - changed)}. "
            f"Resume it with: foldfuse campaign --resume {folder}"
        )


def _notes(view: LedgerView) -> list[str]:
    return list(view.facts.get("notes", ()))


def render(facts: Mapping[str, Any], work: CurrentWork) -> RenderableType:
    """The view of a ledger's snapshot, and of the current work."""
    if not facts:
        return Text("")
    return Group(Rule(style="dim"), _clock(facts), _score(facts), _current(facts, work), _segments(facts))


def _clock(facts: Mapping[str, Any]) -> RenderableType:
    """The elapsed and the remaining time, as words and a bar."""
    elapsed, deadline = float(facts.get("seconds_used") or 0.0), float(facts.get("deadline_seconds") or 0.0)
    remaining, state = deadline - elapsed, facts.get("state", "running")
    words = f"{format_duration(elapsed)} of {format_duration(deadline)}"
    rest = f"{format_duration(remaining)} left" if remaining >= 0 else f"{format_duration(-remaining)} over"
    bar = ProgressBar(total=max(deadline, 1.0), completed=min(elapsed, deadline))
    return _bar_line(Text(words, style="bold"), bar, rest if state == "running" else str(state))


def _bar_line(left: RenderableType, bar: RenderableType, right: str) -> RenderableType:
    line = Table.grid(padding=(0, 1), expand=True)
    line.add_column(no_wrap=True)
    line.add_column(ratio=1)
    line.add_column(no_wrap=True, justify="right")
    line.add_row(left, bar, right)
    return line


def _score(facts: Mapping[str, Any]) -> RenderableType:
    """The scores of the current submission."""
    fused = facts.get("fused")
    if not fused:
        return Text("no submission yet", style="dim")
    record = from_plain_tolerantly(fused, FusedScore)
    gain = f". {record.gain.sentence()}" if record is not None and record.gain is not None else ""
    metric = str(fused.get("metric", "ap50"))
    chosen = "" if metric in ("ap50", "ap") else f"{metric_label(metric)} {_three_digits(fused.get('value'))}, "
    return Text.assemble(
        (f"{chosen}AP50 {_three_digits(fused.get('ap50'))}", "bold green"),
        f" out-of-fold, AP {_three_digits(fused.get('ap'))}: submission {facts.get('submissions', 1)}{gain}",
    )


def _current(facts: Mapping[str, Any], work: CurrentWork) -> RenderableType:
    """The current work: of this process, else the interval of the timeline that has no end yet."""
    if facts.get("state") != "running":
        return Text("")
    text, share = work.text, work.share
    if not text:
        running = [interval for interval in facts.get("timeline", ()) if interval.get("end") is None]
        if not running:
            return Text("")
        text, share = str(running[-1]["name"]), _trained_share(facts, running[-1])
    bar = ProgressBar(total=1.0, completed=min(1.0, share), pulse=False)
    return _bar_line(f"now: {text}", bar if share > 0 else "", f"{share:.0%}" if share > 0 else "")


def _trained_share(facts: Mapping[str, Any], interval: Mapping[str, Any]) -> float:
    """The share of an interval that is over, where it is the training of a segment with a budget; else 0."""
    segment = next((s for s in facts.get("segments", ()) if f"train {s['name']}" == interval["name"]), None)
    if segment is None or not segment["budget"]:
        return 0.0
    here = float(facts.get("seconds_used") or 0.0) - float(interval["start"])
    return min(1.0, (float(segment["seconds"]) + here) / float(segment["budget"]))


def _segments(facts: Mapping[str, Any]) -> RenderableType:
    """A line for each segment: first the segments of the ledger, then the planned segments."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("segment", overflow="ellipsis")  # this column shrinks in a narrow terminal
    for head in ("px", "state", "time", "AP50", "AP", "weight", "gain"):
        table.add_column(head, justify="left" if head == "state" else "right", no_wrap=True)
    segments = {segment["name"]: segment for segment in facts.get("segments", ())}
    planned = {part["name"]: part for part in (facts.get("plan") or {}).get("segments", ())}
    for name in {**segments, **planned}:
        segment, part = segments.get(name), planned.get(name, {})
        if segment is None:
            cells = (str(part.get("image_size", "")), "planned", f"~{_minutes(part.get('seconds') or 0.0)}")
            table.add_row(name, *cells, "", "", "", "", style="dim")
            continue
        state, result = str(segment["state"]), segment["result"]
        word = "promoted" if name in (facts.get("ranking") or ()) else _WORDS.get(state, state)
        table.add_row(
            Text(name),
            str(segment["recipe"].get("image_size", "")),
            Text(word, style=_STYLES.get(state, "")),
            _minutes(segment["seconds"] if state != "running" else segment["budget"]),
            _three_digits(result.get("ap50")),
            _three_digits(result.get("ap")),
            "" if result.get("weight") is None else f"{100 * result['weight']:.0f} %",
            "" if result.get("leave_one_out_gain") is None else f"{result['leave_one_out_gain']:+.3f}",
        )
    return table


def _minutes(seconds: float) -> str:
    """Seconds as text, such as 2:05; from one hour on, 1:02:05."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def _three_digits(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else ""
