"""Repositories of the Hugging Face hub: finds and downloads what was published there, and uploads it. Works without torch.

A repository holds the files of a bundle (see `bundle`) and a model card. Only files of a bundle's names are downloaded, into the
hub's cache (HF_HOME), and read as a bundle from anywhere is: JSON, safetensors and ONNX graphs. No code is downloaded or
executed. Tokens are huggingface_hub's affair: HF_TOKEN, or the one that `hf auth login` stored.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from foldfuse.errors import InputError, shown
from foldfuse.inference import rescorer_file
from foldfuse.inference.bundle import ENSEMBLE, MAX_JSON_BYTES, MAX_TENSOR_BYTES, MEMBERS, RECORD, RUN_FILES
from foldfuse.inference.networks import NETWORK
from foldfuse.storage.run_tensors import WEIGHTS
from foldfuse.system.offline import is_offline

PREFIX = "hf:"
FILES = (  # patterns of the files that are downloaded
    RECORD,
    ENSEMBLE,
    "thresholds.json",
    rescorer_file.SETTINGS,
    rescorer_file.TENSORS,
    "encoder.onnx",
    *(f"{MEMBERS}/*/{name}" for name in (*RUN_FILES, WEIGHTS, NETWORK)),
)
CARD = "README.md"
TEXTS = (CARD, "weights.md", "LICENSE", "NOTICE")  # for people: uploaded, never downloaded
TIMEOUT = 10  # seconds without an answer
_NAME = r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}"
_REFERENCE = re.compile(rf"{PREFIX}(?P<name>{_NAME})(?:@(?P<revision>[\w./-]{{1,200}}))?", re.ASCII)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubReference:
    """A repository of the hub, "owner/name", and a revision of it: a branch, a tag or a commit; None for the newest."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.name}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Published:
    """A published bundle in the hub's cache.

    Attributes:
        reference: how the user named it.
        path: the folder with its files.
    """

    reference: HubReference
    path: Path


def find_published(path: str | Path) -> Published | None:
    """The published bundle that "hf:owner/name" or "hf:owner/name@revision" names, downloaded; None for any other path.

    Raises:
        InputError: the name is malformed, there is no such repository or revision, Foldfuse did not publish it, or it is not in
            the cache and cannot be downloaded.
    """
    text = path if isinstance(path, str) else Path(path).as_posix()  # a Run or a Campaign stands for its folder
    if not text.startswith(PREFIX):
        return None
    found = _REFERENCE.fullmatch(text)
    if found is None:
        raise InputError(
            f"{text}: is no repository of the Hugging Face hub. Write it as hf:owner/name, or hf:owner/name@revision."
        )
    reference = HubReference(found["name"], found["revision"])
    return Published(reference, _download(reference))


def check_name(name: str) -> None:
    """Raise InputError unless a name is that of a repository, "owner/name"."""
    if not re.fullmatch(_NAME, name, re.ASCII):
        raise InputError(
            f"{shown(name)} is no name of a repository on the Hugging Face hub. Write it as owner/name, where owner is your name "
            "or your organisation's there."
        )


def require_hub() -> Any:
    """The package huggingface_hub. Raises InputError where it is not installed."""
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise InputError(
            "this needs huggingface_hub, which is not installed: pip install 'foldfuse[hub]' brings it."
        ) from None


def _download(reference: HubReference) -> Path:
    hub = require_hub()
    unreachable: Exception | None = None
    if not is_offline():
        try:
            info = hub.HfApi().model_info(
                reference.name, revision=reference.revision, files_metadata=True, timeout=TIMEOUT
            )
        except Exception as error:  # each version of the package has its own errors for a network that is down
            if (refusal := _refusal(error, reference)) is not None:
                raise refusal from None
            unreachable = error
        else:
            _check_files(reference, {each.rfilename: each.size for each in info.siblings or ()})
    is_cached = is_offline() or unreachable is not None
    try:
        folder = hub.snapshot_download(
            reference.name, revision=reference.revision, allow_patterns=list(FILES), local_files_only=is_cached
        )
    except Exception as error:
        if not is_cached:
            raise _refusal(error, reference) or InputError(
                f"{reference}: cannot be downloaded ({_first_line(error)}). Try again; what has arrived is kept."
            ) from None
        why = "downloads are forbidden here (offline)" if unreachable is None else f"{_host()} cannot be reached"
        raise InputError(
            f"{reference}: is not in the cache {_constants().HF_HUB_CACHE}, and {why}. Load it once where there is a network."
        ) from None
    if unreachable is not None:
        log.warning("%s: %s cannot be reached; the copy in the cache is used.", reference, _host())
    return Path(folder)


