"""Where weights come from: source, licence and training data, as far as they are known. The rules of contests turn on this."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

UNKNOWN = "unknown"
# Licences that allow any use, commercial use and prizes included; a licence that is none of these is named when it is chosen.
PERMISSIVE = (
    "apache-2.0",
    "mit",
    "bsd",
    "bsd-2-clause",
    "bsd-3-clause",
    "isc",
    "cc0-1.0",
    "cc-by-4.0",
    "unlicense",
    "public domain",
)


@dataclass(frozen=True)
class WeightsOrigin:
    """Where weights come from.

    Attributes:
        name: what they are weights of: a network, a detector, a run.
        source: a repository of a hub ("hf:owner/name"), a web address, a package, a file or the folder of a run.
        licence: as the source states it; "unknown" where it states none.
        data: what they were trained on, as far as it is known, else "unknown".
    """

    name: str
    source: str
    licence: str = UNKNOWN
    data: str = UNKNOWN

    @property
    def is_restricted(self) -> bool:
        """Whether the licence is known and not known to be permissive, such as a non-commercial or a research licence."""
        return self.licence != UNKNOWN and not is_permissive(self.licence)


def is_permissive(licence: str) -> bool:
    """Whether every part of a licence, such as "Apache-2.0" or "MIT, CC-BY-4.0", is one of `PERMISSIVE`."""
    parts = [part.strip().lower().replace(" ", "-") for part in re.split(r"[,;+]", licence) if part.strip()]
    return bool(parts) and all(part in {each.replace(" ", "-") for each in PERMISSIVE} for part in parts)


def licence_notes(origins: Iterable[WeightsOrigin]) -> list[str]:
    """A sentence for each origin whose licence is not permissive, once each."""
    return [
        f"the weights of {each.name} ({each.source}) are under the licence {each.licence}, which may forbid commercial use or "
        "use in a contest. Read it, and the contest's rules on pretrained weights, before you submit."
        for each in dict.fromkeys(origins)
        if each.is_restricted
    ]


def origins_text(origins: Iterable[WeightsOrigin] | None) -> str | None:
    """The origins in one line; None where nothing is known of them, "random" where there are none."""
    if origins is None:
        return None
    return "; ".join(f"{o.name} ({o.source}), licence {o.licence}, trained on {o.data}" for o in origins) or "random"


def origins_page(members: Mapping[str, Sequence[WeightsOrigin] | None]) -> str:
    """The origins of the initial weights of each member, as a table in Markdown, to be shown to the host of a contest."""
    lines = ["| member | initial weights | source | licence | training data |", "|---|---|---|---|---|"]
    for member, origins in members.items():
        rows = (WeightsOrigin(UNKNOWN, UNKNOWN),) if origins is None else tuple(origins)
        rows = rows or (WeightsOrigin("random weights", "-", "-", "-"),)
        lines += [
            f"| {' | '.join(_cell(text) for text in (member, o.name, o.source, o.licence, o.data))} |" for o in rows
        ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")
