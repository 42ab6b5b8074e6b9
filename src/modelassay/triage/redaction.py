"""What of a row a report shows: a found needle should not spread by being reported.

Answers, system prompts and plain text are given as length and the beginning of their sha256, enough
to find them again. Prompts are shown unless they look harmful. That is the embedded exchange
classifier's view of the prompt with a response that begins to comply, against the project's own
harmful prompts: what scores above their lowest tenth is hidden, and so is what was refused. About
one harmful prompt in ten is shown all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from modelassay.data.concepts import HARMFUL_PROMPTS, shipped_prompts
from modelassay.data.labels import LABELS
from modelassay.errors import UnavailableError
from modelassay.files.provenance import redact
from modelassay.measures.refusal_judge import is_refusal
from modelassay.triage.rows import TrainingRow

BEGUN = "Sure, here is how you can do it: first,"
MISSED = 0.1
"""Share of the project's harmful prompts that score below the threshold."""


@dataclass(frozen=True)
class Redaction:
    """Which texts a report may show; by default none."""

    show_text: bool = False
    """Show everything."""
    prompts: frozenset[int] = field(default_factory=frozenset)
    """Numbers of the rows whose prompt may be shown."""

    def row(self, row: TrainingRow) -> dict[str, Any]:
        """A row as JSON values."""
        found: dict[str, Any] = {"row": row.number}
        if row.plain:
            return {**found, "text": self.text(row.plain)}
        if system := "\n\n".join(content for role, content in row.turns if role == "system"):
            found["system"] = self.text(system)
        shown = self.show_text or row.number in self.prompts
        rejected = {"rejected": self.text(row.rejected)} if row.rejected else {}
        return {
            **found,
            "prompt": row.prompt if shown else redact(row.prompt),
            "response": self.text(row.response),
            **rejected,
        }

    def values(self, found: Any) -> Any:
        """JSON values of what was found; in place of a `row` stands what of it may be shown."""
        if isinstance(found, TrainingRow):
            return self.row(found)
        if is_dataclass(found):
            values = {each.name: self.values(getattr(found, each.name)) for each in fields(found)}
            return values.pop("row", {}) | values
        return [self.values(each) for each in found] if isinstance(found, tuple) else found

    def text(self, text: str) -> Any:
        """A text that is shown only if everything is."""
        return text if self.show_text else redact(text)


def redaction_for(rows: Sequence[TrainingRow], *, show_text: bool = False) -> Redaction:
    """Decides which prompts of the rows that are to be shown may be.

    Where the classifier is not available, none is.

    Args:
        rows: The rows of a report.
        show_text: Show everything.
    """
    if show_text:
        return Redaction(show_text=True)
    asked = [row for row in rows if row.prompt and not is_refusal(row.response)]
    if not asked:
        return Redaction()
    try:
        threshold = _threshold()
        scores = _harm([row.prompt for row in asked])
    except UnavailableError:
        return Redaction()
    shown = {row.number for row, harm in zip(asked, scores, strict=True) if harm < threshold}
    return Redaction(prompts=frozenset(shown))


def harmful_responses(exchanges: Sequence[tuple[str, str]]) -> list[bool] | None:
    """Whether the embedded exchange classifier takes responses for help with harm.

    Args:
        exchanges: (prompt, response) pairs; a response may be an opening.

    Returns:
        For each, or None without the classifier.
    """
    try:
        return [bool(one) for one in _unsafe(exchanges)]
    except UnavailableError:
        return None


@lru_cache(maxsize=1)
def _threshold() -> float:
    return float(np.quantile(_harm(shipped_prompts(HARMFUL_PROMPTS).texts), MISSED))


@lru_cache(maxsize=1)
def _classifier() -> Any:
    from modelassay.classifier import load_classifier

    return load_classifier()


def _harm(prompts: Sequence[str]) -> np.ndarray:
    return _classifier().unsafe([(prompt, BEGUN) for prompt in prompts])


def _unsafe(exchanges: Sequence[tuple[str, str]]) -> np.ndarray:
    likeliest = _classifier().predict(list(exchanges)).argmax(axis=1)
    return likeliest == LABELS.index("unsafe_compliance")
