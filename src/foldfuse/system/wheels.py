"""Makes the wheel of the installed Foldfuse, without a network and a build tool, and downloads the wheels of packages by pip."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import foldfuse
from foldfuse.errors import InputError
from foldfuse.system.offline import is_offline
from foldfuse.system.zip_files import write_zip

NAME = "foldfuse"
TEXTS = ("LICENSE", "NOTICE")
_WHEEL = "Wheel-Version: 1.0\nGenerator: foldfuse\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def package_texts() -> dict[str, bytes]:
    """{LICENSE, NOTICE: content} of the package's source, or of the installed package."""
    folders = [_source()] if _source() is not None else []
    try:
        installed = distribution(NAME)
        folders += [
            Path(str(installed.locate_file(file))).parent for file in installed.files or () if file.name in TEXTS
        ]
    except PackageNotFoundError:
        pass
    found = {}
    for name in TEXTS:
        path = next((folder / name for folder in folders if folder is not None and (folder / name).is_file()), None)
        if path is not None:
            found[name] = path.read_bytes()
    return found


def own_wheel() -> tuple[str, bytes]:
    """The name and the content of the wheel of this Foldfuse: the modules as they are imported, and their metadata.

    Raises:
        InputError: there is no source, and pip did not install the package or installed another version of it.
    """
    metadata, entry_points = _own_metadata()
    package, version = Path(foldfuse.__file__).parent, foldfuse.__version__
    files: dict[str, Path | bytes] = {
        f"{NAME}/{path.relative_to(package).as_posix()}": path.read_bytes()
        for path in package.rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".pyo") and "__pycache__" not in path.parts
    }
    info = f"{NAME}-{version}.dist-info"
    files |= {f"{info}/METADATA": metadata.encode(), f"{info}/entry_points.txt": entry_points.encode()}
    files |= {f"{info}/licenses/{name}": content for name, content in package_texts().items()}
    files[f"{info}/WHEEL"] = _WHEEL.encode()
    rows = [_row(name, content) for name, content in sorted(files.items()) if isinstance(content, bytes)]
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()
    buffer = io.BytesIO()
    write_zip(buffer, files)
    return f"{NAME}-{version}-py3-none-any.whl", buffer.getvalue()


def _source() -> Path | None:
    """The folder of the source that the package is imported from; None for an installed package."""
    folder = Path(foldfuse.__file__).parents[2]
    return folder if (folder / "pyproject.toml").is_file() and (folder / "src" / NAME).is_dir() else None


def _own_metadata() -> tuple[str, str]:
    """METADATA and entry_points.txt, from the source where there is one, else as pip installed them."""
    if (source := _source()) is not None:
        return _metadata_of(tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"])
    try:
        installed = distribution(NAME)
    except PackageNotFoundError:
        raise InputError(
            "--wheels: pip did not install Foldfuse here, so there is no metadata for its wheel."
        ) from None
    if installed.version != foldfuse.__version__:
        raise InputError(
            f"--wheels: this is Foldfuse {foldfuse.__version__}, and pip installed {installed.version}. Install it again."
        )
    return installed.read_text("METADATA") or "", installed.read_text("entry_points.txt") or ""


def _metadata_of(project: Mapping[str, Any]) -> tuple[str, str]:
    """METADATA and entry_points.txt of the [project] in a pyproject.toml."""
    lines = ["Metadata-Version: 2.4", f"Name: {NAME}", f"Version: {foldfuse.__version__}"]
    lines += [f"Summary: {project['description']}", f"License-Expression: {project['license']}"]
    lines += [f"License-File: {name}" for name in TEXTS]
    lines += [f"Requires-Python: {project['requires-python']}"]
    lines += [f"Requires-Dist: {need}" for need in project["dependencies"]]
    for extra, needs in project["optional-dependencies"].items():
        lines += [f"Provides-Extra: {extra}", *(f"Requires-Dist: {need} ; extra == '{extra}'" for need in needs)]
    scripts = [f"{name} = {function}" for name, function in project["scripts"].items()]
    return "\n".join([*lines, ""]), "\n".join(["[console_scripts]", *scripts, ""])


def needed_packages(names: Iterable[str], *, without: Iterable[str] = ()) -> dict[str, str]:
    """{package: its installed version} of packages and of all that they need, as far as they are installed here.

    Args:
        names: the packages to begin with.
        without: packages that are left out, with what only they need.
    """
    left_out = {_plain(name) for name in without}
    found: dict[str, str] = {}
    ahead = [_plain(name) for name in names]
    while ahead:
        name = ahead.pop()
        if name in found or name in left_out:
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:  # not needed on this system
            continue
        found[name] = package.version
        ahead += _requirements(package)
    return dict(sorted(found.items()))


def _requirements(package: Distribution) -> list[str]:
    """What a package needs, without its extras."""
    needs = package.requires or ()
    if _plain(package.name) == NAME:
        needs = [
            line.partition(": ")[2] for line in _own_metadata()[0].splitlines() if line.startswith("Requires-Dist")
        ]
    lines = [line for line in needs if not re.search(r"\bextra\s*==", line)]
    return [_plain(re.split(r"[^A-Za-z0-9._-]", line.strip(), maxsplit=1)[0]) for line in lines]


def download_wheels(packages: Mapping[str, str], folder: Path) -> None:
    """Downloads the wheels of packages, of these very versions, for this system and this Python.

    Raises:
        InputError: there is no network, or a package has no wheel.
    """
    advice = "Give --wheels own for Foldfuse's wheel alone, or bundle where there is a network."
    if is_offline():
        raise InputError(
            f"--wheels all: downloads {len(packages)} packages, and downloads are forbidden here. {advice}"
        )
    words = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    wanted = [f"{name}=={version}" for name, version in packages.items()]
    done = subprocess.run(
        [sys.executable, *words, "--dest", str(folder), *wanted], capture_output=True, text=True, check=False
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        reason = " ".join(errors[-1].split())[:150] if errors else "pip ended without a reason"
        raise InputError(f"--wheels all: pip cannot download the wheels ({reason}). {advice}")


def _plain(name: str) -> str:
    """A package's name as PyPI compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _row(name: str, content: bytes) -> str:
    """The row of a file in RECORD."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}"
