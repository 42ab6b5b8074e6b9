"""Looking at rows: what a file holds in a few numbers, a sample, and a search that cannot hang.

Patterns run on RE2, whose time grows with the length of the text and not with the number of ways to
match it, and whose memory has a bound; a backtracking engine can take minutes over a row of thirty
characters, or gigabytes to compile `((a{50}){50}){50}`. In return RE2 knows no look-around and no
back-references.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from modelassay.errors import InputError, first_line
from modelassay.measures.refusal_judge import is_refusal
from modelassay.report.json import published
from modelassay.triage.rows import TrainingRow

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
TOKENIZED_AT_ONCE = 1024
MAX_JUDGED = 5000
"""Answers; one takes up to a millisecond."""
Field = Literal["text", "prompt", "response"]
FIELDS: tuple[Field, ...] = get_args(Field)
MAX_PATTERN = 1000  # characters
MAX_MATCHES = 1000  # rows that a search returns
REGEX_MEMORY = 8 << 20  # bytes, of one pattern
SECONDS = 60.0  # a search over all rows


@dataclass(frozen=True)
class Lengths:
    """How long texts are."""

    total: int
    mean: float
    quantiles: dict[str, float]
    """Smallest (0.0), quartiles, 5% from each end, largest (1.0)."""

    @staticmethod
    def of(lengths: Sequence[int]) -> Lengths:
        """Of a list that is not empty."""
        values = np.asarray(lengths)
        found = np.quantile(values, QUANTILES)
        return Lengths(
            int(values.sum()),
            float(values.mean()),
            {str(q): float(v) for q, v in zip(QUANTILES, found, strict=True)},
        )


@dataclass(frozen=True)
class Summary:
    """Counts and lengths of a training file's rows."""

    n_rows: int
    n_duplicates: int
    """Rows that repeat an earlier one word for word."""
    n_prompts: int
    """Different prompts."""
    n_empty_responses: int
    n_plain: int
    """Rows of plain text, without roles."""
    n_several_turns: int
    """Rows with more than one response."""
    n_system_prompts: int
    """Different system prompts."""
    n_with_system: int
    n_refusals: int
    """Of the responses that were judged, those that begin as a refusal."""
    n_judged: int
    """Answers that were judged: all, or `MAX_JUDGED` of them, evenly spread."""
    prompt_characters: Lengths
    response_characters: Lengths
    """Of plain text, the text."""
    tokens: Lengths | None
    """Of whole rows; None without a tokenizer."""

    @property
    def duplicate_share(self) -> float:
        """Of the rows, 0 … 1."""
        return self.n_duplicates / self.n_rows

    def to_dict(self) -> dict[str, Any]:
        """All fields by name."""
        values = published(asdict(self), n_empty_responses="n_empty_answers")
        return {**values, "duplicate_share": self.duplicate_share}


def summarize(rows: Sequence[TrainingRow], tokenizer: Any = None) -> Summary:
    """Counts rows and measures them.

    Args:
        rows: At least one.
        tokenizer: Of the model that is trained; without it, no tokens are counted.

    Raises:
        InputError: there are no rows.
    """
    if not rows:
        raise InputError("There are no rows to look at.")
    seen = Counter(row.text for row in rows)
    systems = Counter(content for row in rows for role, content in row.turns if role == "system")
    responses = [sum(role == "assistant" for role, _ in row.turns) for row in rows]
    judged = [row.response for row in rows if row.response]
    judged = judged[:: max(1, -(-len(judged) // MAX_JUDGED))]
    return Summary(
        n_rows=len(rows),
        n_duplicates=len(rows) - len(seen),
        n_prompts=len({row.prompt or row.plain for row in rows}),
        n_empty_responses=sum(not (row.response or row.plain or row.rejected) for row in rows),
        n_plain=sum(bool(row.plain) for row in rows),
        n_several_turns=sum(n > 1 for n in responses),
        n_system_prompts=len(systems),
        n_with_system=systems.total(),
        n_refusals=sum(is_refusal(response) for response in judged),
        n_judged=len(judged),
        prompt_characters=Lengths.of([len(row.prompt) for row in rows]),
        response_characters=Lengths.of([len(row.response or row.plain) for row in rows]),
        tokens=None if tokenizer is None else Lengths.of(_token_counts(rows, tokenizer)),
    )


def _token_counts(rows: Sequence[TrainingRow], tokenizer: Any) -> list[int]:
    counts: list[int] = []
    for start in range(0, len(rows), TOKENIZED_AT_ONCE):
        texts = [row.text for row in rows[start : start + TOKENIZED_AT_ONCE]]
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        counts += [len(each) for each in ids]
    return counts


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
    compiled = compile_search(pattern, field, ignore_case=ignore_case, limit=limit)
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


def compile_search(pattern: str, field: str, *, ignore_case: bool, limit: int) -> Any:
    """A pattern for RE2; arguments and errors: `search`."""
    import re2

    check_field(field)
    if not 1 <= limit <= MAX_MATCHES:
        raise InputError(f"A search returns 1 to {MAX_MATCHES} rows, got {limit}.")
    if not pattern or len(pattern) > MAX_PATTERN:
        raise InputError(f"A pattern has 1 to {MAX_PATTERN} characters, got {len(pattern)}.")
    options = re2.Options()
    options.case_sensitive = not ignore_case
    options.log_errors = False
    options.max_mem = REGEX_MEMORY
    try:
        return re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError) as error:
        raise InputError(f"{pattern[:80]!r} is not a pattern for RE2: {_said(error)}") from error


def check_field(field: str) -> None:
    """Refuses a field that no row has.

    Raises:
        InputError: names those that there are.
    """
    if field not in FIELDS:
        raise InputError(f"The field to search is {', '.join(FIELDS)}, not {str(field)[:40]!r}.")


def _said(error: Exception) -> str:
    """RE2's own words, which come as bytes."""
    said = error.args[0] if error.args else ""
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else first_line(error)
