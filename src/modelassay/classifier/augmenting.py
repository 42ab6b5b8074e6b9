"""Prefixes of answers: a guarded chat judges answers that are not complete yet.

A prefix has the label of its row, so the classifier learns to say early where an answer is going.
Only training rows are multiplied; what scores the classifier stays as it is.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from modelassay.data.exchanges import LabelledExchange

MIN_WORDS = 3
"""Shorter prefixes carry nothing: "Sure, here" opens answers of every kind."""
MAX_WORDS = 120
PREFIXES = 1


def word_prefix(text: str, n_words: int) -> str:
    """The first words of a text, up to the end of word number `n_words`, spacing as it was."""
    for number, word in enumerate(re.finditer(r"\S+", text), 1):
        if number == n_words:
            return text[: word.end()]
    return text


def count_words(text: str) -> int:
    """Number of whitespace-separated words."""
    return len(text.split())


def stream_prefixes(text: str, first: int = 8) -> list[str]:
    """What a guarded chat would ask about: 8, 16, 32, … words, and the whole answer."""
    n_words, prefixes, at = count_words(text), [], first
    while at < n_words:
        prefixes.append(word_prefix(text, at))
        at *= 2
    return [*prefixes, text]


def with_prefixes(
    rows: Sequence[LabelledExchange], seed: int, prefixes: int = PREFIXES
) -> list[LabelledExchange]:
    """Rows, each followed by prefixes of its answer that end with a whole word.

    Lengths are drawn evenly on a logarithmic scale, so that beginnings are as frequent as longer
    parts.

    Args:
        rows: Training rows.
        seed: Of the draw.
        prefixes: Of each answer; answers too short for a proper prefix get none.
    """
    draw = random.Random(seed)  # noqa: S311 (repeatable on purpose)
    grown = []
    for row in rows:
        grown.append(row)
        n_words = min(count_words(row.response), MAX_WORDS + 1)
        if n_words <= MIN_WORDS:
            continue
        lengths = {
            round(MIN_WORDS * (n_words / MIN_WORDS) ** draw.random()) for _ in range(prefixes)
        }
        grown += [
            replace(row, response=word_prefix(row.response, n))
            for n in sorted(lengths)
            if MIN_WORDS <= n < n_words
        ]
    return grown
