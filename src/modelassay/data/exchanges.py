"""Exchanges: a prompt and its response, read from files or Hub data sets in the usual shapes.

A row has one of the layouts of `data.layouts`. An `Exchange` has one user turn and one response,
after an optional system turn.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modelassay.data.layouts import conversation_of, layout_names
from modelassay.errors import InputError
from modelassay.hub import open_rows

ONE_EXCHANGE = (["user", "assistant"], ["system", "user", "assistant"])
MAX_FILE_BYTES = 200_000_000
MAX_TEXT = 200_000  # characters


@dataclass(frozen=True)
class Exchange:
    """One turn of a conversation."""

    prompt: str
    response: str
    system: str | None = None
    complete: bool = True
    """False for the opening of a longer response."""

    def to_dict(self) -> dict[str, Any]:
        """A row that `read_exchanges` reads back."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def read_exchanges(where: str | Path, *, token: Any = None) -> list[Exchange]:
    """Reads exchanges from a JSON, JSONL, CSV or Parquet file or a Hub data set.

    Raises:
        InputError: no such data, or a row without prompt and response.
        UnavailableError: the Hub cannot be reached.
    """
    rows = numbered_rows(where, token=token)
    found = [to_exchange(row, f"Row {number} of {where}") for number, row in rows]
    if not found:
        raise InputError(f"{where} has no rows.")
    return found


def numbered_rows(
    where: str | Path,
    *,
    config: str | None = None,
    split: str = "train",
    token: str | bool | None = None,
    on_malformed: Callable[[InputError], None] | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a table that is not too large, with their numbers; arguments: `open_rows`.

    Raises:
        InputError: no such data, a malformed line, or more than `MAX_FILE_BYTES`, unpacked.
        UnavailableError: the Hub cannot be reached.
    """
    path = Path(where)
    if path.is_file():
        _check_size(path)
    return open_rows(where, config=config, split=split, token=token, on_malformed=on_malformed)


def _check_size(path: Path) -> None:
    """Refuses a file that is empty, too large, or too large once it is unpacked."""
    too_large = InputError(
        f"{path} is larger than {MAX_FILE_BYTES / 1e6:.0f} MB; give a part of it."
    )
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty.")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise too_large
        if path.suffix == ".gz":
            size = 0
            with gzip.open(path) as stream:
                while chunk := stream.read(1 << 20):
                    size += len(chunk)
                    if size > MAX_FILE_BYTES:
                        raise too_large
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read; it is damaged or not permitted.") from error


def to_exchange(row: Mapping[str, Any], name: str) -> Exchange:
    """One row as an `Exchange`.

    Args:
        row: In one of the shapes of this module.
        name: What an error calls the row.

    Raises:
        InputError: a field is missing, empty or no text.
    """
    found = conversation_of(row, name, text_of)
    if found is None:
        raise InputError(f"{needed(row, name)}.")
    if found.rejected and not found.taught:
        raise InputError(f"{name} holds a response that is labelled false: it is not to be learnt.")
    roles = [role for role, _ in found.turns]
    if roles not in ONE_EXCHANGE:
        raise InputError(
            f"{name} has the turns {', '.join(roles) or 'none'}; one user turn and one assistant"
            " turn are expected, with an optional system turn before them."
        )
    said = dict(found.turns)
    system = said.get("system") or None
    return Exchange(said["user"], said["assistant"], system, is_complete(row))


def is_complete(row: Mapping[str, Any]) -> bool:
    """Whether a row's response is whole, not the opening of a longer one (`complete` is false)."""
    return str(row.get("complete")).strip().lower() not in ("false", "0")


def needed(row: Mapping[str, Any], name: str) -> str:
    """The fields that a row has and the layouts that are known, for an error."""
    fields = ", ".join(repr(str(field)[:30]) for field in list(row)[:8]) or "none"
    return f"{name} has the fields {fields}; it needs {layout_names()}"


def text_of(value: Any, field: str, name: str, *, may_be_empty: bool = False) -> str:
    """A text from a file, without the space around it.

    Args:
        value: What the file holds.
        field: Where, for an error.
        name: What an error calls the row.
        may_be_empty: Whether it may hold nothing.

    Raises:
        InputError: it is not text, empty, too long, or holds half of a character.
    """
    if not isinstance(value, str) or not (may_be_empty or value.strip()):
        wanted = "text" if may_be_empty else "text that is not empty"
        raise InputError(f"{name}: `{field}` must be {wanted}.")
    if len(value) > MAX_TEXT:
        raise InputError(f"{name}: `{field}` has more than {MAX_TEXT} characters.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{name}: `{field}` holds half of a character.") from error
    return value.strip()


def to_jsonl(exchanges: Iterable[Exchange]) -> str:
    """Exchanges as JSON lines."""
    return "".join(json.dumps(e.to_dict(), ensure_ascii=False) + "\n" for e in exchanges)
