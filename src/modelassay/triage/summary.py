"""What a training file holds, in a few numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from modelassay.errors import InputError
from modelassay.measures.refusal_judge import is_refusal
from modelassay.triage.rows import TrainingRow

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
TOKENIZED_AT_ONCE = 1024
MAX_JUDGED = 5000
"""Answers; one takes up to a millisecond."""


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
    n_empty_answers: int
    n_plain: int
    """Rows of plain text, without roles."""
    n_several_turns: int
    """Rows with more than one answer."""
    n_system_prompts: int
    """Different system prompts."""
    n_with_system: int
    n_refusals: int
    """Of the answers that were judged, those that begin as a refusal."""
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
        return {**asdict(self), "duplicate_share": self.duplicate_share}


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
    answers = [sum(role == "assistant" for role, _ in row.turns) for row in rows]
    judged = [row.response for row in rows if row.response]
    judged = judged[:: max(1, -(-len(judged) // MAX_JUDGED))]
    return Summary(
        n_rows=len(rows),
        n_duplicates=len(rows) - len(seen),
        n_prompts=len({row.prompt or row.plain for row in rows}),
        n_empty_answers=sum(not (row.response or row.plain) for row in rows),
        n_plain=sum(bool(row.plain) for row in rows),
        n_several_turns=sum(n > 1 for n in answers),
        n_system_prompts=len(systems),
        n_with_system=systems.total(),
        n_refusals=sum(is_refusal(answer) for answer in judged),
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
