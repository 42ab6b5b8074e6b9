"""Journals: JSON lines of results as they come, which a stopped run goes on from.

The first line says what run they belong to. A line that a killed run left unfinished is dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from modelassay.errors import InputError
from modelassay.files.atomic import explain_os_errors, locked, write_text_atomically
from modelassay.files.provenance import json_hash

MAX_HEADER_BYTES = 1_000_000


def check_out(source: str | Path, out: Path, *, replaces: bool) -> None:
    """Refuses to write over what is read, or over what is there, before any work.

    Args:
        source: What is read: a file, or anything else.
        out: The file to write.
        replaces: Whether a file that is there may go.

    Raises:
        InputError: says what to give.
    """
    if not out.exists():
        return
    if Path(source).exists() and out.samefile(source):
        raise InputError(f"{out} is the data itself; give another name for --out.")
    if not replaces:
        raise InputError(f"{out} is there already; give another name, or --force to replace it.")


class Journal:
    """An open journal; whole lines after the first are its entries."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        """Drops what comes after the last whole line."""
        self._path, self._stream = path, stream
        stream.seek(0)
        stream.readline()
        self._start = self._end = stream.tell()
        for line in stream:
            if line.endswith(b"\n"):
                self._end += len(line)
        self._cut(self._end)

    def entries(self) -> Iterator[bytes]:
        """Its entries as they are there now."""
        self._stream.seek(self._start)
        while self._stream.tell() < self._end:
            yield self._stream.readline()
        self._stream.seek(self._end)

    def keep(self, count: int) -> None:
        """Drops all entries but the first ones."""
        self._stream.seek(self._start)
        for _ in range(count):
            self._stream.readline()
        self._cut(self._stream.tell())

    def add(self, entry: Mapping[str, Any], *, sync: bool = True) -> None:
        """Adds an entry.

        Args:
            entry: JSON-ready.
            sync: Wait until it survives whatever comes after.

        Raises:
            UnavailableError: the disk is full or fails.
        """
        line = json.dumps(entry, allow_nan=False).encode() + b"\n"
        with explain_os_errors(f"writing {self._path}"):
            self._stream.write(line)
            if sync:
                self._stream.flush()
                os.fsync(self._stream.fileno())
        self._end += len(line)

    def _cut(self, end: int) -> None:
        with explain_os_errors(f"writing {self._path}"):
            self._stream.truncate(end)
        self._stream.seek(end)
        self._end = end


@contextmanager
def open_journal(
    path: Path,
    schema: str,
    identity: Mapping[str, Any],
    *,
    called: str,
    option: str,
    force: bool = False,
) -> Iterator[Journal]:
    """Opens a journal, to go on where a run of the same identity stopped.

    Args:
        path: Made if it is not there.
        schema: What its first line says that it is.
        identity: What its entries depend on, JSON-ready.
        called: What errors call its contents, such as `guard results`.
        option: The option that its name is from, for errors.
        force: Begin again over the entries of another run.

    Raises:
        InputError: the file is another run's, or no such journal.
        UnavailableError: it cannot be written, also at the end, or another process is writing it.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file name for {option}.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"There is no folder {path.absolute().parent} to write {path.name} into.")
    with locked(path):
        if not _goes_on(path, schema, identity, called, option, force):
            header = {"schema": schema, "identity_sha256": json_hash(identity)}
            write_text_atomically(path, json.dumps({**header, "identity": identity}) + "\n")
        with explain_os_errors(f"writing {path}"):
            stream = path.open("r+b")
        try:
            yield Journal(path, stream)
        finally:
            with explain_os_errors(f"writing {path}"):
                stream.close()  # writes what is left, for which a full disk has no room again


def _goes_on(
    path: Path, schema: str, identity: Mapping[str, Any], called: str, option: str, force: bool
) -> bool:
    """Whether the file that is there is of this run."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    with explain_os_errors(f"reading {path}"), path.open("rb") as stream:
        line = stream.readline(MAX_HEADER_BYTES)
    header = _parse(line)
    if header is None or header.get("schema") != schema:
        raise InputError(f"{path} is not a file of {called}; give another name for {option}.")
    if not line.endswith(b"\n"):
        return False
    if header.get("identity_sha256") == json_hash(identity):
        return True
    if force:
        return False
    raise InputError(
        f"{path} holds {called} of another run ({_difference(header, identity)}); give another"
        f" name for {option}, or --force to begin again."
    )


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _difference(header: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """Which parts of the identity differ."""
    other = header.get("identity")
    other = other if isinstance(other, dict) else {}
    found = [name for name in identity if other.get(name) != identity[name]]
    return f"other {', '.join(found)}" if found else "made otherwise"
