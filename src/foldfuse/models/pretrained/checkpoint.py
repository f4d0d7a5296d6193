"""Reads PyTorch checkpoints without executing any code in them, even if they pickle objects of other packages.

PyTorch's own loader reads the file (`torch.load(weights_only=True)`). It refuses pickled modules; here an `Inert` stub replaces
each class of the packages that the caller names, or of all packages, and a file with any other global is refused. Neither the
stub nor the loader imports the class that the file names.

PyTorch's loader allocates as much memory as a file asks for. So no part of the archive may be compressed, and neither the parts
nor the tensors may together be larger than the file.
"""

from __future__ import annotations

import io
import math
import pickletools
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from foldfuse.errors import InputError

# For `inert`: every package but Python's own, of which honest checkpoints hold containers and settings alone.
ANY_PACKAGE = ("*",)
_PLAIN = ("argparse", "collections", "datetime", "decimal", "enum", "fractions", "pathlib", "types", "uuid")
_LEGACY_PICKLES = 5  # of a file before PyTorch 1.6: magic number, version, system, object, keys of storages
MAX_PICKLE = 2**24  # bytes of the pickle itself; a large detector's pickle has under a megabyte


class Inert:
    """A placeholder for an object whose class must not run.

    Attributes:
        kind: "module.Class" in the file.
        state: attributes of the object; empty if the file does not hold them as a dict.
    """

    kind = ""
    state: dict[Any, Any]

    def __new__(cls, *_: Any) -> Inert:
        inert = super().__new__(cls)
        inert.state = {}
        return inert

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


def read_checkpoint(path: Path, *, inert: Sequence[str]) -> Any:
    """The object in a file of `torch.save`; no code in the file is executed.

    Args:
        path: the file.
        inert: packages, such as "models" or "torch.nn.modules", whose classes become `Inert`; or `ANY_PACKAGE`.

    Raises:
        InputError: there is no such file, it is damaged or forged, or it names a global that is neither PyTorch's for tensors
            and containers nor of a package in `inert`.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InputError(f"{path}: is no regular file, expected a checkpoint.")
    try:
        stubs = _stubs(path, inert) if zipfile.is_zipfile(path) else _legacy_stubs(path, inert)
        with safe_globals(stubs):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        _check_sizes(loaded, path)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file.") from None
    except InputError:
        raise
    except Exception:  # torch, zipfile and pickle raise many types for a damaged or forged file; no code has run
        raise InputError(
            f"{path}: cannot be read as a checkpoint. Expected a file of torch.save that holds tensors and plain containers; is "
            "it damaged?"
        ) from None
    return loaded


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """{name: tensor} in a .safetensors file, on the CPU.

    Raises:
        InputError: the file is missing or is no such file.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file.") from None
    except (SafetensorError, OSError, ValueError):
        raise InputError(f"{path}: is no .safetensors file, or is damaged. Copy it again.") from None


def _stubs(path: Path, inert: Sequence[str]) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """A stub for each global of the packages in `inert` that the file names, in the form that `safe_globals` takes."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise InputError(f"{path}: a part of it is compressed. torch.save compresses nothing; the file is forged.")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise InputError(f"{path}: its parts are larger than the file. The file is forged.")
        if any(entry.file_size > MAX_PICKLE for entry in entries if entry.filename.endswith("data.pkl")):
            raise InputError(
                f"{path}: its pickle has over {MAX_PICKLE >> 20} MB. No detector's checkpoint has that much."
            )
        if damaged := archive.testzip():
            raise InputError(f"{path}: {shown(damaged)} in it cannot be read. The file is damaged.")
    names = get_unsafe_globals_in_checkpoint(path)
    for name in names:
        if not _is_inert(name, inert):
            raise InputError(
                f"{path}: names {shown(name)}, which is neither a tensor nor a plain container. Loading the file could run code "
                "from it, so the file is refused. Save the bare state dict with the program that wrote the file."
            )
    return [_stub(name) for name in names]


def _legacy_stubs(path: Path, inert: Sequence[str]) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """As `_stubs`, for the files of PyTorch before 1.6: a row of pickles, then the storages."""
    with path.open("rb") as file:
        content = io.BytesIO(file.read(MAX_PICKLE))
    names: set[str] = set()
    try:
        for _ in range(_LEGACY_PICKLES):
            names |= {
                str(arg).replace(" ", ".") for code, arg, _ in pickletools.genops(content) if code.name == "GLOBAL"
            }
    except (ValueError, UnicodeDecodeError, IndexError):  # no pickle, or one that is cut: PyTorch's loader says so
        pass
    own = ("torch.", "collections.OrderedDict")
    return [_stub(name) for name in names if not name.startswith(own) and _is_inert(name, inert)]


def _stub(name: str) -> tuple[Callable[..., Any], str]:
    return type("Stub", (Inert,), {"kind": name}), name


def _is_inert(name: str, inert: Sequence[str]) -> bool:
    """Whether an `Inert` stub may stand for the global "module.Class"."""
    if tuple(inert) == ANY_PACKAGE:
        package = name.partition(".")[0]
        return package in _PLAIN or package not in {
            *sys.stdlib_module_names,
            "posix",
            "nt",
            "__builtin__",
            "exceptions",
        }
    return name.startswith(tuple(f"{package}." for package in inert))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested containers and `Inert` objects, each once."""
    waiting, seen = [value], set[int]()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, dict):
            waiting += [*dict.keys(item), *dict.values(item)]
        elif isinstance(item, list | tuple | set):
            waiting += item
        elif isinstance(item, Inert):
            waiting.append(item.state)


def _check_sizes(loaded: Any, path: Path) -> None:
    """Raise InputError if the tensors together are larger than the file: with strides of 0, one number can pose as any size."""
    if sum(math.prod(t.shape) * t.element_size() for t in tensors_in(loaded)) > path.stat().st_size:
        raise InputError(f"{path}: its tensors are larger than the file. The file is forged.")


def shown(text: object) -> str:
    """`text` of a file for an error sentence: short, on one line, without a terminal's control codes."""
    plain = ascii(str(text)[:200])[1:-1]
    return plain if len(plain) <= 120 else plain[:117] + "..."
