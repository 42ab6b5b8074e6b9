"""Looking at rows: a sample, and a search by regular expression that cannot hang.

Patterns run on RE2, whose time grows with the length of the text and not with the number of ways to
match it, and whose memory has a bound; a backtracking engine can take minutes over a row of thirty
characters, or gigabytes to compile `((a{50}){50}){50}`. In return RE2 knows no look-around and no
back-references.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from modelassay.errors import InputError, first_line
from modelassay.triage.rows import TrainingRow

Field = Literal["text", "prompt", "response"]
FIELDS: tuple[Field, ...] = get_args(Field)
MAX_PATTERN = 1000  # characters
MAX_MATCHES = 1000  # rows that a search returns
REGEX_MEMORY = 8 << 20  # bytes, of one pattern
SECONDS = 60.0  # a search over all rows


@dataclass(frozen=True)
class Match:
    """A row that a pattern was found in, and the first place."""

    row: TrainingRow
    start: int
    """Characters into the field that was searched."""
    end: int


@dataclass(frozen=True)
class SearchResult:
    """Rows that a pattern was found in."""

    pattern: str
    field: Field
    matches: tuple[Match, ...]
    """In the order of the file; at most `limit` of them."""
    n_matches: int
    """All rows that match, of those that were searched."""
    n_searched: int
    """Fewer than there are if the search ran out of time."""
    n_rows: int


def sample(rows: Sequence[TrainingRow], n: int, seed: int = 0) -> list[TrainingRow]:
    """Draws rows without repetition, in the order of the file.

    Args:
        rows: What to draw from.
        n: How many; all of them if there are fewer.
        seed: Of the draw; the same seed draws the same rows.

    Raises:
        InputError: n is below 1.
    """
    if n < 1:
        raise InputError(f"A sample has at least one row, got {n}.")
    draw = random.Random(seed)  # noqa: S311 (repeatable on purpose)
    chosen = sorted(draw.sample(range(len(rows)), min(n, len(rows))))
    return [rows[i] for i in chosen]


def search(
    rows: Sequence[TrainingRow],
    pattern: str,
    field: Field = "text",
    *,
    ignore_case: bool = False,
    limit: int = 100,
    seconds: float = SECONDS,
) -> SearchResult:
    """Finds rows by a regular expression, in RE2's syntax.

    Args:
        rows: Where to search.
        pattern: At most `MAX_PATTERN` characters.
        field: `text` is all of a row, system prompt included.
        ignore_case: Upper and lower case count as one.
        limit: Rows to return, at most `MAX_MATCHES`; all are counted.
        seconds: Time after which it stops, and says how far it came.

    Raises:
        InputError: the pattern is empty, too long or not valid, or an option is unknown.
    """
    import re2

    if field not in FIELDS:
        raise InputError(f"The field to search is {', '.join(FIELDS)}, not {str(field)[:40]!r}.")
    if not 1 <= limit <= MAX_MATCHES:
        raise InputError(f"A search returns 1 to {MAX_MATCHES} rows, got {limit}.")
    if not pattern or len(pattern) > MAX_PATTERN:
        raise InputError(f"A pattern has 1 to {MAX_PATTERN} characters, got {len(pattern)}.")
    options = re2.Options()
    options.case_sensitive = not ignore_case
    options.log_errors = False
    options.max_mem = REGEX_MEMORY
    try:
        compiled = re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError) as error:
        raise InputError(f"{pattern[:80]!r} is no pattern for RE2: {_said(error)}") from error
    found: list[Match] = []
    n_matches = n_searched = 0
    end = time.monotonic() + seconds
    for row in rows:
        if time.monotonic() > end:
            break
        n_searched += 1
        if match := compiled.search(getattr(row, field)):
            n_matches += 1
            if len(found) < limit:
                found.append(Match(row, *match.span()))
    return SearchResult(pattern, field, tuple(found), n_matches, n_searched, len(rows))


def _said(error: Exception) -> str:
    """RE2's own words, which come as bytes."""
    said = error.args[0] if error.args else ""
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else first_line(error)
