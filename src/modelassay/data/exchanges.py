"""Exchanges: a prompt and its response, read from files or Hub data sets in the usual shapes.

A row is any of

* `{"messages": [{"role", "content"}, ...]}`;
* `{"prompt", "response"}`, `{"prompt", "completion"}`, `{"instruction", "output"}` (an optional
  `input` goes to the prompt) or `{"user", "assistant"}`, each with an optional `system`.

An `Exchange` has one user turn and one response, after an optional system turn.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modelassay.errors import InputError
from modelassay.hub import read_dataset, read_lines

SHAPES = (
    ("prompt", "response"),
    ("instruction", "output"),
    ("user", "assistant"),
    ("prompt", "completion"),
)
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
ONE_EXCHANGE = (["user", "assistant"], ["system", "user", "assistant"])
MAX_FILE_BYTES = 200_000_000
MAX_TEXT = 200_000  # characters
Turn = tuple[str, str]
"""Role and content; developers' turns count as the system's."""


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
    open_table: Callable[..., Iterable[dict[str, Any]]] = read_dataset,
    on_malformed: Callable[[InputError], None] | None = None,
) -> Iterable[tuple[int, dict[str, Any]]]:
    """Rows of a JSON, JSONL, CSV or Parquet file or a Hub data set, with their numbers.

    Args:
        where: Path, or `owner/name`.
        config: Configuration of a Hub data set.
        split: Split of a Hub data set.
        token: Hub token, None for the stored one.
        open_table: Reads all but JSON lines; of the form of `read_dataset`.
        on_malformed: As in `read_lines`.

    Raises:
        InputError: no such data, a malformed line, or more than `MAX_FILE_BYTES`, unpacked.
        UnavailableError: the Hub cannot be reached.
    """
    path = Path(where)
    if path.is_file():
        _check_size(path)
        if path.name.endswith((".jsonl", ".jsonl.gz")):
            return read_lines(path, on_malformed)
    return enumerate(open_table(where, config=config, split=split, token=token), 1)


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
    except (OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read; it is damaged or not permitted.") from error


def to_exchange(row: Mapping[str, Any], name: str) -> Exchange:
    """One row as an `Exchange`.

    Args:
        row: In one of the shapes of this module.
        name: What an error calls the row.

    Raises:
        InputError: a field is missing, empty or no text.
    """
    turns = turns_of(row, name, text_of)
    if turns is None:
        raise InputError(f"{name} has neither `messages` nor a pair of fields {shape_names()}.")
    roles = [role for role, _ in turns]
    if roles not in ONE_EXCHANGE:
        raise InputError(
            f"{name} has the turns {', '.join(roles) or 'none'}; one user turn and one assistant"
            " turn are expected, with an optional system turn before them."
        )
    said = dict(turns)
    complete = row.get("complete") is not False
    return Exchange(said["user"], said["assistant"], said.get("system") or None, complete)


def shape_names() -> str:
    """The pairs of fields that a row may have, for an error."""
    return ", ".join(f"{asked}/{answered}" for asked, answered in SHAPES)


def turns_of(
    row: Mapping[str, Any], name: str, read: Callable[[Any, str, str], str]
) -> tuple[Turn, ...] | None:
    """The turns of a row in one of the shapes of this module, or None if it has none of them.

    Args:
        row: Of a file.
        name: What an error calls the row.
        read: Checks a text, given its field and the row's name, as `text_of` does.

    Raises:
        InputError: a field is of the wrong kind, or the prompt of a pair is empty.
    """
    if row.get("messages") is not None:
        return tuple(_message_turns(row["messages"], name, read))
    for asked, answered in SHAPES:
        if asked not in row or answered not in row:
            continue
        prompt = read(row[asked], asked, name)
        if more := _optional(row.get("input"), "input", name, read):
            prompt = f"{prompt}\n{more}"
        if not prompt:
            raise InputError(f"{name}: `{asked}` is empty.")
        system = _optional(row.get("system"), "system", name, read)
        opening = (("system", system),) if system else ()
        return (*opening, ("user", prompt), ("assistant", read(row[answered], answered, name)))
    return None


def _message_turns(
    messages: Any, name: str, read: Callable[[Any, str, str], str]
) -> Iterator[Turn]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InputError(f"{name}: `messages` must be a list of role and content.")
    for message in messages:
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ROLES:
            raise InputError(f"{name}: the role of a message must be one of {', '.join(ROLES)}.")
        content = message.get("content")
        if isinstance(content, list):  # parts, of which the text is read
            parts = [part.get("text") for part in content if isinstance(part, Mapping)]
            content = "\n".join(part for part in parts if isinstance(part, str))
        if role in ("system", "developer"):
            yield "system", _optional(content, "content", name, read)
        else:
            yield role, read(content, "content", name)


def _optional(value: Any, field: str, name: str, read: Callable[[Any, str, str], str]) -> str:
    return read(value, field, name) if value is not None and value != "" else ""


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
