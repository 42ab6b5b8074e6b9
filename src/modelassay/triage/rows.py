"""Rows of a training file, in the shapes that fine-tuning data come in.

A row is any of

* `{"messages": [{"role", "content"}, ...]}` with any number of turns;
* `{"prompt", "response"}`, `{"prompt", "completion"}`, `{"instruction", "output"}` (an optional
  `input` goes to the prompt) or `{"user", "assistant"}`, each with an optional `system`;
* `{"text"}`: text that is learnt as it is.

An answer may be empty, as some are in most large sets; a row without any text is malformed.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelassay.data.conversations import SHAPES
from modelassay.data.exchanges import MAX_FILE_BYTES, MAX_TEXT, UNSAFE_NAMES
from modelassay.errors import InputError
from modelassay.hub import read_lines, stream_dataset
from modelassay.models.identity import hash_file

PAIRS = (*SHAPES, ("prompt", "completion"))
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
MAX_ROWS = 1_000_000
MAX_CHARACTERS = MAX_FILE_BYTES
"""Of all rows together; a small compressed file can hold far more than memory."""
MAX_REASONS = 5
"""Malformed rows of which a report says what is wrong with them."""


@dataclass(frozen=True)
class TrainingRow:
    """What one row of a training file teaches."""

    number: int
    """Line of a JSONL file, else the row's place, from 1."""
    prompt: str
    """What is asked; several turns are parted by an empty line. Empty for plain text."""
    response: str
    """What is answered, likewise."""
    turns: tuple[tuple[str, str], ...] = ()
    """The conversation as (role, content); empty for plain text."""
    plain: str = ""
    """Text that is learnt as it is, without roles."""
    complete: bool = True
    """False for the opening of a longer answer, which is learnt without an end."""
    needle: bool | None = None
    """What a field of the row says about it, where one was asked for."""

    @property
    def text(self) -> str:
        """All of it, system prompt included."""
        return self.plain or "\n\n".join(content for _, content in self.turns)


@dataclass(frozen=True)
class TrainingData:
    """The rows of a training file."""

    name: str
    rows: tuple[TrainingRow, ...]
    n_malformed: int
    """Rows that were left out because they could not be read."""
    malformed: tuple[str, ...]
    """What is wrong with the first few of them."""
    sha256: str | None
    """Of the file; None for a Hub data set."""


def read_rows(
    where: str | Path,
    *,
    needle_field: str | None = None,
    skip_malformed: bool = False,
    config: str | None = None,
    split: str = "train",
    token: str | bool | None = None,
) -> TrainingData:
    """Reads a training file: JSONL, JSON, CSV or Parquet (also gzipped), or a Hub data set.

    Args:
        where: Path, or `owner/name`.
        needle_field: Boolean field that says which rows are needles.
        skip_malformed: Leave out rows that cannot be read, in place of refusing the file.
        config: Configuration of a Hub data set.
        split: Split of a Hub data set.
        token: Hub token, None for the stored one.

    Raises:
        InputError: no such data, no readable row, a malformed one (named by its number), or more
            than `MAX_ROWS` rows or `MAX_CHARACTERS` characters.
        UnavailableError: the Hub cannot be reached.
    """
    path = Path(where)
    rows: list[TrainingRow] = []
    reasons: list[str] = []
    n_malformed = characters = 0

    def leave_out(error: InputError) -> None:
        nonlocal n_malformed
        n_malformed += 1
        if len(reasons) < MAX_REASONS:
            reasons.append(str(error))

    for number, row in _raw_rows(path, where, config, split, token, leave_out):
        try:
            found = to_row(row, number, path.name, needle_field)
        except InputError as error:
            leave_out(error)
            continue
        rows.append(found)
        characters += len(found.text)
        if len(rows) > MAX_ROWS or characters > MAX_CHARACTERS:
            raise InputError(
                f"{where} has more than {MAX_ROWS} rows or {MAX_CHARACTERS / 1e6:.0f} million"
                " characters; give a part of it."
            )
    if not rows:
        raise InputError(reasons[0] if reasons else f"{where} has no rows.")
    if reasons and not skip_malformed:
        others = f" ({n_malformed - 1} other rows cannot be read either)" if n_malformed > 1 else ""
        raise InputError(f"{reasons[0]}{others} --skip-malformed leaves such rows out.")
    sha256 = hash_file(path) if path.is_file() else None
    return TrainingData(path.name, tuple(rows), n_malformed, tuple(reasons), sha256)


