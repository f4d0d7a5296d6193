"""The option --member NAME=RUN: the runs of an ensemble's members, where they do not lie beside its file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter

from foldfuse.errors import InputError

Members = Annotated[tuple[str, ...], Parameter(metavar="NAME=RUN")]


def named_members(given: Sequence[str]) -> dict[str, str]:
    """{member: run} of --member NAME=RUN. Raises InputError for another form, or for a name given twice."""
    members: dict[str, str] = {}
    for text in given:
        name, sign, run = text.partition("=")
        if not (name and sign and run):
            raise InputError(f"--member {text}: is no NAME=RUN, such as a_oof=run1.")
        if name in members:
            raise InputError(f"--member {text}: the member {name} is given twice. Give one run for each member.")
        members[name] = run
    return members
