"""The ledger's record of a segment, when it begins and when it is left out."""

from __future__ import annotations

from dataclasses import replace

from foldfuse.campaign.planning.state import Segment
from foldfuse.storage.ledger import Ledger
from foldfuse.storage.segments import SegmentRecord
from foldfuse.system.records import to_plain


def new_record(segment: Segment, ledger: Ledger) -> SegmentRecord:
    """The record of a segment that begins now."""
    return SegmentRecord(
        name=segment.name,
        role=segment.role,
        recipe=to_plain(segment.recipe),
        parent=segment.parent,
        fold=segment.fold,
        seed=segment.seed,
        state="running",
        budget=0.0,
        seconds=0.0,
        started=ledger.elapsed,
        ended=None,
        result={},
    )


def leave_out(record: SegmentRecord, reason: str, ledger: Ledger) -> None:
    """Records a segment as failed, with the reason, and logs it."""
    ledger.put_segment(
        replace(record, state="failed", ended=ledger.elapsed, result={**record.result, "reason": reason})
    )
    ledger.log(f"{record.name} is left out: {reason}")
