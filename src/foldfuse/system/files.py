"""Reads the files that a user names: text, JSON, YAML and XML. Whatever is wrong with a file becomes one sentence.

A file is a regular file or a link to one. A folder, FIFO, socket or device is refused before it is opened, because reading it may
never end; so `<(command)` of a shell is refused too. Every reader has a size limit that real files do not reach.

Text is UTF-8, or UTF-16 or UTF-32 where a byte order mark or the zero bytes of the first characters say so. No other encoding is
guessed; an XML file may name one.

JSON: a key that one object has twice, with two values, is refused, since one of them would be lost. NaN and Infinity are read
as numbers unless the caller refuses them.

YAML: see `yaml_loader`.
"""

from __future__ import annotations

import codecs
import gc
import json
import os
import re
import stat
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import yaml

from foldfuse.errors import InputError, shown
from foldfuse.system.yaml_loader import NotPlainYaml, load_yaml, yaml_problem

MAX_BYTES = 8 * 2**30  # of any file; the largest public COCO JSON has 3 GB
MAX_YAML_BYTES = 4 * 2**20  # 100,000 class names have 2 MB
MAX_XML_BYTES = 2**30  # of a CVAT export; one of Pascal VOC has some KB
MAX_DEPTH = 64  # of nested lists and objects
JSON_MEMORY = 5  # bytes of memory for a byte of JSON, measured on COCO files
MAX_DIGITS = 300  # of a whole number: more do not fit into a float

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_BOMS = (  # UTF-32 first: its mark begins with the one of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SUPERSETS = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
}  # what such files really hold
_UNSAFE_CODECS = {"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem"}
_ESCAPES = re.compile(  # a pair, half of a pair, any other
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL
)
_NINES = bytes(0x39 if 0x30 <= byte <= 0x39 else byte for byte in range(256))  # every digit becomes a 9
_NO_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))


def kind_of_file(mode: int) -> str | None:
    """What a path with this `st_mode` is, such as "a folder" or "a pipe"; None for a regular file."""
    if stat.S_ISREG(mode):
        return None
    return next((words for check, words in _KINDS if check(mode)), "no regular file")


def read_bytes(path: Path, *, what: str, limit: int = MAX_BYTES, hint: str = "") -> bytes:
    """The content of a regular file.

    Args:
        path: the file, or a link to it.
        what: what the file should be, in messages, such as "COCO JSON".
        limit: the largest size in bytes that is read.
        hint: a sentence that is added where there is no such file.

    Raises:
        InputError: there is no such file, it is no regular file, is too large, or may not be read.
    """
    with _as_input_error(path, hint), _opened(path, what) as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > limit else file.read(size + 1)  # `read` takes memory for as much as it is asked for
        while size < len(content) <= limit:  # the file grows, or does not know its size, as in /proc
            size = len(content)
            content += file.read(2**20)
        size = max(size, len(content))
    if size > limit:
        raise InputError(f"{path}: has {_size(size)}, expected {what} of at most {_size(limit)}. Is it the right file?")
    return content


def read_start(path: Path, *, what: str, num_bytes: int = 4096, hint: str = "") -> bytes:
    """The first bytes of a regular file, without a byte order mark, and in UTF-8 where the mark is that of UTF-16 or UTF-32.

    Raises:
        InputError: see `read_bytes`.
    """
    with _as_input_error(path, hint), _opened(path, what) as file:
        start = file.read(num_bytes)
    encoding = next((name for mark, name in _BOMS if start.startswith(mark)), None)
    return start if encoding is None else start.decode(encoding, "ignore").encode()


def read_text(path: Path, *, what: str, limit: int = MAX_BYTES, hint: str = "") -> str:
    """The text in a regular file, without a byte order mark.

    Raises:
        InputError: see `read_bytes`; or the file is not text in UTF-8, UTF-16 or UTF-32.
    """
    return _decode(read_bytes(path, what=what, limit=limit, hint=hint), path, what)


