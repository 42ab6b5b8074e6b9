"""A small Hub on 127.0.0.1 that the unmodified huggingface_hub client can fetch from.

It answers as huggingface.co does, as far as the client can tell: commits and branches, private and
gated repositories, the X- headers, ranges. Faults can be planned. Every request is kept in `log`.
A test module gets the `hub` fixture with `pytest_plugins = ("loopback_hub",)`.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

Files = dict[str, bytes]
Answer = tuple[int, bytes, dict[str, str]]
LFS = (".safetensors", ".bin", ".gguf", ".parquet")
# Revisions keep their %2F (refs%2Fpr%2F1), so that they are one segment.
_REPO = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES = {
    "info": rf"/api/(?P<kind>models|datasets)/{_REPO}(/revision/(?P<revision>[^/]+))?",
    "tree": rf"/api/(?P<kind>models|datasets)/{_REPO}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?",
    "paths": rf"/api/(?P<kind>models|datasets)/{_REPO}/paths-info/(?P<revision>[^/]+)",
    "resolve": rf"/((?P<kind>datasets)/)?{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)",
}


@dataclass
class Repo:
    """One repository: files by commit, commits by branch, and the one token that may read it."""

    id: str
    private: bool = False
    gated: bool = False
    token: str | None = None
    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)


class Request(NamedTuple):
    """What a client asked for; headers by lower-case name."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Fault:
    """What goes wrong with requests whose `METHOD /path` contains a match of `pattern`.

    Either another answer (`status`, `headers`, `body`), or a connection that is closed after
    `cut_after` bytes of the true one (`reset`: with a TCP reset), or no answer at all.
    """

    pattern: str
    times: int
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_after: int | None = None
    reset: bool = False


class HubError(Exception):
    """An answer of the Hub that is not 200: status, X-Error-Code, X-Error-Message."""


