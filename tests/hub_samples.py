"""A small server that answers as the Hugging Face hub does, for as much of its API as Foldfuse uses."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

TOKEN = "hf_of_the_tests"


@dataclass
class Repository:
    """A repository: its revisions, the newest last, each {file: content}."""

    private: bool = False
    revisions: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b""}])
    messages: list[str] = field(default_factory=list)

    def sha(self, number: int = -1) -> str:
        number = number % len(self.revisions)
        return hashlib.sha1(f"{number} of {sorted(self.revisions[number])}".encode()).hexdigest()

    def at(self, revision: str) -> int | None:
        """The position of "main" or of a commit; None for another name."""
        if revision == "main":
            return len(self.revisions) - 1
        return next((i for i in range(len(self.revisions)) if self.sha(i) == revision), None)


@dataclass
class FakeHub:
    """The server's state.

    Attributes:
        repositories: {"owner/name": repository}.
        requests: "METHOD path" of each request.
        owner: whose token `TOKEN` is.
        is_broken: whether every answer is 503.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    owner: str = "anna"
    is_broken: bool = False
    endpoint: str = ""


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A running server."""
    hub = FakeHub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def connected(monkeypatch: pytest.MonkeyPatch, folder: Path, *, owner: str = "anna") -> Iterator[FakeHub]:
    """A running server that huggingface_hub takes for the hub, with an empty cache in a folder and the token of `owner`."""
    with fake_hub() as hub:
        hub.owner = owner
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE
        address = hub.endpoint + template[template.index("/{repo_id}") :]
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub_cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no_token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


class _Handler(BaseHTTPRequestHandler):
    state: FakeHub

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def _answer(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.state.requests.append(f"{method} {path}")
        if self.state.is_broken:
            return self._send(503, b"broken")
        if method == "POST" and path == "/api/validate-yaml":
            return self._json({})
        if method == "POST" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, b"", {"X-Error-Message": "Invalid credentials"})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|preupload|commit|tree)/(.+))?", path):
            return self._api(found[1], found[2] or "revision", found[3] or "main", body)
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(found[1], found[2], found[3])
        return self._send(404, b"")

    def _create(self, wanted: dict[str, Any]) -> None:
        if wanted["organization"] != self.state.owner:
            return self._send(403, b"", {"X-Error-Message": "You don't have the rights"})
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.state.repositories:
            return self._send(409, b"{}")
        self.state.repositories[name] = Repository(private=wanted.get("visibility") == "private")
        return self._json({"url": f"{self.state.endpoint}/{name}", "name": name})

    def _api(self, name: str, what: str, revision: str, body: bytes) -> None:
        repository = self._readable(name)
        if repository is None:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        number = repository.at(revision)
        if number is None:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files = repository.revisions[number]
        if what == "revision":
            rows = [{"rfilename": file, "size": len(content), "blobId": "0"} for file, content in files.items()]
            return self._json(
                {"id": name, "private": repository.private, "sha": repository.sha(number), "siblings": rows}
            )
        if what == "tree":
            rows = [{"type": "file", "path": p, "size": len(c), "oid": _oid(c)} for p, c in files.items()]
            return self._json(rows)
        if what == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            return self._json({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]})
        changed = dict(files)
        for line in body.splitlines():
            row = json.loads(line)
            if row["key"] == "header":
                repository.messages.append(row["value"]["summary"])
            elif row["key"] == "file":
                changed[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            elif row["key"] == "deletedFile":
                del changed[row["value"]["path"]]
        repository.revisions.append(changed)
        sha = repository.sha()
        return self._json(
            {"success": True, "commitOid": sha, "commitUrl": f"{self.state.endpoint}/{name}/commit/{sha}"}
        )

    def _file(self, name: str, revision: str, path: str) -> None:
        repository = self._readable(name)
        number = None if repository is None else repository.at(revision)
        if repository is None or number is None or path not in repository.revisions[number]:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = repository.revisions[number][path]
        return self._send(200, content, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": repository.sha(number)})

    def _readable(self, name: str) -> Repository | None:
        """A repository that the sender may read."""
        repository = self.state.repositories.get(name)
        is_owner = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        return repository if repository is not None and (is_owner or not repository.private) else None

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
