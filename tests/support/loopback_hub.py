"""A small Hub on 127.0.0.1 that the unmodified huggingface_hub client can fetch from and push to.

It answers as huggingface.co does, as far as the client can tell: commits and branches, private and
gated repositories, the X- headers, ranges, uploads small and large, pull requests, listings by tag.
Faults can be planned. Every request is kept in `log`.
"""

from __future__ import annotations

import base64
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
import yaml

Files = dict[str, bytes]
Answer = tuple[int, bytes, dict[str, str]]
LFS = (".safetensors", ".bin", ".gguf", ".parquet")
# Revisions keep their %2F (refs%2Fpr%2F1), so that they are one segment.
_REPO = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES = {
    "info": rf"/api/(?P<kind>models|datasets)/{_REPO}(/revision/(?P<revision>[^/]+))?",
    "access": rf"/api/(?P<kind>models|datasets)/{_REPO}/auth-check",
    "tree": rf"/api/(?P<kind>models|datasets)/{_REPO}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?",
    "paths": rf"/api/(?P<kind>models|datasets)/{_REPO}/paths-info/(?P<revision>[^/]+)",
    "resolve": rf"/((?P<kind>datasets)/)?{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)",
    "preupload": rf"/api/(?P<kind>models|datasets)/{_REPO}/preupload/(?P<revision>[^/]+)",
    "commit": rf"/api/(?P<kind>models|datasets)/{_REPO}/commit/(?P<revision>[^/]+)",
    "lfs": rf"/((?P<kind>datasets)/)?{_REPO}\.git/info/lfs/objects/batch",
}
# Those that belong to no repository.
_SITE_ROUTES = {
    "create": r"/api/repos/create",
    "whoami": r"/api/whoami-v2",
    "card": r"/api/validate-yaml",
    "list": r"/api/(?P<kind>models|datasets)",
    "upload": r"/lfs/(?P<oid>[0-9a-f]{64})",
}


@dataclass
class Repo:
    """One repository: files by commit, commits by branch, and the one token that may read it."""

    id: str
    private: bool = False
    gated: bool = False
    downloads: int = 0
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
        self.owners: dict[str, str] = {}
        """Which namespace a token may write to; tokens that are not here may only read."""
        self.blobs: dict[str, bytes] = {}
        """Large files that were uploaded, by sha256."""
        self.lock = Lock()
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

    def add_writer(self, token: str, namespace: str) -> None:
        """A token that may write to a namespace, and open pull requests elsewhere."""
        self.tokens.add(token)
        self.owners[token] = namespace

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


def card_data(files: Files) -> dict[str, Any]:
    """The metadata of a repository's card."""
    text = files.get("README.md", b"").decode()
    return (yaml.safe_load(text.split("---")[1]) or {}) if text.startswith("---") else {}


