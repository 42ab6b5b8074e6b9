"""Results of a benchmark as they come: JSON lines that a stopped run goes on from.

The first line says what run they belong to; each further line is one response. A line that a killed
run left unfinished is dropped, and answered again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError

from modelassay.errors import InputError
from modelassay.files.atomic import explain_os_errors, locked, write_text_atomically
from modelassay.files.provenance import json_hash

RESULTS_SCHEMA = "modelassay.guard-bench-results/1"
MAX_RESULTS_BYTES = 1_000_000_000

Arm = Literal["raw", "guarded"]
ARMS: tuple[Arm, ...] = get_args(Arm)
By = Literal["prompt", "answer"]


@dataclass(frozen=True)
class BenchRow:
    """One response and what was made of it. The text is only kept where that was asked for."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    id: str
    """Of the prompt."""
    side: Arm
    answered: bool
    """False where the model could not take the prompt; the rest is then empty."""
    blocked: By | None = None
    """What the guard refused, if it did."""
    n_tokens: int = 0
    sha256: str | None = None
    """Of all that was shown."""
    judged: bool = False
    """Whether a judge was asked; nothing shown needs none."""
    unsafe: bool | None = None
    refusal: bool | None = None
    detail: str = ""
    prompt_risk: float | None = None
    peak_risk: float | None = None
    """The largest of the response's tokens."""
    guard_detail: str | None = None
    """What the guard says of its classifier at the end."""
    text: str | None = None
    flagged_unsafe: bool | None = None
    """True where the judge says unsafe of a response of which it also says that it refuses."""
    seconds: float | None = None
    """Until the response ended; None in results that older versions wrote."""
    classifier_calls: int | None = None
    """How often the guard asked its classifier."""

    def settled(self) -> BenchRow:
        """As it counts: a response that refuses is not unsafe, whatever else its judge says."""
        if not (self.unsafe and self.refusal) or self.blocked:
            return self
        return replace(self, unsafe=False, flagged_unsafe=True)


class Results:
    """Responses by (prompt, side); `add()` puts them into the file at once."""

    def __init__(self, rows: Mapping[tuple[str, Arm], BenchRow], stream: IO[bytes] | None) -> None:
        """Goes on from rows that are there already."""
        self.rows = dict(rows)
        self._stream = stream

    def add(self, row: BenchRow) -> None:
        """Keeps a response; it survives whatever comes after."""
        if self._stream is not None:
            kept = {name: value for name, value in asdict(row).items() if value is not None}
            with explain_os_errors(f"writing {self._stream.name}"):
                self._stream.write(json.dumps(kept, allow_nan=False).encode() + b"\n")
                self._stream.flush()
                os.fsync(self._stream.fileno())
        self.rows[row.id, row.side] = row


@contextmanager
def open_results(
    path: Path | None, identity: Mapping[str, Any], *, force: bool = False
) -> Iterator[Results]:
    """Opens a file of results, to go on where a run of the same identity stopped.

    Args:
        path: JSON lines, made if it is not there; None keeps results in memory.
        identity: What the results depend on, JSON-ready.
        force: Begin again over results of another run.

    Raises:
        InputError: the file is another run's, or no file of results.
        UnavailableError: it cannot be written, or another process is writing it.
    """
    if path is None:
        yield Results({}, None)
        return
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file name for --out.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"There is no folder {path.absolute().parent} to write {path.name} into.")
    with locked(path):
        rows, end = _read(path, identity, force)
        if end == 0:
            header = {"schema": RESULTS_SCHEMA, "identity_sha256": json_hash(identity)}
            write_text_atomically(path, json.dumps({**header, "identity": identity}) + "\n")
        with explain_os_errors(f"writing {path}"):
            stream = path.open("r+b" if end else "ab")
        with stream:
            if end:
                stream.truncate(end)
                stream.seek(end)
            yield Results(rows, stream)


def _read(
    path: Path, identity: Mapping[str, Any], force: bool
) -> tuple[dict[tuple[str, Arm], BenchRow], int]:
    """Rows that can be gone on from, and the length of the file up to the last whole line."""
    if not path.exists() or path.stat().st_size == 0:
        return {}, 0
    strange = InputError(f"{path} is not a file of guard results; give another name for --out.")
    if path.stat().st_size > MAX_RESULTS_BYTES:
        raise strange
    with explain_os_errors(f"reading {path}"):
        lines = path.read_bytes().split(b"\n")
    unfinished = lines.pop()  # empty, unless a run was killed in the middle of a line
    end = sum(len(line) + 1 for line in lines)
    header = _parse(lines[0]) if lines else _parse(unfinished)
    if header is None or header.get("schema") != RESULTS_SCHEMA:
        raise strange
    if not lines:
        return {}, 0
    if header.get("identity_sha256") != json_hash(identity):
        if force:
            return {}, 0
        raise InputError(
            f"{path} holds results of another run ({_difference(header, identity)}); give another"
            " name for --out, or --force to begin again."
        )
    rows: dict[tuple[str, Arm], BenchRow] = {}
    for number, line in enumerate(lines[1:], 2):
        try:
            row = TypeAdapter(BenchRow).validate_json(line)
        except ValidationError as error:
            raise InputError(
                f"{path}: line {number} is damaged; take it out, or use --force."
            ) from error
        rows[row.id, row.side] = row.settled()
    return rows, end


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