def read_json(path: Path, *, what: str, limit: int = MAX_BYTES, hint: str = "", allow_nan: bool = True) -> Any:
    """The value in a JSON file.

    Args:
        path, what, limit, hint: see `read_bytes`.
        allow_nan: whether NaN, Infinity and numbers beyond the range of a float are read, as floats that are not finite.

    Raises:
        InputError: see `read_text`; or the file is not JSON, is nested more than MAX_DEPTH deep, has a key twice in one
            object with two values, a whole number of more than MAX_DIGITS digits, or needs more memory than there is.
    """
    memory = _memory_bytes()
    if memory is not None and memory // JSON_MEMORY < limit:
        with _as_input_error(path, hint):
            size = Path(path).stat().st_size
        if memory // JSON_MEMORY < size <= limit:
            raise InputError(
                f"{path}: has {_size(size)}, which need about {_size(JSON_MEMORY * size)} of memory, and this machine has "
                f"{_size(memory)}. Split the file, or use a machine with more memory."
            )
    return parse_json(read_bytes(path, what=what, limit=limit, hint=hint), path, what=what, allow_nan=allow_nan)


def parse_json(content: bytes | str, where: Path | str, *, what: str, allow_nan: bool = True) -> Any:
    """The value in a JSON text. Raises InputError as `read_json` does; `where` names the text in messages."""
    text = content if isinstance(content, str) else _decode(content, where, what)
    if half := _half_of_a_character(text):
        raise InputError(
            f"{where}: holds {half}, half of a character, which can be written to no file. Write the whole name."
        )
    if _is_deeper(text, MAX_DEPTH):
        raise InputError(f"{where}: is nested more than {MAX_DEPTH} deep, expected {what}.")
    refuse = None if allow_nan else _refuse_constant
    try:
        with _no_garbage_collection():
            return json.loads(
                text,
                object_pairs_hook=_unique_keys,
                parse_int=_int if _has_long_number(text) else None,
                parse_float=None if allow_nan else _finite_float,
                parse_constant=refuse,
            )
    except json.JSONDecodeError as error:
        is_cut = not text[error.pos :].strip()
        advice = (
            "It is empty." if not text.strip() else "Was it cut off while copying?" if is_cut else f"Expected {what}."
        )
        raise InputError(
            f"{where}: is not JSON (line {error.lineno}, column {error.colno}: {error.msg}). {advice}"
        ) from None
    except _Refused as error:
        raise InputError(f"{where}: {error}") from None
    except (RecursionError, MemoryError):
        raise InputError(f"{where}: needs more memory than there is, expected {what}.") from None


def read_yaml(path: Path, *, what: str, hint: str = "") -> Any:
    """The value in a YAML file: dicts, lists, str, int and None.

    Raises:
        InputError: see `read_text`; or the file is not YAML, has aliases, merge keys or tags, a key twice in one mapping, or is
            nested too deep.
    """
    text = read_text(path, what=what, limit=MAX_YAML_BYTES, hint=hint)
    try:
        return load_yaml(text)
    except NotPlainYaml as error:
        raise InputError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: is not YAML ({yaml_problem(error)}). Expected {what}.") from None
    except RecursionError:
        raise InputError(f"{path}: is nested too deep, expected {what}.") from None


def read_xml(path: Path, *, what: str, limit: int = MAX_XML_BYTES, hint: str = "") -> ET.Element:
    """The root of an XML file, in UTF-8, UTF-16 or the encoding that the file names.

    Raises:
        InputError: see `read_bytes`; or the file is not XML, is not in its encoding, or declares entities.
    """
    content = read_bytes(path, what=what, limit=limit, hint=hint)
    text = _decode_xml(content, path, what)
    if "<!ENTITY" in text:
        raise InputError(f"{path}: declares XML entities, which {what} never needs. Remove them.")
    try:
        parser = ET.XMLParser()
        parser.feed(text)
        return parser.close()
    except ET.ParseError as error:
        advice = "It is empty." if not text.strip() else f"Expected {what}."
        raise InputError(f"{path}: is not XML ({error}). {advice}") from None
    except (RecursionError, MemoryError):
        raise InputError(f"{path}: needs more memory than there is, expected {what}.") from None


def _opened(path: Path, what: str) -> BinaryIO:
    """A regular file, opened; whatever is no regular file is refused before it is opened."""
    kind = kind_of_file(Path(path).stat().st_mode)
    if kind is not None:
        raise InputError(f"{path}: is {kind}, expected a file: {what}.")
    return open(path, "rb", opener=_without_waiting)


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe that has just taken the file's place


