"""The audit's log: one JSON line an event, each with the sha256 of the line before.

A line that is changed, taken out or put in between breaks the chain from there on. Lines that are
cut off at the end leave a whole chain: the report states the last hash, and so shows that.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from modelassay.errors import InputError
from modelassay.files.atomic import explain_os_errors
from modelassay.files.provenance import utc_now

LOG_SCHEMA = "modelassay.audit-log/1"
LOG_FILE = "audit.jsonl"
BEGINNING = "0" * 64
"""What the first line has in place of a hash."""


@dataclass(frozen=True)
class LogCheck:
    """Whether a log is as it was written."""

    n: int
    """Lines that hang together, from the first."""
    last: str
    """Hash of the last of them."""
    problem: str | None
    """What is wrong with the line after these; None for a whole log."""


class AuditLog:
    """Appends to a log; nothing is ever written again."""

    def __init__(self, path: Path) -> None:
        """Opens the log, or takes up one that is there.

        Raises:
            InputError: the one that is there was changed or cut off.
            UnavailableError: it cannot be written.
        """
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is not a plain file; give another folder.")
        check = verify_log(path)
        if check.problem is not None:
            raise InputError(
                f"{path} is not as it was written ({check.problem}); keep it as evidence and give"
                " another folder."
            )
        self.path, self.n, self.last = path, check.n, check.last
        # A symbolic link would let the log be written somewhere else.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        with explain_os_errors(f"opening {path}"):
            self._handle = os.open(path, flags, 0o600)

    def append(self, event: str, **fields: Any) -> int:
        """Writes one line, which is on the disk when this returns.

        Args:
            event: What happened.
            **fields: JSON values that say more.

        Returns:
            The line's number, from 0.

        Raises:
            UnavailableError: it cannot be written.
        """
        number = self.n
        line = json.dumps(
            {
                "n": number,
                "time": utc_now("milliseconds"),
                "event": event,
                **fields,
                "previous": self.last,
            },
            ensure_ascii=False,
            allow_nan=False,
        ).encode("utf-8", "replace")
        with explain_os_errors(f"writing {self.path}"):
            rest = memoryview(line + b"\n")
            while rest:
                rest = rest[os.write(self._handle, rest) :]
            os.fsync(self._handle)
        self.n, self.last = number + 1, hashlib.sha256(line).hexdigest()
        return number

    def close(self) -> None:
        """Gives the file back."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def verify_log(path: Path) -> LogCheck:
    """Follows a log's chain from its first line.

    Args:
        path: The log; one that is not there is whole and empty.
    """
    return _follow(path)[1]


def read_log(path: Path) -> list[dict[str, Any]]:
    """All events of a whole log.

    Raises:
        InputError: the chain is broken.
    """
    events, check = _follow(path)
    if check.problem is not None:
        raise InputError(f"{path} is not as it was written: {check.problem}.")
    return events


def _follow(path: Path) -> tuple[list[dict[str, Any]], LogCheck]:
    """The events that hang together, and where they end."""
    events: list[dict[str, Any]] = []
    last, problem = BEGINNING, None
    with path.open("rb") if path.exists() else BytesIO() as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not line.endswith(b"\n"):
                problem = f"line {number} is cut off"
            elif not isinstance(record, dict):
                problem = f"line {number} is not JSON"
            elif record.get("n") != len(events) or record.get("previous") != last:
                problem = f"line {number} does not follow from the one before"
            else:
                events.append(record)
                last = hashlib.sha256(line[:-1]).hexdigest()
                continue
            break
    return events, LogCheck(len(events), last, problem)
