"""Checkpoints of PyTorch read without running anything in them, classes that are not installed included.

`torch.load(weights_only=True)` refuses a file that pickles whole modules. Here such objects become `Inert`: a name and a
state, no code. Tensors become `Stored`, a view into the archive, and are built only after the pickle has been read to its
end. Every other global in the file ends the reading. What is built is bounded by the size of the file; a forged file can waste
time (nested tuples are slow to hash), no more.

Source: the pickle opcodes of Python's `pickletools`, and the zip layout that `torch.save` has written since 1.6: `*/data.pkl`
beside `*/data/KEY`, one uncompressed entry for each storage.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foldfuse.errors import InputError

PICKLE_MOST = 2**24  # bytes of the pickle itself; that of a large detector has under a megabyte

LARGEST = 2**40  # of the numbers in a tensor's layout
DTYPES: Mapping[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Inert:
    """Stands for an object of a class that is not to be run.

    Attributes:
        kind: "module.Class" in the file.
        arguments: that it was to be made with.
        state: what it held; an empty dict where that was no dict.
    """

    kind = ""
    arguments: tuple[Any, ...]
    state: dict[Any, Any]

    def __new__(cls, *arguments: Any) -> Inert:
        made = super().__new__(cls)
        object.__setattr__(made, "arguments", arguments)
        object.__setattr__(made, "state", {})
        return made

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        object.__setattr__(self, "state", state if isinstance(state, dict) else {})

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"an attribute of {self.kind} is set, which no checkpoint does")


@dataclass(frozen=True)
class Stored:
    """A tensor in the archive: where it lies and how it is laid out."""

    key: str
    dtype: torch.dtype
    numel: int
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    key: str
    numel: int


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        value: the pickled value, with `Inert` and `Stored` in it.
        path: of the file.
    """

    value: Any
    path: Path

    def tensors(self, found: Mapping[str, Stored]) -> dict[str, Tensor]:
        """The tensors of `found`, read from the file; each is a copy of its own.

        Raises:
            InputError: one reaches beyond its storage, or the storage is not there in full.
        """
        for name, stored in found.items():
            self._check(name, stored)
        room = self.path.stat().st_size
        if sum(math.prod(stored.size) * stored.dtype.itemsize for stored in found.values()) > room:
            raise InputError(f"{self.path}: its tensors are larger than the file. The file is forged.")
        with zipfile.ZipFile(self.path) as archive:
            root = _root(archive, self.path)
            entries = {stored.key: self._entry(archive, root, name, stored) for name, stored in found.items()}
            if sum(entry.file_size for entry in entries.values()) > room:
                raise InputError(f"{self.path}: its storages are larger than the file. The file is forged.")
            try:
                held = {key: bytearray(archive.read(entry)) for key, entry in entries.items()}
            except (zipfile.BadZipFile, EOFError, OSError, RuntimeError) as error:  # the last one: encrypted
                raise InputError(f"{self.path}: a storage cannot be read ({error}). The file is damaged.") from None
        return {name: self._tensor(held[stored.key], name, stored) for name, stored in found.items()}

    def _check(self, name: str, stored: Stored) -> None:
        """Nothing, where the layout of a tensor lies within what its storage says of itself."""
        layout = (stored.offset, stored.numel, *stored.size, *stored.stride)
        sound = all(0 <= n < LARGEST for n in layout) and math.prod(stored.size) <= stored.numel
        last = stored.offset + sum((n - 1) * s for n, s in zip(stored.size, stored.stride, strict=True))
        if not sound or (0 not in stored.size and last >= stored.numel):
            raise InputError(
                f"{self.path}: the tensor {shown(name)} reaches beyond its storage. The file is damaged or forged."
            )

    def _entry(self, archive: zipfile.ZipFile, root: str, name: str, stored: Stored) -> zipfile.ZipInfo:
        """Where a tensor's storage lies in the archive."""
        try:
            entry = archive.getinfo(f"{root}data/{stored.key}")
        except KeyError:
            raise InputError(f"{self.path}: the storage of {shown(name)} is missing. The file is damaged.") from None
        if entry.compress_type != zipfile.ZIP_STORED:
            raise InputError(f"{self.path}: the storage of {shown(name)} is compressed. No checkpoint is so.")
        return entry

    def _tensor(self, held: bytearray, name: str, stored: Stored) -> Tensor:
        """A tensor out of the bytes of its storage."""
        if len(held) < stored.numel * stored.dtype.itemsize:
            raise InputError(
                f"{self.path}: the storage of {shown(name)} is not there in full. The file is damaged or forged."
            )
        if 0 in stored.size:
            return torch.empty(stored.size, dtype=stored.dtype)
        flat = torch.frombuffer(held, dtype=stored.dtype, count=stored.numel)
        return flat.as_strided(stored.size, stored.stride, stored.offset).clone()


