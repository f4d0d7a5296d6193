"""The project's own files agree with one another."""

import re
import tomllib
from pathlib import Path

from foldfuse import __version__

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def plain(version: str) -> tuple[int, ...]:
    """The numbers of a version without trailing zeros: 1.0 and 1.0.0 are the same version."""
    numbers = [int(number) for number in version.split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def test_the_constraints_are_the_lower_bounds_of_pyproject():
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    listed = [text for group in groups for text in group]
    bounds = {found[1].lower(): plain(found[2]) for text in listed if (found := re.match(r"([\w-]+)>=([\d.]+)", text))}
    lines = (ROOT / ".github/constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    constraints = dict(line.lower().split("==") for line in lines if not line.startswith("#"))
    lowest = {name: plain(version) for name, version in constraints.items()}
    assert {name: lowest.get(name) for name in bounds} == bounds


def test_the_citation_names_the_version():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
