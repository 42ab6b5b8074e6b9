"""Rows of a training file, in the shapes that fine-tuning data come in.

A row has one of the layouts of `data.layouts`, with any number of turns, or is `{"text"}`: text
that is learnt as it is.

A response may be empty, as some are in most large sets; a row without any text is malformed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelassay.data.exchanges import MAX_FILE_BYTES, is_complete, needed, numbered_rows, text_of
from modelassay.data.labels import UNSAFE_NAMES
from modelassay.data.layouts import conversation_of, joined
from modelassay.data.messages import written
from modelassay.errors import InputError
from modelassay.models.identity import hash_file
from modelassay.report.text import counted

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
    """What is answered and learnt, likewise; empty if the row only says what is not wanted."""
    turns: tuple[tuple[str, str], ...] = ()
    """The conversation as (role, content); empty for plain text."""
    plain: str = ""
    """Text that is learnt as it is, without roles."""
    rejected: str = ""
    """What training moves away from: the rejected side of a preference, or a response that is
    labelled as undesired."""
    untaught: frozenset[int] = frozenset()
    """Turns of the assistant that are read and not learnt, by their place among the turns."""
    complete: bool = True
    """False for the opening of a longer response, which is learnt without an end."""
    tools: str = ""
    """What the row says of the tools that may be called, as JSON."""
    needle: bool | None = None
    """What a field of the row says about it, where one was asked for."""

    @property
    def text(self) -> str:
        """All of it; system prompt, tools and what is rejected included."""
        said = [content for _, content in self.turns]
        more = [each for each in (self.rejected, self.tools) if each]
        return self.plain or "\n\n".join([*said, *more])


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
    token: str | bool | None = None,
) -> TrainingData:
    """Reads a training file: JSONL, JSON, CSV or Parquet (also gzipped), or a Hub data set.

    Args:
        where: Path, or `owner/name`.
        needle_field: Boolean field that says which rows are needles.
        skip_malformed: Leave out rows that cannot be read, in place of refusing the file.
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

    numbered = numbered_rows(where, token=token, on_malformed=leave_out)
    for number, row in numbered:
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
        more = counted(n_malformed - 1, "other row")
        others = f" ({more} cannot be read either)" if n_malformed > 1 else ""
        raise InputError(f"{reasons[0]}{others} --skip-malformed leaves such rows out.")
    sha256 = hash_file(path) if path.is_file() else None
    return TrainingData(path.name, tuple(rows), n_malformed, tuple(reasons), sha256)


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
    complete = is_complete(row)
    if needle_field is not None:  # so it is no label of the data's own
        row = {field: value for field, value in row.items() if field != needle_field}
    said = conversation_of(row, name, _text)
    if said is None:
        plain = _text(row.get("text"), "text", name)
        if row.get("text") is None:
            raise InputError(f"{needed(row, name)}, or `text`.")
        if not plain:
            raise InputError(f"{name} has no text.")
        return TrainingRow(number, "", "", plain=plain, complete=complete, needle=needle)
    rejected = joined(content for _, content in said.rejected)
    if not (rejected or any(content for _, content in said.turns)):
        raise InputError(f"{name} has no text.")
    return TrainingRow(
        number,
        said.said_by("user", "tool"),
        said.taught,
        said.turns,
        complete=complete,
        rejected=rejected,
        untaught=said.untaught,
        tools=_text(written(row.get("tools")), "tools", name),
        needle=needle,
    )


def _text(value: Any, field: str, name: str) -> str:
    if value is None:  # an empty cell of a table
        return ""
    if isinstance(value, bool):
        value = json.dumps(value)
    elif isinstance(value, int | float):
        value = str(value)  # of JSON, as it is written
    return text_of(value, field, name, may_be_empty=True)


def _flag(row: Mapping[str, Any], field: str, name: str) -> bool:
    value = row.get(field)
    key = str(value).strip().lower().removesuffix(".0")
    if value is None or key not in UNSAFE_NAMES:
        raise InputError(f"{name}: `{field}` must be true or false (or 1 or 0).")
    return UNSAFE_NAMES[key]