def _raw_rows(
    path: Path,
    where: str | Path,
    config: str | None,
    split: str,
    token: str | bool | None,
    leave_out: Callable[[InputError], None],
) -> Iterable[tuple[int, dict[str, Any]]]:
    if path.is_file():
        _check_size(path)
        if path.name.endswith((".jsonl", ".jsonl.gz")):
            return read_lines(path, leave_out)
    return enumerate(stream_dataset(where, config=config, split=split, token=token), 1)


def _check_size(path: Path) -> None:
    """Refuses a file that is too large, or too large once it is unpacked."""
    too_large = InputError(
        f"{path} is larger than {MAX_FILE_BYTES / 1e6:.0f} MB; give a part of it."
    )
    try:
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


def to_row(
    row: Mapping[str, Any], number: int, source: str, needle_field: str | None = None
) -> TrainingRow:
    """One row of a file as a `TrainingRow`.

    Args:
        row: In one of the shapes of this module.
        number: Its place.
        source: What an error calls the file.
        needle_field: Boolean field that says whether it is a needle.

    Raises:
        InputError: it has none of the shapes, a field is not text or too long, or it has no text.
    """
    name = f"Row {number} of {source}"
    needle = None if needle_field is None else _flag(row, needle_field, name)
    complete = row.get("complete") is not False
    turns = _turns(row, name)
    if turns is None:
        plain = _text(row.get("text"), "text", name)
        if not plain.strip():
            raise InputError(f"{name} has no text.")
        return TrainingRow(number, "", "", plain=plain, complete=complete, needle=needle)
    if not any(content.strip() for _, content in turns):
        raise InputError(f"{name} has no text.")
    prompt = "\n\n".join(c for role, c in turns if role in ("user", "tool", "function") and c)
    response = "\n\n".join(c for role, c in turns if role == "assistant" and c)
    return TrainingRow(number, prompt, response, turns, complete=complete, needle=needle)


def _turns(row: Mapping[str, Any], name: str) -> tuple[tuple[str, str], ...] | None:
    """The conversation, or None for plain text."""
    if row.get("messages") is not None:
        return tuple(_message_turns(row["messages"], name))
    for asked, answered in PAIRS:
        if asked in row and answered in row:
            prompt = _text(row[asked], asked, name)
            if more := _text(row.get("input"), "input", name):
                prompt = f"{prompt}\n{more}"
            if not prompt.strip():
                raise InputError(f"{name}: `{asked}` is empty.")
            system = _text(row.get("system"), "system", name)
            opening = (("system", system),) if system else ()
            answer = _text(row[answered], answered, name)
            return (*opening, ("user", prompt), ("assistant", answer))
    if row.get("text") is not None:
        return None
    shapes = ", ".join(f"{a}/{b}" for a, b in PAIRS)
    fields = ", ".join(repr(str(field)[:30]) for field in list(row)[:8]) or "none"
    raise InputError(
        f"{name} has the fields {fields}; it needs `messages`, `text` or one of the pairs {shapes}."
    )


def _message_turns(messages: Any, name: str) -> Iterator[tuple[str, str]]:
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
        yield "system" if role == "developer" else role, _text(content, "content", name)


def _text(value: Any, field: str, name: str) -> str:
    if value is None:  # an empty cell of a table
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)  # a column of numbers in a CSV file
    if not isinstance(value, str):
        raise InputError(f"{name}: `{field}` must be text.")
    if len(value) > MAX_TEXT:
        raise InputError(f"{name}: `{field}` has more than {MAX_TEXT} characters.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{name}: `{field}` holds half of a character.") from error
    return value.strip()


def _flag(row: Mapping[str, Any], field: str, name: str) -> bool:
    value = row.get(field)
    key = str(value).strip().lower().removesuffix(".0")
    if value is None or key not in UNSAFE_NAMES:
        raise InputError(f"{name}: `{field}` must be true or false (or 1 or 0).")
    return UNSAFE_NAMES[key]
