"""Which prompts something was trained on: short hashes in its record, so that none is scored again.

A record keeps no text. Ten hexadecimal digits of a hash tell a prompt from all others that a person
is likely to bring (one in 10^12), and say nothing of it to who does not have it. Prompts count as
equal whatever their case and spacing; one that was reworded is not recognised.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from modelassay.data.labelled import LabelledExchange, data_hash
from modelassay.data.wording import plain_words
from modelassay.errors import InputError
from modelassay.files.provenance import text_hash

DIGITS = 10
MAX_LENGTH = 5_000_000
"""Characters of all fingerprints of a record together."""


@dataclass(frozen=True)
class Unseen:
    """Rows that are left to score something on."""

    rows: tuple[int, ...]
    """Their places in the data."""
    n_seen: int | None
    """Rows that were left out; None where the record does not say what was seen."""

    def require(self, what: str, show: str) -> None:
        """Refuses data of which nothing is left.

        Args:
            what: What was trained, for the error.
            show: The command that shows its own scores.

        Raises:
            InputError: every row was seen.
        """
        if not self.rows:
            raise InputError(
                f"All {self.n_seen} rows are of prompts that {what} was trained on, so they do not"
                f" tell how good it is; `{show}` has its scores on held-out prompts."
            )


def fingerprints(texts: Iterable[str]) -> str:
    """The fingerprints of texts, in one string and in no order that tells theirs."""
    return "".join(sorted({_fingerprint(text) for text in texts}))


def unseen(rows: Sequence[LabelledExchange], known: object, hashes: Iterable[object]) -> Unseen:
    """The rows that something was not trained on.

    Args:
        rows: Labelled exchanges; one whose prompt was seen counts as seen, whatever the response.
        known: `fingerprints` of a record, which may be a stranger's; None of an older one, which
            has only
        hashes: Hashes of whole data (`data_hash`): equal data were seen, others may have been.
    """
    everything = tuple(range(len(rows)))
    if isinstance(known, str) and re.fullmatch(f"([0-9a-f]{{{DIGITS}}})*", known):
        seen = {known[i : i + DIGITS] for i in range(0, len(known), DIGITS)}
        left = tuple(
            i
            for i, row in enumerate(rows)
            # Rows without a prompt are known by their response.
            if not seen & {_fingerprint(row.prompt), _fingerprint(row.response)}
        )
        return Unseen(left, len(rows) - len(left))
    if data_hash(rows) in set(hashes):
        return Unseen((), len(rows))
    return Unseen(everything, None)


def told(n_seen: int | None) -> str:
    """How many rows were left out, for a reader."""
    if n_seen is None:
        return "unknown: the record does not say which prompts it was trained on"
    return f"{n_seen} of prompts that it was trained on" if n_seen else "none"


def drawn(drawn_from: int | None) -> str:
    """That rows were drawn from so many, for a reader, to go behind what was said of them."""
    return f"; drawn from {drawn_from} rows" if drawn_from else ""


def _fingerprint(text: str) -> str:
    return text_hash(plain_words(text)[:2000])[:DIGITS]
