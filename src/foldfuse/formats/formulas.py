"""Says which names in a CSV a spreadsheet would take for formulas.

The file stays as the contest needs it: a quote before the name, the usual remedy, would make the name another one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from foldfuse.errors import shown

BEGINNINGS = ("=", "+", "-", "@", "\t", "\r")  # OWASP, "CSV injection"
log = logging.getLogger(__name__)


def warn_of_formulas(path: Path, names: Iterable[str]) -> None:
    """Logs one sentence where some of the names that are written to a CSV begin as formulas do."""
    formulas = sorted({name for name in names if name.startswith(BEGINNINGS)})
    if formulas:
        log.warning(
            "%s: %d names begin as formulas do, such as %s. They stay as they are: do not open the file in a spreadsheet.",
            path,
            len(formulas),
            shown(formulas[0]),
        )
