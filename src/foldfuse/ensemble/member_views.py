"""`MemberView`: a member of a campaign's ensemble in one TTA view, which files name "member@view"."""

from __future__ import annotations

from typing import NamedTuple


class MemberView(NamedTuple):
    """The key of one set of predictions in a campaign: the member that made them, and the TTA view."""

    member: str
    view: str

    def __str__(self) -> str:
        return f"{self.member}@{self.view}"

    @classmethod
    def parse(cls, name: str) -> MemberView | None:
        """The member and the view in "member@view"; None for another form. A member's own name may hold "@"."""
        member, _, view = name.rpartition("@")
        return cls(member, view) if member and view else None