class LoopbackHub:
    """The server, as a context manager; `url` is its endpoint, `tokens` those of all accounts."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.tokens: set[str] = set()
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.connections: set[socket.socket] = set()
        self._lock = Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> LoopbackHub:
        Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops the server, open connections too: from now on nothing answers at `url`."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self.connections):
            self._server.shutdown_request(connection)

    close = __exit__

    def add_repo(self, kind: str, repo_id: str, files: Files, **access: Any) -> str:
        """Adds a repository to `models` or `datasets` and gives its commit; `access`: see Repo."""
        repo = self.repos[kind, repo_id] = Repo(repo_id, **access)
        self.tokens |= {repo.token} if repo.token else set()
        return self.add_commit(kind, repo_id, files)

    def add_commit(self, kind: str, repo_id: str, files: Files, ref: str = "main") -> str:
        """Makes `files` the whole content of a branch and returns the new commit."""
        repo = self.repos[kind, repo_id]
        commit = git_oid(f"{kind}/{repo_id}/{len(repo.commits)}".encode())
        repo.commits[commit] = dict(files)
        repo.refs[ref] = commit
        return commit

    def add_fault(self, pattern: str, *, times: int = 1_000_000, **what: Any) -> None:
        """Plans a `Fault` for the next `times` requests that match."""
        self.faults.append(Fault(pattern, times, **what))

    def take_fault(self, request: Request) -> Fault | None:
        """The planned fault for this request, counted as used."""
        asked = f"{request.method} {request.path}"
        with self._lock:
            fault = next((f for f in self.faults if f.times and re.search(f.pattern, asked)), None)
            if fault:
                fault.times -= 1
        return fault

    def find(self, kind: str, repo_id: str, token: str | None) -> Repo:
        """The repository, if this token may know of it."""
        if token is not None and token not in self.tokens:
            raise HubError(401, None, "Invalid credentials in Authorization header")
        repo = self.repos.get((kind, repo_id))
        if repo is None or (repo.private and token != repo.token):  # the Hub tells no difference
            raise HubError(404 if token else 401, "RepoNotFound", "Repository not found")
        return repo


def git_oid(data: bytes) -> str:
    """The id that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def tree_entry(path: str, data: bytes) -> dict[str, Any]:
    """What GET …/tree/REV says of a file."""
    entry = {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
    lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry | ({"lfs": lfs} if path.endswith(LFS) else {})


def in_folder(files: list[dict[str, Any]], folder: str, recursive: bool) -> list[dict[str, Any]]:
    """Entries of GET …/tree/REV/folder; those deeper than one level only if `recursive`."""
    prefix = folder.rstrip("/") + "/" if folder else ""
    inside = [entry for entry in files if entry["path"].startswith(prefix)]
    if folder and not inside:
        raise HubError(404, "EntryNotFound", f"{folder} does not exist")
    entries: dict[str, dict[str, Any]] = {}
    for entry in inside:
        child, _, deeper = entry["path"].removeprefix(prefix).partition("/")
        path = prefix + child
        if deeper:
            entries[path] = {"type": "directory", "path": path, "size": 0, "oid": git_oid(b"")}
        if recursive or not deeper:
            entries[entry["path"]] = entry
    return list(entries.values())


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    timeout = 60  # a connection that nobody uses ends by itself

    def do_GET(self) -> None:
        self.hub.connections.add(self.connection)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers)
        self.hub.log.append(request)
        fault = self.hub.take_fault(request)
        if fault and fault.status is not None:
            return self.answer(fault.status, fault.body, fault.headers)
        if fault and fault.cut_after is None:
            self.rfile.read(1)  # until the client gives up
            return None
        try:
            return self.answer(*self.route(headers), fault)
        except HubError as error:
            status, code, message = error.args
            headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
            return self.answer(status, json.dumps({"error": message}).encode(), headers)

    do_HEAD = do_POST = do_GET  # noqa: N815 (named by http.server)

    def route(self, headers: dict[str, str]) -> Answer:
        path = urlsplit(self.path).path
        matches = ((name, re.fullmatch(pattern, path)) for name, pattern in _ROUTES.items())
        name, match = next((found for found in matches if found[1]), ("", None))
        if match is None:
            raise HubError(404, None, "Not found")
        token = headers.get("authorization", "").removeprefix("Bearer ") or None
        repo = self.hub.find(match["kind"] or "models", match["repo"], token)
        revision = unquote(match["revision"] or "main")
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if name == "resolve":
            if repo.gated and token != repo.token:
                raise HubError(403 if token else 401, "GatedRepo", "Access is restricted")
            return self.resolve(repo, commit, unquote(match["file"]), headers.get("range", ""))
        files = [tree_entry(*file) for file in sorted(repo.commits[commit].items())]
        if name == "tree":
            recursive = "recursive=true" in urlsplit(self.path).query.lower()
            entries = in_folder(files, unquote(match["folder"] or ""), recursive)
            return 200, json.dumps(entries).encode(), {}
        if name == "paths":
            length = int(headers.get("content-length", 0))
            asked = parse_qs(self.rfile.read(length).decode()).get("paths", [])
            known = [entry for entry in files if entry["path"] in asked]
            return 200, json.dumps(known).encode(), {}
        siblings = [{"rfilename": file["path"], "size": file["size"]} for file in files]
        info = {"_id": repo.id, "id": repo.id, "sha": commit, "tags": [], "siblings": siblings}
        info |= {"private": repo.private, "gated": repo.gated and "manual"}
        return 200, json.dumps(info).encode(), {}

    def resolve(self, repo: Repo, commit: str, file: str, wanted: str) -> Answer:
        if (data := repo.commits[commit].get(file)) is None:
            raise HubError(404, "EntryNotFound", "Entry not found")
        entry = tree_entry(file, data)
        etag = f'"{entry.get("lfs", entry)["oid"]}"'
        headers = {"X-Repo-Commit": commit, "ETag": etag, "X-Linked-Etag": etag}
        headers |= {"X-Linked-Size": str(len(data)), "Accept-Ranges": "bytes"}
        if not wanted:
            return 200, data, headers
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return 206, data[start:], headers

    def answer(self, status: int, body: bytes, headers: dict[str, str], fault: Fault | None = None):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: fault.cut_after] if fault else body)
        self.close_connection |= fault is not None
        if fault and fault.reset:
            now = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
            self.rfile.close()  # which would keep the socket open until the server's own FIN
            self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr: `LoopbackHub.log` has it all."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A fresh Hub that huggingface_hub talks to in this process, with an empty cache of its own."""
    from huggingface_hub import close_session, constants

    with LoopbackHub() as server:
        # The environment was read on import, long ago; `constants` is read on every call.
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        close_session()  # no kept connection of another test's server
        yield server
        close_session()