def read_checkpoint(path: Path, *, inert: tuple[str, ...]) -> Checkpoint:
    """What a PyTorch file holds; nothing in it runs.

    Args:
        path: a file of `torch.save`, in the zip layout.
        inert: modules, such as "models" or "torch.nn.modules", whose classes are told by `Inert`; those below them too.

    Raises:
        InputError: there is no such file, it is damaged, or it names a global that is neither a tensor's, a plain container's
            nor one of `inert`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo(_root(archive, path) + "data.pkl")
            if entry.file_size > PICKLE_MOST or entry.compress_type != zipfile.ZIP_STORED:
                raise InputError(
                    f"{path}: its pickle is compressed or over {PICKLE_MOST >> 20} MB. No checkpoint is so."
                )
            content = archive.read(entry)
        _check_numbers(content)
        value = _Restricted(io.BytesIO(content), path, inert).load()
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file.") from None
    except InputError:
        raise
    except zipfile.BadZipFile:
        raise InputError(
            f"{path}: is no whole zip file, such as torch.save has written since PyTorch 1.6. Is it cut off, older, or a page "
            "of a download?"
        ) from None
    except Exception as error:  # a forged pickle can fail in any way; it has run nothing
        why = shown(f"{type(error).__name__}: {error}")
        raise InputError(f"{path}: cannot be read as a checkpoint ({why}).") from None
    return Checkpoint(value, path)


def shown(text: object) -> str:
    """`text` of a file as an error can print it: short, on one line, without a terminal's control codes."""
    plain = ascii(str(text)[:200])[1:-1]
    return plain if len(plain) <= 120 else plain[:117] + "..."


def _root(archive: zipfile.ZipFile, path: Path) -> str:
    """The folder in the archive that holds data.pkl."""
    found = [name for name in archive.namelist() if name.endswith("data.pkl") and name.count("/") <= 1]
    if len(found) != 1:
        raise InputError(
            f"{path}: is a zip file that holds {len(found)} data.pkl, and not one, as torch.save leaves it."
        )
    return found[0].removesuffix("data.pkl")


def _check_numbers(content: bytes) -> None:
    """Nothing, where no length or number of a memo goes beyond the pickle: the unpickler sets memory aside for either."""
    for opcode, argument, _ in pickletools.genops(content):
        if "PUT" in opcode.name and (argument or 0) > len(content):
            raise pickle.UnpicklingError(f"a memo of {argument} entries")


class _Restricted(pickle.Unpickler):
    """Knows the globals of tensors and containers; makes the rest inert, or refuses it."""

    def __init__(self, file: io.BytesIO, path: Path, inert: tuple[str, ...]) -> None:
        super().__init__(file)
        self.path, self.inert = path, inert

    def find_class(self, module: str, name: str) -> Any:
        """What a global in the file stands for. Nothing is imported."""
        known = _KNOWN.get((module, name))
        if known is not None:
            return known
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if any(module == root or module.startswith(root + ".") for root in self.inert):
            return type(name, (Inert,), {"kind": f"{module}.{name}", "__slots__": ()})
        raise InputError(
            f"{self.path}: names {shown(f'{module}.{name}')}, which is neither a tensor nor a plain container: reading on could "
            "run code that came with the file, so it is refused. Save the bare state dict where it was made."
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage of the archive: ("storage", dtype, key, device, elements)."""
        kind, dtype, key, _, numel = pid
        plain = isinstance(dtype, torch.dtype) and isinstance(key, str) and isinstance(numel, int)
        if kind != "storage" or not plain or not key.isdecimal():
            raise pickle.UnpicklingError("an unknown kind of storage")
        return _Storage(dtype, key, numel)


def _stored(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Stored:
    """What torch._utils._rebuild_tensor_v2 is told."""
    plain = all(isinstance(n, int) for n in (offset, *size, *stride))
    if not isinstance(storage, _Storage) or not plain or len(size) != len(stride):
        raise pickle.UnpicklingError("a tensor without a storage, size or stride")
    return Stored(storage.key, storage.dtype, storage.numel, offset, tuple(size), tuple(stride))


def _parameter(stored: Any, *_: Any) -> Any:
    """What torch._utils._rebuild_parameter is told."""
    return stored


def _plain_bytes(text: Any, encoding: Any) -> bytes:
    """What _codecs.encode is told: how a pickle of protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("bytes in an unknown encoding")
    return text.encode("latin1")


def _plain_set(items: Any = ()) -> set[Any]:
    return set(items)


class _Dict(dict[Any, Any]):
    """An OrderedDict without its attributes (a state dict's `_metadata`), which could hide its methods."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _Call:
    """A function that a pickle may call; it cannot set attributes on it."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("an attribute of a function is set, which no checkpoint does")


_KNOWN: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _Dict,
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_stored),
    ("torch._utils", "_rebuild_parameter"): _Call(_parameter),
    ("torch", "Size"): tuple,
    ("_codecs", "encode"): _Call(_plain_bytes),
    ("builtins", "set"): _Call(_plain_set),
    ("__builtin__", "set"): _Call(_plain_set),
}
