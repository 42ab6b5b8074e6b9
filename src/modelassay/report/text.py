"""Numbers and strangers' texts as a report writes them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby


def plain_line(text: str) -> str:
    r"""Text on one line with everything that does not print written out (`\n`).

    Tokens, labels and ids come from strangers' files; nothing in them can then steer a terminal or
    break a line.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def quoted(tokens: Sequence[str]) -> str:
    """Tokens in quotation marks, which show their spaces."""
    return " ".join(f"“{token}”" for token in tokens)


def cut(text: str, most: int) -> str:
    """The first characters of a text that is longer than `most`, with an ellipsis."""
    return text if len(text) <= most else text[: most - 1] + "…"


def counted(n: int, noun: str) -> str:
    """A number with its noun, as in `1 row` and `3 rows`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def with_interval(
    value: float, interval: Sequence[float], spec: str = ".1%", *, unit: str = ""
) -> str:
    """A number with its interval, as in `81% (70% to 90%)`.

    Args:
        value: The number.
        interval: Its ends.
        spec: Format of all three.
        unit: Stands behind the number alone.
    """
    low, high = interval
    return f"{value:{spec}}{unit} ({low:{spec}} to {high:{spec}})"


def p_text(value: float) -> str:
    """A p-value or q-value."""
    return f"{value:.3f}" if value >= 0.001 else "<.001"


def share_text(value: float | None) -> str:
    """A share in percent; None where there was too little to count."""
    return "too few rows to tell" if value is None else f"{value:.1%}"


def number_runs(numbers: Sequence[int], to: str) -> list[str]:
    """Rising numbers with those that follow each other joined, as in `3` and `5 to 9`."""
    runs = groupby(enumerate(numbers), key=lambda item: item[1] - item[0])
    ends = [(run[0][1], run[-1][1]) for run in (list(items) for _, items in runs)]
    return [str(first) if first == last else f"{first}{to}{last}" for first, last in ends]
