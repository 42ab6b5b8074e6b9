"""Which texts count as equal: those of the same words, whatever their case and spacing."""

from __future__ import annotations


def plain_words(text: str) -> str:
    """A text that all equal ones share."""
    return " ".join(text.lower().split())
