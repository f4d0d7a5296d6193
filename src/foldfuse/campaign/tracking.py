"""A campaign's trackers: one run for the whole campaign, with the curves of every segment and the score of each submission.

A thread reads the ledger and the logs of the members, as `watch` does, and writes what is new. So the campaign never waits for a
tracker, and segments that other processes and machines train are followed too. Names of curves:

SEGMENT/loss, SEGMENT/ap50, ...  the rows of the segment's log, at its steps
campaign/score, campaign/minutes  the out-of-fold score of each submission and its time, at its number
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foldfuse.storage.ledger import snapshot
from foldfuse.storage.run import Run
from foldfuse.storage.segments import Role
from foldfuse.training.trackers import Row, open_trackers

POLL_SECONDS = 15.0
CLOSE_SECONDS = 15.0  # that the end of a campaign waits for the last rows to be taken

log = logging.getLogger(__name__)


class _Failed(Exception):
    """The campaign failed: the trackers' runs are marked so."""


@dataclass
class CampaignRows:
    """The rows of a campaign's logs and its submissions that were not read before.

    Attributes:
        folder: the campaign's folder.
    """

    folder: Path
    _seen: dict[str, tuple[int, bool]] = field(default_factory=dict)  # the last row of each segment
    _sizes: dict[str, int] = field(default_factory=dict)  # bytes of each log
    _submissions: int = 0

    def read(self) -> list[Row]:
        """The new rows, those of each segment in their order."""
        facts = snapshot(self.folder)
        rows: list[Row] = []
        for segment in facts["segments"]:
            if Role(segment["role"]).has_checkpoint:  # trained by this campaign
                rows += self._of_segment(str(segment["name"]))
        for number, entry in enumerate(facts["history"][self._submissions :], self._submissions + 1):
            rows.append({"step": number, "campaign/score": entry["score"], "campaign/minutes": entry["at"] / 60})
            self._submissions = number
        return rows

    def _of_segment(self, name: str) -> list[Row]:
        run = Run(self.folder / "members" / name)
        path = run.folder / "log.jsonl"
        size = path.stat().st_size if path.is_file() else 0
        if size == self._sizes.get(name, 0):
            return []
        self._sizes[name] = size
        rows: list[Row] = []
        for row in run.log:
            place = (row["step"], "loss" in row)  # an evaluation at a step comes before the loss of the step
            if place > self._seen.get(name, (-1, False)):
                self._seen[name] = place
                rows.append({"step": row["step"], **{f"{name}/{key}": v for key, v in row.items() if key != "step"}})
        return rows


@contextmanager
def tracked(folder: Path, wanted: Sequence[str]) -> Iterator[None]:
    """Follows the campaign in `folder` for the block; a resumed campaign is a new run with the new rows.

    Args:
        folder: with the ledger.
        wanted: see `trackers.open_trackers`; a tracker that cannot be opened is reported, and the campaign goes on.
    """
    if not wanted:
        yield
        return
    stop = threading.Event()
    ends: dict[str, Any] = {"failed": False}
    rows = CampaignRows(folder)
    rows.read()  # of an earlier session

    def follow() -> None:
        try:
            with open_trackers(wanted, folder.resolve().name, must_open=False) as track:
                is_over = False
                while not is_over:
                    is_over = stop.wait(POLL_SECONDS)
                    track(rows.read())
                if ends["failed"]:
                    raise _Failed
        except _Failed:
            pass
        except Exception as error:  # no tracker ends a campaign
            log.warning(
                f"{folder}: is not tracked any more ({type(error).__name__}: {error}). Its folder has everything."
            )

    thread = threading.Thread(target=follow, name="trackers", daemon=True)
    thread.start()
    try:
        yield
    except Exception:
        ends["failed"] = True
        raise
    finally:
        stop.set()
        thread.join(CLOSE_SECONDS)
        if thread.is_alive():
            log.warning(f"{folder}: {', '.join(wanted)} did not take the last rows within {CLOSE_SECONDS:g} s.")