def card_tags(files: Files) -> list[str]:
    """The tags in that metadata, and the licence, which the Hub makes a tag of."""
    card = card_data(files)
    licence = [f"license:{card['license']}"] if "license" in card else []
    return [*(card.get("tags") or []), *licence]


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
    disable_nagle_algorithm = True  # header and body are two packets; the second would wait 40 ms

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

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 (named by http.server)

    def route(self, headers: dict[str, str]) -> Answer:
        path = urlsplit(self.path).path
        token = headers.get("authorization", "").removeprefix("Bearer ") or None
        body = self.rfile.read(int(headers.get("content-length", 0)))
        for name, pattern in _SITE_ROUTES.items():
            if (match := re.fullmatch(pattern, path)) is not None:
                return self.site(name, match, body, token)
        matches = ((name, re.fullmatch(pattern, path)) for name, pattern in _ROUTES.items())
        name, match = next((found for found in matches if found[1]), ("", None))
        if match is None:
            raise HubError(404, None, "Not found")
        repo = self.hub.find(match["kind"] or "models", match["repo"], token)
        if name == "lfs":
            return self.lfs_batch(json.loads(body))
        if name == "access":
            self.check_gate(repo, token)
            return 200, b"{}", {}
        revision = unquote(match["revision"] or "main")
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if name == "resolve":
            self.check_gate(repo, token)
            return self.resolve(repo, commit, unquote(match["file"]), headers.get("range", ""))
        if name == "preupload":
            return self.preupload(json.loads(body))
        if name == "commit":
            return self.commit(repo, revision, body, token)
        files = [tree_entry(*file) for file in sorted(repo.commits[commit].items())]
        if name == "tree":
            recursive = "recursive=true" in urlsplit(self.path).query.lower()
            entries = in_folder(files, unquote(match["folder"] or ""), recursive)
            return 200, json.dumps(entries).encode(), {}
        if name == "paths":
            asked = parse_qs(body.decode()).get("paths", [])
            known = [entry for entry in files if entry["path"] in asked]
            return 200, json.dumps(known).encode(), {}
        siblings = [
            {"rfilename": file["path"], "size": file["size"]}
            | ({"lfs": {**file["lfs"], "sha256": file["lfs"]["oid"]}} if "lfs" in file else {})
            for file in files
        ]
        tags = card_tags(repo.commits[commit])
        info = {"_id": repo.id, "id": repo.id, "sha": commit, "tags": tags, "siblings": siblings}
        info |= {"cardData": card_data(repo.commits[commit])}
        info |= {"private": repo.private, "gated": repo.gated and "manual"}
        return 200, json.dumps(info).encode(), {}

    def check_gate(self, repo: Repo, token: str | None) -> None:
        if repo.gated and token != repo.token:
            raise HubError(403 if token else 401, "GatedRepo", "Access is restricted")

    def site(self, name: str, match: re.Match[str], body: bytes, token: str | None) -> Answer:
        if token is not None and token not in self.hub.tokens:
            raise HubError(401, None, "Invalid credentials in Authorization header")
        if name == "upload":
            if hashlib.sha256(body).hexdigest() != match["oid"]:
                raise HubError(400, None, "The upload has another sha256")
            self.hub.blobs[match["oid"]] = body
            return 200, b"{}", {}
        if name == "card":
            return 200, b'{"errors": [], "warnings": []}', {}
        if name == "list":
            return self.listing(match["kind"], token)
        if token is None:
            raise HubError(401, None, "Log in first")
        owner = self.hub.owners.get(token)
        if name == "whoami":
            return 200, json.dumps({"type": "user", "name": owner or "reader"}).encode(), {}
        asked = json.loads(body)
        namespace = asked.get("organization") or owner
        repo_id, kind = f"{namespace}/{asked['name']}", asked.get("type", "model") + "s"
        if namespace != owner or owner is None:
            raise HubError(403, None, f"You cannot create repositories under {namespace}")
        with self.hub.lock:
            url = f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{repo_id}"
            if (kind, repo_id) in self.hub.repos:
                return 409, json.dumps({"error": "You already created it", "url": url}).encode(), {}
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            self.hub.add_repo(kind, repo_id, {}, private=private, token=token if private else None)
        return 200, json.dumps({"url": url, "name": repo_id, "id": repo_id}).encode(), {}

    def listing(self, kind: str, token: str | None) -> Answer:
        query = parse_qs(urlsplit(self.path).query)
        author, wanted = query.get("author", [""])[0], set(query.get("filter", []))
        search = query.get("search", [""])[0].lower()
        found = []
        for (k, repo_id), repo in sorted(self.hub.repos.items()):
            tags = card_tags(repo.commits[repo.refs["main"]])
            seen = not repo.private or token == repo.token
            named = repo_id.startswith(author) and search in repo_id.lower()
            if k == kind and seen and wanted <= set(tags) and named:
                row = {"_id": repo_id, "id": repo_id, "sha": repo.refs["main"], "tags": tags}
                row |= {"cardData": card_data(repo.commits[repo.refs["main"]])}
                row |= {"gated": repo.gated and "manual", "likes": 0, "downloads": repo.downloads}
                found.append(row | {"lastModified": "2026-01-01T00:00:00.000Z"})
        if query.get("sort") == ["downloads"]:
            found.sort(key=lambda row: -row["downloads"])
        limit = int(query.get("limit", ["1000"])[0])
        return 200, json.dumps(found[:limit]).encode(), {}

    def preupload(self, asked: dict[str, Any]) -> Answer:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS) else "regular",
                "shouldIgnore": False,
            }
            for file in asked["files"]
        ]
        return 200, json.dumps({"files": files}).encode(), {}

    def lfs_batch(self, asked: dict[str, Any]) -> Answer:
        objects = [
            {
                **{"oid": entry["oid"], "size": entry["size"]},
                "actions": {"upload": {"href": f"{self.hub.url}/lfs/{entry['oid']}", "header": {}}},
            }
            for entry in asked["objects"]
        ]
        answer = {"transfer": "basic", "objects": objects}
        kind = {"Content-Type": "application/vnd.git-lfs+json"}
        return 200, json.dumps(answer).encode(), kind

    def commit(self, repo: Repo, revision: str, body: bytes, token: str | None) -> Answer:
        """Applies a commit given as lines of JSON: a header, then one a file."""
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        query = parse_qs(urlsplit(self.path).query)
        proposed = query.get("create_pr", ["0"])[0] in ("1", "true", "True")
        owner = self.hub.owners.get(token or "")
        if owner is None or (not proposed and owner != repo.id.partition("/")[0]):
            raise HubError(403 if token else 401, None, "You may not write here")
        kind = next(k for (k, _), known in self.hub.repos.items() if known is repo)
        with self.hub.lock:
            head = repo.refs[revision]
            if header.get("parentCommit") not in (None, head):
                raise HubError(412, None, "A commit has happened since. Please refresh and try")
            files = dict(repo.commits[head])
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.hub.blobs[value["oid"]]
                elif line["key"] == "deletedFile":
                    files.pop(value["path"], None)
            number = 1 + sum(ref.startswith("refs/pr/") for ref in repo.refs)
            ref = f"refs/pr/{number}" if proposed else revision
            made = self.hub.add_commit(kind, repo.id, files, ref)
        where = f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{repo.id}"
        answer = {"success": True, "commitOid": made, "commitUrl": f"{where}/commit/{made}"}
        if proposed:
            answer["pullRequestUrl"] = f"{where}/discussions/{number}"
        return 200, json.dumps(answer).encode(), {}

    def resolve(self, repo: Repo, commit: str, file: str, wanted: str) -> Answer:
        if (data := repo.commits[commit].get(file)) is None:
            raise HubError(404, "EntryNotFound", "Entry not found")
        entry = tree_entry(file, data)
        etag = f'"{entry.get("lfs", entry)["oid"]}"'
        headers = {"X-Repo-Commit": commit, "ETag": etag, "X-Linked-Etag": etag}
        headers |= {"X-Linked-Size": str(len(data)), "Accept-Ranges": "bytes"}
        if not wanted:
            return 200, data, headers
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(data)), len(data) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        return 206, data[start : end + 1], headers

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
