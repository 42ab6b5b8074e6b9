"""Texts that a report names without showing them."""

from __future__ import annotations

import hashlib
from typing import Any

SHOWN_DIGITS = 16


def text_hash(text: str) -> str:
    """sha256 of a text in hexadecimal; lone surrogates count as question marks."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def redact(text: str) -> dict[str, Any]:
    """What stands in a text's place: its length in characters and the begin of its sha256."""
    return {"characters": len(text), "sha256": text_hash(text)[:SHOWN_DIGITS]}
