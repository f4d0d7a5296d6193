"""Rows of a ledger that several tests start from."""

from foldfuse.storage.segments import Role, SegmentRecord


def a_record(name="a", **changes):
    values = {
        "role": Role.BASE,
        "recipe": {"image_size": 64},
        "parent": None,
        "fold": 0,
        "seed": 0,
        "state": "running",
        "budget": 10.0,
        "seconds": 0.0,
        "started": 1.0,
        "ended": None,
        "result": {},
    }
    return SegmentRecord(name, **values | changes)
