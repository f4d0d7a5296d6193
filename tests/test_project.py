"""The project's own files agree with one another."""

import re
import shutil
import subprocess
import tomllib
import zipfile
import zlib
from pathlib import Path

import pytest

from foldfuse import __version__
from foldfuse.models.pretrained.detection import FOLDER

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


def test_the_notices_go_with_the_package():
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    assert "NOTICE" in PROJECT["license-files"]
    assert all(f"weights/{file.name}" in notice or file.name in notice for file in FOLDER.glob("*.safetensors"))
    counts = [
        len(re.findall(rf"^  {part}: ", notice, re.MULTILINE)) for part in ("Repository", "Licence", "Attribution")
    ]
    assert counts == [61, 61, 61]


def test_the_detection_weights_are_small_and_nothing_ignores_them():
    files = sorted(FOLDER.glob("*.safetensors"))
    assert [file.stem for file in files] == ["lite0_fpn", "lite1_fpn"]
    assert sum(len(zlib.compress(file.read_bytes())) for file in files) <= 12_000_000  # as in the wheel
    if shutil.which("git") and (ROOT / ".git").exists():  # hatchling leaves out what git ignores
        ignored = subprocess.run(["git", "check-ignore", *files], cwd=ROOT, capture_output=True, text=True)
        assert ignored.stdout == ""


def test_the_wheel_holds_the_weights_and_the_notices(tmp_path):
    builder = pytest.importorskip("hatchling.builders.wheel", reason="pip install hatchling builds the wheel")
    (wheel,) = builder.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"foldfuse/models/pretrained/weights/lite{i}_fpn.safetensors" for i in range(2)} <= set(names)
    assert [name for name in names if name.endswith("licenses/NOTICE")]
    assert Path(wheel).stat().st_size <= 16_000_000