def _check_files(reference: HubReference, sizes: dict[str, int | None]) -> None:
    """Raises InputError for a repository that is no bundle, or one whose files are too large."""
    if RECORD not in sizes:
        raise InputError(
            f"{reference}: holds no {RECORD}, so Foldfuse did not publish it. Other models of the hub cannot be loaded; timm's "
            "backbones are, as timm:NAME in a recipe."
        )
    for name, size in sizes.items():
        limit = MAX_JSON_BYTES if name.endswith(".json") else MAX_TENSOR_BYTES
        if is_published_file(name) and (size or 0) > limit:
            raise InputError(
                f"{reference}: {name} has {size:,} bytes, expected at most {limit:,}. It is not downloaded."
            )


def is_published_file(name: str) -> bool:
    """Whether a file of a repository is one that a bundle is read from."""
    return any(fnmatchcase(name, pattern) for pattern in FILES)


def upload(folder: Path, name: str, *, is_private: bool, message: str) -> str:
    """Uploads a folder as one commit to a repository, which is made where it is missing, and returns its address.

    Files of an earlier publication that the folder lacks are removed from the newest revision; earlier revisions keep them.

    Args:
        folder: what `publishing.write_repository` wrote.
        name: "owner/name".
        is_private: whether the repository must be private.
        message: of the commit.

    Raises:
        InputError: there is no token or no network, the token may not write, the repository holds other things, or it is public
            though it must be private.
    """
    hub = require_hub()
    reference = HubReference(name)
    if is_offline():
        raise InputError(
            f"{reference}: uploads are forbidden here (offline). Unset HF_HUB_OFFLINE, or give --dry-run DIR."
        )
    if hub.get_token() is None:
        raise InputError(
            f"{reference}: there is no token of {_host()} on this machine. Make one that may write at "
            "https://huggingface.co/settings/tokens, then give 'hf auth login', or set HF_TOKEN."
        )
    api = hub.HfApi()
    try:
        before = _files_before(api, reference, is_private=is_private)
        if before is None:
            api.create_repo(name, private=True if is_private else None)
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        operations: list[Any] = [hub.CommitOperationAdd(file, str(folder / file)) for file in files]
        gone = [file for file in before or () if (is_published_file(file) or file in TEXTS) and file not in files]
        operations += [hub.CommitOperationDelete(file) for file in gone]
        api.create_commit(name, operations, commit_message=message)
    except InputError:
        raise
    except Exception as error:
        raise _refusal(error, reference, is_upload=True) or InputError(
            f"{reference}: cannot be uploaded: {_host()} cannot be reached ({_first_line(error)}). Try again later."
        ) from None
    return f"{_constants().ENDPOINT}/{name}"


def _files_before(api: Any, reference: HubReference, *, is_private: bool) -> Iterable[str] | None:
    """The files of a repository; None where it does not exist yet.

    Raises:
        InputError: it holds other things than a bundle, or is public though it must be private.
    """
    try:
        info = api.model_info(reference.name, timeout=TIMEOUT)
    except Exception as error:
        if "RepositoryNotFoundError" in _kinds(error) and "GatedRepoError" not in _kinds(error):
            return None
        raise
    names = [each.rfilename for each in info.siblings or ()]
    others = [name for name in names if name not in (*TEXTS, ".gitattributes")]
    if others and RECORD not in names:
        raise InputError(
            f"{reference}: exists already and holds other things than Foldfuse publishes, such as {others[0]}. Choose another "
            "name."
        )
    if is_private and not info.private:
        raise InputError(
            f"{reference}: exists already and is public, so --private cannot be kept. Make it private on its page, or choose "
            "another name."
        )
    return names


def _refusal(error: Exception, reference: HubReference, *, is_upload: bool = False) -> InputError | None:
    """The sentence for an answer of the hub; None where there was no answer, or the hub itself failed."""
    kinds = _kinds(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    login = "log in with 'hf auth login', or set HF_TOKEN"
    if "GatedRepoError" in kinds:
        return InputError(f"{reference}: its owner grants access on request. Ask on its page, then {login}.")
    if is_upload and status in (401, 403, 404):
        return InputError(
            f"{reference}: the token on this machine may not write there. Check the owner's name, and make a token that may "
            "write at https://huggingface.co/settings/tokens."
        )
    if "RevisionNotFoundError" in kinds:
        return InputError(
            f"{reference}: the repository has no such revision. Leave out @{reference.revision} for the newest."
        )
    if "RepositoryNotFoundError" in kinds or status == 401:
        return InputError(
            f"{reference}: there is no such repository, or it is private. Check the name; for a private one {login}."
        )
    is_refused = status is not None and 400 <= status < 500 and status not in (408, 429)
    if is_refused or (status is None and isinstance(error, ValueError)):
        return InputError(f"{reference}: the hub refuses this ({_first_line(error)}).")
    return None


def _kinds(error: Exception) -> set[str]:
    """The names of an error's classes: which module has them depends on the version of huggingface_hub."""
    return {cls.__name__ for cls in type(error).__mro__}


def _constants() -> Any:
    return importlib.import_module("huggingface_hub.constants")


def _host() -> str:
    return str(_constants().ENDPOINT).partition("://")[2]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