@contextmanager
def _as_input_error(path: Path | str, hint: str) -> Iterator[None]:
    """Turns the errors of the file system within the block into an InputError."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file. {hint}".rstrip()) from None
    except NotADirectoryError:
        raise InputError(f"{path}: there is no such file, since a part of its path is a file and no folder.") from None
    except PermissionError:
        raise InputError(f"{path}: may not be read (permission denied). Change its permissions.") from None
    except OSError as error:  # a name too long, a loop of links, a broken disk
        raise InputError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()}).") from None
    except MemoryError:
        raise InputError(f"{path}: is larger than the memory that is left.") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{shown(str(path))}: is no name of a file: it holds a null character.") from None


def _decode(content: bytes, where: Path | str, what: str) -> str:
    encoding = next((name for mark, name in _BOMS if content.startswith(mark)), None)
    if encoding is None:  # RFC 4627, section 3: the first two characters are ASCII
        zeros = "".join("0" if byte == 0 else "x" for byte in content[:4])
        encoding = {"x0x0": "utf-16-le", "0x0x": "utf-16-be", "x000": "utf-32-le", "000x": "utf-32-be"}.get(
            zeros, "utf-8"
        )
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        if b"\0" in content[:4096]:
            raise InputError(f"{where}: is not a text file, expected {what}.") from None
        raise InputError(
            f"{where}: is not text in {encoding.upper()} (line {line} has the byte {content[error.start]:#04x}), expected "
            f"{what}. Save it as UTF-8."
        ) from None
    if "\0" in text:
        raise InputError(f"{where}: is not a text file (it holds null characters), expected {what}.")
    return text


def _decode_xml(content: bytes, path: Path, what: str) -> str:
    """The text of an XML file without its declaration of an encoding's bytes."""
    declared = re.match(rb"\s*<\?xml[^>]{0,200}?\sencoding\s*=\s*[\"']([A-Za-z0-9._-]{1,40})[\"']", content)
    if declared is None or content.startswith(codecs.BOM_UTF8):
        return _decode(content, path, what)
    name = declared[1].decode("ascii")
    try:
        codec = codecs.lookup(name).name.replace("-", "_")
        if codec in _UNSAFE_CODECS:
            raise LookupError(name)
        return content.decode(_SUPERSETS.get(codec, codec)).removeprefix("\ufeff")
    except LookupError:
        raise InputError(f"{path}: names the unknown encoding {name!r}. Save it as UTF-8.") from None
    except UnicodeError:
        raise InputError(f"{path}: is not in the encoding that it names, {name}. Save it as UTF-8.") from None


class _Refused(Exception):
    """The value in a file cannot be read without loss; the message follows the file's name."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        for key, one in pairs:
            if one != value[key]:
                raise _Refused(
                    f"has the key {shown(key)} twice in one object, with {shown(one)} and {shown(value[key])}. Keep one of them."
                )
    return value


def _int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _Refused(f"holds a whole number of {len(digits):,} digits, expected at most {MAX_DIGITS}.")
    return int(digits)


def _has_long_number(text: str) -> bool:
    """Whether a JSON text has more than MAX_DIGITS digits in a row."""
    return b"9" * (MAX_DIGITS + 1) in text.encode("utf-8", "replace").translate(_NINES)


def _finite_float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _Refused(f"holds the number {shown(text)}, expected numbers below 1e308.")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise _Refused(f"holds {name}, expected finite numbers.")


def _half_of_a_character(text: str) -> str | None:
    """The first escape of a JSON text that stands for half of a surrogate pair, without the other half."""
    if "\\ud" not in text and "\\uD" not in text:
        return None
    return next((match[1] for match in _ESCAPES.finditer(text) if match[1]), None)


def _is_deeper(text: str, depth: int) -> bool:
    """Whether the brackets of a JSON text are nested deeper than `depth`."""
    rest = text.encode("utf-8", "replace").translate(None, _NO_BRACKETS)
    for _ in range(depth):
        shorter = rest.replace(b"[]", b"").replace(b"{}", b"")
        if len(shorter) == len(rest):
            break
        rest = shorter
    if not rest.count(b"[") + rest.count(b"{"):
        return False  # all collapsed, or closing brackets in strings are left
    level = deepest = 0
    for match in re.finditer(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', text, re.DOTALL):  # brackets in strings do not count
        level += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
        deepest = max(deepest, level)
        if deepest > depth:
            return True
    return False


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Parsing makes millions of objects and no cycles: the collector would look through them again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _memory_bytes() -> int | None:
    """The memory of this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def _size(num_bytes: int) -> str:
    for unit, size in (("GB", 2**30), ("MB", 2**20), ("KB", 2**10)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes} bytes"
